"""Whether the features were fitted on the train part alone: the part of the audit that looks at encoders."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from twotower.data.feature_encoders import (
    SECOND,
    EmbeddingEncoder,
    FeatureEncoder,
    MultiCategoryEncoder,
    NumberEncoder,
    TimestampEncoder,
    VocabularyEncoder,
    split_values,
)
from twotower.data.fitted_features import FittedFeatures
from twotower.data.split import TRAIN, SplitDataset
from twotower.data.vocabulary import plain, texts

ROWS = 10_000
"""Vectors looked at together: bounds the memory."""
LOG_ROWS = 1_000_000
"""Interactions looked at together, likewise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that must not leak."""

    name: str
    passed: bool
    detail: str
    """What was looked at; or what was found first, where it failed."""


def vocabularies(dataset: SplitDataset, features: FittedFeatures) -> Check:
    """Every value that has an embedding of its own occurs in the train part."""
    name, counted, values = "vocabularies", 0, 0
    for where, encoder, column in _fitted_on(dataset, features):
        if not isinstance(encoder, VocabularyEncoder | MultiCategoryEncoder) or column is None:
            continue
        met = set(texts(column)) if isinstance(encoder, VocabularyEncoder) else _parts(column, encoder)
        strange = [value for value in encoder.vocabulary.values.to_pylist() if value not in met]
        if strange:
            detail = f"{where}: {len(strange):,} values that the train part does not hold (first: '{strange[0]}')"
            return Check(name=name, passed=False, detail=detail)
        counted, values = counted + 1, values + encoder.vocabulary.size - 1
    if features.history is not None:
        whole = dataset.whole or dataset
        met = set(whole.item_ids[_in_train(whole, whole.item, rows=len(whole.item_ids))])
        strange = [value for value in features.history.items.values.to_pylist() if value not in met]
        if strange:
            detail = f"history: {len(strange):,} items that the train part does not hold (first: '{strange[0]}')"
            return Check(name=name, passed=False, detail=detail)
    return Check(name=name, passed=True, detail=f"{counted} of them, {values:,} values, all met in the train part")


def _parts(column: Any, encoder: MultiCategoryEncoder) -> set[str]:
    return {part for value in plain(column) for part in split_values(value, encoder.config.separator)}


def statistics(dataset: SplitDataset, features: FittedFeatures) -> Check:
    """Means, deviations, first and last moments are those of the train part."""
    name, counted = "statistics of features", 0
    for where, encoder, column in _fitted_on(dataset, features):
        if column is None:
            continue
        for statistic, saved, again, tolerance in _compared(encoder, column):
            if not math.isclose(saved, again, rel_tol=tolerance, abs_tol=tolerance):
                detail = f"{where}: {statistic} {saved:.7g} was saved, but the train part has {again:.7g}"
                return Check(name=name, passed=False, detail=detail)
            counted += 1
    return Check(name=name, passed=True, detail=f"{counted} figures, worked out anew from the train part")


def _compared(encoder: FeatureEncoder, column: Any) -> Iterator[tuple[str, float, float, float]]:
    """Statistic, as saved, as worked out anew, and how far the two may lie apart by rounding."""
    if isinstance(encoder, NumberEncoder):
        number = _finite(column)
        mean, deviation = pc.mean(number).as_py() or 0.0, pc.stddev(number, ddof=0).as_py() or 0.0
        yield "mean", encoder.mean, mean, 1e-6
        # Equal numbers leave no deviation but that of rounding; the encoder takes 1 then.
        yield "deviation", encoder.deviation, deviation if deviation > 1e-12 * abs(mean) else 1.0, 1e-6
        edges = _edges(number, bins=encoder.config.bins)
        for place, (saved, again) in enumerate(zip(encoder.edges.tolist(), edges, strict=True)):
            yield f"edge {place + 1}", saved, again, 1e-6
    elif isinstance(encoder, TimestampEncoder):
        if pa.types.is_temporal(column.type):
            column = pc.cast(pc.cast(column, pa.timestamp("us"), safe=False), pa.int64())
        ends = pc.min_max(_finite(column)).as_py()
        if ends["min"] is not None:
            yield "first moment", encoder.first, ends["min"] / SECOND, 1e-9
            yield "last moment", encoder.last, ends["max"] / SECOND, 1e-9
    elif isinstance(encoder, EmbeddingEncoder) and not pa.types.is_null(column.type):
        mean_vector = _mean_direction(column, width=encoder.config.width)
        place = int(np.argmax(np.abs(mean_vector - encoder.mean)))
        yield f"mean at place {place + 1}", float(encoder.mean[place]), float(mean_vector[place]), 1e-5
        # Each direction has length 1, so what the mean lacks of that is deviation.
        rest = max(1.0 - float(mean_vector @ mean_vector), 0.0) / encoder.config.width
        if rest > 1e-6:
            yield "deviation", encoder.deviation, math.sqrt(rest), 1e-3


def _edges(number: Any, *, bins: int) -> list[float]:
    if not bins:
        return []
    if not len(number):
        return [0.0] * (bins + 1)
    found: list[float] = pc.quantile(number, q=[place / bins for place in range(bins + 1)]).to_pylist()
    return found


def _finite(column: Any) -> Any:
    """The column's numbers without what is missing."""
    number = pc.cast(column, pa.float64(), safe=False)
    return pc.filter(number, pc.fill_null(pc.is_finite(number), False))


