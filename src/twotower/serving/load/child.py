"""A real server on this machine, in a process and on cores of its own: what is measured on it is what users get."""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from twotower.errors import ArtifactError

READY_WITHIN_S = 120.0
ENDS_WITHIN_S = 30.0
READY = re.compile(r"^Serving (\S+) on (http://\S+?)\.?$", re.MULTILINE)
"""What the server says on stderr once it can be asked."""
LAST_WORDS = 500
"""Characters of what a server said that are told when it did not start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """A server that answers."""

    process: "subprocess.Popen[bytes]"
    url: str
    bundle_id: str
    ready_seconds: float
    """From the start of the process until it said that it can be asked."""
    log: Path
    """All that it has said."""

    def resident_mb(self) -> float:
        """Memory held, in MiB, files that it has mapped among it; NaN where this machine does not tell."""
        return resident_mb(self.process.pid)

    def unshared_mb(self) -> float:
        """Memory held without what is mapped from files, in MiB: what a leak would add to."""
        return resident_mb(self.process.pid, line="RssAnon")


@contextmanager
def serving(bundle: Path | str, *options: str, cores: set[int] | None = None) -> Iterator[Child]:
    """`twotower serve BUNDLE --port 0` on loopback, with further options; it is ended with the block.

    Args:
        bundle: What to serve.
        options: As on the command line.
        cores: Where it may run; by default, and where cores cannot be chosen, anywhere.

    Raises:
        ArtifactError: it does not start; the message has its last words.
    """
    command = [sys.executable, "-m", "twotower", "serve", str(bundle), "--host", "127.0.0.1", "--port", "0", *options]
    # A key in our own environment is for the real server; this one listens to this machine alone.
    environment = {name: value for name, value in os.environ.items() if name != "TWOTOWER_API_KEY"}
    with tempfile.TemporaryDirectory(prefix="twotower-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "stderr"
        with path.open("wb") as told:
            started = time.monotonic()
            process = _start(command, told, environment=environment, cores=cores)
            try:
                ready = _wait_until_ready(process, path, bundle=str(bundle))
                seconds = time.monotonic() - started
                yield Child(process=process, url=ready[2], bundle_id=ready[1], ready_seconds=seconds, log=path)
            finally:
                _end(process)


def cores_apart() -> tuple[set[int], set[int]] | None:
    """Cores for a server and one for its client, so that neither takes the other's time; None where that cannot be."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    ours = sorted(os.sched_getaffinity(0))
    return (set(ours[:-1]), {ours[-1]}) if len(ours) > 1 else None


@contextmanager
def on_cores(cores: set[int] | None) -> Iterator[None]:
    """This thread, and what it starts, on the cores given for as long as the block lasts; None changes nothing."""
    if cores is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def resident_mb(pid: int, *, line: str = "VmRSS") -> float:
    """Memory that a process holds, in MiB, by the named line of Linux's account of it; elsewhere by `ps`."""
    status = Path(f"/proc/{pid}/status")
    if status.is_file():
        found = re.search(rf"^{line}:\s+(\d+) kB", status.read_text(encoding="utf-8"), re.MULTILINE)
        return int(found[1]) / 1024 if found else float("nan")
    try:
        told = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False)
    except OSError:
        return float("nan")
    return int(told.stdout) / 1024 if told.stdout.strip() else float("nan")


def _start(
    command: list[str], told: IO[bytes], *, environment: dict[str, str], cores: set[int] | None
) -> "subprocess.Popen[bytes]":
    # A child begins on its parent's cores: libraries that count them at their start count the right ones.
    with on_cores(cores):
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=told, stderr=told, env=environment)


def _wait_until_ready(process: "subprocess.Popen[bytes]", told: Path, *, bundle: str) -> re.Match[str]:
    end = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < end and process.poll() is None:
        if found := READY.search(told.read_text(encoding="utf-8", errors="replace")):
            return found
        time.sleep(0.01)
    words = told.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["it said nothing"]
    ended = f"ended with code {process.returncode}" if process.poll() is not None else "is not ready"
    raise ArtifactError(f"{bundle}: a server on it {ended}: {words[-1][:LAST_WORDS]}")


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(ENDS_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
