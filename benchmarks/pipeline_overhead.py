"""What the pipeline costs beside the short path on the same data: `twotower pipeline run --local` less `twotower run`.

Both start from nothing and take turns, three times each, on the embedded recipe. The pipeline does more: it fetches
and profiles the data, judges by the gate, asks a real server, keeps and deploys a version; that is in the figure.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import results

KEYS = ("seconds", "pipeline_s", "run_s", "warm_s")


def run(arguments: list[str]) -> dict[str, float]:
    """Time both commands in turn, each from an empty directory, and a second run of the pipeline."""
    parser = argparse.ArgumentParser(prog="run.py pipeline-overhead", description=__doc__)
    parser.add_argument("--turns", type=int, default=3, help="runs of each (default 3)")
    parser.add_argument("--recipe", default="simulated", help="what is run (default simulated)")
    options = parser.parse_args(arguments)
    turns = [_turn(options.recipe) for _ in range(options.turns)]
    path = results.write("pipeline-overhead", {"recipe": options.recipe, "turns": turns})
    print(f"raw figures: {path}")
    return {key: statistics.median(turn[key] for turn in turns) for key in KEYS}


def _turn(recipe: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as temporary:
        short = _timed("run", recipe, "--out", str(Path(temporary) / "run"))
        whole = ("pipeline", "run", "--local", recipe, "--out", str(Path(temporary) / "pipeline"))
        cold, warm = _timed(*whole), _timed(*whole)
    print(f"run {short:.1f} s, pipeline {cold:.1f} s, again {warm:.1f} s", file=sys.stderr)
    return {"seconds": cold - short, "pipeline_s": cold, "run_s": short, "warm_s": warm}


def _timed(*arguments: str) -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "twotower", *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin
