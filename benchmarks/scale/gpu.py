"""Examples a second on one GPU, beside what the GPU could do and beside PyTorch's compiled equivalent.

Takes whatever device JAX and PyTorch find, so that it can be tried without one. PyTorch lives in an interpreter of its
own, which `--python` names; each side runs in processes of its own, in turns. `fraction` is the time in which the
device could do the least that an example needs, by the bfloat16 matrix throughput or the copy bandwidth measured beside
it, whichever bounds, over the time that it took.
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

import results

from scale.throughput import SIZES, write_world

KEYS = ("examples_s", "fraction", "torch_ratio")
BENCHMARKS = Path(__file__).resolve().parents[1]


def run(arguments: list[str]) -> dict[str, float]:
    """Train on both sides in turns."""
    parser = argparse.ArgumentParser(prog="run.py gpu", description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="large")
    parser.add_argument("--seconds", type=float, default=15.0, help="of training in each run (default 15)")
    parser.add_argument("--pairs", type=int, default=3, help="runs of each side (default 3)")
    parser.add_argument("--batch-size", type=int, default=16_384)
    parser.add_argument("--python", default=sys.executable, help="an interpreter that has PyTorch")
    options = parser.parse_args(arguments)
    found: dict[str, list[dict[str, Any]]] = {"ours": [], "torch": []}
    with tempfile.TemporaryDirectory() as folder:
        write_world(Path(folder), *SIZES[options.size])
        given = [folder, "--seconds", str(options.seconds), "--batch-size", str(options.batch_size)]
        for _ in range(options.pairs):
            for side, command in (
                ("ours", [sys.executable, "-m", "scale.gpu_ours", *given]),
                ("torch", [options.python, "-m", "pytorch.gpu", *given]),
            ):
                found[side].append(_told(command))
                print(f"{side}: {found[side][-1]}", file=sys.stderr)
    print(f"raw figures: {results.write('gpu', {**vars(options), **found})}")
    pairs = list(zip(found["ours"], found["torch"], strict=True))
    return {
        "examples_s": statistics.median(ours["examples_s"] for ours in found["ours"]),
        "fraction": statistics.median(_fraction(ours) for ours in found["ours"]),
        "torch_ratio": statistics.median(ours["examples_s"] / theirs["examples_s"] for ours, theirs in pairs),
    }


def _fraction(told: dict[str, Any]) -> float:
    """Of the time that an example takes, that in which the device could do the least that it needs."""
    return float(told["examples_s"] * max(told["flops"] / told["flops_s"], told["bytes"] / told["bytes_s"]))


def _told(command: list[str]) -> dict[str, Any]:
    """What a process says of itself in its last line."""
    env = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # The world's arrays are all that it needs.
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env, cwd=BENCHMARKS)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told
