"""What every request passes before it is answered: it gets an id, names a known route, shows a key, has a bounded body.

What is not named among the routes never reaches the application, so that nothing depends on both reading a path alike.
The door takes a body in whole before it lets the request in: whoever sends slowly holds no place in any queue behind
it. How long that may take is the connection's affair (`connections.py`).
"""

import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from twotower.serving.door.keys import Key, KeyRing
from twotower.serving.door.routing import Methods, Route, Routes

MAX_BODY = 1 << 20
"""Bytes of a request's body."""
MAX_HELD = 64 << 20
"""Bytes of all bodies together that have come in part."""
GONE = 499
"""Counted in place of a status where the client went before its request was whole."""
PAGE_POLICY = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'self'"
)
"""What a page may load, where the application does not say: nothing from elsewhere, and no script within it."""

_SANE_ID = re.compile(rb"[\x20-\x7e]{1,128}")
_LOOPBACK = re.compile(rb"(?:localhost|127(?:\.\d{1,3}){3}|\[::1\])(?::\d{1,5})?", re.IGNORECASE)
_EVERYWHERE = (b"x-content-type-options", b"nosniff")
_BEARER = {"WWW-Authenticate": "Bearer"}

Finished = Callable[[dict[str, Any], int, float], None]
"""Told of each request: its state, its status, its seconds. The state holds `request_id`, `method`, `route`, `arrived`
(by `time.perf_counter`), `traceparent` (as it was sent), `key` (its name), and what the application put there."""

_log = logging.getLogger(__name__)


