"""A bundle answers over HTTP: `POST /v1/recommend`, health, and what the Open Inference Protocol asks of a server.

Endpoints that compute run in threads, as a recommender may be called by any number of them; health answers beside
them, however busy they are. Whoever may reach the port may ask, unless there is a key.
"""

import errno
import hashlib
import hmac
import ipaddress
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException as RoutingError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from twotower import storage
from twotower.errors import RequestError, TwotowerError
from twotower.serving.messages import (
    ErrorResponse,
    Health,
    ModelMetadata,
    RecommendRequest,
    RecommendResponse,
    ServerLive,
    ServerReady,
)
from twotower.serving.recommender import Recommender

API_KEY = "TWOTOWER_API_KEY"
"""Where a key is looked for: a program's arguments can be read by every user of its machine."""
COPY = "twotower-"
"""Begins the name of a bundle's copy."""
MAX_BODY = 1 << 20
"""Bytes of a request's body."""
GRACE_S = 20
"""Seconds that requests under way get when the server is told to end; Kubernetes grants 30 for all."""
REQUEST_ID = "X-Request-ID"
SANE_REQUEST_ID = re.compile(r"[\x20-\x7e]{1,128}")
OPEN_PATHS = frozenset({"/livez", "/readyz", "/v2/health/live", "/v2/health/ready"})
"""What answers without the key: a probe has none."""
REFUSALS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorResponse} for status in (400, 401, 413, 422)}


def create_app(recommender: Recommender, *, api_key: str | None = None) -> FastAPI:
    """The application that answers from one bundle; with a key, only to whoever shows it."""
    # No interactive page: it would load its scripts from elsewhere.
    app = FastAPI(title="twotower", version=version("twotower"), docs_url=None, redoc_url=None)
    app.add_middleware(_Door, key=_digest(api_key.encode("utf-8", "surrogateescape")) if api_key else None)
    _tell_refusals(app)
    _add_health(app, recommender)
    _add_answers(app, recommender)
    return app


def serve(bundle: str | Path, *, host: str, port: int, api_key: str | None = None, cache: Path | None = None) -> None:
    """Answer from a bundle until SIGTERM or Ctrl+C, which let requests under way finish and end with code 0.

    To be called in the main thread.

    Args:
        bundle: A directory, or an address to download it from.
        host: Where to listen; anything but this machine's loopback needs a key.
        port: 0 takes a free one; the line on stderr names it.
        api_key: What a request has to show as `Authorization: Bearer KEY`.
        cache: Where a downloaded bundle lies meanwhile; by default the system's temporary directory.

    Raises:
        TwotowerError: a host that cannot be listened on, a port that is taken, or no key where one is needed.
        StorageError: there is no bundle at the address.
        ArtifactError: what is there is no bundle, or a damaged one.
    """
    told = str(bundle)
    with _ending_in_order(), _bound(host, port, is_open=not api_key) as bound, _at_hand(told, cache) as directory:
        recommender = Recommender.load(directory)
        where = f"http://{f'[{host}]' if ':' in host else host}:{bound.getsockname()[1]}"
        config = uvicorn.Config(
            create_app(recommender, api_key=api_key),
            access_log=False,
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=GRACE_S,
        )
        _Server(config, ready=f"Serving {recommender.bundle.id} on {where}").run(sockets=[bound])


class _Server(uvicorn.Server):
    """Says when it can be asked."""

    def __init__(self, config: uvicorn.Config, *, ready: str) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        sys.stderr.write(f"{self._ready}\n")
        sys.stderr.flush()


class _Door:
    """What every request passes before it is answered: it gets an id, shows the key, and has a body of bounded size."""

    def __init__(self, app: ASGIApp, *, key: bytes | None) -> None:
        self._app = app
        self._key = key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get(REQUEST_ID, "")
        request_id = given if SANE_REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        size = 0

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        async def bounded() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > MAX_BODY:
                raise HTTPException(413, f"The body is larger than {MAX_BODY:,} bytes. Ask for less at once.")
            return message

        if self._lets_in(scope["path"], headers):
            await self._app(scope, bounded, named)
            return
        refusal = _refusal(
            401,
            "No valid key. Send it in the header: Authorization: Bearer KEY.",
            headers={"WWW-Authenticate": "Bearer"},
        )
        await refusal(scope, receive, named)

    def _lets_in(self, path: str, headers: Headers) -> bool:
        if self._key is None or path in OPEN_PATHS:
            return True
        scheme, _, shown = headers.get("Authorization", "").partition(" ")
        # Of digests, neither time nor length tells anything about the key. Headers are read as Latin-1.
        is_key = hmac.compare_digest(_digest(shown.strip().encode("latin-1")), self._key)
        return is_key and scheme.lower() == "bearer"


def _add_health(app: FastAPI, recommender: Recommender) -> None:
    """The routes for probes. They are coroutines, so that they do not wait for a thread behind those that compute."""
    bundle = recommender.bundle

    @app.get("/livez", summary="Is the process there?", tags=["health"])
    async def livez() -> Health:
        return Health(status="live", bundle=bundle.id)

    @app.get("/readyz", summary="Can it be asked?", tags=["health"])
    async def readyz() -> Health:
        return Health(status="ready", bundle=bundle.id)

    @app.get("/v2/health/live", summary="Open Inference Protocol: is the server live?", tags=["health"])
    async def live() -> ServerLive:
        return ServerLive(live=True)

    @app.get("/v2/health/ready", summary="Open Inference Protocol: is the server ready?", tags=["health"])
    async def ready() -> ServerReady:
        return ServerReady(ready=True)


