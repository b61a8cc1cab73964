"""What one connection may cost: time until a request is whole, bytes of a head, and its place among the others.

uvicorn waits for as long as a client takes to send a request, and reads a head of any length: clients that send a byte
a second would keep their connections for ever. Here a request that is not whole in time is answered with 408, and where
too many connections are open, the one that has been at its own request for longest makes room.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

NO_ROOM = "Too much is asked just now. Ask again later."
SPARE_FILES = 128
"""Of those that a process may open, for everything but connections."""

CHUNK_BYTES = 16
"""That a part of a body may have round it, which are its size and two ends of lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """How patient the server is."""

    request_s: float = 10.0
    """Seconds from the first byte of a request, or from the connection, to the last byte of the request."""
    head_bytes: int = 1 << 16
    """Of a request's line and headers, and of whatever else is not its body."""
    connections: int = 4096
    """Open at a time."""
    linger_s: float = 1.0
    """Seconds that an idle connection stays open when the server ends, as a request may be on its way through it."""


def connection_protocol(
    limits: ConnectionLimits, *, ended: Callable[[str], None], turns_away: Callable[[bytes], bool]
) -> type[HttpToolsProtocol]:
    """What `uvicorn.Config(http=...)` takes so that every connection keeps to the limits.

    Args:
        limits: How patient the server is.
        ended: Called with the reason when a connection is ended before its time: "late", "head", "malformed",
            "crowded" or "unread".
        turns_away: Asked of each request by its target, before anything else is done with it, whether there is no room
            for it: it is answered with 503 here, at a tenth of what the way through the application costs.
    """
    waiting: dict[_Connection, None] = {}

    class Connection(_Connection):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            self.limits, self.waiting, self.ended, self.turns_away = limits, waiting, ended, turns_away

    return Connection


def raise_open_files(wanted: int) -> int:
    """Let the process have as many files open as so many connections need; gives how many connections that allows."""
    try:
        import resource
    except ImportError:  # Windows counts otherwise, and allows more.
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted + SPARE_FILES:
        soft = wanted + SPARE_FILES if hard == resource.RLIM_INFINITY else min(wanted + SPARE_FILES, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft - SPARE_FILES))


class _Connection(HttpToolsProtocol):
    """A connection that keeps to its limits.

    One timer a connection, not one a request: it looks whether the request under way has taken too long, and whether
    the client has stopped to read.
    """

    limits: ConnectionLimits
    waiting: "dict[_Connection, None]"
    """Those of all connections that have begun a request and not finished it, the longest waiting first."""
    ended: Callable[[str], None]
    turns_away: Callable[[bytes], bool]

    _is_turned_away = False
    """Whether the request under way gets no other answer than that there is no room."""
    _since: float | None = None
    """When the request under way began; nothing while none is."""
    _around = 0
    """Bytes of the request under way that are not its body's."""
    _unsent = 0
    """Bytes that the client had not read when last looked."""
    _is_last = False
    """Whether the next request is the last one here."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._begin()
        self._timer = self.loop.call_later(self.limits.request_s, self._look)
        if len(self.connections) > self.limits.connections:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        self._whole()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._since is None:  # Also a line's end between two requests, which begins none for the parser.
            self._begin()
        self._around += len(data)
        super().data_received(data)
        if self._around > self.limits.head_bytes:
            self._end("head", 431, f"The headers are larger than {self.limits.head_bytes:,} bytes. Send fewer.")

    def on_message_begin(self) -> None:
        if self._since is None:  # A request right behind another.
            self._begin()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        # What is called a header behind a body is none, and would join those that were judged before it.
        if not self._is_head_read():
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        is_next = not (self._is_answering() or self.expect_100_continue or self._is_last)
        self._is_turned_away = is_next and self.turns_away(self.url)
        if self._is_turned_away:
            return
        super().on_headers_complete()
        if self._is_last:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._around = max(0, self._around - len(body) - CHUNK_BYTES)
        if not self._is_turned_away:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._around = 0
        self._whole()
        if self._is_turned_away:
            self._turn_away()
        else:
            super().on_message_complete()

    def _turn_away(self) -> None:
        """Answer that there is no room; the connection stays open where the client wants that."""
        self._is_turned_away = False
        is_kept = self.parser.should_keep_alive()
        self._tell(503, NO_ROOM, is_last=not is_kept)
        if is_kept:
            self.on_response_complete()
        else:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - the base class's words are not in our shape
        self._end("malformed", 400, "This is no HTTP request.")

    def shutdown(self) -> None:
        if self._is_answering():
            super().shutdown()
            return
        self._is_last = True
        self.loop.call_later(self.limits.linger_s, self._leave)

    def _leave(self) -> None:
        if not self._is_answering():
            self.transport.close()

    def _is_answering(self) -> bool:
        """Whether there is a request that has not been answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def _is_head_read(self) -> bool:
        """Whether what is under way, or was last, has come as far as the application."""
        return self.cycle is not None and self.cycle.scope is self.scope

    def _begin(self) -> None:
        self._since = self.loop.time()
        self.waiting[self] = None

    def _whole(self) -> None:
        self._since = None
        self.waiting.pop(self, None)

    def _look(self) -> None:
        """End the connection where the client is too slow, and come again."""
        unsent = self.transport.get_write_buffer_size()
        patience = self.limits.request_s
        # While an earlier request is answered, it is the server that is slow.
        if self._since is not None and not self.flow.read_paused and (self._is_head_read() or not self._is_answering()):
            patience += self._since - self.loop.time()
        if patience <= 0:
            seconds = f"{self.limits.request_s:g}"
            self._end("late", 408, f"The request was not whole after {seconds} s. Send it in one piece.")
            patience = self.limits.request_s
        elif unsent and unsent >= self._unsent > 0:
            self.ended("unread")
            self.transport.abort()
            return
        self._unsent = unsent
        self._timer = self.loop.call_later(patience, self._look)

    def _make_room(self) -> None:
        """End the connection that is least likely to be missed."""
        longest = next(iter(self.waiting))
        if longest is self:
            others = (each for each in self.connections if isinstance(each, _Connection) and each is not self)
            idle = (each for each in others if not (each._is_answering() or each.transport.is_closing()))
            longest = next(idle, self)
        longest._end("crowded", 503, "There are too many connections. Come again in a moment.")

    def _end(self, reason: str, status: int, told: str) -> None:
        """Close the connection, with an answer where the request under way has none."""
        if self.transport.is_closing():
            return
        self._whole()
        self.ended(reason)
        if self._is_head_read():
            if not self.cycle.response_started:
                self.cycle.disconnected = True  # To whoever reads the body, the client is gone.
                self.cycle.message_event.set()
                self._tell(status, told)
        elif not self._is_answering():
            self._tell(status, told)
        self.transport.close()

    def _tell(self, status: int, told: str, *, is_last: bool = True) -> None:
        body = json.dumps({"error": told}).encode()
        lines = [
            STATUS_LINE[status],
            *(name + b": " + value + b"\r\n" for name, value in self.server_state.default_headers),
            b"content-type: application/json\r\n",
            b"content-length: %d\r\n" % len(body),
            b"retry-after: 1\r\n" if status == 503 else b"",
            b"connection: close\r\n\r\n" if is_last else b"\r\n",
            body,
        ]
        self.transport.write(b"".join(lines))
