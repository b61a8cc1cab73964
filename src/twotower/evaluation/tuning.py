"""The box of baselines, each at the best that the validation part finds for it: a weak baseline flatters a model.

Each has the same number of settings to choose from, as long as the recipe leaves it so, and is judged on the same
validation queries. What it learns, it learns from the train part, whatever its settings.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from twotower.data.histories import UserLog
from twotower.data.split import TEST, TRAIN, VALIDATION, SplitDataset
from twotower.evaluation import metrics
from twotower.evaluation.baselines import (
    Filled,
    ItemWeights,
    Popularity,
    RecentPopularity,
    ease,
    item_knn,
    quick,
    train_matrix,
    train_popularity,
)
from twotower.evaluation.config import EvaluateConfig
from twotower.evaluation.contenders import Contender
from twotower.evaluation.contest import Arena, answerable, run, sampled
from twotower.evaluation.ials import Ials, Penalty, ials
from twotower.evaluation.markov import markov
from twotower.evaluation.names import NAMES, lead_k
from twotower.evaluation.queries import Queries, static, successive

Settings = dict[str, float]
Learn = Callable[..., Contender]
"""From one value of each setting to the contender."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """What baselines learn from."""

    config: EvaluateConfig
    dataset: SplitDataset
    seed: int

    @property
    def items(self) -> int:
        return len(self.dataset.item_ids)

    def protocols(self) -> dict[str, Callable[[SplitDataset, int], Queries]]:
        """Those that fit the split, the main one first."""
        by_time = self.dataset.metadata.get("protocol") == "time"
        return {"successive": successive, "static": static} if by_time else {"static": static}

    def popularity(self) -> Popularity:
        return Popularity(counts=train_popularity(self.dataset))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """A baseline as it takes part in a protocol."""

    contender: Contender
    settings: Settings
    validation: dict[str, Any] | None
    """What each setting reached on the validation part; None where there was no choice, or nothing to choose by."""
    note: str


def tune(config: EvaluateConfig, dataset: SplitDataset, *, arena: Arena, seed: int) -> Iterator[dict[str, Tuned]]:
    """The baselines that the recipe names: protocol -> each with the settings that do best on its validation queries.

    What is best with a history that has just advanced is not what is best with one that ended long ago.
    """
    lesson = Lesson(config=config, dataset=dataset, seed=seed)
    asked = {
        name: sampled(answerable(ask(dataset, VALIDATION), arena=arena)[0], config.tuning_queries, seed=seed)
        for name, ask in lesson.protocols().items()
    }
    for name, baseline in BOX.items():
        if name in config.baselines and not (name == "ease" and arena.items > config.ease_max_items):
            yield _best(baseline, lesson, asked=asked, arena=replace(arena, list_length=0))


def known_in(protocol: str, contender: Contender, *, dataset: SplitDataset, part: int = TEST) -> Contender:
    """The contender as it is when the part is asked for; of all, recent popularity alone looks beyond the train part.

    Args:
        part: `VALIDATION` or `TEST`.
    """
    if not isinstance(contender, RecentPopularity):
        return contender
    known = [earlier for earlier in (TRAIN, VALIDATION, TEST) if earlier < part + (protocol == "successive")]
    return RecentPopularity.of(dataset, *known, window=contender.window)


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """How a baseline comes about: one of these in `BOX` and a name in `config` and `names` add another."""

    grid: Callable[[EvaluateConfig], Mapping[str, tuple[float, ...]]]
    """Setting -> its values; all combinations are tried."""
    learn: Callable[[Lesson], Learn]


def _best(baseline: Baseline, lesson: Lesson, *, asked: dict[str, Queries], arena: Arena) -> dict[str, Tuned]:
    """Each setting is learned once and judged under every protocol."""
    grid, learn = baseline.grid(lesson.config), baseline.learn(lesson)
    choices = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    middle = choices[len(choices) // 2]
    if len(choices) == 1 or not all(map(len, asked.values())):
        why = (
            "given by the recipe" if len(choices) == 1 else "the middle ones: there is no validation part to choose by"
        )
        found = learn(**middle)
        note = _note(found.name, middle, why=why)
        return {protocol: Tuned(contender=found, settings=middle, validation=None, note=note) for protocol in asked}
    metric = f"ndcg@{lead_k(lesson.config.ks)}"
    tried: dict[str, list[dict[str, Any]]] = {protocol: [] for protocol in asked}
    best: dict[str, Contender] = {}
    for settings in choices:
        contender = learn(**settings)
        for protocol, queries in asked.items():
            judged = known_in(protocol, contender, dataset=lesson.dataset, part=VALIDATION)
            value = _quality(judged, queries, arena=arena, metric=metric)
            if all(value > one["value"] for one in tried[protocol]):  # Among equals the first stays.
                best[protocol] = contender
            tried[protocol].append({"settings": settings, "value": value})
    return {
        protocol: _chosen(best[protocol], tried[protocol], metric=metric, protocol=protocol, queries=len(queries))
        for protocol, queries in asked.items()
    }


def _chosen(contender: Contender, tried: list[dict[str, Any]], *, metric: str, protocol: str, queries: int) -> Tuned:
    best = max(tried, key=lambda one: one["value"])
    why = f"the best of {len(tried)} by {metric} on {queries:,} {protocol} queries of the validation part"
    facts = {"metric": metric, "queries": queries, "value": best["value"], "tried": tried}
    note = _note(contender.name, best["settings"], why=why)
    return Tuned(contender=contender, settings=best["settings"], validation=facts, note=note)


def _quality(contender: Contender, queries: Queries, *, arena: Arena, metric: str) -> float:
    ranks = run(contender, queries, arena=arena).ranks
    found = metrics.query_metrics(ranks, queries.relevant_start, ks=(int(metric.partition("@")[2]),))
    return float(found[metric].mean())


def _note(name: str, settings: Settings, *, why: str) -> str:
    if not settings:
        return ""
    shown = ", ".join(f"{setting} {value:,.10g}" for setting, value in settings.items())
    return f"{NAMES[name]}: {shown}, {why}."


def _popularity(lesson: Lesson) -> Learn:
    return lesson.popularity


def _recent_popularity(lesson: Lesson) -> Learn:
    return lambda *, window: RecentPopularity.of(lesson.dataset, TRAIN, window=window)


def _fading(lesson: Lesson, learn: Callable[[Any], ItemWeights | Ials]) -> Callable[[Any, float], Contender]:
    """From a setting and a decay to a contender; what the decay leaves as it is, is learned once for all of them."""
    learn_once, popularity = lru_cache(maxsize=1)(learn), lesson.popularity()
    return lambda setting, decay: Filled(contender=replace(learn_once(setting), decay=decay), popularity=popularity)


def _item_knn(lesson: Lesson) -> Learn:
    matrix, shrinkage = train_matrix(lesson.dataset), lesson.config.knn_shrinkage
    learn = _fading(lesson, lambda neighbours: quick(item_knn(matrix, neighbours=neighbours, shrinkage=shrinkage)))
    return lambda *, neighbours, decay: learn(neighbours, decay)


def _ease(lesson: Lesson) -> Learn:
    matrix = train_matrix(lesson.dataset)
    learn = _fading(lesson, lambda l2: ease(matrix, l2=l2))
    return lambda *, l2, decay: learn(l2, decay)


def _ials(lesson: Lesson) -> Learn:
    matrix, config = train_matrix(lesson.dataset), lesson.config
    penalty = Penalty(unobserved=config.ials_unobserved, l2=config.ials_l2)
    learn = _fading(
        lesson, lambda dim: ials(matrix, dim=dim, penalty=penalty, sweeps=config.ials_sweeps, seed=lesson.seed)
    )
    return lambda *, dim, decay: learn(dim, decay)


def _markov(lesson: Lesson) -> Learn:
    data, shrinkage = lesson.dataset.whole or lesson.dataset, lesson.config.markov_shrinkage
    rows = np.flatnonzero((data.part == TRAIN) & data.positive)[-lesson.config.markov_rows :]
    log = UserLog.from_columns(data.user[rows], data.item[rows], data.timestamp[rows], users=len(data.user_ids))
    learn = _fading(lesson, lambda window: quick(markov(log, items=lesson.items, window=window, shrinkage=shrinkage)))
    return lambda *, window, decay: learn(window, decay)


BOX: dict[str, Baseline] = {
    "popularity": Baseline(grid=lambda _: {}, learn=_popularity),
    "recent_popularity": Baseline(grid=lambda config: {"window": config.recent_windows}, learn=_recent_popularity),
    "item_knn": Baseline(
        grid=lambda config: {"neighbours": config.knn_neighbours, "decay": config.history_decay}, learn=_item_knn
    ),
    "ease": Baseline(grid=lambda config: {"l2": config.ease_l2, "decay": config.history_decay}, learn=_ease),
    "ials": Baseline(grid=lambda config: {"dim": config.ials_dims, "decay": config.history_decay}, learn=_ials),
    "markov": Baseline(
        grid=lambda config: {"window": config.markov_windows, "decay": config.history_decay}, learn=_markov
    ),
}
"""Name -> baseline, in the order of the report."""
