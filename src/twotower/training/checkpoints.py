"""Checkpoints: all that a training run needs to go on as if it had never stopped."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from twotower.artifact import verify, write_artifact
from twotower.errors import TrainingError

KIND = "checkpoint"


def save_checkpoint(directory: Path, trees: Mapping[str, Any], *, run: str, position: Mapping[str, Any]) -> None:
    """Write trees of arrays, whole or not at all; an earlier checkpoint stays until the new one is complete.

    Args:
        directory: Where it will stand.
        trees: Name -> any nesting of dicts, lists and tuples of arrays.
        run: What identifies the run; `load_checkpoint` refuses another's.
        position: Where the run stands, as JSON.
    """
    with write_artifact(directory, kind=KIND, metadata={"run": run}) as out:
        for name, tree in trees.items():
            leaves = {f"{place:05d}": np.asarray(leaf) for place, leaf in enumerate(jax.tree.leaves(tree))}
            np.savez(out / f"{name}.npz", allow_pickle=False, **leaves)
        (out / "position.json").write_text(json.dumps(position), encoding="utf-8")


def load_checkpoint(
    directory: Path, templates: Mapping[str, Any], *, run: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The trees and the position that `save_checkpoint` wrote.

    Args:
        directory: Where the checkpoint stands.
        templates: Name -> a tree of the same nesting, whose leaves are replaced.
        run: As given to `save_checkpoint`.

    Raises:
        TrainingError: the checkpoint belongs to a run with another recipe, seed or data.
        ArtifactError: it is damaged.
    """
    manifest = verify(directory, kind=KIND)
    if manifest["metadata"]["run"] != run:
        raise TrainingError(
            f"{directory}: belongs to a run with another recipe, seed or data. Train without --resume, or remove it."
        )
    trees = {}
    for name, template in templates.items():
        leaves, structure = jax.tree.flatten(template)
        trees[name] = jax.tree.unflatten(structure, _read(directory / f"{name}.npz", len(leaves)))
    position: dict[str, Any] = json.loads((directory / "position.json").read_text(encoding="utf-8"))
    return trees, position


def _read(path: Path, count: int) -> list[NDArray[Any]]:
    with np.load(path, allow_pickle=False) as stored:
        return [stored[f"{place:05d}"] for place in range(count)]
