"""Keep-alive connections that carry requests as soon as one is free, at little cost each: what the load goes through.

Nothing here waits for an answer before it takes the next request; what finds no free connection waits in line, and its
clock runs on.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from time import perf_counter

from httptools import HttpParserError, HttpResponseParser

REFUSED, RESET, CLOSED, TIMEOUT, GARBLED = -1, -2, -3, -4, -5
FAULTS = {
    REFUSED: "refused",
    RESET: "reset",
    CLOSED: "closed",
    TIMEOUT: "timeout",
    GARBLED: "garbled",
}
"""What stands in place of a status where no whole answer came: nobody listened; the connection was reset, or closed in
order, before the answer was whole; it took too long; it was no HTTP."""
LOOKED_EVERY_S = 0.1
"""Between two looks for what has taken too long."""
IDLE_S = 3.0
"""How long an unused connection is kept. Servers close them after five seconds or more, and what is sent at that moment
is lost."""

Finished = Callable[[int, int, float, bytes, bool], None]
"""Told of each request: its number, status or fault, seconds since it was due, the answer's body, and whether the
answer said when to come again."""


class Pool:
    """Carries requests to one server over at most `limit` connections; a new one is opened when all are busy."""

    def __init__(
        self, host: str, port: int, *, head: bytes, limit: int, timeout: float, keeps: bool, finished: Finished
    ) -> None:
        """Take the address, all of a request before its length, and whom to tell.

        Args:
            host: Where to connect.
            port: Where to connect.
            head: Request line and headers, up to and with `Content-Length: `.
            limit: Connections at once.
            timeout: Seconds from a request's due moment after which it counts as failed.
            keeps: Whether the bodies of answers are handed on, or dropped as they come.
            finished: Told of each request once.
        """
        self.keeps = keeps
        self._address = (host, port)
        self._head = head
        self._limit = limit
        self._timeout = timeout
        self._finished = finished
        self._idle: list[_Connection] = []
        self._busy: set[_Connection] = set()
        self._waiting: deque[tuple[int, float, bytes]] = deque()
        self._opening: set[asyncio.Task[None]] = set()

    def ask(self, number: int, due: float, body: bytes) -> None:
        """Send a request that was due at a moment of `perf_counter`; without a free connection it waits for one."""
        request = b"%b%d\r\n\r\n%b" % (self._head, len(body), body)
        if self._idle:
            self._send(self._idle.pop(), number, due, request)
        else:
            self._waiting.append((number, due, request))
            self._open()

    async def watch(self) -> None:
        """Give up what has taken too long, and connections that nobody uses, until cancelled."""
        while True:
            await asyncio.sleep(LOOKED_EVERY_S)
            now = perf_counter()
            while self._idle and self._idle[0].since < now - IDLE_S:  # The one used last is taken first.
                self._idle.pop(0).abort()
            latest = now - self._timeout
            for connection in [each for each in self._busy if each.due < latest]:
                self.end(connection, TIMEOUT)
            while self._waiting and self._waiting[0][1] < latest:
                number, due, _ = self._waiting.popleft()
                self._tell(number, TIMEOUT, due)

    def close(self) -> None:
        """Give up all connections."""
        for task in self._opening:
            task.cancel()
        for connection in [*self._idle, *self._busy]:
            connection.abort()
        self._idle.clear()
        self._busy.clear()

    def answered(self, connection: "_Connection", status: int, body: bytes, *, is_hinted: bool, stays: bool) -> None:
        """A whole answer has come: tell of it, and let the next request have the connection."""
        if connection not in self._busy:  # Nobody asked; such as a word before an idle connection is closed.
            self.end(connection, GARBLED)
            return
        self._busy.discard(connection)
        self._finished(connection.number, status, perf_counter() - connection.due, body, is_hinted)
        if not stays:
            connection.abort()
            self._open()
        elif self._waiting:
            self._send(connection, *self._waiting.popleft())
        else:
            self._rest(connection)

    def end(self, connection: "_Connection", fault: int) -> None:
        """A connection is gone, or of no use; a request that it carried has failed."""
        connection.abort()
        if connection in self._busy:
            self._busy.discard(connection)
            self._tell(connection.number, fault, connection.due)
        elif connection in self._idle:
            self._idle.remove(connection)
        self._open()

    def _send(self, connection: "_Connection", number: int, due: float, request: bytes) -> None:
        self._busy.add(connection)
        connection.send(number, due, request)

    def _rest(self, connection: "_Connection") -> None:
        connection.since = perf_counter()
        self._idle.append(connection)

    def _tell(self, number: int, fault: int, due: float) -> None:
        self._finished(number, fault, perf_counter() - due, b"", False)

    def _open(self) -> None:
        """Open a connection for what waits, unless enough are on their way or there."""
        opening = len(self._opening)
        if len(self._waiting) > opening and len(self._busy) + len(self._idle) + opening < self._limit:
            task = asyncio.get_running_loop().create_task(self._connect())
            self._opening.add(task)

    async def _connect(self) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        try:
            connecting = loop.create_connection(lambda: _Connection(self), *self._address)
            _, connection = await asyncio.wait_for(connecting, self._timeout)
        except OSError:
            if self._waiting:
                number, due, _ = self._waiting.popleft()
                self._tell(number, REFUSED, due)
        else:
            if self._waiting:
                self._send(connection, *self._waiting.popleft())
            else:
                self._rest(connection)
        finally:
            self._opening.discard(task)
        self._open()


class _Connection(asyncio.Protocol):
    """One connection, with one request on it at a time."""

    def __init__(self, pool: Pool) -> None:
        self.number = -1
        self.due = 0.0
        self.since = 0.0
        """When it became idle."""
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._parser = HttpResponseParser(self)
        self._parts: list[bytes] = []
        self._is_hinted = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # A stream's transport can be written to.

    def send(self, number: int, due: float, request: bytes) -> None:
        """Send a request; the answer that comes next is its."""
        self.number, self.due = number, due
        self._parts, self._is_hinted = [], False
        if self._transport is not None:
            self._transport.write(request)

    def abort(self) -> None:
        """Leave at once, without a word."""
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except HttpParserError:
            self._pool.end(self, GARBLED)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:  # Else it was ours to leave, and is told.
            self._pool.end(self, CLOSED if exc is None else RESET)

    # What the parser calls.

    def on_header(self, name: bytes, value: bytes) -> None:  # noqa: ARG002 - the parser's signature
        if name.lower() == b"retry-after":
            self._is_hinted = True

    def on_body(self, body: bytes) -> None:
        if self._pool.keeps:
            self._parts.append(body)

    def on_message_complete(self) -> None:
        self._pool.answered(
            self,
            self._parser.get_status_code(),
            b"".join(self._parts),
            is_hinted=self._is_hinted,
            stays=self._parser.should_keep_alive(),
        )
