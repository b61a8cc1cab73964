"""Checkpoints: all that a training run needs to go on as if it had never stopped, on any number of processes.

What is the same everywhere is written by the first process into `NAME.npz`. Of a table each process writes the rows
that it holds, into `NAME.rows-PROCESS.npz`; an entry's name says where its rows begin, so that any number of processes
finds its own rows again.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from twotower.artifact import verify, write_artifact
from twotower.errors import TrainingError
from twotower.training.distributed import Rows, agree, is_first, wait_for_all

KIND = "checkpoint"
LAYOUT = 2
"""Of the files; 1 had every table whole."""


def save_checkpoint(directory: Path, trees: Mapping[str, Any], *, run: str, position: Mapping[str, Any]) -> None:
    """Write trees of arrays, whole or not at all; an earlier checkpoint stays until the new one is complete.

    All processes call this with a directory that all of them see. The first one opens and seals it, when all have
    written.

    Args:
        directory: Where it will stand.
        trees: Name -> any nesting of dicts, lists and tuples of arrays, or of `Rows` where a table is dealt out.
        run: What identifies the run; `load_checkpoint` refuses another's.
        position: Where the run stands, as JSON.
    """
    with ExitStack() as stack:
        opened = write_artifact(directory, kind=KIND, metadata={"run": run, "layout": LAYOUT})
        out = Path(agree(lambda: str(stack.enter_context(opened))))
        for name, tree in trees.items():
            leaves = dict(enumerate(jax.tree.leaves(tree)))
            rows = {f"{place:05d}-{leaf.start}": leaf.values for place, leaf in leaves.items() if _is_rows(leaf)}
            np.savez(out / f"{name}.rows-{jax.process_index():05d}.npz", allow_pickle=False, **rows)
            if is_first():
                same = {f"{place:05d}": np.asarray(leaf) for place, leaf in leaves.items() if not _is_rows(leaf)}
                np.savez(out / f"{name}.npz", allow_pickle=False, **same)
        if is_first():
            (out / "position.json").write_text(json.dumps(position), encoding="utf-8")
        wait_for_all("checkpoint")


def load_checkpoint(
    directory: Path, templates: Mapping[str, Any], *, run: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The trees and the position that `save_checkpoint` wrote, whatever number of processes it was called by.

    Args:
        directory: Where the checkpoint stands.
        templates: Name -> a tree of the same nesting, whose leaves are replaced: `Rows` by the same rows.
        run: As given to `save_checkpoint`.

    Raises:
        TrainingError: the checkpoint belongs to a run with another recipe, seed or data, or to an earlier release.
        ArtifactError: it is damaged.
    """
    metadata = verify(directory, kind=KIND)["metadata"]
    if metadata.get("layout") != LAYOUT:
        raise TrainingError(f"{directory}: written by another release. Train without --resume, or remove it.")
    if metadata["run"] != run:
        raise TrainingError(
            f"{directory}: belongs to a run with another recipe, seed or data. Train without --resume, or remove it."
        )
    trees = {name: _load(directory, name, template) for name, template in templates.items()}
    position: dict[str, Any] = json.loads((directory / "position.json").read_text(encoding="utf-8"))
    return trees, position


def _is_rows(leaf: Any) -> bool:
    return isinstance(leaf, Rows)


def _load(directory: Path, name: str, template: Any) -> Any:
    leaves, structure = jax.tree.flatten(template)
    with ExitStack() as stack:

        def opened(path: Path) -> Any:
            return stack.enter_context(np.load(path, allow_pickle=False))

        same = opened(directory / f"{name}.npz")
        # An entry of an .npz is read when it is asked for: of the others' rows, only those that are wanted here.
        parts = [opened(path) for path in sorted(directory.glob(f"{name}.rows-*.npz"))]
        entries = {entry: part for part in parts for entry in part.files}
        found = [
            _read_rows(leaf, _starting(place, entries)) if isinstance(leaf, Rows) else same[f"{place:05d}"]
            for place, leaf in enumerate(leaves)
        ]
    return jax.tree.unflatten(structure, found)


def _starting(place: int, entries: Mapping[str, Any]) -> dict[int, Callable[[], NDArray[Any]]]:
    """Where each stored part of a table begins, and how it is read."""
    prefix = f"{place:05d}-"
    return {
        int(entry.removeprefix(prefix)): partial(part.__getitem__, entry)
        for entry, part in entries.items()
        if entry.startswith(prefix)
    }


def _read_rows(wanted: Rows, stored: Mapping[int, Callable[[], NDArray[Any]]]) -> Rows:
    """The rows wanted, put together from the stored parts that hold them."""
    start, stop = wanted.start, wanted.start + len(wanted.values)
    values = np.empty_like(wanted.values)
    begins = sorted(stored)
    for begin, end in zip(begins, [*begins[1:], wanted.total], strict=True):
        if begin < stop and end > start:
            part = stored[begin]()
            low, high = max(begin, start), min(end, stop)
            values[low - start : high - start] = part[low - begin : high - begin]
    return Rows(values, start, wanted.total)
