"""Invented worlds: how near both stages come to the best ranking that anybody could give."""

from pathlib import Path

from quality import measure

NAME = "quality-simulated"
KEYS = ("share_of_best",)
WORLDS = {"dense world": "simulated_dense.toml", "default world": "simulated"}
"""World -> its recipe; the first one's share is the key."""
METRICS = ("ndcg@10", "recall@100")


def run(arguments: list[str]) -> dict[str, float]:
    """Means over the seeds' worlds."""
    options = measure.read_options(NAME, arguments, about=__doc__)
    runs = measure.each_seed(options, _one)
    return measure.write(NAME, options, runs=runs, figures=measure.figures(runs))


def _one(options: measure.Options, seed: int, folder: Path) -> measure.Measured:
    fitted, reports = {}, {}
    for world, recipe in WORLDS.items():
        out = folder / world.replace(" ", "-")
        out.mkdir()
        fitted[world] = measure.fit(recipe, options=options, seed=seed, out=out)
        reports[world] = measure.judge(fitted[world])
    shares = {world: report["protocols"]["successive"]["share_of_best"] for world, report in reports.items()}
    dense, default = (shares[world] for world in WORLDS)
    return measure.Measured(
        fitted=fitted,
        figures={
            "share_of_best": dense["two_stage"]["ndcg@10"],
            "share_of_best_retrieval": dense["retrieval"]["ndcg@10"],
            "share_of_best_default_world": default["two_stage"]["ndcg@10"],
        },
        tables={
            world: measure.contenders(report["protocols"]["successive"], METRICS) for world, report in reports.items()
        },
        notes=reports["dense world"]["notes"],
    )
