"""Does the whole path fit one machine at 100,000,000 interactions of a million users with a million items?

Each step is a process of its own, run by the command that a user types, under a watch: how long it takes, and the most
memory of its own that it holds at once. A step that holds more than 20 GB is stopped, and the benchmark fails. With
`--interactions` the world is smaller in all ways: as many users and items for each interaction.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import results

from scale.page import fill, table
from scale.watched import Watched, watch

STEPS = ("prepare", "split", "train", "evaluate", "index", "bundle")
KEYS = (*(f"seconds_{step}" for step in STEPS), "peak_gb")
RECIPE = Path(__file__).with_suffix(".toml")
LIMIT_GB = 20.0
INTERACTIONS, PER_USER = 100_000_000, 100
READS = {
    "split": ("prepared",),
    "train": ("split",),
    "evaluate": ("split", "model"),
    "index": ("split", "model"),
    "bundle": ("split", "model", "index", "report"),
}
"""Step -> the directories that it reads."""
WRITES = {"prepare": "prepared", "train": "model", "evaluate": "report"}
"""Step -> what it writes, where that is not its own name."""


def run(arguments: list[str]) -> dict[str, float]:
    """Go the path and tell each step's time and memory."""
    parser = argparse.ArgumentParser(prog="run.py hundred-million", description=__doc__)
    parser.add_argument("--interactions", type=float, default=INTERACTIONS, help="of the world (default 1e8)")
    parser.add_argument("--out", type=Path, help="keep what the steps write there (default: nothing is kept)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="changes to the recipe")
    parser.add_argument("--page", action="store_true", help="write the table on docs/performance.md anew")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="twotower-path-") as scratch:
        seen = go(int(options.interactions), out=options.out or Path(scratch), changes=options.set)
    raw = {"interactions": int(options.interactions), "steps": {step: found.raw() for step, found in seen.items()}}
    print(f"raw figures: {results.write('hundred-million', raw)}")
    if options.page:
        fill("hundred-million", told(int(options.interactions), seen))
    peak = max(found.peak_gb for found in seen.values())
    return {f"seconds_{step}": found.seconds for step, found in seen.items()} | {"peak_gb": peak}


def told(interactions: int, seen: dict[str, Watched]) -> str:
    """A table with a row for each step."""
    rows = [[step, f"{one.seconds:,.0f}", f"{one.peak_gb:.1f}", f"{one.resident_gb:.1f}"] for step, one in seen.items()]
    head = ["step", "seconds", "memory of its own, GB", "with pages of mapped files, GB"]
    return f"{interactions:,} interactions:\n\n{table(head, rows)}"


def go(interactions: int, *, out: Path, changes: list[str]) -> dict[str, Watched]:
    """Run every step in its order."""
    many = interactions // PER_USER
    sizes = {"users": many, "items": many, "interactions": interactions}
    settings = [*(f"prepare.simulated.{name}={size}" for name, size in sizes.items()), *changes]
    recipe = [str(RECIPE), *(word for setting in settings for word in ("--set", setting))]
    seen = {}
    for step in STEPS:
        read = [word for name in READS.get(step, ()) for word in (f"--{name}", str(out / name))]
        target = ["--out", str(out / WRITES.get(step, step))]
        command = [sys.executable, "-m", "twotower", step, *recipe, *read, *target]
        seen[step] = watch(command, limit_gb=LIMIT_GB)
        found = seen[step]
        print(
            f"{step}: {found.seconds:.1f} s, {found.peak_gb:.2f} GB of its own, {found.resident_gb:.2f} GB resident",
            file=sys.stderr,
        )
    return seen
