"""The report of one model: every contender, under every protocol that fits the split, with how sure each figure is.

Reading order: `queries` (what is asked), `tuning` (who is asked beside the model), `contest` (how it is ranked),
`metrics` (how it is judged), this file (how it becomes one report), `report` (how it is shown).
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twotower.data.split import TEST, TRAIN, VALIDATION, SplitDataset
from twotower.errors import DataError
from twotower.evaluation import baselines, metrics
from twotower.evaluation.bootstrap import resample_users
from twotower.evaluation.config import EvaluateConfig
from twotower.evaluation.contenders import Contender, Oracle, TwoStageContender
from twotower.evaluation.contest import Arena, Outcome, Progress, answerable, run, run_two_stage, sampled
from twotower.evaluation.examples import examples
from twotower.evaluation.joining import Alone, joining
from twotower.evaluation.labels import evaluate_labels
from twotower.evaluation.names import CHAMPION, TRAINED_ALONE, lead_metrics
from twotower.evaluation.queries import Queries, static, successive
from twotower.evaluation.segments import Segment, segments
from twotower.evaluation.tuning import known_in, tune
from twotower.model.calibrated import Calibration
from twotower.model.config import RETRIEVAL

FORMAT_VERSION = 1


def evaluate(
    config: EvaluateConfig,
    *,
    dataset: SplitDataset,
    model: TwoStageContender,
    seed: int,
    champion: TwoStageContender | None = None,
    calibration: Mapping[str, Calibration] | None = None,
    alone: Mapping[str, Alone] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Judge a model on the test part beside the baselines: the content of `report.json`.

    Args:
        champion: The model that answers users now, to be asked the same.
        calibration: Label -> the map from what the model predicts to what it tells.
        alone: Task -> the model that learned it alone; what joining does to it is then told as `joining`.
        progress: Told what is being worked on, how many queries are done, and of how many.

    Raises:
        DataError: no positive interaction in the train or in the test part.
    """
    started = time.perf_counter()
    for part, name in ((TRAIN, "train"), (TEST, "test")):
        if not ((dataset.part == part) & dataset.positive).any():
            raise DataError(f"evaluate: no positive interaction in the {name} part. Split with a larger share for it.")
    arena = Arena.of(config, items=len(dataset.item_ids), progress=progress)
    rivals, tuning, notes = _rivals(config, dataset, arena=arena, seed=seed)
    protocols = {
        name: _protocol(
            config,
            dataset,
            queries=queries,
            model=model,
            champion=champion,
            alone=alone.get(RETRIEVAL) if alone else None,
            rivals=rivals.get(name, []),
            arena=arena,
            seed=seed,
        )
        for name, queries in _asked(dataset).items()
    }
    main = next(iter(protocols))
    labels = evaluate_labels(
        model,
        dataset,
        max_rows=config.max_queries,
        resamples=config.bootstrap,
        seed=seed,
        calibration=calibration,
        alone=alone,
    )
    shown = examples(model, dataset, queries=static(dataset), arena=arena, count=config.examples, seed=seed)
    return {
        "format": FORMAT_VERSION,
        "seed": seed,
        "config": asdict(config),
        "data": _data(dataset),
        "main_protocol": main,
        "lead_metrics": list(lead_metrics(config.ks)),
        "headline": _headline(protocols[main], config.ks),
        "protocols": protocols,
        "baselines": tuning,
        "labels": labels,
        "examples": shown,
        "notes": notes,
        "seconds": round(time.perf_counter() - started, 2),
    } | ({"joining": {"rows": joining(protocols[main], labels), "notes": []}} if alone else {})


def _asked(dataset: SplitDataset) -> dict[str, Queries]:
    """The protocols that fit the split, the main one first."""
    if dataset.metadata.get("protocol") == "time":
        return {"successive": successive(dataset), "static": static(dataset)}
    return {"static": static(dataset)}