class Door:
    """An ASGI application in front of another."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        routes: Mapping[str, Methods],
        keys: KeyRing | None,
        is_local: bool = False,
        max_body: int = MAX_BODY,
        finished: Finished | None = None,
    ) -> None:
        """Stand in front of `app`.

        Args:
            app: What answers.
            routes: All that it answers, by path and method.
            keys: Who is let in; without any, everybody.
            is_local: Whether only this machine is meant. A page from elsewhere, shown in a browser on this machine,
                could ask too: by a name of its own that leads here, or by a form. It is known by its headers.
            max_body: Bytes of a request's body.
            finished: Told of each request when it has been answered.
        """
        self._app = app
        self._routes = Routes(routes)
        self._keys = keys
        self._is_local = is_local
        self._max_body = max_body
        self._finished = finished
        self._prefix = os.urandom(8).hex()
        self._numbers = count()
        self._held = 0
        self.in_flight = 0
        """Requests that have not been answered."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._other(scope, receive, send)
            return
        began = time.perf_counter()
        headers: dict[bytes, bytes] = dict(scope["headers"])
        route = self._routes.find(scope["path"])
        state: dict[str, Any] = scope.setdefault("state", {})
        request_id = self._request_id(headers)
        state["arrived"], state["request_id"] = began, request_id
        state["method"], state["route"] = scope["method"], route.template
        if (traceparent := headers.get(b"traceparent")) is not None:
            state["traceparent"] = traceparent.decode("latin-1")
        answer = _Answer(send, request_id)
        self.in_flight += 1
        try:
            await self._pass(scope, receive, answer, headers=headers, route=route)
        except _RefusedError as refused:
            await answer.refuse(refused, is_waiting=b"expect" in headers)
        except Exception as fault:  # noqa: BLE001 - whatever it is, the client gets an answer and the log the rest
            await self._confess(fault, answer, state)
        finally:
            self.in_flight -= 1
            if self._finished is not None:
                self._finished(state, answer.status or GONE, time.perf_counter() - began)

    async def _pass(
        self, scope: Scope, receive: Receive, answer: "_Answer", *, headers: dict[bytes, bytes], route: Route
    ) -> None:
        """Let a request in that may enter."""
        self._admit(scope, headers, route=route)
        body = await self._body(receive, headers)
        if body is None:
            return
        whole: Message | None = {"type": "http.request", "body": body, "more_body": False}

        async def given() -> Message:
            nonlocal whole
            if whole is None:
                return await receive()
            message, whole = whole, None
            return message

        await self._app(scope, given, answer.send)

    def _admit(self, scope: Scope, headers: dict[bytes, bytes], *, route: Route) -> None:
        """Refuse what may not be asked, or not by whoever asks."""
        if self._is_local:
            _refuse_elsewhere(headers)
        if headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
            raise _RefusedError(415, "The body is compressed. Send it as it is, without Content-Encoding.")
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        is_known = method in route.methods
        needed = route.methods.get(method)
        if self._keys is not None and (needed is not None or not is_known):
            key = self._key(self._keys, headers)
            scope["state"]["key"] = key.name
            if is_known and needed not in key.scopes:
                raise _RefusedError(403, f"The key may not do this: it takes one with the scope '{needed}'.")
        if not route.methods:
            raise _RefusedError(404, "Not Found")
        if not is_known:
            raise _RefusedError(405, "Method Not Allowed", {"Allow": ", ".join(route.methods)})

    def _key(self, keys: KeyRing, headers: dict[bytes, bytes]) -> Key:
        scheme, _, shown = headers.get(b"authorization", b"").partition(b" ")
        key = keys.find(shown.strip())
        if key is None or scheme.lower() != b"bearer":
            raise _RefusedError(401, "No valid key. Send it in the header: Authorization: Bearer KEY.", _BEARER)
        return key

    async def _body(self, receive: Receive, headers: dict[bytes, bytes]) -> bytes | None:
        """The whole body; nothing where the client went before it was whole."""
        if int(headers.get(b"content-length", 0)) > self._max_body:
            raise self._too_large()
        message = await receive()
        body: bytes = message.get("body", b"")
        if message.get("more_body", False):
            return await self._rest(receive, body)
        if len(body) > self._max_body:
            raise self._too_large()
        return body if message["type"] == "http.request" else None

    async def _rest(self, receive: Receive, begin: bytes) -> bytes | None:
        """A body that comes in parts."""
        body = bytearray(begin)
        message: Message = {"more_body": True}
        self._held += len(body)
        try:
            while message.get("more_body", False):
                if len(body) > self._max_body:
                    raise self._too_large()
                if self._held > MAX_HELD:
                    raise _RefusedError(503, "Too many bodies are on their way.", {"Retry-After": "1"})
                message = await receive()
                if message["type"] != "http.request":
                    return None
                part: bytes = message.get("body", b"")
                body += part
                self._held += len(part)
            if len(body) > self._max_body:
                raise self._too_large()
            return bytes(body)
        finally:
            self._held -= len(body)

    def _too_large(self) -> "_RefusedError":
        return _RefusedError(413, f"The body is larger than {self._max_body:,} bytes. Ask for less at once.")

    def _request_id(self, headers: dict[bytes, bytes]) -> str:
        given = headers.get(b"x-request-id")
        if given is not None and _SANE_ID.fullmatch(given):
            return given.decode("ascii")
        return f"{self._prefix}{next(self._numbers):016x}"

    async def _confess(self, fault: Exception, answer: "_Answer", state: Mapping[str, Any]) -> None:
        """A bug: the log has it, with the request's id, and the client is told no more than that."""
        told = {name: state[name] for name in ("request_id", "method", "route")}
        _log.error("a fault of the server's own", exc_info=fault, extra={"fields": told})
        if not answer.status:
            await answer.refuse(_RefusedError(500, "A fault of the server's own; its log tells it."))
        elif not answer.is_whole:
            raise fault  # The server closes the connection, so that half an answer does not look like one.

    async def _other(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What is no request: the server's start and end, and a WebSocket, which there is none of."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        await self._app(scope, receive, send)


class _RefusedError(Exception):
    """A request that is not let in."""

    def __init__(self, status: int, told: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(told)
        self.status = status
        self.told = told
        self.headers = headers or {}


class _Answer:
    """What goes back, with the headers that every answer has."""

    __slots__ = ("_request_id", "_send", "is_whole", "status")

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.status = 0
        self.is_whole = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", ()), (b"x-request-id", self._request_id.encode()), _EVERYWHERE]
            if not _is_data(headers):
                headers += _policy(headers)
            message["headers"] = headers
        elif not message.get("more_body", False):
            self.is_whole = True
        await self._send(message)

    async def refuse(self, refused: _RefusedError, *, is_waiting: bool = False) -> None:
        """Answer in the application's place; a client that waits to be told to send its body is told to go."""
        body = json.dumps({"error": refused.told}).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **refused.headers}
        if is_waiting:
            headers["Connection"] = "close"
        plain = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": refused.status, "headers": plain})
        await self.send({"type": "http.response.body", "body": body})


def _refuse_elsewhere(headers: dict[bytes, bytes]) -> None:
    """Refuse what a page from elsewhere asks by way of a browser on this machine."""
    host = headers.get(b"host")
    if host is not None and not _LOOPBACK.fullmatch(host):
        raise _RefusedError(403, "Without a key, only this machine is answered, by the name localhost or 127.0.0.1.")
    origin = headers.get(b"origin")
    if origin is not None and origin.partition(b"://")[2] != host:
        raise _RefusedError(403, "Without a key, no page but the server's own is answered.")


def _is_data(headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether a browser shows it as text: JSON needs no policy."""
    for name, value in headers:
        if name == b"content-type":
            return value.startswith(b"application/json")
    return True


def _policy(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """What a browser may do with a page; the application's own word goes before."""
    given = {name for name, _ in headers}
    policies = [(b"content-security-policy", PAGE_POLICY.encode()), (b"referrer-policy", b"no-referrer")]
    return [policy for policy in policies if policy[0] not in given]
