"""How much sooner ours is as good as TFRS ever gets: MovieLens-1M, a random tenth as test part, from process start.

Both sides read the same two CSV files and learn from ids and stars; candidates are all films, nothing is excluded.
TFRS is the multitask tutorial's model for 20 epochs, with batches of 1,024 and of 8,192. What it reached is its best
top-100 accuracy and its best RMSE of all epochs, and its time is that of the first epoch by which it has had both. Ours
has to have both after one and the same epoch. Where a reading was open, the one that is kinder to TFRS was taken:

- TFRS may have its two bests at different epochs, and so at no time both, as it does;
- its metrics are off while it trains, and each figure is its own or ours of its embeddings, whichever is better;
- ours begins with no compiled program kept, and the slowest of its runs counts, one before, one between and one after;
- the smaller of the two batch sizes' quotients is the one quoted.

`ratio` counts no evaluation on either side, `ratio_with_evaluation` counts one after each epoch, TFRS's by its own
`FactorizedTopK`. What a second run of ours takes, which finds all programs compiled, is among the raw figures.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import movielens_splits
import results
import tfrs_environment

KEYS = ("ratio", "ratio_with_evaluation")
SEED = 0
"""Of the split that is measured."""
TEST_SHARE = 0.1
WARM_UP_ROWS = 5_000
OURS = Path(__file__).with_name("to_quality.py")

Curve = list[dict[str, Any]]
"""An entry an epoch: `trained` and `evaluated` (seconds from process start, evaluations before included), `top100`,
`rmse`."""


def run(arguments: list[str]) -> dict[str, float]:
    """Time both sides in turns, and say how many times sooner ours is where TFRS ends."""
    parser = argparse.ArgumentParser(prog="run.py time-to-quality", description=__doc__)
    parser.add_argument("--epochs", type=int, default=20, help="of TFRS (default 20)")
    parser.add_argument(
        "--batch-size", type=int, action="append", help="of TFRS; again for each further one (default 1024 and 8192)"
    )
    parser.add_argument("--rows", type=int, default=None, help="only the log's first rows, for a quick look")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder, tiny = Path(temporary) / "data", Path(temporary) / "tiny"
        rows = movielens_splits.interactions_1m()[: options.rows]
        for at, part in ((folder, rows), (tiny, rows[:WARM_UP_ROWS])):
            at.mkdir()
            test = movielens_splits.is_test(len(part), seed=SEED, share=TEST_SHARE)
            movielens_splits.write_parts(at, part, test=test)
        sides = Sides(folder, tiny, Path(temporary))
        sides.warm_up()
        ours, theirs = [sides.ours()], dict[int, list[Any]]()
        for batch_size in options.batch_size or (1024, 8192):
            theirs[batch_size] = sides.tfrs(batch_size, epochs=options.epochs)
            ours.append(sides.ours())
        again = sides.ours(again=True)
    found = {batch_size: compare(lines[1:], [one[1:] for one in ours]) for batch_size, lines in theirs.items()}
    second = {batch_size: compare(lines[1:], [again[1:]]) for batch_size, lines in theirs.items()}
    raw = {"by_batch_size": found, "second_run": second, "ours": ours, "ours_again": again, "tfrs": theirs}
    print(f"raw figures: {results.write('time-to-quality', raw)}")
    return {key: min(one[key] for one in found.values()) for key in KEYS}


class Sides:
    """Both sides as processes; bytecode is kept for both, in one place, and read from disk before any clock runs."""

    def __init__(self, folder: Path, tiny: Path, temporary: Path) -> None:
        self.folder, self.tiny, self.temporary = folder, tiny, temporary
        self.variables = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        self.variables |= {"PYTHONPYCACHEPREFIX": str(temporary / "bytecode")}
        self.runs = 0

    def warm_up(self) -> None:
        """Each side once on a few rows."""
        self._ours(self.tiny, cache=self.temporary / "warm-up")
        self._tfrs(self.tiny, 256, epochs=1)

    def ours(self, *, again: bool = False) -> list[Any]:
        """The lines of a run that finds no compiled program; with `again`, of one that finds those of the last."""
        self.runs += not again
        return self._ours(self.folder, cache=self.temporary / f"compiled-{self.runs}")

    def tfrs(self, batch_size: int, *, epochs: int) -> list[Any]:
        """The lines of a run of TFRS."""
        return self._tfrs(self.folder, batch_size, epochs=epochs)

    def _ours(self, folder: Path, *, cache: Path) -> list[Any]:
        with tempfile.TemporaryDirectory(dir=self.temporary) as out:
            command = [sys.executable, str(OURS), str(folder), "--out", out]
            kept = {name: value for name, value in self.variables.items() if not name.startswith("JAX_")}
            return _lines("ours", command, env=kept | {"TWOTOWER_CACHE": str(cache)})

    def _tfrs(self, folder: Path, batch_size: int, *, epochs: int) -> list[Any]:
        command = tfrs_environment.command(
            "to_quality.py", str(folder), "--batch-size", str(batch_size), "--epochs", str(epochs)
        )
        return _lines(f"TFRS, batch {batch_size}", command, env=self.variables | tfrs_environment.variables())


def compare(theirs: Curve, ours: Sequence[Curve]) -> dict[str, Any]:
    """Where TFRS ends, when it is there, and when the slowest of ours is."""
    marks = {"top100": max(map(_top100, theirs)), "rmse": min(map(_rmse, theirs))}
    there = _first(theirs, marks)
    clocks = {"ratio": without_evaluation, "ratio_with_evaluation": with_evaluation}
    found: dict[str, Any] = {"marks": marks, "tfrs_epoch": there + 1}
    found["our_epochs"] = [
        next((place + 1 for place, one in enumerate(curve) if _meets(one, marks)), None) for curve in ours
    ]
    for key, clock in clocks.items():
        taken = [
            clock(curve)[epoch - 1] if epoch else None for curve, epoch in zip(ours, found["our_epochs"], strict=True)
        ]
        found[f"{key}_seconds"] = {"tfrs": clock(theirs)[there], "ours": taken}
        # Who never comes is not sooner at all.
        found[key] = 0.0 if None in taken else clock(theirs)[there] / max(one for one in taken if one is not None)
    return found


def without_evaluation(curve: Curve) -> list[float]:
    """Seconds from process start to the end of each epoch's training, no evaluation counted."""
    found, evaluating = [], 0.0
    for entry in curve:
        found.append(entry["trained"] - evaluating)
        evaluating += entry["evaluated"] - entry["trained"]
    return found


