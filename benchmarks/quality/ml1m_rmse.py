"""MovieLens-1M, a random tenth of the ratings: how far the joint model's predicted stars are off."""

from pathlib import Path

import movielens_splits

from quality import measure

NAME = "quality-ml1m-rmse"
KEYS = ("rmse",)
TEST_SHARE = 0.1
METRICS = ("ndcg@10", "recall@100")


def run(arguments: list[str]) -> dict[str, float]:
    """Means over the seeds' splits."""
    options = measure.read_options(NAME, arguments, about=__doc__)
    runs = measure.each_seed(options, _one)
    return measure.write(NAME, options, runs=runs, figures=measure.figures(runs))


def _one(options: measure.Options, seed: int, folder: Path) -> measure.Measured:
    rows = movielens_splits.interactions_1m()
    movielens_splits.write_parts(folder, rows, test=movielens_splits.is_test(len(rows), seed=seed, share=TEST_SHARE))
    movielens_splits.write_films(folder / "items.csv", movielens_splits.films_1m())
    movielens_splits.write_users_1m(folder / "users.csv")
    fitted = measure.fit("ml1m_rmse.toml", options=options, seed=seed, out=folder, data_dir=folder)
    report = measure.judge(fitted)
    rating = report["labels"]["rating"]
    return measure.Measured(
        fitted={"": fitted},
        figures={"rmse": rating["metrics"]["rmse"]},
        intervals={"rmse": rating["intervals"]["rmse"]} if "intervals" in rating else {},
        tables={
            "rating": measure.ratings(report),
            "the same model's retrieval, seen excluded": measure.contenders(report["protocols"]["static"], METRICS),
        },
        notes=report["notes"],
    )
