"""MovieLens-1M, leave last out: each user's last film among all films, seen ones excluded, comparable with papers."""

from pathlib import Path

import movielens_splits

from quality import measure

NAME = "quality-ml1m-last-out"
KEYS = ("hr10", "ndcg10")
METRICS = ("recall@10", "ndcg@10")


def run(arguments: list[str]) -> dict[str, float]:
    """By default one seed, since a training takes most of an hour; its interval is over users."""
    options = measure.read_options(NAME, arguments, about=__doc__, seeds=1)
    runs = measure.each_seed(options, _one)
    return measure.write(NAME, options, runs=runs, figures=measure.figures(runs))


def _one(options: measure.Options, seed: int, folder: Path) -> measure.Measured:
    data_dir = movielens_splits.data_directory()
    fitted = measure.fit("ml1m_last_out.toml", options=options, seed=seed, out=folder, data_dir=data_dir)
    report = measure.judge(fitted)
    static = report["protocols"]["static"]
    both, intervals = static["contenders"]["two_stage"]["metrics"], static["intervals"].get("two_stage", {})
    # One item is relevant, so that recall is the hit rate.
    names = {"hr10": "recall@10", "ndcg10": "ndcg@10"}
    return measure.Measured(
        fitted={"": fitted},
        figures={key: both[metric] for key, metric in names.items()},
        intervals={key: intervals[metric] for key, metric in names.items() if metric in intervals},
        tables={"seen excluded": measure.contenders(static, METRICS)},
        notes=report["notes"],
    )
