"""A bundle of 1,000,000 items, 64 wide, with 300 candidates: what serving is measured on.

The simulated world, its split and the model, really trained for an epoch, are made by the package's own steps. They are
kept below the folder in `TWOTOWER_CACHE`, or the system's temporary one, for as long as the recipe beside this file
stays the same; index and bundle are made anew when the code that writes them changes. There is no report in it: judging
a model of a million items takes longer than all the rest, and no answer depends on it.

`python benchmarks/serving/world_1m.py` makes the bundle and prints where it is.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import twotower
from twotower import artifact, steps
from twotower.bundle import write_bundle
from twotower.data.split import load_split
from twotower.recipe import Recipe, load_recipe, recipe_toml, recipe_tree

RECIPE = Path(__file__).with_suffix(".toml")
CACHE = "TWOTOWER_CACHE"
LEARNED_BY = ("name", "seed", "prepare", "split", "model", "train")
"""What of the recipe the model depends on."""
INDEXED_BY = ("index/*.py", "model/exported.py")
BUNDLED_BY = (*INDEXED_BY, "bundle.py", "golden.py", "serve_config.py")
"""Code that writes them, below the package."""


def bundle() -> Path:
    """The bundle's directory, made where it is not there."""
    recipe = load_recipe(RECIPE)
    tree = recipe_tree(recipe)
    root = _cache() / f"{recipe.name}-{_short({key: tree[key] for key in LEARNED_BY})}"
    prepared, split, model = root / "prepared", root / "split", root / "model"
    index = root / f"index-{_short([tree, _code(INDEXED_BY)])}"
    out = root / f"bundle-{_short([tree, _code(BUNDLED_BY)])}"
    _once(prepared, lambda: steps.prepare(recipe, out=prepared))
    _once(split, lambda: steps.split(recipe, prepared=prepared, out=split))
    _once(model, lambda: steps.train(recipe, split=split, out=model, watch=lambda told: _say(told.line())))
    _once(index, lambda: steps.index(recipe, split=split, model=model, out=index))
    _once(out, lambda: _write(recipe, split=split, model=model, index=index, out=out))
    return out


def _write(recipe: Recipe, *, split: Path, model: Path, index: Path, out: Path) -> None:
    """As `steps.bundle` does, but without a report."""
    metadata: dict[str, Any] = {}
    with artifact.write_artifact(out, kind="bundle", metadata=metadata) as to:
        metadata |= write_bundle(
            recipe.bundle,
            name=recipe.name,
            dataset=load_split(split),
            model=model,
            index=index,
            recipe=recipe_toml(recipe),
            candidates=recipe.evaluate.candidates,
            out=to,
        )


def _once(target: Path, make: Callable[[], None]) -> None:
    if (target / artifact.MANIFEST).is_file():
        return
    began = time.perf_counter()
    make()
    _say(f"{target.name}: {time.perf_counter() - began:.0f} s")


def _cache() -> Path:
    named = os.environ.get(CACHE)
    return Path(named) if named else Path(tempfile.gettempdir()) / "twotower-bench"


def _code(patterns: tuple[str, ...]) -> dict[str, str]:
    """File -> hash."""
    package = Path(twotower.__file__).parent
    found = sorted(file for pattern in patterns for file in package.glob(pattern))
    return {file.relative_to(package).as_posix(): artifact.sha256(file) for file in found}


def _short(value: Any) -> str:
    return artifact.hash_json(value)[:12]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    print(bundle())
