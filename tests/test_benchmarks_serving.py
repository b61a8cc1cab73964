"""The serving benchmarks' own arithmetic: what they would say of servers that fail in a known way."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from twotower.serving.load.generator import LoadResult

BENCHMARKS = Path(__file__).resolve().parent / ".." / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks_on_the_path() -> Iterator[None]:
    """The modules import each other as the dispatcher runs them; the name of their folder is also one of ours."""
    sys.path.insert(0, str(BENCHMARKS))
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "serving"}
    yield
    sys.path.remove(str(BENCHMARKS))
    for name in [name for name in sys.modules if name.partition(".")[0] == "serving"]:
        del sys.modules[name]
    sys.modules.update(before)


def load(latency_ms: list[float], status: list[int] | None = None, *, rate: float = 100.0) -> LoadResult:
    return LoadResult(
        rate=rate,
        seconds=len(latency_ms) / rate,
        first=0,
        latency_ms=np.array(latency_ms, float),
        status=np.array(status or [200] * len(latency_ms), np.int16),
        late_ms=np.zeros(len(latency_ms), np.float32),
        unhinted=0,
    )


def test_recovery_is_when_a_whole_second_keeps_to_the_limit() -> None:
    from serving.overload import recovery

    slow, quick = [9.0] * 150, [1.0] * 300  # 100 a second: slow for 1.5 s, then quick for 3 s.
    # From 1.5 s on no request of the second is slow; from 1.4 s on ten of a hundred are.
    assert recovery(load(slow + quick), limit_ms=4.0) == pytest.approx(1.5)
    assert recovery(load(quick), limit_ms=4.0) == 0.0
    assert recovery(load(slow + slow), limit_ms=4.0) == float("inf")


def test_whoever_was_turned_away_has_not_recovered() -> None:
    from serving.overload import recovery

    status = [503] * 120 + [200] * 200
    assert recovery(load([1.0] * 320, status), limit_ms=4.0) == pytest.approx(1.2)


def answer(bundle: str, *items: tuple[str, float]) -> bytes:
    return json.dumps(
        {"bundle": bundle, "items": [{"item_id": each, "score": score} for each, score in items]}
    ).encode()


@pytest.mark.parametrize(
    ("body", "whole"),
    [
        (answer("one", ("a", 2.0), ("b", 1.0)), True),
        (answer("one", ("a", 2.000001), ("b", 1.0)), True),
        (answer("two", ("a", 2.0), ("b", 1.0)), False),
        (answer("one", ("a", 2.0), ("b", 1.001)), False),
        (answer("one", ("b", 2.0), ("a", 1.0)), False),
        (answer("one", ("a", 2.0)), False),
        (answer("three", ("a", 2.0), ("b", 1.0)), False),
    ],
)
def test_an_answer_is_mixed_unless_all_of_it_is_of_the_bundle_that_it_names(body: bytes, whole: bool) -> None:
    from serving.swap import _is_whole

    expected = {
        "one": {b"asked": (("a", "b"), (2.0, 1.0))},
        "two": {b"asked": (("b", "c"), (4.0, 3.0))},
    }
    assert _is_whole(body, expected, asked=b"asked") is whole


def test_an_answer_of_the_old_bundle_after_a_swap_is_stale() -> None:
    from serving.swap import _stale

    # Ten a second, each answered after 1 ms; a swap to `new` between 0.25 and 0.35 s, one back between 0.75 and 0.85 s.
    swaps = [{"to": 1, "asked": 0.25, "done": 0.35}, {"to": 0, "asked": 0.75, "done": 0.85}]
    named = ["old", "old", "old", "new", "old", "new", "new", "new", "new", "new"]
    watched: Any = SimpleNamespace(
        answers=[(number, answer(bundle)) for number, bundle in enumerate(named)], swaps=swaps
    )
    # Wrong are that of 0.4 s and that of 0.9 s; what came while a swap went on, at 0.3 and 0.8 s, may be either.
    assert _stale(watched, load([1.0] * 10, rate=10.0), rate=10.0, order=["old", "new"]) == 2


def test_every_unknown_user_of_the_soak_is_another_and_events_come_before_their_users() -> None:
    from serving.soak import EVENTS_AT_ONCE, EVERY_ASKS, Asked, Events

    bundle: Any = SimpleNamespace(
        items={"item_id": np.array(["i0", "i1", "i2"], object)}, users={"user_id": np.array(["u0", "u1"], object)}
    )
    for table in (bundle.items, bundle.users):
        for key in table:
            table[key] = SimpleNamespace(to_pylist=table[key].tolist)
    users = 30_000
    bodies = Asked(bundle, users=users)
    asked = [json.loads(body) for body in bodies[0 : len(bodies)]]
    unknown = [each["user_id"] for each in asked if each["user_id"].startswith("soak-")]
    assert len(unknown) == len(set(unknown)) == users // EVERY_ASKS - 1
    assert {each["user_id"] for each in asked} - set(unknown) == {"u0", "u1"}
    assert sum("history" in each for each in asked) == pytest.approx(len(unknown) / 2, rel=0.01)
    batches = Events(bundle, users=users)
    sent = {each["user_id"]: batch for batch in range(len(batches)) for each in json.loads(batches[batch])["events"]}
    assert len(sent) == len(batches) * EVENTS_AT_ONCE == users
    # Once those at the beginning are through, whose events are yet to come, every event is sent before its user asks.
    for place, each in enumerate(asked):
        if place > len(asked) / 4 and each["user_id"] in sent:
            assert sent[each["user_id"]] / len(batches) < place / len(asked)


def test_memory_that_grows_after_the_warm_up_has_that_slope() -> None:
    from serving.soak import _slope

    seconds = np.arange(0.0, 601.0)
    # 100 MB more within the first minute, which is left out; then 3 MB a minute.
    grows = np.where(seconds < 60, 100 * seconds / 60, 100 + 3 * (seconds - 60) / 60)
    memory = np.stack([seconds, 200 + grows, np.full(601, 50.0)], axis=1)
    assert _slope(memory, column=1) == pytest.approx(3.0)
    assert _slope(memory, column=2) == pytest.approx(0.0)
