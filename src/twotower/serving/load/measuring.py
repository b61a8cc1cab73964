"""What `twotower bench serve` finds out about a user's own bundle: how it is served, and which index suits it."""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from twotower.bundle import Bundle
from twotower.errors import RequestError
from twotower.index.build import build_index, milliseconds_per_query, recall_against
from twotower.index.config import IndexConfig
from twotower.index.contract import Index
from twotower.index.exact import ExactIndex
from twotower.serving.answers.asking import Asking
from twotower.serving.answers.catalogue import Catalogue
from twotower.serving.load.generator import LoadPlan, LoadResult, run

Users = Literal["uniform", "zipf"]
"""How users are drawn: all alike, or the r-th busiest in proportion to 1/r."""

TOLD = 5
"""Items of a made-up history, where a bundle has no users."""
QUERIES = 500
"""Real query embeddings that indexes are compared with."""
TAKEN_APART = 2000
"""Answers whose timings are read; reading them all would take the generator's time at high rates."""
RECALL_AT_LEAST = 0.97
"""Share of the candidates that an approximate index has to find before it is preferred."""
SAVES_AT_LEAST_MS = 0.1
"""Per query, for it to be worth the candidates that it misses."""
APPROXIMATE: Literal["ivf"] = "ivf"
"""What an exact index is compared with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """How a server did at one rate."""

    load: LoadResult
    timings_ms: dict[str, dict[str, float]]
    """Part of the work, as the answers name it -> `p50` and `p99`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexFigures:
    """One kind of index on a bundle's own embeddings."""

    kind: str
    ms_per_query: float
    """Median of one search for all candidates."""
    recall: float
    """Share of the exact candidates found."""
    build_seconds: float | None
    """None where it was there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexChoice:
    """Which index suits a bundle."""

    depth: int
    """Candidates searched for."""
    figures: tuple[IndexFigures, IndexFigures]
    """Of the exact index, then of the approximate one."""
    own: str
    """The bundle's."""
    better: str
    """By measurement."""
    why: str


def request_bodies(bundle: Bundle, *, k: int, count: int, users: Users, seed: int) -> list[bytes]:
    """Requests for known users, drawn by chance; of a bundle without users, for histories of popular items."""
    generator = np.random.default_rng(seed)
    asked: Iterator[dict[str, Any]]
    if bundle.users.num_rows:
        asked = ({"user_id": user} for user in draw_users(bundle, count=count, users=users, generator=generator))
    else:
        asked = ({"history": history} for history in _draw_histories(bundle, count=count, generator=generator))
    return [json.dumps({**who, "k": k}, ensure_ascii=False).encode() for who in asked]


def draw_users(bundle: Bundle, *, count: int, users: Users, generator: np.random.Generator) -> list[str]:
    """The ids of `count` users, with repetition."""
    total = bundle.users.num_rows
    if users == "uniform":
        rows = generator.integers(total, size=count)
    else:
        busiest = np.argsort(-np.diff(bundle.log.start), kind="stable")
        weight = 1.0 / np.arange(1, total + 1)
        rows = busiest[generator.choice(total, size=count, p=weight / weight.sum())]
    return [str(user) for user in bundle.users["user_id"].take(rows).to_pylist()]


async def measure(plan: LoadPlan) -> Served:
    """Ask at the plan's rate, and take a part of the answers apart."""
    bodies: list[bytes] = []
    step = max(1, round(plan.rate * plan.seconds / TAKEN_APART))
    first = round(plan.rate * plan.warmup)

    def answered(number: int, status: int, body: bytes) -> None:
        if status == 200 and number >= first and number % step == 0:
            bodies.append(body)

    load = await run(plan, answered=answered)
    return Served(load=load, timings_ms=_timings([json.loads(body)["timings_ms"] for body in bodies]))


