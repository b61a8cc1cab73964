"""A PostgreSQL server of a test's own: a new cluster in a folder, reached by a socket there, gone at the end."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest


class PostgresServer:
    """A running server."""

    def __init__(self, programs: Path, folder: Path, *, dress: tuple[str, ...]) -> None:
        self._programs = programs
        self._folder = folder
        self._dress = dress

    def uri(self, database: str) -> str:
        """How one of its databases is reached, with a password that nothing may show."""
        return f"postgresql://tester:s3cret@/{database}?host={quote(str(self._folder), safe='')}"

    def call(self, program: str, *arguments: str) -> None:
        """Run one of PostgreSQL's programs as the server's user; what goes wrong is shown."""
        finished = subprocess.run(
            [*self._dress, str(self._programs / program), *arguments],
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=(self._folder / "log").open("a"),  # No pipe: the server would hold its end.
            stderr=subprocess.STDOUT,
            check=False,
        )
        assert finished.returncode == 0, (self._folder / "log").read_text()

    def sql(self, statement: str, *, database: str = "postgres") -> None:
        """Run one statement as the database's owner."""
        self.call("psql", "-qX", "-v", "ON_ERROR_STOP=1", "-c", statement, self.uri(database))

    def start(self) -> None:
        """Let it answer."""
        options = f"-k {self._folder} -c listen_addresses='' -c fsync=off"
        self.call("pg_ctl", "-D", str(self._folder / "data"), "-w", "-s", "-o", options, "start")

    def stop(self) -> None:
        """Let it fall over, as in a crash."""
        self.call("pg_ctl", "-D", str(self._folder / "data"), "-w", "-s", "-m", "immediate", "stop")


@contextmanager
def running_postgres() -> Iterator[PostgresServer]:
    """A server; the test is skipped where PostgreSQL's programs are not there, or not for us."""
    found = shutil.which("pg_ctl") or next(
        (str(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), reverse=True)), None
    )
    if found is None:
        pytest.skip("no PostgreSQL server here: install Debian's `postgresql`")
    folder = Path(tempfile.mkdtemp(prefix="twotower-pg-"))
    dress: tuple[str, ...] = ()
    if os.getuid() == 0:  # It refuses to run as root.
        user = pwd.getpwnam("nobody")
        os.chown(folder, user.pw_uid, user.pw_gid)
        dress = ("setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups")
    server = PostgresServer(Path(found).resolve().parent, folder, dress=dress)
    try:
        server.call("initdb", "-D", str(folder / "data"), "-U", "tester", "-A", "trust", "-E", "UTF8", "-N")
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
