"""What becomes of a server that is asked three times what it can do, and of one that is asked by slow clients.

The highest rate that the server follows is looked for first. Then it is asked three times as much, and then half as
much. `p99_ms` is that of those who were answered under the overload, `shed` the share that was turned away, and
`recovery_s` the time from the end of the overload until the p99 of a whole second is back under the limit of the
unloaded server.

Beside that, 200 clients that send a byte a second stand beside healthy ones, and the server is told to end (SIGTERM)
while it is asked. The benchmark fails where a request of a healthy client or one under SIGTERM gets neither a whole
answer nor a refusal, or is turned away without being told when to come again.
"""

import asyncio
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import results

from serving import bundles, driving
from twotower.bundle import Bundle
from twotower.serving.load.child import Child
from twotower.serving.load.generator import LoadPlan, LoadResult, run_loop
from twotower.serving.load.generator import run as run_load
from twotower.serving.load.measuring import request_bodies
from twotower.serving.load.pool import FAULTS, REFUSED

KEYS = ("p99_ms", "shed", "recovery_s")
TIMES = 3.0
AFTERWARDS = 0.5
SLOW_CLIENTS = 200
BEGUN = (
    b"POST /v1/recommend HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
)
"""A slow client has sent half of this at once; the rest, and what follows, comes a byte a second."""


def run(arguments: list[str]) -> dict[str, float]:
    """Overload, slow down, end; one server for the first two, one for the last."""
    parser = driving.options("overload", __doc__, seconds=15.0)
    parser.add_argument("--limit-ms", type=float, default=4.0, help="p99 of the unloaded server (default 4)")
    told = parser.parse_args(arguments)
    bundle: Path = told.bundle or bundles.movielens()
    bodies = request_bodies(Bundle.load(bundle), k=20, count=driving.DRAWN, users="uniform", seed=0)
    with driving.started(bundle, *driving.NO_STORE) as child:
        found = driving.saturation(child, bodies, rate=300.0)
        capacity = found.max_rps
        calm = driving.plan(child, bodies, rate=capacity * AFTERWARDS, seconds=told.seconds)
        alone = run_loop(run_load(calm))
        over, after = run_loop(_overload(calm, seconds=told.seconds))
        beside = run_loop(_beside_slow_clients(replace(calm, warmup=3.0)))
    with driving.started(bundle, *driving.NO_STORE) as child:
        ending, code = run_loop(_ended_under_load(child, bodies, rate=capacity * AFTERWARDS))
    figures = {
        "p99_ms": over.percentile_ms(99),
        "shed": over.shed,
        "recovery_s": recovery(after, limit_ms=told.limit_ms),
    }
    runs = {"alone": alone, "over": over, "after": after, "beside_slow_clients": beside, "ending": ending}
    raw: dict[str, Any] = {"capacity": capacity, "saturation": found.steps, "limit_ms": told.limit_ms, "code": code}
    raw |= {name: result.summary() for name, result in runs.items()}
    print(f"raw figures: {results.write('overload', raw | {'figures': figures})}")
    for name, result in runs.items():
        driving.say(f"{name}: p99 {result.percentile_ms(99):.2f} ms, {result.counts} {result.errors}")
    _refuse(runs, code=code)
    return figures


def recovery(after: LoadResult, *, limit_ms: float) -> float:
    """Seconds until the first whole second whose p99 keeps to the limit; infinite where there is none."""
    for begin in np.arange(0.0, after.seconds - 1.0, 0.1):
        chosen = (after.moment >= begin) & (after.moment < begin + 1.0)
        # One that was turned away or failed is worse than any latency.
        latency = np.where(after.status[chosen] == 200, after.latency_ms[chosen], np.inf)
        if np.percentile(latency, 99, method="higher") <= limit_ms:
            return float(begin)
    return float("inf")


async def _overload(calm: LoadPlan, *, seconds: float) -> tuple[LoadResult, LoadResult]:
    """Three times the capacity, and at once after that half of it; the two do not wait for each other's answers."""
    capacity = calm.rate / AFTERWARDS
    over = asyncio.create_task(run_load(replace(calm, rate=TIMES * capacity, warmup=1.0, seconds=seconds)))
    await asyncio.sleep(1.0 + seconds)
    after = await run_load(replace(calm, warmup=0.0))
    return await over, after


async def _beside_slow_clients(calm: LoadPlan) -> LoadResult:
    slow = [asyncio.create_task(_slow_client(calm.url)) for _ in range(SLOW_CLIENTS)]
    try:
        return await run_load(calm)
    finally:
        for client in slow:
            client.cancel()
        await asyncio.gather(*slow, return_exceptions=True)


async def _slow_client(url: str) -> None:
    """Sends a byte a second, and comes again where it is sent away."""
    parts = urlsplit(url)
    while True:
        with suppress(OSError):
            _, writer = await asyncio.open_connection(parts.hostname, parts.port)
            try:
                half = len(BEGUN) // 2
                writer.write(BEGUN[:half])
                for byte in BEGUN[half:] + b" " * 1000:
                    await asyncio.sleep(1.0)
                    writer.write(bytes([byte]))
                    await writer.drain()
            finally:
                writer.close()
        await asyncio.sleep(1.0)


async def _ended_under_load(child: Child, bodies: Sequence[bytes], *, rate: float) -> tuple[LoadResult, int | None]:
    """Ask; after two seconds tell the server to end; go on until it is gone, and a second longer."""
    over = asyncio.Event()
    plan = driving.plan(child, bodies, rate=rate, seconds=60.0)
    load = asyncio.create_task(run_load(replace(plan, warmup=1.0), until=over))
    await asyncio.sleep(3.0)
    child.process.send_signal(signal.SIGTERM)
    end = perf_counter() + 40.0
    while child.process.poll() is None and perf_counter() < end:
        await asyncio.sleep(0.02)
    await asyncio.sleep(1.0)
    over.set()
    return await load, child.process.poll()


def _refuse(runs: dict[str, LoadResult], *, code: int | None) -> None:
    """Raises: RuntimeError: somebody was left without an answer."""
    for name in ("alone", "over", "after", "beside_slow_clients"):
        if runs[name].failed:
            raise RuntimeError(f"{name}: {runs[name].failed} requests failed: {runs[name].counts} {runs[name].errors}")
    if beside := runs["beside_slow_clients"].shed:
        raise RuntimeError(f"beside slow clients {beside:.2%} of the healthy were turned away")
    cut = {fault: count for fault, count in runs["ending"].errors.items() if fault != FAULTS[REFUSED]}
    if cut or code != 0:
        raise RuntimeError(f"SIGTERM under load: {cut} in place of answers, and the server ended with {code}")
    if unhinted := sum(result.unhinted for result in runs.values()):
        raise RuntimeError(f"{unhinted} were turned away without Retry-After")
