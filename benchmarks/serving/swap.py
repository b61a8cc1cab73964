"""A hundred swaps between two bundles while users ask.

Both bundles have the same users and items and answer differently. What each gives to each user is worked out
beforehand, without a server. `failed` counts requests without an answer 200; `mixed` counts answers that are not wholly
those of the bundle that they name: other items, another order, other scores.

An answer to a request that came after a swap was acknowledged has to name the new bundle. The benchmark fails as well
where a rollback takes a second, or where memory does not come back to within 10 % of what it was once both bundles had
been served.
"""

import asyncio
import json
import math
import socket
import time
import urllib.request
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import results

from serving import bundles, driving
from twotower.bundle import Bundle
from twotower.serving.load.child import Child
from twotower.serving.load.generator import LoadPlan, LoadResult, run_loop
from twotower.serving.load.generator import run as run_load
from twotower.serving.load.measuring import request_bodies
from twotower.serving.recommender import Recommender

KEYS = ("failed", "mixed")
USERS = 500
K = 20
ROUNDING = 1e-5
"""Relative; the scores of two runs of one model on one machine are mostly equal to the last digit."""
SETTLED_S = 5.0
"""After the last swap, for memory to be given back."""
MEMORY_AT_MOST = 1.10
ROLLBACK_WITHIN_MS = 1000.0
CLOCKS_S = 0.02
"""By which the load's clock begins after ours, at most."""
EVERY = 10
"""Each tenth swap is a rollback, which does the same by another call."""

Answer = tuple[tuple[str, ...], tuple[float, ...]]
"""Item ids and scores."""


