"""A process of its own under a watch: how long it took, and the most memory that it held at once."""

import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

EVERY = 0.05
"""Seconds between two looks."""
GB = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What was seen of one process."""

    seconds: float
    peak_gb: float
    """Most memory of its own at once (anonymous, and shared without a file): what it cannot give back."""
    resident_gb: float
    """The same with the pages of mapped files that were in memory, which the system takes back when it wants to."""
    output: str
    """What it printed."""

    def raw(self) -> dict[str, float | str]:
        """The figures, for the raw results."""
        return {name: value for name, value in asdict(self).items() if name != "output"}


def watch(command: Sequence[str], *, limit_gb: float = 0.0) -> Watched:
    """Run a command and look at its memory, Linux's own figures, all the while.

    Args:
        command: The program and its arguments.
        limit_gb: The process is stopped when it holds more than this; 0 for no limit.

    Raises:
        RuntimeError: the command failed, or held more than the limit.
    """
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        peaks = [0.0, 0.0]
        over = threading.Event()

        def look() -> None:
            while process.poll() is None:
                own, resident = _memory(process.pid)
                peaks[:] = max(peaks[0], own), max(peaks[1], resident)
                if limit_gb and own > limit_gb:
                    over.set()
                    process.kill()
                time.sleep(EVERY)

        looking = threading.Thread(target=look, daemon=True)
        looking.start()
        output = process.communicate()[0]
        looking.join()
    if over.is_set():
        raise RuntimeError(f"{' '.join(command)}: held more than {limit_gb:g} GB")
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: ended with {process.returncode}")
    return Watched(seconds=time.perf_counter() - began, peak_gb=peaks[0], resident_gb=peaks[1], output=output)


def _memory(pid: int) -> tuple[float, float]:
    """Memory of the process's own, and all that is resident, in GB; nothing once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0.0, 0.0
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 / GB for line in lines if line.startswith("Rss")}
    own = sizes.get("RssAnon", 0.0) + sizes.get("RssShmem", 0.0)
    return own, own + sizes.get("RssFile", 0.0)
