"""Ten minutes with 1,000,000 users, each of them another: does the server's memory grow?

Every user has met something, which goes to the server as an event and into its store, a hundred events a request. Every
third then asks for a recommendation, half of them telling a history besides; each tenth request is a known user's. More
than some 600 requests a second one core does not answer, so that not all of a million can ask within ten minutes.
`slope_mb_per_min` is the least-squares line through the resident memory, sampled each second, after the first fifth of
the time; the raw figures also hold the memory that is not mapped from files.
"""

import asyncio
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import results

from serving import bundles, driving
from twotower.bundle import Bundle
from twotower.serving.load.child import Child
from twotower.serving.load.generator import SHED_AT_MOST, LoadPlan, LoadResult, run_loop
from twotower.serving.load.generator import run as run_load

KEYS = ("slope_mb_per_min",)
K = 10
HISTORY = 5
EVERY_KNOWN = 10
EVENTS_AT_ONCE = 100
WARM_SHARE = 0.2
EVERY_ASKS = 3
"""Of the users, by number: the others only send their event."""
BEHIND = 6_000
"""Users whose event has been sent since that of the one who asks: a few seconds of them."""


class Asked(Sequence[bytes]):
    """Request `i`, made when it is due: a million bodies need not lie in memory."""

    def __init__(self, bundle: Bundle, *, users: int) -> None:
        self.items = [str(item) for item in bundle.items["item_id"].to_pylist()]
        self.known = [str(user) for user in bundle.users["user_id"].to_pylist()]
        self.users = users

    def __len__(self) -> int:
        return self.users // EVERY_ASKS * EVERY_KNOWN // (EVERY_KNOWN - 1)

    @overload
    def __getitem__(self, place: int) -> bytes: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[bytes]: ...
    def __getitem__(self, place: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        if place % EVERY_KNOWN == 0:
            return _json({"user_id": self.known[place // EVERY_KNOWN % len(self.known)], "k": K})
        among = place - 1 - place // EVERY_KNOWN  # Of those who are not known.
        user = (among * EVERY_ASKS - BEHIND) % (self.users // EVERY_ASKS * EVERY_ASKS)
        told = {"history": self.met(user)} if among % 2 else {}
        return _json({"user_id": f"soak-{user}", "k": K, **told})

    def met(self, user: int) -> list[str]:
        """Some items, others for each user."""
        return [self.items[(user * 7919 + step * 104_729) % len(self.items)] for step in range(HISTORY)]


class Events(Asked):
    """Batch `i` of events, one of each user."""

    def __len__(self) -> int:
        return self.users // EVENTS_AT_ONCE

    def __getitem__(self, place: int | slice) -> Any:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        users = range(place * EVENTS_AT_ONCE, (place + 1) * EVENTS_AT_ONCE)
        events = [
            {"event_id": f"soak-{user}", "user_id": f"soak-{user}", "item_id": self.met(user)[0]} for user in users
        ]
        return _json({"events": events})


def run(arguments: list[str]) -> dict[str, float]:
    """Ask, write and watch."""
    parser = driving.options("soak", __doc__, seconds=600.0)
    parser.add_argument("--users", type=int, default=1_000_000, help="unknown ones (default 1,000,000)")
    told = parser.parse_args(arguments)
    bundle: Path = told.bundle or bundles.movielens()
    opened = Bundle.load(bundle)
    bodies, events = Asked(opened, users=told.users), Events(opened, users=told.users)
    with tempfile.TemporaryDirectory() as folder:
        with driving.started(bundle, "--store", str(Path(folder) / "events.sqlite")) as child:
            plan = replace(
                driving.plan(child, bodies, rate=len(bodies) / told.seconds, seconds=told.seconds), warmup=0.0
            )
            load, written, memory = run_loop(_soak(child, plan, events=events))
        stored = sum(path.stat().st_size for path in Path(folder).iterdir()) / 2**20
    slope = _slope(memory, column=1)
    raw: dict[str, Any] = {"load": load.summary(), "events": written.summary(), "memory_mb": memory.tolist()}
    raw |= {"users": told.users, "stored_mb": stored, "unshared_slope_mb_per_min": _slope(memory, column=2)}
    print(f"raw figures: {results.write('soak', raw | {'slope_mb_per_min': slope})}")
    came = f"{load.counts} {load.errors}, events {written.counts} {written.errors}"
    driving.say(f"resident memory {memory[0, 1]:.0f} -> {memory[-1, 1]:.0f} MB; {came}")
    if load.failed or written.failed or load.shed > SHED_AT_MOST:
        raise RuntimeError(f"not all were answered: {came}")
    return {"slope_mb_per_min": slope}


async def _soak(child: Child, plan: LoadPlan, *, events: Events) -> tuple[LoadResult, LoadResult, np.ndarray]:
    """Both loads side by side, and `[n, 3]` second, resident and unshared memory."""
    writing = replace(plan, bodies=events, path="/v1/events", rate=len(events) / plan.seconds)
    memory: list[tuple[float, float, float]] = []
    loop = asyncio.get_running_loop()
    began = loop.time()

    async def sample() -> None:
        while True:
            memory.append((loop.time() - began, child.resident_mb(), child.unshared_mb()))
            await asyncio.sleep(1.0)

    sampling = asyncio.create_task(sample())
    load, written = await asyncio.gather(run_load(plan), run_load(writing))
    sampling.cancel()
    return load, written, np.array(memory)


def _slope(memory: np.ndarray, *, column: int) -> float:
    """MiB a minute, by least squares, without the first part of the time."""
    minutes = memory[:, 0] / 60
    kept = minutes >= WARM_SHARE * minutes[-1]
    return float(np.polyfit(minutes[kept], memory[kept, column], 1)[0])


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content).encode()
