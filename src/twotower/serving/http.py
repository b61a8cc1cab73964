"""`twotower serve`: a bundle behind a socket, from the first check of the settings to the last answer.

Everything runs on one event loop. A request passes the door (`door.py`), then the shedding, then the routes of
`app.py`; the admin's routes have a port of their own.
"""

import asyncio
import errno
import gc
import ipaddress
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import uvicorn
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.types import ASGIApp

from twotower import storage
from twotower.errors import TwotowerError
from twotower.serving.api.admin import create_admin
from twotower.serving.api.app import COMPUTED, create_app
from twotower.serving.api.service import Service
from twotower.serving.door.connections import ConnectionLimits, connection_protocol, raise_open_files
from twotower.serving.door.door import Door
from twotower.serving.door.keys import ADMIN_KEY, API_KEY, KeyRing, KeyScope
from twotower.serving.door.logs import LogFormat, log_request, start_logs
from twotower.serving.door.routing import Methods, scope_of
from twotower.serving.door.telemetry import Telemetry
from twotower.serving.door.tracing import Tracing
from twotower.serving.live.deployment import Live
from twotower.serving.live.watching import Watch
from twotower.serving.recommender import Recommender
from twotower.serving.store.contract import open_store

GRACE_S = 20
"""Seconds that requests under way get when the server is told to end; Kubernetes grants 30 for all."""
TURNS_BEFORE_CLOSING = 3
"""Of the event loop."""
NO_STORE = "none"
"""Said in place of a store to have none."""
BESIDE = "serving.db"
"""The store of a bundle, in the folder that holds it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """How a server is started."""

    host: str = "127.0.0.1"
    """Where to listen; anything but this machine's loopback needs a key."""
    port: int = 8000
    """0 takes a free one; the line on stderr names it."""
    admin_host: str = "127.0.0.1"
    """Where to listen for the admin, likewise."""
    admin_port: int | None = None
    """None leaves the admin's routes out."""
    store: str | None = None
    """Where events and items are kept: a path, or an address such as `postgresql://...`; None keeps none."""
    watch: str | None = None
    """A registry's `<address>/<name>`, whose champion is to answer."""
    keys: Path | None = None
    """File of keys."""
    cache: Path | None = None
    """Where downloaded bundles lie meanwhile; by default the system's temporary directory."""
    log_format: LogFormat = "text"
    access_log: bool = False
    """Whether each request is a line on stderr."""


def serve(bundle: str | Path, options: ServeOptions) -> None:
    """Answer from a bundle until SIGTERM or Ctrl+C, which let requests under way finish and end with code 0.

    To be called in the main thread.

    Args:
        bundle: A directory, or an address to download it from.
        options: How.

    Raises:
        TwotowerError: a host that cannot be listened on, a port that is taken, or no key where one is needed.
        StorageError: there is no bundle at the address, or the store cannot be opened.
        ArtifactError: what is there is no bundle, or a damaged one.
    """
    keys = KeyRing.of(os.environ, file=options.keys)
    with _ending_in_order(), ExitStack() as stack:
        # Bound before anything large is loaded, so that a taken port is told at once.
        bound = stack.enter_context(_bound(options.host, options.port, keys=keys, needed=API_KEY))
        admin_bound = None
        if options.admin_port is not None:
            admin_bound = stack.enter_context(
                _bound(options.admin_host, options.admin_port, keys=keys, needed=ADMIN_KEY)
            )
        start_logs(options.log_format, access=options.access_log)
        tracing = Tracing.open(os.environ)
        if tracing is not None:
            stack.callback(tracing.close)
        live = Live(cache=options.cache)
        stack.callback(live.close)
        store = None if options.store is None else open_store(options.store)
        service = Service(live, store=store, telemetry=Telemetry())
        stack.callback(service.close)
        service.deployer.begin(str(bundle))
        _run(service, options, keys=keys, tracing=tracing, bound=bound, admin_bound=admin_bound)


def store_of(bundle: str, told: str | None) -> str | None:
    """Where events and items are kept: what was told, or else a file beside a bundle that lies in a folder.

    Beside a bundle whose folder cannot be written, as in a container, nothing is kept unless a place is named.
    """
    if told is not None:
        return None if told == NO_STORE else told
    if storage.is_address(bundle):
        return None
    beside = Path(bundle).resolve().parent
    return str(beside / BESIDE) if os.access(beside, os.W_OK) else None


