"""What the server tells on stderr: a line an event, for people or as JSON, without anything secret.

No line holds a key, a header, a body or a user: what is logged are names of ours and figures. The text of an exception
is left out too where it could quote what was sent, as `KeyError: 'user 7'` does; where it happened is told in full.
"""

import json
import logging
import sys
import threading
import traceback
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from twotower.errors import RequestError, TwotowerError

LogFormat = Literal["text", "json"]
ACCESS = logging.getLogger("twotower.access")
"""A line for each request; silent unless it was asked for."""
OF_A_REQUEST = ("request_id", "method", "route", "key", "bundle", "variant", "fallback")
"""What a line about a request tells of its state."""
HARMLESS = (TwotowerError, OSError, MemoryError, ImportError, ArithmeticError, NameError, AttributeError)
"""Exceptions whose text speaks of the program or the machine, not of what was sent."""
WRITTEN_EVERY_S = 0.25
MOST_LINES = 10_000
"""Lines about requests that wait to be written; where stderr is slower, the oldest are dropped and counted."""


def start_logs(log_format: LogFormat, *, access: bool, stream: TextIO | None = None) -> None:
    """Let everything that is logged from here on go to stderr, ours and the libraries' alike.

    Args:
        log_format: For people, or JSON for machines.
        access: Whether to write a line for each request.
        stream: In place of stderr.
    """
    out = stream or sys.stderr
    formatter = _Json() if log_format == "json" else _Text()
    told = logging.StreamHandler(out)
    told.setFormatter(formatter)
    logging.basicConfig(handlers=[told], level=logging.WARNING, force=True)
    logging.captureWarnings(capture=True)
    logging.getLogger("twotower").setLevel(logging.INFO)
    # Its warnings are about clients that speak no HTTP, and would let them fill the disk.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    for handler in ACCESS.handlers[:]:
        ACCESS.removeHandler(handler)
        handler.close()
    ACCESS.propagate = False
    ACCESS.disabled = not access
    if access:
        later = _Later(out)
        later.setFormatter(formatter)
        ACCESS.addHandler(later)
        ACCESS.setLevel(logging.INFO)


def log_request(state: Mapping[str, Any], status: int, seconds: float) -> None:
    """A line about a request that has been answered; see `door.Finished`."""
    if ACCESS.disabled:
        return
    fields = {name: state[name] for name in OF_A_REQUEST if state.get(name) is not None}
    ACCESS.info("request", extra={"fields": {**fields, "status": status, "ms": round(seconds * 1000, 3)}})


class _Json(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        told = {"time": _moment(record), "level": record.levelname.lower(), "event": _event(record)}
        if not record.name.startswith("twotower"):
            told["logger"] = record.name
        if record.exc_info and record.exc_info[1] is not None:
            told["exception"] = _exception(record.exc_info[1])
        # ASCII only, so that no line's end of Unicode's own parts a line.
        return json.dumps(told | getattr(record, "fields", {}), default=str)


class _Text(logging.Formatter):
    """One line for people: when, how bad, what, and the rest as `name=value`; a traceback below it."""

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{name}={value}" for name, value in getattr(record, "fields", {}).items())
        line = _one_line(f"{_moment(record)} {record.levelname.lower()}: {_event(record)} {fields}")
        if record.exc_info and record.exc_info[1] is not None:
            line += f"\n{_exception(record.exc_info[1])}"
        return line


class _Later(logging.Handler):
    """Writes lines from a thread, several at once, so that no request waits for whoever reads stderr."""

    def __init__(self, out: TextIO) -> None:
        super().__init__()
        self._out = out
        self._lines: deque[str] = deque(maxlen=MOST_LINES)
        self._dropped = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._write_on, name="access log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        if len(self._lines) == MOST_LINES:
            self._dropped += 1
        self._lines.append(self.format(record))

    def close(self) -> None:
        self._is_over.set()
        self._thread.join(timeout=1)  # No longer: where nobody reads stderr, the program ends all the same.
        super().close()

    def _write_on(self) -> None:
        while not self._is_over.wait(WRITTEN_EVERY_S):
            self._write()
        self._write()

    def _write(self) -> None:
        lines = [self._lines.popleft() for _ in range(len(self._lines))]
        if lines:
            self._out.write("\n".join(lines) + "\n")
            self._out.flush()
        dropped, self._dropped = self._dropped, 0
        if dropped:
            logging.getLogger(__name__).warning("the access log has gaps", extra={"fields": {"lines": dropped}})


def _exception(fault: BaseException) -> str:
    """Type, place and calls of an exception and of what led to it; its text only where that is harmless."""
    parts = []
    for each in _chain(fault):
        is_harmless = isinstance(each, HARMLESS) and not isinstance(each, RequestError)
        told = f": {_one_line(str(each))}" if is_harmless else ""
        parts.append("".join(traceback.format_tb(each.__traceback__)) + f"{type(each).__qualname__}{told}")
    return "\nwhich led to:\n".join(reversed(parts))


def _chain(fault: BaseException | None) -> list[BaseException]:
    """An exception, what it was raised from, and so on."""
    found: list[BaseException] = []
    while fault is not None and fault not in found:
        found.append(fault)
        fault = fault.__cause__ or (None if fault.__suppress_context__ else fault.__context__)
    return found


def _event(record: logging.LogRecord) -> str:
    """What happened, in one line: libraries put values below it, asyncio the text of an exception."""
    return record.getMessage().partition("\n")[0]


def _moment(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _one_line(text: str) -> str:
    """Without anything that moves a terminal's cursor or ends a line."""
    return "".join(letter if letter.isprintable() else " " for letter in text).strip()
