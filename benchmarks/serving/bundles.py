"""What is served: bundles that are trained once and kept in `build/serving`.

They are trained for as short as can be: how good a model is has no part in how long an answer takes.
"""

import subprocess
import sys
from pathlib import Path

import movielens_splits

from twotower import artifact

KEPT = Path(__file__).resolve().parents[2] / "build" / "serving"
RECIPE = "movielens-1m"
SETTINGS = tuple(
    word
    for setting in (
        "train.epochs=1",
        "evaluate.max_queries=200",
        'evaluate.baselines=["popularity"]',
        "evaluate.bootstrap=0",
    )
    for word in ("--set", setting)
)
SECOND_SEED = 43


def movielens() -> Path:
    """A bundle over MovieLens-1M by the recipe that comes with the package, but for one epoch and hardly judged."""
    out = KEPT / RECIPE
    _twotower("run", RECIPE, *SETTINGS, "--data-dir", str(movielens_splits.data_directory()), "--out", str(out))
    return out / "bundle"


def movielens_pair() -> tuple[Path, Path]:
    """Two bundles over the same users and items that answer differently: their models began at other seeds.

    The second one's report is the first one's, as no answer depends on it.
    """
    first = movielens()
    run = first.parent
    second = KEPT / f"{RECIPE}-second-{artifact.fingerprint(run / 'split')[:12]}"
    if not (second / "bundle").is_dir():
        recipe = (RECIPE, *SETTINGS, "--set", f"seed={SECOND_SEED}")
        split, model, index = (str(run / "split"), str(second / "model"), str(second / "index"))
        read = ("--split", split, "--model", model)
        _twotower("train", *recipe, "--split", split, "--out", model)
        _twotower("index", *recipe, *read, "--out", index)
        report = ("--index", index, "--report", str(run / "report"))
        _twotower("bundle", *recipe, *read, *report, "--out", str(second / "bundle"))
    return first, second / "bundle"


def _twotower(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "twotower", *arguments], check=True, stdout=sys.stderr)
