"""Sends requests away, before anything is read of them, while there is no room."""

from starlette.types import ASGIApp, Receive, Scope, Send

from twotower.serving.door.admission import RETRY_AFTER_S, Gate

TOLD = b'{"error":"Too much is asked just now. Ask again later."}'


class Shedding:
    """An ASGI application in front of another."""

    def __init__(self, app: ASGIApp, *, gate: Gate, paths: frozenset[str]) -> None:
        """Stand in front of `app` on the paths that wait for their turn at `gate`."""
        self._app = app
        self._gate = gate
        self._paths = paths
        headers = {
            b"content-type": b"application/json",
            b"content-length": str(len(TOLD)).encode(),
            b"retry-after": str(RETRY_AFTER_S).encode(),
        }
        self._headers = list(headers.items())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._gate.is_full and scope["path"] in self._paths:
            self._gate.shed()
            await send({"type": "http.response.start", "status": 503, "headers": list(self._headers)})
            await send({"type": "http.response.body", "body": TOLD})
            return
        await self._app(scope, receive, send)