def _run(
    service: Service,
    options: ServeOptions,
    *,
    keys: KeyRing | None,
    tracing: Tracing | None,
    bound: socket.socket,
    admin_bound: socket.socket | None,
) -> None:
    """Serve until told to end."""
    door = _door(create_app(service), service, keys=keys, tracing=tracing)
    service.telemetry.watch(queue_depth=lambda: service.gate.depth, in_flight=lambda: door.in_flight)
    where = _url(options.host, bound)
    main = _Server(_config(door, service), ready=f"Serving {service.bundle_id} on {where}", ending=service.end)
    admin = None
    if admin_bound is not None:
        told = f"Admin on {_url(options.admin_host, admin_bound)}"
        behind = _door(create_admin(service), service, keys=keys, tracing=None)
        admin = _SecondServer(_config(behind, service), ready=told, ending=service.end)
    # What is loaded stays: looking through it for garbage again and again would hold answers up.
    gc.collect()
    gc.freeze()
    with asyncio.Runner(loop_factory=main.config.get_loop_factory()) as runner:
        runner.run(_serve_all(service, options, main=main, admin=admin, sockets=(bound, admin_bound)))


async def _serve_all(
    service: Service,
    options: ServeOptions,
    *,
    main: "_Server",
    admin: "_Server | None",
    sockets: tuple[socket.socket, socket.socket | None],
) -> None:
    """Both ports and what runs beside them; the first one's end is the end of all."""
    loop = asyncio.get_running_loop()

    def swap(recommender: Recommender) -> None:
        asyncio.run_coroutine_threadsafe(service.deployer.swap(recommender), loop).result()

    def refused() -> None:
        service.telemetry.swap("refused")

    watch: AbstractContextManager[object] = nullcontext()
    if options.watch:
        watch = Watch(service.live, address=options.watch, swap=swap, refused=refused)
    beside = [asyncio.create_task(service.shadow()), asyncio.create_task(service.deployer.keep_up())]
    behind = None
    if admin is not None and sockets[1] is not None:
        behind = asyncio.create_task(admin.serve(sockets=[sockets[1]]))
    try:
        with watch:
            await main.serve(sockets=[sockets[0]])
    finally:
        for task in beside:
            task.cancel()
        if admin is not None and behind is not None:
            admin.should_exit = True
            await behind


class _Server(uvicorn.Server):
    """Says when it can be asked, and that it ends."""

    def __init__(self, config: uvicorn.Config, *, ready: str, ending: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready
        self._ending = ending

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        sys.stderr.write(f"{self._ready}\n")
        sys.stderr.flush()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._ending()
        # Who waits to be accepted would be reset by closing what they wait at: the loop takes them up first.
        for _ in range(TURNS_BEFORE_CLOSING):
            await asyncio.sleep(0)
        await super().shutdown(sockets=sockets)


class _SecondServer(_Server):
    """Leaves the signals to the first."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _config(app: ASGIApp, service: Service) -> uvicorn.Config:
    limits = ConnectionLimits()
    limits = replace(limits, connections=raise_open_files(limits.connections))
    return uvicorn.Config(
        app,
        http=connection_protocol(
            limits, ended=service.telemetry.connection_ended, turns_away=lambda target: _turns_away(service, target)
        ),
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        # Clients keep their connections for a minute; one that is closed by then costs one of them a request.
        timeout_keep_alive=75,
        server_header=False,
        timeout_graceful_shutdown=GRACE_S,
    )


def _turns_away(service: Service, target: bytes) -> bool:
    """Whether a request for a target has no place to wait in; counted as sent away, and as answered."""
    route = target.partition(b"?")[0].decode("latin-1")
    if route not in COMPUTED or not service.gate.sends_away():
        return False
    service.telemetry.answered(route, 503, 0.0)
    return True


def _door(app: FastAPI, service: Service, *, keys: KeyRing | None, tracing: Tracing | None) -> Door:
    def finished(state: dict[str, Any], status: int, seconds: float) -> None:
        service.telemetry.answered(state["route"], status, seconds)
        log_request(state, status, seconds)
        if tracing is not None:
            tracing.request(state, status, seconds)

    return Door(
        app,
        routes=scopes(app),
        keys=keys,
        is_local=keys is None,
        finished=finished,
    )


def scopes(app: FastAPI) -> dict[str, Methods]:
    """Which scope each route of an application takes: path -> method -> scope."""
    found: dict[str, dict[str, KeyScope | None]] = {}
    for route in app.routes:
        assert isinstance(route, APIRoute)
        for method in sorted(route.methods or ()):
            found.setdefault(route.path, {})[method] = scope_of(str(route.tags[0]))
    return dict(found)


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
def _bound(host: str, port: int, *, keys: KeyRing | None, needed: str) -> Iterator[socket.socket]:
    """A socket that holds the port."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as fault:
        raise TwotowerError(f"--host {host}: no such host ({fault}). Name an address of this machine.") from fault
    if not keys and not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
        raise TwotowerError(
            f"--host {host}: not this machine's loopback, and there is no key. "
            f"Set {needed}, name a file by --keys, or listen on 127.0.0.1."
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


def _url(host: str, bound: socket.socket) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{bound.getsockname()[1]}"