def _rivals(
    config: EvaluateConfig, dataset: SplitDataset, *, arena: Arena, seed: int
) -> tuple[dict[str, list[Contender]], dict[str, Any], list[str]]:
    """Protocol -> the baselines and, in a simulated world, the oracle; how they were tuned; what to tell a reader."""
    notes = ["All baselines learn from the train part alone, as the model does."]
    both: dict[str, list[Contender]] = {}
    facts: dict[str, Any] = {}
    for tuned in tune(config, dataset, arena=arena, seed=seed):
        for protocol, one in tuned.items():
            both.setdefault(protocol, []).append(known_in(protocol, one.contender, dataset=dataset))
        chosen = {protocol: {"settings": one.settings, "validation": one.validation} for protocol, one in tuned.items()}
        main = next(iter(tuned))
        facts[tuned[main].contender.name] = chosen[main] | {"protocols": chosen}
        notes += [note for note in dict.fromkeys(one.note for one in tuned.values()) if note]
    if "ease" in config.baselines and "ease" not in facts:
        notes.append(f"EASE is left out: {arena.items:,} items, evaluate.ease_max_items = {config.ease_max_items:,}.")
    oracle = Oracle.of(dataset)
    if oracle is not None:
        for protocol in _asked(dataset):
            both.setdefault(protocol, []).append(oracle)
        notes.append("The world is simulated: the oracle ranks by the true chance of being next; nothing does better.")
    return both, facts, notes


def _protocol(
    config: EvaluateConfig,
    dataset: SplitDataset,
    *,
    queries: Queries,
    model: TwoStageContender,
    champion: TwoStageContender | None,
    alone: Alone | None,
    rivals: list[Contender],
    arena: Arena,
    seed: int,
) -> dict[str, Any]:
    """All contenders on one set of queries."""
    asked = len(queries)
    queries, impossible = answerable(queries, arena=arena)
    queries = sampled(queries, config.max_queries, seed=seed)
    if not len(queries):
        raise DataError("evaluate: every test item had been seen before. Set evaluate.exclude_seen = false.")
    parts = segments(dataset, queries)
    outcomes = run_two_stage(model, queries, arena=arena)
    if champion is not None:
        outcomes[CHAMPION] = run_two_stage(champion, queries, arena=arena)["two_stage"]
    if alone is not None:
        outcomes[TRAINED_ALONE] = run(alone.model, queries, arena=arena)
    for rival in rivals:
        outcomes[rival.name] = run(rival, queries, arena=arena)
    popularity = baselines.train_popularity(dataset)
    head = metrics.head_items(popularity)
    judged = _Judged(config.ks)
    contenders = {
        name: judged.add(name, outcome, queries=queries, parts=parts)
        | {"lists": metrics.list_metrics(outcome.lists, popularity, head=head, chosen=queries.relevant)}
        for name, outcome in outcomes.items()
    }
    result = {
        "queries": len(queries),
        "users": len(np.unique(queries.user)),
        "relevant": len(queries.relevant),
        "asked": asked,
        "only_seen": impossible,
        "contenders": contenders,
        "segments": [
            {"group": part.group, "name": part.name, "meaning": part.meaning, "relevant": int(part.pairs.sum())}
            for part in parts
        ],
    }
    return result | judged.compare(queries.user, resamples=config.bootstrap, seed=seed)


