"""The whole path on real data, as a user goes it: `twotower run movielens-1m`, split by time, from nothing.

The figures are those of the report's main protocol: every positive test interaction is a query at its own moment, all
items are ranked, what the user had seen is excluded. The seconds are those of the command, imports and report included.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import movielens_splits
import results

KEYS = (
    "recall100",
    "ndcg10_retrieval",
    "ndcg10_two_stage",
    "best_baseline_recall100",
    "best_baseline_ndcg10",
    "seconds",
)
RECIPE = "movielens-1m"


def run(arguments: list[str]) -> dict[str, float]:
    """Run the command into an empty directory and read its report."""
    parser = argparse.ArgumentParser(prog="run.py time-split", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1, help="runs, each with a seed of its own (default 1)")
    options = parser.parse_args(arguments)
    runs = [_measure(seed) for seed in range(42, 42 + options.seeds)]
    intervals = {key: results.interval([one["figures"][key] for one in runs]) for key in KEYS}
    print(f"raw figures: {results.write('time-split', {'intervals': intervals, 'runs': runs})}")
    return {key: interval["mean"] for key, interval in intervals.items()}


def _measure(seed: int) -> dict[str, Any]:
    """One run's figures and the parts of its report that tell them apart."""
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "run"
        command = [sys.executable, "-m", "twotower", "run", RECIPE, "--set", f"seed={seed}", "--out", str(out)]
        begin = time.perf_counter()
        subprocess.run([*command, "--data-dir", str(movielens_splits.data_directory())], check=True, stdout=sys.stderr)
        seconds = time.perf_counter() - begin
        report = json.loads((out / "report" / "report.json").read_text(encoding="utf-8"))
    main = report["protocols"][report["main_protocol"]]
    return {
        "seed": seed,
        "figures": figures(report["headline"]) | {"seconds": seconds},
        "headline": report["headline"],
        "contenders": {name: contender["metrics"] for name, contender in main["contenders"].items()},
        "intervals": main["intervals"],
        "training": report["training"],
    }


def figures(headline: dict[str, Any]) -> dict[str, float]:
    """The report's leading figures by the benchmark's keys.

    Raises:
        RuntimeError: the recipe's lead metrics are other ones.
    """
    if (headline["recall"], headline["ndcg"]) != ("recall@100", "ndcg@10"):
        raise RuntimeError(
            f"the report leads with {headline['recall']} and {headline['ndcg']}, not recall@100 and ndcg@10"
        )
    return {
        "recall100": headline["retrieval_recall"],
        "ndcg10_retrieval": headline["retrieval_ndcg"],
        "ndcg10_two_stage": headline["two_stage_ndcg"],
        "best_baseline_recall100": headline["best_baseline_recall"]["value"],
        "best_baseline_ndcg10": headline["best_baseline_ndcg"]["value"],
    }