def _mean_direction(column: Any, *, width: int) -> NDArray[np.float64]:
    total, count = np.zeros(width), 0
    for start in range(0, len(column), ROWS):
        there = pc.drop_null(column.slice(start, ROWS))
        flat = pc.cast(pc.list_flatten(there), pa.float64(), safe=False)
        vectors = np.asarray(pc.fill_null(flat, np.nan), np.float64).reshape(-1, width)
        length = np.sqrt(np.einsum("nw,nw->n", vectors, vectors))
        told = np.isfinite(length) & (length > 0)
        total += (vectors[told] / length[told, None]).sum(axis=0)
        count += int(told.sum())
    return total / max(count, 1)


def _fitted_on(dataset: SplitDataset, features: FittedFeatures) -> Iterator[tuple[str, FeatureEncoder, Any]]:
    """Each feature's name, its encoder, and the values that it may have been fitted on; None where there is no column.

    Users and items count once each, if the train part names them; context counts with every interaction of it.
    """
    dataset = dataset.whole or dataset
    users = pa.array(_in_train(dataset, dataset.user, rows=len(dataset.user_ids)))
    items = pa.array(_in_train(dataset, dataset.item, rows=len(dataset.item_ids)))
    for encoder in features.query:
        if encoder.column in features.user_columns:
            table, chosen = dataset.users, users
        elif encoder.column == "timestamp":
            yield "query: timestamp", encoder, pa.chunked_array([pa.array(dataset.timestamp[dataset.part == TRAIN])])
            continue
        else:
            table, chosen = dataset.context, pa.array(np.flatnonzero(dataset.part == TRAIN))
        yield f"query: {encoder.key}", encoder, _taken(table, encoder.column, chosen)
    for encoder in features.candidate:
        yield f"candidate: {encoder.key}", encoder, _taken(dataset.items, encoder.column, items)


def _in_train(dataset: SplitDataset, column: NDArray[np.int32], *, rows: int) -> NDArray[np.int64]:
    """The users or the items that the train part names, ascending."""
    there = np.zeros(rows, bool)
    for start in range(0, len(column), LOG_ROWS):
        piece = slice(start, start + LOG_ROWS)
        there[column[piece][dataset.part[piece] == TRAIN]] = True
    return np.flatnonzero(there)


def _taken(table: pa.Table, column: str, chosen: pa.Array) -> Any:
    return table[column].take(chosen) if column in table.column_names else None
