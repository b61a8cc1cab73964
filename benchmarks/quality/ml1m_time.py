"""MovieLens-1M, global time at 0.9: both stages against retrieval alone and against every baseline in the box."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import movielens_splits

from quality import measure

NAME = "quality-ml1m-time"
KEYS = (
    "recall100",
    "best_baseline_recall100",
    "ndcg10_two_stage",
    "ndcg10_retrieval",
    "best_baseline_ndcg10",
    "lift_low",
    "stage_lift_low",
)
RECALL, NDCG = "recall@100", "ndcg@10"
METRICS = (NDCG, RECALL, "hit_rate@10", "mrr@10")


def run(arguments: list[str]) -> dict[str, float]:
    """Means over seeds; the ends of the differences are the worse of what users and seeds leave open."""
    options = measure.read_options(NAME, arguments, about=__doc__)
    runs = measure.each_seed(options, _one)
    figures = measure.figures(runs)
    for name in ("lift", "stage_lift", "recall_lift"):
        low = measure.conservative_low(
            [one["intervals"][name][0] for one in runs], [one["figures"][name] for one in runs]
        )
        figures[f"{name}_low"] = {"mean": low, "low": None, "high": None, "over": "users and seeds"}
    return measure.write(NAME, options, runs=runs, figures=figures)


def _one(options: measure.Options, seed: int, folder: Path) -> measure.Measured:
    data_dir = movielens_splits.data_directory()
    fitted = measure.fit("ml1m_time.toml", options=options, seed=seed, out=folder, data_dir=data_dir)
    report = measure.judge(fitted)
    main = report["protocols"]["successive"]
    found = {name: one["metrics"] for name, one in main["contenders"].items()}
    best_recall, best_ndcg = main["best_baseline"][RECALL], main["best_baseline"][NDCG]
    lifts = {
        "lift": difference(main, NDCG, of="two_stage", minus=best_ndcg),
        "stage_lift": difference(main, NDCG, of="two_stage", minus="retrieval"),
        "recall_lift": difference(main, RECALL, of="retrieval", minus=best_recall),
    }
    return measure.Measured(
        fitted={"": fitted},
        figures={
            "recall100": found["retrieval"][RECALL],
            "best_baseline_recall100": found[best_recall][RECALL],
            "ndcg10_two_stage": found["two_stage"][NDCG],
            "ndcg10_retrieval": found["retrieval"][NDCG],
            "best_baseline_ndcg10": found[best_ndcg][NDCG],
            **{name: row["value"] for name, row in lifts.items()},
        },
        intervals={name: row["interval"] for name, row in lifts.items()}
        | {
            "recall100": main["intervals"]["retrieval"][RECALL],
            "ndcg10_two_stage": main["intervals"]["two_stage"][NDCG],
            "ndcg10_retrieval": main["intervals"]["retrieval"][NDCG],
        },
        tables={name: measure.contenders(one, METRICS) for name, one in report["protocols"].items()}
        | ({"rating": measure.ratings(report)} if "rating" in report["labels"] else {}),
        notes=[*report["notes"], f"The best baselines are {best_recall} by {RECALL} and {best_ndcg} by {NDCG}."],
    )


def difference(protocol: Mapping[str, Any], metric: str, *, of: str, minus: str) -> Mapping[str, Any]:
    """A report's difference of two contenders, with its interval.

    Raises:
        RuntimeError: the report has none, because the recipe asks for no bootstrap.
    """
    for row in protocol["differences"]:
        if (row["metric"], row["of"], row["minus"]) == (metric, of, minus) and "interval" in row:
            found: Mapping[str, Any] = row
            return found
    raise RuntimeError(f"the report has no interval of {of} minus {minus} by {metric}: set evaluate.bootstrap")
