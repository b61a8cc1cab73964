"""TFRS on its own ground: MovieLens-100K, random 80/20, all 1,664 distinct titles as candidates, nothing excluded.

Both sides read the same split files and learn from ids and ratings only. Theirs is the multitask tutorial's model as
published (batch 8,192, 3 epochs), and once more with batches of 1,024, which suits it better. Ours is one joint model,
`tfrs_parity.toml`, through the package's own steps; when it stops is decided on a slice of the train part, seed by
seed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import movielens_splits
import results
import tfrs_environment

KEYS = ("rmse", "top10", "top100", "tfrs_rmse", "tfrs_top100")
RECIPE = Path(__file__).resolve().parent / "tfrs_parity.toml"
CANDIDATES = 1_664


def run(arguments: list[str]) -> dict[str, float]:
    """Measure ours and the tutorial's on the same splits; each figure is the mean over seeds."""
    parser = argparse.ArgumentParser(prog="run.py tfrs-parity", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="splits, each with a seed of its own (default 5)")
    parser.add_argument("--tfrs-seeds", type=int, default=5, help="of these, how many TFRS learns (default 5)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        splits = [Path(temporary) / f"split-{seed}.csv" for seed in range(options.seeds)]
        for seed, split in enumerate(splits):
            movielens_splits.write_100k(split, seed=seed)
        found = {
            "ours": [measure_ours(split, seed=seed) for seed, split in enumerate(splits)],
            "tfrs": _measure_tfrs(splits[: options.tfrs_seeds], batch_size=8192),
            "tfrs_batch_1024": _measure_tfrs(splits[: options.tfrs_seeds], batch_size=1024),
        }
    metrics = ("rmse", "top10", "top100")
    intervals = {
        side: {name: results.interval([one[name] for one in runs]) for name in metrics} for side, runs in found.items()
    }
    print(f"raw figures: {results.write('tfrs-parity', {'intervals': intervals, 'runs': found})}")
    mean = {side: {name: interval["mean"] for name, interval in part.items()} for side, part in intervals.items()}
    return {**mean["ours"], "tfrs_rmse": mean["tfrs"]["rmse"], "tfrs_top100": mean["tfrs"]["top100"]}


def measure_ours(split: Path, *, seed: int) -> dict[str, Any]:
    """Prepare, split, train and evaluate by the recipe; the figures that TFRS's metrics are called in our report."""
    from twotower import steps
    from twotower.recipe import load_recipe

    recipe = load_recipe(
        RECIPE,
        {
            "seed": seed,
            "prepare.files.interactions": _rows_of(split, "train"),
            "prepare.files.test": _rows_of(split, "test"),
        },
    )
    ran = {one.step: one.directory for one in steps.run(recipe, out=split.with_suffix(""))}
    report = json.loads((ran["evaluate"] / "report.json").read_text(encoding="utf-8"))
    if (items := report["data"]["items"]) != CANDIDATES:
        raise RuntimeError(f"{items} candidates, and not the {CANDIDATES} distinct titles")
    contenders = report["protocols"]["static"]["contenders"]
    accuracies = {
        name: {f"top{k}": one["metrics"][f"top_k_categorical_accuracy@{k}"] for k in (1, 5, 10, 50, 100)}
        for name, one in contenders.items()
        if name in ("retrieval", "popularity")
    }
    rating = report["labels"]["rating"]["metrics"]
    print(f"seed {seed}: {accuracies['retrieval']} rmse {rating['rmse']:.4f}", file=sys.stderr)
    return {
        "seed": seed,
        "rmse": rating["rmse"],
        **accuracies["retrieval"],
        "popularity": accuracies["popularity"],
        "training": report["training"],
    }


def _rows_of(split: Path, part: str) -> str:
    """The part as SQL, with films named by their titles."""
    return (
        "SELECT user_id, title AS item_id, CAST(rating AS DOUBLE) AS rating, timestamp "
        f"FROM read_csv('{split.as_posix()}', all_varchar = true) WHERE part = '{part}'"
    )


def _measure_tfrs(splits: list[Path], *, batch_size: int) -> list[dict[str, Any]]:
    """TFRS's figures on the same files, from a process of its own."""
    if not splits:
        return []
    out = splits[0].with_name(f"tfrs-{batch_size}.json")
    command = tfrs_environment.command(
        "multitask.py", *map(str, splits), "--batch-size", str(batch_size), "--out", str(out)
    )
    subprocess.run(command, check=True, env=tfrs_environment.variables(), stdout=sys.stderr)
    found: list[dict[str, Any]] = json.loads(out.read_text(encoding="utf-8"))
    return found
