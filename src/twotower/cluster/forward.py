"""The port-forward: a process that outlives the command that started it, and is found again by its record."""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from twotower.cluster.plan import ClusterSettings, forward, forward_mark
from twotower.cluster.preflight import check_port
from twotower.cluster.tools import start, this_system
from twotower.errors import ClusterError

PATIENCE = 30.0
"""Seconds that a port-forward has to answer, or to end."""
GRACE = 5.0
"""Seconds that it has to end when it is asked to, before it is forced."""
ANSWER = 5.0
"""Seconds that the page has for one answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """A port-forward that we have started."""

    pid: int
    port: int


def state_dir() -> Path:
    """Where what has to be known the next time is kept: `TWOTOWER_STATE_DIR`, or what is usual on this system."""
    if named := os.environ.get("TWOTOWER_STATE_DIR"):
        return Path(named)
    match this_system():
        case "windows":
            return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "twotower"
        case "macos":
            return Path.home() / "Library" / "Application Support" / "twotower"
        case "linux":
            return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "twotower"


def record_path(settings: ClusterSettings) -> Path:
    """The record of this cluster's port-forward."""
    return state_dir() / f"forward-{settings.name}.json"


def log_path(settings: ClusterSettings) -> Path:
    """What the port-forward says."""
    return state_dir() / f"forward-{settings.name}.log"


def recorded(settings: ClusterSettings) -> Forward | None:
    """The port-forward that was started last, alive or not; an unreadable record counts as none."""
    try:
        found = json.loads(record_path(settings).read_text(encoding="utf-8"))
        return Forward(pid=int(found["pid"]), port=int(found["port"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def alive(settings: ClusterSettings) -> Forward | None:
    """The port-forward that runs now. Its command line is looked at: a process id is given to others later."""
    found = recorded(settings)
    return found if found is not None and forward_mark(settings) in _command_line(found.pid) else None


def ensure(settings: ClusterSettings) -> Forward:
    """A port-forward that answers at the port of the settings: the one that runs, or a new one.

    Raises:
        ClusterError: the port is another program's, or kubectl ended; the line has its last words.
    """
    running = alive(settings)
    if running is not None and running.port == settings.port and answers(settings.port):
        return running
    # What is being ended has no command line any more a moment before it lets go of its port.
    for _ in _moments(GRACE if stop(settings) else 0):
        if not list(check_port(settings.port)):
            break
    for finding in check_port(settings.port):
        raise ClusterError(str(finding))
    process = start(forward(settings), log=log_path(settings))
    started = Forward(pid=process.pid, port=settings.port)
    record_path(settings).write_text(json.dumps(asdict(started)) + "\n", encoding="utf-8")
    for _ in _moments(PATIENCE):
        if process.poll() is not None:
            break
        if answers(settings.port):
            return started
    stop(settings)
    raise ClusterError(
        f"kubectl port-forward to port {started.port} did not answer: {_last_words(settings)}. "
        "`twotower cluster doctor` says what is wrong."
    )


def stop(settings: ClusterSettings) -> bool:
    """End the port-forward and forget it; whether there was one."""
    running = alive(settings)
    if running is not None:
        end(running)
        if not _is_gone(settings):
            end(running, is_forced=True)
            _is_gone(settings)
    record_path(settings).unlink(missing_ok=True)
    return running is not None


def _last_words(settings: ClusterSettings) -> str:
    said = log_path(settings).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return said[-1] if said else "it said nothing"


def _moments(seconds: float) -> Iterator[None]:
    """Ever again, with a short sleep between, until the time is up."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        yield
        time.sleep(0.1)


def answers(port: int) -> bool:
    """Whether a page is there: a port-forward whose pod is gone still listens, and says nothing."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER)
    try:
        connection.request("GET", "/")
        connection.getresponse()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return True


def _is_gone(settings: ClusterSettings) -> bool:
    return any(alive(settings) is None for _ in _moments(GRACE))


def end(running: Forward, *, is_forced: bool = False) -> None:
    """End this one process; on Windows with its children, as an installer's kubectl.exe only calls the real one."""
    if sys.platform == "win32":
        argv = [_system32("taskkill.exe"), "/PID", str(running.pid), "/T", "/F"]
        subprocess.run(argv, capture_output=True, check=False, timeout=30)
    else:
        # It may have ended since it was looked at.
        with suppress(ProcessLookupError):
            os.kill(running.pid, signal.SIGKILL if is_forced else signal.SIGTERM)


def _system32(program: str) -> str:
    return str(Path(os.environ.get("SYSTEMROOT", r"C:\Windows")) / "System32" / program)


def _command_line(pid: int) -> str:
    """What started a process, joined by spaces; empty where there is none or it has ended."""
    if this_system() == "linux":
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            return ""
    argv = ["/bin/ps", "-ww", "-p", str(pid), "-o", "command="]
    if this_system() == "windows":
        query = f'(Get-CimInstance Win32_Process -Filter "ProcessId = {pid}").CommandLine'
        argv = [_system32("WindowsPowerShell/v1.0/powershell.exe"), "-NoProfile", "-Command", query]
    return subprocess.run(argv, capture_output=True, check=False, text=True, timeout=30).stdout.strip()
