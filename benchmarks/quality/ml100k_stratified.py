"""MovieLens-100K on recommenders-team's protocol: a quarter of every user's ratings is tested, seen ones excluded."""

from pathlib import Path

import movielens_splits

from quality import measure

NAME = "quality-ml100k-stratified"
KEYS = ("ndcg10",)
TEST_SHARE = 0.25
METRICS = ("ndcg@10", "recall@10", "map@10")


def run(arguments: list[str]) -> dict[str, float]:
    """Means over the seeds' splits."""
    options = measure.read_options(NAME, arguments, about=__doc__)
    runs = measure.each_seed(options, _one)
    return measure.write(NAME, options, runs=runs, figures=measure.figures(runs))


def _one(options: measure.Options, seed: int, folder: Path) -> measure.Measured:
    rows = movielens_splits.interactions_100k()
    test = movielens_splits.is_test_by_user([row[0] for row in rows], seed=seed, share=TEST_SHARE)
    movielens_splits.write_parts(folder, rows, test=test)
    movielens_splits.write_films(folder / "items.csv", movielens_splits.films_100k())
    movielens_splits.write_users_100k(folder / "users.csv")
    fitted = measure.fit("ml100k_stratified.toml", options=options, seed=seed, out=folder, data_dir=folder)
    report = measure.judge(fitted)
    static = report["protocols"]["static"]
    tables = {"seen excluded": measure.contenders(static, METRICS)}
    if "rating" in report["labels"]:
        tables["rating"] = measure.ratings(report)
    return measure.Measured(
        fitted={"": fitted},
        figures={"ndcg10": static["contenders"]["two_stage"]["metrics"]["ndcg@10"]},
        tables=tables,
        notes=report["notes"],
    )
