"""MovieLens-100K on TFRS's protocol: one joint model, asked with nothing excluded and with seen films excluded."""

from pathlib import Path
from typing import Any

import movielens_splits

from quality import measure

NAME = "quality-ml100k-tfrs"
KEYS = ("top10", "top100", "rmse", "top10_unseen", "top100_unseen")
CANDIDATES = 1_664
TRAINED_ALONE = "retrieval_trained_alone"
METRICS = {f"top{k}": f"top_k_categorical_accuracy@{k}" for k in (1, 5, 10, 50, 100)}


def run(arguments: list[str]) -> dict[str, float]:
    """Means over the seeds' splits."""
    options = measure.read_options(NAME, arguments, about=__doc__)
    runs = measure.each_seed(options, _one)
    return measure.write(NAME, options, runs=runs, figures=measure.figures(runs))


def _one(options: measure.Options, seed: int, folder: Path) -> measure.Measured:
    rows = movielens_splits.interactions_100k(by_title=True)
    movielens_splits.write_parts(folder, rows, test=movielens_splits.is_test(len(rows), seed=seed))
    fitted = measure.fit("ml100k_tfrs.toml", options=options, seed=seed, out=folder, data_dir=folder)
    whole, unseen = (measure.judge(fitted, exclude_seen=excluded) for excluded in (False, True))
    if (items := whole["data"]["items"]) != CANDIDATES:
        raise RuntimeError(f"{items} candidates, and not the {CANDIDATES} distinct titles")
    joined = "joining" in whole
    return measure.Measured(
        fitted={"": fitted},
        figures={
            "top10": _accuracy(whole, 10),
            "top100": _accuracy(whole, 100),
            "rmse": whole["labels"]["rating"]["metrics"]["rmse"],
            "top10_unseen": _accuracy(unseen, 10),
            "top100_unseen": _accuracy(unseen, 100),
        },
        tables={
            **({"joint, beside models of one task each": _joining(whole, unseen)} if joined else {}),
            "nothing excluded": measure.contenders(whole["protocols"]["static"], METRICS),
            "seen excluded": measure.contenders(unseen["protocols"]["static"], METRICS),
            "rating": measure.ratings(whole),
        },
        notes=[*unseen["notes"], *(whole["joining"]["notes"] if joined else ())],
    )


def _joining(whole: dict[str, Any], unseen: dict[str, Any]) -> measure.Table:
    """The row's figures, of the joint model and of the models that learned retrieval or ratings alone."""
    rating = whole["labels"]["rating"]
    joint, alone = (
        {
            **{f"top{k}": _accuracy(whole, k, of=contender) for k in (10, 100)},
            "rmse": metrics["rmse"],
            **{f"top{k}_unseen": _accuracy(unseen, k, of=contender) for k in (10, 100)},
        }
        for contender, metrics in (
            ("two_stage", rating["metrics"]),
            (TRAINED_ALONE, rating["trained_alone"]["metrics"]),
        )
    )
    return {
        "joint": joint,
        "each task alone": alone,
        "joint minus alone": {key: value - alone[key] for key, value in joint.items()},
    }


def _accuracy(report: dict[str, Any], k: int, *, of: str = "two_stage") -> float:
    """What TFRS's metric of that name measures; by default of the whole model's answer."""
    metrics = report["protocols"]["static"]["contenders"][of]["metrics"]
    return float(metrics[f"top_k_categorical_accuracy@{k}"])
