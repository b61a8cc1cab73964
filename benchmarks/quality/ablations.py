"""What losses, ways to score, weighings of the tasks, and pooled histories or user ids do, the rest being the same."""

import math
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import movielens_splits

from quality import measure
from quality.ml100k_stratified import TEST_SHARE

NAME = "quality-ablations"
KEYS = ("base_ndcg10", "retrieval_alone_ndcg10", "base_rmse", "rating_alone_rmse")
BASE = "base"
RANKED = ("ndcg@10", "recall@100")
ERROR = "rmse"
LEAN = {"evaluate.baselines": ["popularity"]}
"""Baselines do not depend on the variant: all that are asked for are measured beside the base."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One departure from the base."""

    name: str
    group: str
    """What it is told among, and what the base does there."""
    about: str
    settings: dict[str, Any]
    """`section.key` of the recipe -> value."""
    against: str
    """The variant that it is set beside, an earlier one or the base."""

    def title(self) -> str:
        """Its row in the tables."""
        beside = "" if self.against == BASE else f" (change against `{self.against}`)"
        return f"`{self.name}`: {self.about}{beside}"


def run(arguments: list[str]) -> dict[str, float]:
    """Means over the seeds' splits; a key is no number where `--only` leaves out its variant."""
    variants = read_variants()
    names = [variant.name for variant in variants]
    options = measure.read_options(NAME, arguments, about=__doc__, variants=names)
    runs = measure.each_seed(options, _one)
    found = measure.write(NAME, options, runs=[_slim(one) for one in runs], figures=measure.figures(runs))
    return dict.fromkeys(KEYS, math.nan) | found


def read_variants() -> list[Variant]:
    """What `ablations.toml` lists."""
    groups = tomllib.loads((measure.FOLDER / "ablations.toml").read_text(encoding="utf-8"))["group"]
    return [
        Variant(
            name=one["name"],
            group=group["title"],
            about=one["about"],
            settings=one["set"],
            against=one.get("against", BASE),
        )
        for group in groups
        for one in group["variant"]
    ]


def chosen(variants: Sequence[Variant], only: Sequence[str]) -> list[Variant]:
    """Those named, and those that they are set beside; all where none is named."""
    wanted = set(only) | {variant.against for variant in variants if variant.name in only}
    return [variant for variant in variants if not only or variant.name in wanted]


def comparisons(variants: Sequence[Variant], metrics: Mapping[str, Mapping[str, float]]) -> dict[str, measure.Table]:
    """A table a group: each variant's metrics, and how far they are from those of what it is set beside.

    Args:
        variants: What was measured beside the base.
        metrics: Variant -> metric -> value; a variant has those of the tasks that it learns.
    """
    found: dict[str, measure.Table] = {}
    for variant in variants:
        own, other = metrics[variant.name], metrics[variant.against]
        changes = {f"{metric}, change": own[metric] - other[metric] for metric in own if metric in other}
        found.setdefault(variant.group, {})[variant.title()] = {**own, **changes}
    return found


def _one(options: measure.Options, seed: int, folder: Path) -> measure.Measured:
    import jax

    rows = movielens_splits.interactions_100k()
    test = movielens_splits.is_test_by_user([row[0] for row in rows], seed=seed, share=TEST_SHARE)
    movielens_splits.write_parts(folder, rows, test=test)
    variants = chosen(read_variants(), options.only)
    settings = {BASE: dict[str, Any]()} | {variant.name: {**LEAN, **variant.settings} for variant in variants}
    fitted, reports = {}, {}
    for name, changed in settings.items():
        print(f"seed {seed}: {name}", file=sys.stderr, flush=True)
        (out := folder / name).mkdir()
        fitted[name] = measure.fit(
            "ablations_base.toml", options=options, seed=seed, out=out, data_dir=folder, variant=changed
        )
        reports[name] = measure.judge(fitted[name])
    jax.clear_caches()  # Twenty models' programs; each seed's are others.
    metrics = {name: _metrics(fitted[name], report) for name, report in reports.items()}
    return measure.Measured(
        fitted=fitted,
        figures=_keys(metrics),
        tables={
            "the base, beside baselines": _beside_baselines(metrics[BASE], reports[BASE]),
            **comparisons(variants, metrics),
            "what each task weighs at the epoch kept, and how hard it pulls unweighted at what tasks share": {
                name: _weights(fitted[name])
                for name, changed in settings.items()
                if _weighs_tasks(fitted[name], changed)
            },
        },
        notes=reports[BASE]["notes"],
    )


def _metrics(fitted: measure.Fitted, report: Mapping[str, Any]) -> dict[str, float]:
    """What the model was trained for: a list from towers that never learned to retrieve says nothing."""
    found: dict[str, float] = {}
    if fitted.recipe.model.retrieval.weight:
        ranked = report["protocols"]["static"]["contenders"]["two_stage"]["metrics"]
        found |= {metric: ranked[metric] for metric in RANKED}
    if "rating" in report["labels"]:
        found[ERROR] = report["labels"]["rating"]["metrics"][ERROR]
    return found


def _keys(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The keys of what was measured."""
    ndcg, _ = RANKED
    wanted = {
        "base_ndcg10": (BASE, ndcg),
        "retrieval_alone_ndcg10": ("retrieval-alone", ndcg),
        "base_rmse": (BASE, ERROR),
        "rating_alone_rmse": ("rating-alone", ERROR),
    }
    return {key: metrics[name][metric] for key, (name, metric) in wanted.items() if metric in metrics.get(name, ())}


def _beside_baselines(base: Mapping[str, float], report: Mapping[str, Any]) -> measure.Table:
    """The base, and every baseline of lists or of ratings."""
    contenders = measure.contenders(report["protocols"]["static"], RANKED)
    rating = measure.ratings(report) if "rating" in report["labels"] else {}
    errors = {name: {ERROR: one[ERROR]} for name, one in rating.items() if name != "model"}
    lists = {name: one for name, one in contenders.items() if name not in measure.OURS.values()}
    return {BASE: dict(base), **lists, **errors}


def _weighs_tasks(fitted: measure.Fitted, changed: Mapping[str, Any]) -> bool:
    """Whether the model has several tasks, and is the base or weighs them otherwise."""
    weighs = not changed or any(key.startswith(("model.task_weights", "model.ranking.labels")) for key in changed)
    return weighs and len(fitted.recipe.model.tasks()) > 1


def _weights(fitted: measure.Fitted) -> dict[str, float]:
    """What each task's loss was multiplied by, and its gradient's norm before that."""
    best = measure.training(fitted)["best"]
    return {
        key.replace("_", " "): value for key, value in best.items() if key.startswith(("weight_", "gradient_norm_"))
    }


def _slim(run: Mapping[str, Any]) -> dict[str, Any]:
    """One seed's raw result without what twenty models repeat: `ablations.toml` tells how they differ from the base."""
    training = {
        name: {"epochs": one["epochs"], "best": {"epoch": one["best"]["epoch"]}}
        for name, one in run["training"].items()
    }
    return {**run, "training": training, "settings": {BASE: run["settings"][BASE]}}