def _timings(told: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for part in told[0] if told else ():
        values = [each[part] for each in told if each.get(part) is not None]
        found[part] = {"p50": float(np.percentile(values, 50)), "p99": float(np.percentile(values, 99))}
    return found


def choose_index(bundle: Bundle, *, users: Users, seed: int) -> IndexChoice:
    """Measure the exact and an approximate index on a bundle's own embeddings, by queries of its own users.

    An approximate index that the bundle has is taken as it is; else `APPROXIMATE` is built as a recipe would have it,
    which takes a minute or two for a million items.
    """
    depth = min(int(bundle.metadata["candidates"]), bundle.items.num_rows)
    queries = query_embeddings(bundle, count=QUERIES, users=users, seed=seed)
    if bundle.index.kind == ExactIndex.kind:
        figures = _built(bundle, queries=queries, depth=depth)
    else:
        figures = _held(bundle.index, queries=queries, depth=depth)
    better, why = better_of(*figures)
    return IndexChoice(depth=depth, figures=figures, own=bundle.index.kind, better=better, why=why)


def better_of(exact: IndexFigures, approximate: IndexFigures) -> tuple[str, str]:
    """Which kind to take, and why."""
    saved = exact.ms_per_query - approximate.ms_per_query
    does = f"saves {saved:.2f} ms" if saved >= 0 else f"takes {-saved:.2f} ms more"
    told = f"{approximate.kind} finds {approximate.recall:.1%} of the candidates and {does} a query"
    if saved < SAVES_AT_LEAST_MS:
        return exact.kind, told
    if approximate.recall < RECALL_AT_LEAST:
        return exact.kind, f"{told}, but {RECALL_AT_LEAST:.0%} have to be found"
    return approximate.kind, told


def query_embeddings(bundle: Bundle, *, count: int, users: Users, seed: int) -> NDArray[np.float32]:
    """`[q, D]` what the query tower makes of up to `count` who ask; whoever it can read nothing of is left out.

    Raises:
        RequestError: nobody is left.
    """
    asking, generator = Asking(bundle), np.random.default_rng(seed)
    when: dict[str, Any] = {"catalogue": Catalogue.of(bundle), "moment": asking.moment(None)}
    if bundle.users.num_rows:
        drawn = draw_users(bundle, count=count, users=users, generator=generator)
        asked = [asking.ask(drawn, exclude_seen=False, **when)]
    else:
        histories = _draw_histories(bundle, count=count, generator=generator)
        met = [asking.met(history, **when)[0] for history in histories]
        asked = [asking.ask([None], exclude_seen=False, told=each, **when) for each in met]
    found = np.concatenate([bundle.model.embed_queries(each.inputs).embedding[each.is_told] for each in asked])
    if not len(found):
        raise RequestError(
            f"{bundle.directory}: the model can read nothing of its users, so there is no query. Leave the index out."
        )
    return found


def _draw_histories(bundle: Bundle, *, count: int, generator: np.random.Generator) -> Iterator[list[str]]:
    weight = bundle.popularity + 1.0
    for _ in range(count):
        rows = generator.choice(len(weight), size=min(TOLD, len(weight)), p=weight / weight.sum(), replace=False)
        yield [str(item) for item in bundle.items["item_id"].take(rows).to_pylist()]


def _built(bundle: Bundle, *, queries: NDArray[np.float32], depth: int) -> tuple[IndexFigures, IndexFigures]:
    """What the step that builds an index measures, with an index that is dropped afterwards."""
    config = IndexConfig(kind=APPROXIMATE)
    with tempfile.TemporaryDirectory() as folder:
        facts = build_index(
            config, embeddings=bundle.index.embeddings, queries=queries, candidates=depth, out=Path(folder)
        )
    ms, recall, build_seconds = facts["ms_per_query"], facts["recall"][str(depth)], facts["build_seconds"]
    exact = IndexFigures(kind=ExactIndex.kind, ms_per_query=ms[ExactIndex.kind], recall=1.0, build_seconds=None)
    other = IndexFigures(kind=APPROXIMATE, ms_per_query=ms[APPROXIMATE], recall=recall, build_seconds=build_seconds)
    return exact, other


def _held(index: Index, *, queries: NDArray[np.float32], depth: int) -> tuple[IndexFigures, IndexFigures]:
    """An approximate index that is there, against the exact one over the same embeddings."""
    exact = ExactIndex(index.embeddings)
    recall = {exact.kind: 1.0, index.kind: recall_against(exact, index, queries=queries, k=depth)}
    first, second = (
        IndexFigures(
            kind=each.kind,
            ms_per_query=milliseconds_per_query(each, queries, k=depth),
            recall=recall[each.kind],
            build_seconds=None,
        )
        for each in (exact, index)
    )
    return first, second