def with_evaluation(curve: Curve) -> list[float]:
    """Seconds from process start to the end of each epoch's evaluation."""
    return [entry["evaluated"] for entry in curve]


def _first(curve: Curve, marks: Mapping[str, float]) -> int:
    """The first epoch by which both marks have been met, at whichever epochs."""
    met_top100 = next(place for place, entry in enumerate(curve) if _top100(entry) >= marks["top100"])
    met_rmse = next(place for place, entry in enumerate(curve) if _rmse(entry) <= marks["rmse"])
    return max(met_top100, met_rmse)


def _meets(entry: Mapping[str, float], marks: Mapping[str, float]) -> bool:
    """Whether both marks are met at this epoch."""
    return entry["top100"] >= marks["top100"] and entry["rmse"] <= marks["rmse"]


def _top100(entry: Mapping[str, float]) -> float:
    return max(entry["top100"], entry.get("own_top100", 0.0))


def _rmse(entry: Mapping[str, float]) -> float:
    return min(entry["rmse"], entry.get("own_rmse", float("inf")))


def _lines(who: str, command: Sequence[str], *, env: Mapping[str, str]) -> list[Any]:
    """What a process tells, line by line; its clock begins here."""
    found = []
    started = [*command, "--began", str(time.monotonic())]
    with subprocess.Popen(started, stdout=subprocess.PIPE, text=True, env=dict(env)) as process:
        assert process.stdout is not None
        for line in process.stdout:
            found.append(json.loads(line))
            print(f"{who}: {line.strip()}", file=sys.stderr)
    if process.returncode:
        raise RuntimeError(f"{who} ended with {process.returncode}: see its message above")
    return found
