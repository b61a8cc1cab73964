"""How a server does at a rate that does not wait for it: an open-loop load over HTTP/1.1, and the rate it can bear.

Request `i` is due at `start + i / rate`, whatever became of those before it, and its latency runs from that moment
until its whole answer is read. A server that stalls is charged for everyone who comes meanwhile, which a client that
waits for each answer before it asks again would leave out.
"""

import asyncio
import gc
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from twotower.errors import RequestError
from twotower.serving.load.pool import FAULTS, Pool

SHED = (429, 503)
"""What a server answers that has too much to do."""
SPIN_S = 0.002
"""Before a request is due, the clock is watched and not slept by: a loop's timers are a millisecond wide."""
BEGIN_S = 0.01
"""From the call to the first request."""

GROWTH = 1.5
"""From one rate to the next while the server follows."""
HALVINGS = 4
"""Of the gap between the last rate that it bore and the first that it did not."""
KEPT_UP = 0.98
"""Share of the rate that has to be answered for the server to count as following."""
SHED_AT_MOST = 0.01

Answered = Callable[[int, int, bytes], None]
"""Told of each answer: the request's number, the status (below 0: see `pool.FAULTS`) and the body."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """What is asked, and how often."""

    url: str
    """`http://host:port`."""
    rate: float
    """Requests a second."""
    seconds: float
    """How long is measured."""
    bodies: Sequence[bytes]
    """Request `i` has body `i` modulo their number."""
    path: str = "/v1/recommend"
    headers: Mapping[str, str] = field(default_factory=dict)
    """Besides Host, Content-Type and Content-Length."""
    warmup: float = 1.0
    """Seconds at the same rate before those measured."""
    connections: int = 256
    """At once; what finds none free waits."""
    timeout: float = 10.0
    """Seconds after which a request counts as failed."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadResult:
    """`n` requests by number, `first` of them to warm up. The figures leave these out."""

    rate: float
    seconds: float
    first: int
    latency_ms: NDArray[np.float64]
    """`[n]` from the due moment to the whole answer, or to the fault."""
    status: NDArray[np.int16]
    """`[n]` of the answer; below 0 there was none, see `pool.FAULTS`."""
    late_ms: NDArray[np.float32]
    """`[n]` from the due moment to the generator's turn: what is not the server's doing."""
    unhinted: int
    """Answers 429 and 503 that did not say when to come again, those of the warm-up among them."""

    @property
    def moment(self) -> NDArray[np.float64]:
        """`[n]` seconds from the first measured request to the due moment; below 0 in the warm-up."""
        return (np.arange(len(self.status)) - self.first) / self.rate

    @property
    def sent(self) -> int:
        """Requests measured."""
        return len(self.status) - self.first

    @property
    def counts(self) -> dict[int, int]:
        """Status -> answers."""
        return {status: count for status, count in self._by_status().items() if status > 0}

    @property
    def errors(self) -> dict[str, int]:
        """Fault -> requests without a whole answer."""
        return {FAULTS[status]: count for status, count in self._by_status().items() if status < 0}

    @property
    def shed(self) -> float:
        """The share that was turned away."""
        return sum(self.counts.get(status, 0) for status in SHED) / max(1, self.sent)

    @property
    def failed(self) -> int:
        """Requests that were neither answered with 200 nor turned away."""
        return self.sent - sum(self.counts.get(status, 0) for status in (200, *SHED))

    @property
    def achieved(self) -> float:
        """Answers 200 a second that came in the time measured, to whichever request."""
        came = self.moment + self.latency_ms / 1000
        within = (self.status == 200) & (came >= 0) & (came < self.seconds)
        return float(np.count_nonzero(within) / self.seconds)

    def percentile_ms(self, percent: float, *, status: int = 200) -> float:
        """Latency that `percent` of the answers with this status stay within; NaN where there are none."""
        chosen = self.latency_ms[self.first :][self.status[self.first :] == status]
        return float(np.percentile(chosen, percent)) if len(chosen) else float("nan")

    def summary(self) -> dict[str, Any]:
        """The figures as JSON can hold them."""
        late = self.late_ms[self.first :]
        return {
            "rate": self.rate,
            "seconds": self.seconds,
            "sent": self.sent,
            "achieved": round(self.achieved, 2),
            **{f"p{percent}_ms": _plain(self.percentile_ms(percent)) for percent in (50, 95, 99)},
            "max_ms": _plain(self.percentile_ms(100)),
            "counts": {str(status): count for status, count in self.counts.items()},
            "errors": self.errors,
            "shed": self.shed,
            "unhinted": self.unhinted,
            "late_p99_ms": _plain(float(np.percentile(late, 99))) if len(late) else None,
        }

    def _by_status(self) -> dict[int, int]:
        return dict(sorted(Counter(self.status[self.first :].tolist()).items()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Saturation:
    """The highest rate that a server followed."""

    max_rps: float
    """Answers a second at that rate; 0 where it followed none."""
    steps: tuple[dict[str, Any], ...]
    """What was tried, in order: `LoadResult.summary` and whether it was `borne`."""


def run_loop(main: Coroutine[Any, Any, T]) -> T:
    """What a coroutine answers, on the quicker event loop where that is installed."""
    try:
        import uvloop
    except ModuleNotFoundError:
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


async def run(plan: LoadPlan, *, answered: Answered | None = None, until: asyncio.Event | None = None) -> LoadResult:
    """Ask at a constant rate, and wait for all answers.

    Args:
        plan: What to ask.
        answered: Told of each answer as it comes, those of the warm-up among them. It has to be quick.
        until: Set, it ends the load before its time.

    Raises:
        RequestError: no bodies, or an address that is not plain HTTP.
    """
    if not plan.bodies:
        raise RequestError("load: there is nothing to ask. Give at least one body.")
    with _undisturbed():
        return await _Load(plan, answered, until or asyncio.Event()).run()


async def find_saturation(plan: LoadPlan, *, limit_ms: float = 50.0) -> Saturation:
    """The highest rate at which the server answers what it is asked, with few turned away and none failed.

    The rate grows from the plan's until the server does not follow, twice in a row as once may be chance; then the gap
    is halved. Each rate takes the plan's seconds.

    Args:
        plan: Its rate is the first; where the server does not follow even that, smaller ones are tried.
        limit_ms: A p99 above it means that a queue is growing.
    """
    steps: list[dict[str, Any]] = []

    async def bears(rate: float) -> bool:
        for _ in range(2):
            result = await run(replace(plan, rate=rate))
            borne = _is_borne(result, limit_ms=limit_ms)
            steps.append(result.summary() | {"borne": borne})
            if borne:
                return True
            await asyncio.sleep(plan.warmup)  # For what is left over to be done with.
        return False

    low, high = 0.0, plan.rate
    while await bears(high):
        low, high = high, high * GROWTH
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if await bears(middle) else (low, middle)
    borne = [step["achieved"] for step in steps if step["borne"]]
    return Saturation(max_rps=max(borne, default=0.0), steps=tuple(steps))


def _plain(milliseconds: float) -> float | None:
    """JSON has no NaN."""
    return None if np.isnan(milliseconds) else round(milliseconds, 4)


def _is_borne(result: LoadResult, *, limit_ms: float) -> bool:
    is_quick = result.percentile_ms(99) <= limit_ms
    return is_quick and not result.failed and result.shed <= SHED_AT_MOST and result.achieved >= KEPT_UP * result.rate


class _Load:
    """One run of a plan."""

    def __init__(self, plan: LoadPlan, answered: Answered | None, until: asyncio.Event) -> None:
        self._plan = plan
        self._answered = answered
        self._until = until
        self._first = round(plan.rate * plan.warmup)
        self._count = self._first + max(1, round(plan.rate * plan.seconds))
        self._latency = np.full(self._count, np.nan)
        self._late = np.zeros(self._count, np.float32)
        self._status = np.zeros(self._count, np.int16)
        self._unhinted = self._next = self._over = 0
        self._begin = 0.0
        self._done = asyncio.Event()
        host, port = _address(plan.url)
        self._pool = Pool(
            host,
            port,
            head=_head(plan, host=host, port=port),
            limit=plan.connections,
            timeout=plan.timeout,
            keeps=answered is not None,
            finished=self._finish,
        )

    async def run(self) -> LoadResult:
        watching = asyncio.create_task(self._pool.watch())
        self._begin = perf_counter() + BEGIN_S
        self._tick()
        try:
            await self._done.wait()
        finally:
            watching.cancel()
            self._pool.close()
        asked = slice(0, self._next)
        measured = self._next - self._first
        return LoadResult(
            rate=self._plan.rate,
            seconds=max(measured, 1) / self._plan.rate,
            first=min(self._first, self._next),
            latency_ms=self._latency[asked],
            status=self._status[asked],
            late_ms=self._late[asked],
            unhinted=self._unhinted,
        )

    def _tick(self) -> None:
        """Send what is due, and come again when the next one is."""
        now = perf_counter()
        if self._until.is_set():
            self._count = self._next
        bodies, rate = self._plan.bodies, self._plan.rate
        while self._next < self._count and (due := self._begin + self._next / rate) <= now:
            self._late[self._next] = (now - due) * 1000
            self._pool.ask(self._next, due, bodies[self._next % len(bodies)])
            self._next += 1
        if self._next < self._count:
            wait = self._begin + self._next / rate - now
            loop = asyncio.get_running_loop()
            if wait > SPIN_S:
                loop.call_later(wait - SPIN_S, self._tick)
            else:
                loop.call_soon(self._tick)
        elif self._over == self._count:
            self._done.set()

    def _finish(self, number: int, status: int, seconds: float, body: bytes, is_hinted: bool) -> None:
        self._status[number] = status
        self._latency[number] = seconds * 1000
        self._unhinted += status in SHED and not is_hinted
        self._over += 1
        if self._answered is not None:
            self._answered(number, status, body)
        if self._over == self._count == self._next:
            self._done.set()


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    if parts.scheme != "http" or parts.hostname is None:
        raise RequestError(f"load: '{url}' is not http://HOST:PORT. Name an address of that form.")
    return parts.hostname, parts.port or 80


def _head(plan: LoadPlan, *, host: str, port: int) -> bytes:
    named = {"Host": f"[{host}]:{port}" if ":" in host else f"{host}:{port}", "Content-Type": "application/json"}
    lines = [
        f"POST {plan.path} HTTP/1.1",
        *(f"{name}: {value}" for name, value in (named | dict(plan.headers)).items()),
    ]
    return "\r\n".join([*lines, "Content-Length: "]).encode("latin-1")


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Without the collector of garbage, whose pauses would count as the server's; a load leaves none to collect."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
