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
    from quality.observer import ndcg10, observe
    from twotower.data.split import load_split

    fitted, asked, notes, observers = {}, {}, {}, {}
    for world, file in WORLDS.items():
        out = folder / world.replace(" ", "-")
        out.mkdir()
        fitted[world] = measure.fit(file, options=options, seed=seed, out=out)
        report = measure.judge(fitted[world])
        asked[world], notes[world] = report["protocols"]["successive"], report["notes"]
        recipe, dataset = fitted[world].recipe, load_split(fitted[world].split)
        observers[world] = ndcg10(observe(recipe, dataset), recipe, dataset)
    dense, default = (asked[world]["share_of_best"] for world in WORLDS)
    oracles = {world: found["contenders"]["oracle"]["metrics"]["ndcg@10"] for world, found in asked.items()}
    return measure.Measured(
        fitted=fitted,
        figures={
            "share_of_best": dense["two_stage"]["ndcg@10"],
            "share_of_best_retrieval": dense["retrieval"]["ndcg@10"],
            "share_of_best_default_world": default["two_stage"]["ndcg@10"],
        }
        | {
            f"share_of_best_observer{suffix}": observers[world] / oracles[world]
            for world, suffix in zip(WORLDS, ("", "_default_world"), strict=True)
        },
        tables={
            world: measure.contenders(found, METRICS) | {"observer": {"ndcg@10": observers[world]}}
            for world, found in asked.items()
        },
        notes=notes["dense world"],
    )