class _Judged:
    """The metrics of each contender, and per query those that lead, for intervals and differences."""

    def __init__(self, ks: tuple[int, ...]) -> None:
        self.ks = tuple(sorted(set(ks)))
        self.lead = lead_metrics(ks)
        self.per_query: dict[tuple[str, str], NDArray[np.float64]] = {}

    def add(self, name: str, outcome: Outcome, *, queries: Queries, parts: list[Segment]) -> dict[str, Any]:
        found = metrics.query_metrics(outcome.ranks, queries.relevant_start, ks=self.ks)
        self.per_query |= {(name, metric): found[metric] for metric in self.lead}
        means = {metric: float(values.mean()) for metric, values in found.items()}
        for k in self.ks:
            means[f"top_k_categorical_accuracy@{k}"] = metrics.top_k_categorical_accuracy(
                outcome.ranks, queries.relevant_count, k=k
            )
        by_segment = {part.name: self._segment(outcome, queries=queries, part=part) for part in parts}
        return {"metrics": means, "segments": by_segment, "nan_scores": outcome.nan_scores}

    def compare(self, user: NDArray[np.int32], *, resamples: int, seed: int) -> dict[str, Any]:
        """Intervals of the leading metrics, the best baselines, differences, the share of the best possible."""
        names = list(dict.fromkeys(name for name, _ in self.per_query))
        ours = ("retrieval", "two_stage", "ceiling", CHAMPION, TRAINED_ALONE)
        rivals = [name for name in names if name not in (*ours, "oracle")]
        others = [*rivals, *([CHAMPION] if CHAMPION in names else [])]
        means = {key: float(values.mean()) for key, values in self.per_query.items()}
        best = {metric: max(rivals, key=lambda name: means[name, metric]) for metric in self.lead} if rivals else {}
        found: dict[str, Any] = {"best_baseline": best, "intervals": {}, "differences": []}
        if "oracle" in names:
            found["share_of_best"] = {
                name: {metric: _ratio(means[name, metric], means["oracle", metric]) for metric in self.lead}
                for name in names
                if name not in ("oracle", "ceiling")
            }
        alone = [("retrieval", TRAINED_ALONE)] if TRAINED_ALONE in names else []
        pairs = [
            (metric, one, other) for metric in self.lead for one, other in (*_pairs(best.get(metric), others), *alone)
        ]
        found["differences"] = [
            {"metric": metric, "of": one, "minus": other, "value": means[one, metric] - means[other, metric]}
            for metric, one, other in pairs
        ]
        if resamples:
            values = {f"{name} {metric}": column for (name, metric), column in self.per_query.items()}
            drawn = resample_users(values, user, resamples=resamples, seed=seed)
            found["intervals"] = {
                name: {metric: drawn.interval(f"{name} {metric}") for metric in self.lead} for name in names
            }
            for row in found["differences"]:
                one, other = (f"{row[side]} {row['metric']}" for side in ("of", "minus"))
                row["interval"] = drawn.interval(one, minus=other)
        return found

    def _segment(self, outcome: Outcome, *, queries: Queries, part: Segment) -> dict[str, float] | None:
        if not part.pairs.any():
            return None
        kept = queries.keep_pairs(part.pairs)
        ks = tuple({int(metric.split("@")[1]) for metric in self.lead})
        found = metrics.query_metrics(outcome.ranks[part.pairs], kept.relevant_start, ks=ks)
        return {metric: float(found[metric].mean()) for metric in self.lead}


def _pairs(best: str | None, others: list[str]) -> Iterator[tuple[str, str]]:
    """Which contenders a reader, or the gate, wants to see apart."""
    yield "two_stage", "retrieval"
    yield from (("two_stage", other) for other in others)
    if best is not None:
        yield "retrieval", best


def _ratio(value: float, best: float) -> float | None:
    return value / best if best > 0 else None


def _headline(protocol: dict[str, Any], ks: tuple[int, ...]) -> dict[str, Any]:
    """The figures that the first screen and the benchmarks show."""
    ndcg, recall, _, _ = lead_metrics(ks)
    found = {name: contender["metrics"] for name, contender in protocol["contenders"].items()}
    best = protocol["best_baseline"]
    return {
        "ndcg": ndcg,
        "recall": recall,
        "two_stage_ndcg": found["two_stage"][ndcg],
        "retrieval_ndcg": found["retrieval"][ndcg],
        "ceiling_ndcg": found["ceiling"][ndcg],
        "retrieval_recall": found["retrieval"][recall],
        "best_baseline_ndcg": {"name": best[ndcg], "value": found[best[ndcg]][ndcg]} if best else None,
        "best_baseline_recall": {"name": best[recall], "value": found[best[recall]][recall]} if best else None,
        "oracle_ndcg": found["oracle"][ndcg] if "oracle" in found else None,
    }


def _data(dataset: SplitDataset) -> dict[str, Any]:
    dataset = dataset.whole or dataset
    train, test = dataset.part == TRAIN, dataset.part == TEST
    testers = np.unique(dataset.user[test & dataset.positive])
    return {
        "source": dataset.metadata.get("source"),
        "split": dataset.metadata.get("protocol"),
        "users": len(dataset.user_ids),
        "items": len(dataset.item_ids),
        "train": int(train.sum()),
        "validation": int((dataset.part == VALIDATION).sum()),
        "test": int(test.sum()),
        "test_positives": int((test & dataset.positive).sum()),
        "test_users": len(testers),
        "warm_test_users": int(np.isin(testers, dataset.user[train & dataset.positive]).sum()),
    }