def _add_answers(app: FastAPI, recommender: Recommender) -> None:
    """The routes that answer from the bundle."""
    bundle = recommender.bundle

    @app.post("/v1/recommend", summary="The best items for who asks", responses=REFUSALS, tags=["recommend"])
    def recommend(asked: RecommendRequest, request: Request) -> RecommendResponse:
        began = time.perf_counter()
        answer = recommender.recommend(
            asked.user_id,
            history=asked.history,
            context=asked.context,
            k=asked.k,
            exclude=asked.exclude,
            exclude_seen=asked.exclude_seen,
        )
        return RecommendResponse(
            request_id=request.state.request_id,
            bundle=answer.bundle,
            items=answer.items,
            fallback=answer.fallback,
            notes=answer.notes,
            timings_ms={"recommend": round((time.perf_counter() - began) * 1000, 3)},
        )

    missing: dict[int | str, dict[str, Any]] = {status: {"model": ErrorResponse} for status in (401, 404)}

    @app.get(
        "/v2/models/{name}", summary="Open Inference Protocol: the model served", responses=missing, tags=["models"]
    )
    async def model(name: str) -> ModelMetadata:
        served = str(bundle.metadata["name"])
        if name != served:
            raise HTTPException(404, f"There is no model of that name here. The one served is '{served}'.")
        return ModelMetadata(name=served, versions=(bundle.id,))


def _tell_refusals(app: FastAPI) -> None:
    """Give every refusal the same shape; none of them repeats a body or a key."""

    @app.exception_handler(RequestError)
    async def _(request: Request, fault: RequestError) -> JSONResponse:  # noqa: ARG001 - the framework's signature
        return _refusal(400, str(fault))

    @app.exception_handler(RequestValidationError)
    async def _(request: Request, fault: RequestValidationError) -> JSONResponse:  # noqa: ARG001
        return _refusal(422, _first_fault(fault))

    @app.exception_handler(RoutingError)
    async def _(request: Request, fault: RoutingError) -> JSONResponse:  # noqa: ARG001
        return _refusal(fault.status_code, str(fault.detail), headers=dict(fault.headers or {}))

    @app.exception_handler(Exception)
    async def _(request: Request, fault: Exception) -> JSONResponse:  # noqa: ARG001
        # Answered outside of the door, hence the header here; the traceback goes to the log.
        request_id = request.state.request_id
        return _refusal(500, "A fault of the server's own; its log tells it.", headers={REQUEST_ID: request_id})


def _refusal(status: int, text: str, *, headers: dict[str, str] | None = None) -> JSONResponse:
    """One line of bounded length. Half a surrogate pair, which JSON can bring in, cannot go out as UTF-8."""
    line = " ".join(text.encode("utf-8", "backslashreplace").decode().split())
    return JSONResponse({"error": line[:500]}, status_code=status, headers=headers)


def _first_fault(fault: RequestValidationError) -> str:
    first = fault.errors()[0]
    if first["type"] == "json_invalid":
        return f"body: no JSON at character {first['loc'][1]} ({first['ctx']['error']}). Send one JSON object."
    where = ".".join(str(part) for part in first["loc"][1:])
    if not where:
        return "body: no JSON object. Send one, with the header Content-Type: application/json."
    if first["type"] == "unexpected_keyword_argument":
        return f"{where}: no such field. There are {', '.join(field.name for field in fields(RecommendRequest))}."
    return f"{where}: {first['msg']}."


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()


@contextmanager
def _ending_in_order() -> Iterator[None]:
    """SIGTERM and Ctrl+C end the program with code 0.

    The server handles both while it runs, and raises what it caught again once it has ended in order.
    """
    before = {number: signal.signal(number, _end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 - the signature of a signal handler
    raise SystemExit(0)


@contextmanager
def _bound(host: str, port: int, *, is_open: bool) -> Iterator[socket.socket]:
    """A socket that holds the port, so that a taken one is told before anything large is loaded."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as fault:
        raise TwotowerError(f"--host {host}: no such host ({fault}). Name an address of this machine.") from fault
    if is_open and not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
        raise TwotowerError(
            f"--host {host}: not this machine's loopback, and there is no key. Set {API_KEY}, or listen on 127.0.0.1."
        )
    with socket.socket(family, kind) as bound:
        if os.name == "posix":  # Elsewhere the option means that several programs may take one port.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(address)
        except OSError as fault:
            if fault.errno == errno.EADDRINUSE:
                raise TwotowerError(f"{host}:{port}: the port is taken. Choose another by --port.") from fault
            raise TwotowerError(f"{host}:{port}: cannot listen there ({fault.strerror}).") from fault
        yield bound


@contextmanager
def _at_hand(bundle: str, cache: Path | None) -> Iterator[Path]:
    """The bundle's directory; of an address, a copy that lasts as long as the server."""
    if not storage.is_address(bundle):
        yield Path(bundle)
        return
    try:
        if cache is not None:
            cache.mkdir(parents=True, exist_ok=True)
            for left in cache.glob(f"{COPY}*"):  # By a server that was killed; the folder is this server's alone.
                shutil.rmtree(left, ignore_errors=True)
        # Where open files cannot be removed, the copy stays.
        made = tempfile.TemporaryDirectory(prefix=COPY, dir=cache, ignore_cleanup_errors=True)
    except OSError as fault:
        raise TwotowerError(f"--cache {cache}: cannot be written ({fault.strerror}). Name another folder.") from fault
    with made as folder:
        yield storage.download(bundle, Path(folder) / "bundle")
