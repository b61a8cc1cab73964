"""Examples a second beside TFRS, and what is found after equal time: 1,000,000 users x 500,000 items x 64 dims.

Users and items lie in clusters, and a user mostly meets what is popular in a cluster of its own. TFRS compares each
query with the 4,096 items of its batch, ours with 1,024 shared negatives. Each side trains for the same wall time in
processes of their own that alternate; then both are asked for 100 of all items for the same held-out interactions, by
the same NumPy code. `ratio` is the median over the pairs; memory is the most that any run of ours held at once, file
pages included, beyond the data as they are given to it: what training makes of them counts.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import results
import tfrs_environment
from numpy.typing import NDArray

KEYS = ("ratio", "peak_gb", "recall100", "tfrs_recall100")
BENCHMARKS = Path(__file__).resolve().parents[1]
SIZES = {"small": (20_000, 10_000, 200_000), "large": (1_000_000, 500_000, 8_000_000)}
"""Users, items, interactions."""
CLUSTERS, QUERIES, K = 250, 10_000, 100
OWN_CLUSTER = 0.8
"""Share of a user's interactions within its cluster."""
AT_A_TIME = 250


def run(arguments: list[str]) -> dict[str, float]:
    """Train both in turns, judge both, and compare."""
    parser = argparse.ArgumentParser(prog="run.py throughput", description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="large")
    parser.add_argument("--seconds", type=float, default=60.0, help="of training on each side (default 60)")
    parser.add_argument("--pairs", type=int, default=3, help="runs of each side (default 3)")
    options = parser.parse_args(arguments)
    found: dict[str, list[dict[str, float]]] = {"ours": [], "tfrs": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        truth = write_world(folder, *SIZES[options.size])
        for seed in range(options.pairs):
            given = [str(folder), "--seconds", str(options.seconds), "--seed", str(seed)]
            for side, command in (
                ("tfrs", tfrs_environment.command("throughput.py", *given)),
                ("ours", [sys.executable, "-m", "scale.throughput_ours", *given]),
            ):
                found[side].append(_measure(command, truth))
                print(f"{side}: {found[side][-1]}", file=sys.stderr)
    print(f"raw figures: {results.write('throughput', {**vars(options), **found})}")
    pairs = zip(found["ours"], found["tfrs"], strict=True)
    return {
        "ratio": statistics.median(ours["examples_s"] / theirs["examples_s"] for ours, theirs in pairs),
        "peak_gb": max(ours["peak_gb"] - ours["data_gb"] for ours in found["ours"]),
        "recall100": statistics.median(ours["recall"] for ours in found["ours"]),
        "tfrs_recall100": statistics.median(theirs["recall"] for theirs in found["tfrs"]),
    }


def write_world(folder: Path, users: int, items: int, interactions: int) -> NDArray[np.int32]:
    """Write the train part, and the users asked about; the item that each of them met is returned."""
    generator = np.random.default_rng(0)
    # By rank 1 / rank within each cluster of so many items: an item's cluster is its number modulo the clusters.
    ranks = items // CLUSTERS
    heavy = np.cumsum(1.0 / np.arange(1, ranks + 1))
    total = interactions + 2 * QUERIES
    user = generator.integers(0, users, total, dtype=np.int32)
    own = generator.random(total) < OWN_CLUSTER
    cluster = np.where(own, user % CLUSTERS, generator.integers(0, CLUSTERS, total))
    rank = np.searchsorted(heavy, generator.random(total) * heavy[-1])
    item = (rank * CLUSTERS + cluster).astype(np.int32)
    rating = np.clip(np.round(2.5 + 1.5 * own + generator.normal(size=total)), 1, 5).astype(np.float32)
    for name, values in (("user", user), ("item", item), ("rating", rating)):
        np.save(folder / f"{name}.npy", values[: -2 * QUERIES])
    met = np.isin(user[-2 * QUERIES :], user[: -2 * QUERIES]).nonzero()[0][:QUERIES] + interactions
    np.save(folder / "query.npy", user[met])
    (folder / "sizes.json").write_text(json.dumps([users, items]), encoding="utf-8")
    truth: NDArray[np.int32] = item[met]
    return truth


def recall(query: NDArray[Any], candidate: NDArray[Any], items: NDArray[Any], *, truth: NDArray[Any]) -> float:
    """The share of queries whose item is among the `K` best of all, by exact inner products."""
    place = np.full(max(int(items.max()), int(truth.max())) + 1, -1)
    place[items] = np.arange(len(items))
    hits = 0
    for start in range(0, len(query), AT_A_TIME):
        scores = query[start : start + AT_A_TIME] @ candidate.T
        wanted = place[truth[start : start + AT_A_TIME]]
        own = np.take_along_axis(scores, np.maximum(wanted, 0)[:, None], axis=1)
        hits += int(((scores > own).sum(axis=1) < K)[wanted >= 0].sum())
    return hits / len(query)


def _measure(command: list[str], truth: NDArray[np.int32]) -> dict[str, float]:
    """What a process says of itself, and how much it finds."""
    with tempfile.TemporaryDirectory() as out:
        env, call = {**os.environ, **tfrs_environment.variables()}, [*command, "--out", out]
        done = subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True, env=env, cwd=BENCHMARKS)
        told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        arrays = [np.load(Path(out) / f"{name}.npy") for name in ("query", "candidate", "items")]
    return told | {"recall": recall(*arrays, truth=truth)}