class Watched:
    """What came back, and what was done to the server meanwhile."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, bytes]] = []
        self.swaps: list[dict[str, Any]] = []
        self.memory: list[tuple[float, float]] = []


def run(arguments: list[str]) -> dict[str, float]:
    """Swap under load, then compare every answer."""
    parser = driving.options("swap", __doc__, seconds=0.3, rate=200.0)
    parser.add_argument("--other", type=Path, help="the second bundle, with --bundle")
    parser.add_argument("--swaps", type=int, default=100, help="how many (default 100)")
    told = parser.parse_args(arguments)
    pair = (told.bundle, told.other) if told.bundle and told.other else bundles.movielens_pair()
    bodies = list(dict.fromkeys(request_bodies(Bundle.load(pair[0]), k=K, count=USERS, users="uniform", seed=0)))
    expected = {Bundle.load(path).id: _expected(path, bodies) for path in pair}
    first, second = expected
    if len(expected) != 2 or all(expected[first][body] == expected[second][body] for body in bodies):
        raise RuntimeError("the two bundles do not differ in what they answer")
    port = _free_port()
    with driving.started(pair[0], *driving.NO_STORE, "--admin-port", str(port)) as child:
        plan = driving.plan(child, bodies, rate=told.rate, seconds=3600.0)
        admin = f"http://127.0.0.1:{port}"
        watched, load = run_loop(_swap(child, plan, admin=admin, pair=pair, times=told.swaps, pause=told.seconds))
    mixed = sum(not _is_whole(body, expected, asked=bodies[number % len(bodies)]) for number, body in watched.answers)
    stale = _stale(watched, load, rate=told.rate, order=[first, second])
    figures = {"failed": float(load.failed + _shed(load)), "mixed": float(mixed)}
    raw = {"load": load.summary(), "swaps": watched.swaps, "stale": stale, "memory_mb": watched.memory}
    print(f"raw figures: {results.write('swap', raw | {'figures': figures, 'bundles': list(expected)})}")
    _refuse(watched, stale=stale)
    return figures


def _expected(bundle: Path, bodies: list[bytes]) -> dict[bytes, Answer]:
    """Request -> what the bundle answers, by the same code without a server."""
    recommender = Recommender.load(bundle)
    answers = {}
    for body in bodies:
        asked = json.loads(body)
        items = recommender.recommend(asked["user_id"], k=asked["k"]).items
        answers[body] = (tuple(item.item_id for item in items), tuple(item.score for item in items))
    return answers


async def _swap(
    child: Child, plan: LoadPlan, *, admin: str, pair: tuple[Path, Path], times: int, pause: float
) -> tuple[Watched, LoadResult]:
    """Ask all the time, and swap there and back meanwhile."""
    watched, over = Watched(), asyncio.Event()

    def answered(number: int, status: int, body: bytes) -> None:
        if status == 200:
            watched.answers.append((number, body))

    began = time.perf_counter()
    load = asyncio.create_task(run_load(plan, answered=answered, until=over))
    await asyncio.sleep(plan.warmup + 1.0)
    for path in (pair[1], pair[0]):  # Once there and back: from now on nothing new is served.
        await asyncio.to_thread(_put, admin, path)
        await asyncio.sleep(pause)
    await asyncio.sleep(SETTLED_S)
    watched.memory.append((child.resident_mb(), child.unshared_mb()))
    for swap in range(1, times + 1):
        target = swap % 2
        call = (_post_rollback, admin) if swap % EVERY == 0 else (_put, admin, pair[target])
        asked = time.perf_counter() - began
        await asyncio.to_thread(*call)
        done = time.perf_counter() - began
        told = {"asked": asked, "done": done, "ms": 1e3 * (done - asked), "rollback": swap % EVERY == 0}
        watched.swaps.append({"to": target} | told)
        await asyncio.sleep(pause)
        watched.memory.append((child.resident_mb(), child.unshared_mb()))
    await asyncio.sleep(SETTLED_S)
    watched.memory.append((child.resident_mb(), child.unshared_mb()))
    over.set()
    return watched, await load


def _put(admin: str, bundle: Path) -> None:
    content = {"variants": [{"name": "main", "bundle": str(bundle.resolve()), "share": 1.0}]}
    _call("PUT", f"{admin}/v1/deployment", content)


def _post_rollback(admin: str) -> None:
    _call("POST", f"{admin}/v1/rollback", {})


def _call(method: str, url: str, content: Mapping[str, Any]) -> None:
    body = json.dumps(content).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=120.0) as response:
        response.read()


def _is_whole(body: bytes, expected: Mapping[str, Mapping[bytes, Answer]], *, asked: bytes) -> bool:
    """Whether an answer is what the bundle that it names gives, and all of it."""
    answer = json.loads(body)
    ids, scores = expected[answer["bundle"]][asked] if answer["bundle"] in expected else ((), ())
    items = answer["items"]
    return tuple(item["item_id"] for item in items) == ids and all(
        math.isclose(item["score"], score, rel_tol=ROUNDING, abs_tol=ROUNDING)
        for item, score in zip(items, scores, strict=True)
    )


def _stale(watched: Watched, load: LoadResult, *, rate: float, order: list[str]) -> int:
    """Answers that name the old bundle though their requests came after a swap was acknowledged."""
    named = {number: json.loads(body)["bundle"] for number, body in watched.answers}
    due = np.arange(len(load.status)) / rate
    read = due + load.latency_ms / 1000
    stale = 0
    for swap, following in zip_longest(watched.swaps, watched.swaps[1:]):
        until = following["asked"] if following else math.inf
        between = np.flatnonzero((due >= swap["done"] + CLOCKS_S) & (read < until - CLOCKS_S)).tolist()
        stale += sum(named.get(number, order[swap["to"]]) != order[swap["to"]] for number in between)
    return stale


def _shed(load: LoadResult) -> int:
    return round(load.shed * load.sent)


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def _refuse(watched: Watched, *, stale: int) -> None:
    """Raises: RuntimeError: an old bundle answered after a swap, a rollback took too long, or memory has grown."""
    before, after = watched.memory[0], watched.memory[-1]
    driving.say(f"memory {before[0]:.0f} -> {after[0]:.0f} MB resident, {before[1]:.0f} -> {after[1]:.0f} MB unshared")
    if stale:
        raise RuntimeError(f"{stale} answers were of the old bundle though the swap had been acknowledged")
    slowest = max((swap["ms"] for swap in watched.swaps if swap["rollback"]), default=0.0)
    if slowest >= ROLLBACK_WITHIN_MS:
        raise RuntimeError(f"a rollback took {slowest:.0f} ms")
    if after[0] > MEMORY_AT_MOST * before[0]:
        raise RuntimeError(f"memory went from {before[0]:.0f} to {after[0]:.0f} MB")
