"""What kfp's local runner prints, read back: which task began, ended, failed or was taken from the cache.

kfp tells it in words only: in Python's root logger, and on the standard output, to which it copies what tasks print.
The logger is listened to by a filter. kfp swaps its handlers while tasks run, two threads of a loop in each other's
way, and what is told meanwhile reaches none of them.
"""

import io
import logging
import re
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

SAID = "twotower| "
"""Begins each line that a task of ours tells, among those of kfp's own executor."""
FAULT = "Fault in "
"""Begins the line by which a task tells a fault that the user can mend."""
LOG = "run.log"
"""The whole log of a run, below its directory."""
TAIL = 40
"""Lines of a failed task's output that are kept for the message."""

_KFP = re.compile(r"\d\d:\d\d:\d\d\.\d+ - |-{20}")
"""Lines of kfp's own; all others come from a task."""
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_BEGINS = re.compile(r"Executing task '([\w-]+)'")
_ENDS = re.compile(r"Task '([\w-]+)' finished with status (SUCCESS|FAILURE)")
_CACHED = re.compile(r"Task ([\w-]+) cache hit \(key=(\w+)\)")
_RETRIES = re.compile(r"Task ([\w-]+) failed \(attempt (\d+)/(\d+)\)")
_NUMBER = re.compile(r"-\d{4}-\d\d-\d\d-\d\d-\d\d-\d\d-\d+$|-\d+$")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEnd:
    """How a task ended."""

    task: str
    state: str
    """`done`, `cached`, `retried` or `failed`."""
    seconds: float


class LocalLog(io.TextIOBase):
    """A standard output for kfp's local runner: keeps everything in a file, and tells what matters as it comes."""

    def __init__(self, file: TextIO, *, ended: Callable[[TaskEnd], None], line: Callable[[str], None]) -> None:
        """Take the file of the whole log, and whom to tell.

        Args:
            file: Gets every line.
            ended: Told each task's end.
            line: Told each line that a task prints.
        """
        self._file, self._ended, self._line = file, ended, line
        self._rest = ""
        self._began: dict[str, list[float]] = {}
        self._tail: deque[str] = deque(maxlen=TAIL)
        self.keys: dict[str, str] = {}
        """Task -> the beginning of the key under which it stood in the cache."""
        self.failed: dict[str, list[str]] = {}
        """Task -> the end of what it printed before it failed, at its last try."""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        """Take what is printed, in pieces of any size."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._take(_COLOUR.sub("", line))
        return len(text)

    def flush(self) -> None:
        self._file.flush()

    def _take(self, line: str) -> None:
        self._file.write(line + "\n")
        if line.strip() and not _KFP.match(line):
            self._take_output(line.strip())

    def _take_output(self, line: str) -> None:
        if line.startswith("Traceback (most recent call last)"):
            self._tail.clear()
        self._tail.append(line.removeprefix(SAID))
        if line.startswith(SAID):
            self._line(line.removeprefix(SAID))

    def _end(self, task: str, state: str) -> None:
        began = self._began.get(task) or [time.monotonic()]
        if state == "failed":
            self.failed[task] = list(self._tail)
        self._tail.clear()
        self._ended(TaskEnd(task=task, state=state, seconds=time.monotonic() - began.pop(0)))

    def filter(self, record: logging.LogRecord) -> bool:
        """Take a message of kfp's log, and let it pass."""
        text = _COLOUR.sub("", record.getMessage())
        if found := _BEGINS.search(text):
            self._began.setdefault(_plain(found[1]), []).append(time.monotonic())
        elif found := _ENDS.search(text):
            self._end(_plain(found[1]), "done" if found[2] == "SUCCESS" else "failed")
        elif found := _CACHED.search(text):
            self.keys[_plain(found[1])] = found[2]
            self._ended(TaskEnd(task=_plain(found[1]), state="cached", seconds=0.0))
        elif found := _RETRIES.search(text):
            self._ended(TaskEnd(task=_plain(found[1]), state="retried", seconds=0.0))
        return True


def _plain(task: str) -> str:
    """The task's name without the number that kfp appends."""
    return _NUMBER.sub("", task)
