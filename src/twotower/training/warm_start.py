"""Weights kept with a model, and a new model that begins where an old one ended.

Ids come and go between two trainings, so embedding rows are carried over by what they stand for, never by number.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from twotower.artifact import read_manifest, verify
from twotower.data.feature_encoders import FeatureEncoder, MultiCategoryEncoder, VocabularyEncoder
from twotower.data.fitted_features import FittedFeatures
from twotower.data.pieces import span_of
from twotower.data.split import TEST, TRAIN, VALIDATION, SplitDataset
from twotower.data.vocabulary import OUT_OF_VOCABULARY
from twotower.errors import TrainingError
from twotower.model.encoders import table_name
from twotower.model.joint import JointModel
from twotower.model.network import WEIGHTS


@dataclass(frozen=True, slots=True, kw_only=True)
class CarriedOver:
    """What a new model took from an old one."""

    rows: int
    """Embedding rows that stood for the same value before."""
    new_rows: int
    """Embedding rows of values that the old model did not know; they begin as drawn."""
    parts: tuple[str, ...]
    """Parts (towers, head) whose dense weights were taken; the others have another shape and begin as drawn."""


def save_weights(model: JointModel, directory: Path) -> None:
    """Write tables, dense weights and the layers' states beside the graphs, which hold them as constants only."""
    arrays = {f"table/{name}": np.asarray(table) for name, table in model.tables.items()}
    for part, states in model.states().items():
        arrays |= {f"state/{part}/{place:03d}": np.asarray(state) for place, state in enumerate(states)}
    for part, weights in model.weights().items():
        arrays |= {f"{part}/{place:03d}": np.asarray(weight) for place, weight in enumerate(weights)}
    np.savez(directory / WEIGHTS, allow_pickle=False, **arrays)


def learned_until(dataset: SplitDataset) -> int:
    """The moment of the last interaction that training may learn from or be stopped by, in microseconds."""
    return span_of(dataset, TRAIN, VALIDATION)[1]


def refuse_leak(directory: Path, *, dataset: SplitDataset, split: str) -> None:
    """Refuse an earlier model that may have learned from what is now the test part: its figures would be too good.

    Args:
        directory: What `train` wrote before.
        dataset: What the new model is judged on.
        split: Fingerprint of its directory; the same split has the same test part.

    Raises:
        ArtifactError: no model directory there.
        TrainingError: the earlier model saw moments that are now tested, or the split is not by time.
    """
    metadata = read_manifest(directory, kind="model")["metadata"]
    if metadata.get("split") == split:
        return
    by_time = dataset.metadata.get("protocol") == "time"
    if not by_time or metadata.get("learned_until_us", np.inf) >= span_of(dataset, TEST)[0]:
        raise TrainingError(
            f"{directory}: this model may have learned from what is now the test part, so its successor would be "
            "judged too well. Start afresh, or split by time on a window that has moved on."
        )


def carry_over(model: JointModel, directory: Path) -> CarriedOver:
    """Let a freshly drawn model begin with the weights of an earlier one.

    Args:
        model: Built, not yet trained.
        directory: What `train` wrote before; its recipe may have been another.

    Raises:
        ArtifactError: no model directory there, or a damaged one.
        TrainingError: the model was kept without its weights.
    """
    verify(directory, kind="model")
    if not (directory / WEIGHTS).is_file():
        raise TrainingError(
            f"{directory}: no {WEIGHTS}, so nothing to start from. Name a directory that `train` wrote."
        )
    with np.load(directory / WEIGHTS, allow_pickle=False) as stored:
        old = {name: stored[name] for name in stored.files}
    rows, new_rows = _tables(model, FittedFeatures.load(directory), old)
    return CarriedOver(rows=rows, new_rows=new_rows, parts=tuple(_dense(model, old)))


def _tables(model: JointModel, features: FittedFeatures, old: dict[str, NDArray[Any]]) -> tuple[int, int]:
    """Copy the rows that both models know; gives their number, and that of the others."""
    before = dict(_by_table(features))
    carried, others = 0, 0
    for name, encoder in _by_table(model.features):
        table = np.array(model.tables[name])
        kept = old.get(f"table/{name}")
        if kept is not None and name in before and kept.shape[1] == table.shape[1]:
            into, taken = _same_rows(encoder, before[name], len(table))
            table[into] = kept[taken]
            model.tables[name] = jnp.asarray(table)
        else:
            into = np.empty(0, np.int64)
        carried, others = carried + len(into), others + len(table) - len(into)
    return carried, others


def _same_rows(new: FeatureEncoder, old: FeatureEncoder, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the new table, and the rows of the old one that stand for the same; hashed words keep their rows."""
    words = (VocabularyEncoder, MultiCategoryEncoder)
    if isinstance(new, words) and isinstance(old, words):
        taken = np.r_[OUT_OF_VOCABULARY, old.vocabulary.rows(new.vocabulary.values)].astype(np.int64)
        into = np.flatnonzero((taken != OUT_OF_VOCABULARY) | (np.arange(size) == OUT_OF_VOCABULARY))
        return into, taken[into]
    same = np.arange(size if new.table_rows == old.table_rows else 0)
    return same, same


def _by_table(features: FittedFeatures) -> list[tuple[str, FeatureEncoder]]:
    towers = (("query", features.query), ("candidate", features.candidate))
    return [
        (table_name(tower, encoder.key), encoder)
        for tower, encoders in towers
        for encoder in encoders
        if encoder.table_rows is not None
    ]


def _dense(model: JointModel, old: dict[str, NDArray[Any]]) -> list[str]:
    """Assign the dense weights of every part whose shapes are as they were; gives these parts."""
    taken = []
    for part, layer in model.layers.items():
        variables = list(layer.trainable_variables)
        found = [old.get(f"{part}/{place:03d}") for place in range(len(variables))]
        if not variables or f"{part}/{len(variables):03d}" in old:
            continue
        if all(one is not None and one.shape == variable.shape for one, variable in zip(found, variables, strict=True)):
            for one, variable in zip(found, variables, strict=True):
                variable.assign(one)
            taken.append(part)
    return taken
