"""Columns -> the numbers that a tower reads: fitted on the train part, then the same for training and serving.

Each kind of feature has one encoder here and, where it has weights, one layer in `model/encoders.py`. An encoder gives
one array a column: whole numbers are rows of an embedding table (-1 pads a short row), fractions go in as they are.
"""

import itertools
import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from twotower.data.schema import (
    CategoryFeature,
    EmbeddingFeature,
    HistoryFeature,
    IdFeature,
    MultiCategoryFeature,
    NumberFeature,
    SequenceFeature,
    TextFeature,
    TimestampFeature,
)
from twotower.data.vocabulary import Vocabulary, is_text, plain, texts
from twotower.errors import DataError

SECOND = 1_000_000
"""Microseconds in a second: histories are compared and aged in whole seconds."""
DAY = 86_400
"""Seconds in a day."""
PADDING = -1
"""Stands where a row has fewer values than the feature reads."""

Inputs = dict[str, NDArray[Any]]
"""Input name -> `[n, ...]` numbers, as the exported towers take them."""


def quantiles(known: NDArray[np.float64], bins: int) -> NDArray[np.float64]:
    """`[bins + 1]` edges between which equally many of the numbers lie; equal ones where many are the same number."""
    return np.quantile(known, np.linspace(0, 1, bins + 1)) if bins else np.empty(0)


class FeatureEncoder(ABC):
    """What every kind but the history offers."""

    config: Any
    """The feature's declaration, of its kind's own class."""

    @property
    def key(self) -> str:
        """The name of the tower's input."""
        return f"{self.config.kind}_{self.config.column}"

    @property
    def column(self) -> str:
        """The column it reads."""
        return str(self.config.column)

    @property
    def table_rows(self) -> int | None:
        """Rows of its embedding table; None where it needs none."""
        return None

    @abstractmethod
    def encode(self, values: Any) -> NDArray[Any]:
        """`[n, ...]` numbers for `n` raw values in a sequence or an array; None is a missing one."""

    def state(self) -> dict[str, Any]:
        """What loading needs beside the feature's declaration and vocabulary, as JSON."""
        return {}


@dataclass(frozen=True, slots=True)
class VocabularyEncoder(FeatureEncoder):
    """One value a row, as its place in the vocabulary: kinds `id` and `category`."""

    config: IdFeature | CategoryFeature
    vocabulary: Vocabulary

    @property
    def table_rows(self) -> int | None:
        return self.vocabulary.size

    def encode(self, values: Any) -> NDArray[np.int32]:
        return self.vocabulary.rows(values if is_text(values) else texts(values))


@dataclass(frozen=True, slots=True)
class MultiCategoryEncoder(FeatureEncoder):
    """Several values a row, as their places in the vocabulary, padded to one length."""

    config: MultiCategoryFeature
    vocabulary: Vocabulary

    @property
    def table_rows(self) -> int | None:
        return self.vocabulary.size

    def encode(self, values: Any) -> NDArray[np.int32]:
        split = [split_values(value, self.config.separator)[: self.config.length] for value in plain(values)]
        return _pad([self.vocabulary.rows(row) for row in split], self.config.length)


@dataclass(frozen=True, slots=True)
class TextEncoder(FeatureEncoder):
    """Hashed word n-grams: the same words give the same rows in every process, and no vocabulary is kept."""

    config: TextFeature

    @property
    def table_rows(self) -> int | None:
        return self.config.buckets

    def encode(self, values: Any) -> NDArray[np.int32]:
        return _pad([self._rows(value) for value in texts(values)], self.config.length)

    def _rows(self, value: str | None) -> NDArray[np.int32]:
        words = re.findall(r"\w+", (value or "").lower())
        grams = words + [f"{first} {second}" for first, second in itertools.pairwise(words)]
        hashed = [zlib.crc32(gram.encode()) % self.config.buckets for gram in grams[: self.config.length]]
        return np.array(hashed, np.int32)


@dataclass(frozen=True, slots=True)
class NumberEncoder(FeatureEncoder):
    """`[n, 2 + bins]`: the standardised number (0 where missing), 1 where it is missing, how far each bin is filled.

    Bins are the piecewise linear encoding of Gorishniy et al., "On embeddings for numerical features in tabular deep
    learning", NeurIPS 2022, https://arxiv.org/abs/2203.05556. One whose edges fall together stays empty: its place is
    kept, so that a tower is as wide whatever the data.
    """

    config: NumberFeature
    mean: float
    deviation: float
    edges: NDArray[np.float64]
    """`[bins + 1]` not falling; empty without bins."""

    @classmethod
    def fit(cls, config: NumberFeature, values: Any) -> "NumberEncoder":
        """Learn mean, deviation and the edges of the bins from the train part's values."""
        number = numbers(values)
        known = number[~np.isnan(number)]
        if not len(known):
            return cls(config, 0.0, 1.0, np.zeros(config.bins + 1 if config.bins else 0))
        mean, deviation = float(known.mean()), float(known.std())
        # What rounding leaves of equal numbers is no deviation.
        return cls(config, mean, deviation if deviation > 1e-12 * abs(mean) else 1.0, quantiles(known, config.bins))

    def encode(self, values: Any) -> NDArray[np.float32]:
        number = numbers(values)
        missing = np.isnan(number)
        scaled = np.where(missing, 0.0, (number - self.mean) / self.deviation)
        columns = [np.clip(scaled, -10, 10), missing]
        for low, high in itertools.pairwise(self.edges.tolist()):
            filled = np.clip((number - low) / (high - low), 0, 1) if high > low else 0.0
            columns.append(np.where(missing, 0.0, filled))
        return np.stack(columns, axis=1).astype(np.float32)

    def state(self) -> dict[str, Any]:
        return {"mean": self.mean, "deviation": self.deviation, "edges": self.edges.tolist()}


@dataclass(frozen=True, slots=True)
class TimestampEncoder(FeatureEncoder):
    """`[n, 8]`: sine and cosine of hour, weekday and day of the year, the place within the train part, 1 if missing.

    The place within the train part runs from -1 to 1 and stays at 1 for later moments: a model must not extrapolate.
    """

    config: TimestampFeature
    first: float
    last: float

    def encode(self, values: Any) -> NDArray[np.float32]:
        second = seconds(values)
        missing = np.isnan(second)
        second = np.where(missing, self.first, second)
        phases = 2 * np.pi * np.stack([second / DAY, (second / DAY + 4) / 7, second / DAY / 365.2425], axis=1)
        place = np.clip(2 * (second - self.first) / max(self.last - self.first, 1.0) - 1, -1, 1)
        parts = [np.sin(phases), np.cos(phases), place[:, None], missing[:, None]]
        return np.where(missing[:, None] & (np.arange(8) < 7), 0.0, np.concatenate(parts, axis=1)).astype(np.float32)

    def state(self) -> dict[str, Any]:
        return {"first": self.first, "last": self.last}


@dataclass(frozen=True, slots=True)
class EmbeddingEncoder(FeatureEncoder):
    """`[n, width + 1]`: the vector's direction, shifted and scaled (0 where missing), and 1 where it is missing.

    One deviation for all places keeps their proportions, which carry what the vectors have to say; one for each would
    blow up the places in which hardly anything differs.
    """

    config: EmbeddingFeature
    mean: NDArray[np.float32]
    """`[width]` of the directions that the train part holds."""
    deviation: float
    """Root of the mean square of what is left of these, over all places."""

    @classmethod
    def fit(cls, config: EmbeddingFeature, values: Any) -> "EmbeddingEncoder":
        """Take mean and deviation from a column's vectors."""
        unit = directions(values, config)
        known = unit[~np.isnan(unit[:, 0])].astype(np.float64)
        mean = known.mean(axis=0) if len(known) else np.zeros(config.width)
        deviation = float(np.sqrt(np.mean(np.square(known - mean)))) if len(known) else 0.0
        # What rounding leaves of equal vectors is no deviation.
        return cls(config, mean.astype(np.float32), deviation if deviation > 1e-6 else 1.0)

    def encode(self, values: Any) -> NDArray[np.float32]:
        unit = directions(values, self.config)
        missing = np.isnan(unit[:, :1])
        scaled = np.where(missing, 0.0, (unit - self.mean) / np.float32(self.deviation))
        return np.concatenate([np.clip(scaled, -10, 10), missing], axis=1).astype(np.float32)

    def state(self) -> dict[str, Any]:
        return {"mean": self.mean.tolist(), "deviation": self.deviation}


@dataclass(frozen=True, slots=True)
class HistoryEncoder:
    """The last items before the query and their ages: inputs `history_items` and `history_days`, newest first."""

    config: HistoryFeature | SequenceFeature
    items: Vocabulary

    @property
    def reads_others(self) -> bool:
        """Whether training reads what the user met at any time, and not only earlier."""
        return isinstance(self.config, HistoryFeature) and self.config.training == "others"

    def encode(self, history: Sequence[tuple[Sequence[str], Sequence[int]]], timestamp: NDArray[np.int64]) -> Inputs:
        """`[n, length]` each, for `n` histories of (item ids, microseconds), in the order of time.

        Entries at or after the query's moment are the caller's to leave out; ids that training did not meet are
        passed over, as no embedding stands for them.
        """
        length = self.config.length
        rows = np.full((len(history), length), PADDING, np.int32)
        days = np.zeros((len(history), length), np.float32)
        for place, ((ids, moments), now) in enumerate(zip(history, timestamp, strict=True)):
            row = self.items.rows(ids[-length:])[::-1]
            age = (now // SECOND - np.asarray(moments[-length:], np.int64)[::-1] // SECOND) / DAY
            rows[place, : len(row)] = np.where(row > 0, row, PADDING)
            days[place, : len(row)] = age
        return {"history_items": rows, "history_days": days}


def split_values(value: Any, separator: str) -> list[str]:
    """The single values in a list, or in a string that holds them; empty ones are left out."""
    if isinstance(value, list | tuple | np.ndarray):
        parts = texts(value)
    else:
        parts = [part for text in texts([value]) if text is not None for part in text.split(separator)]
    return [text for part in parts if part is not None and (text := part.strip())]


def numbers(values: Any) -> NDArray[np.float64]:
    """`[n]` numbers; NaN where missing, which the infinities are too: one of them would leave no mean."""
    array = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(list(values))
    if pa.types.is_null(array.type):
        return np.full(len(array), np.nan)
    # Whole numbers over 2**53 are rounded: a feature needs no more digits.
    number = np.asarray(pc.fill_null(pc.cast(array, pa.float64(), safe=False), np.nan), np.float64)
    return np.where(np.isfinite(number), number, np.nan)


def seconds(values: Any) -> NDArray[np.float64]:
    """Seconds since 1970 of timestamps, dates, or whole microseconds; NaN where missing."""
    if isinstance(values, np.ndarray) and values.dtype == np.int64:
        return np.asarray(values / SECOND, np.float64)
    array = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(list(values))
    if pa.types.is_temporal(array.type):
        array = pc.cast(pc.cast(array, pa.timestamp("us"), safe=False), pa.int64())
    return numbers(array) / SECOND


def directions(values: Any, feature: EmbeddingFeature) -> NDArray[np.float32]:
    """`[n, width]` vectors of length 1; NaN throughout where there is none, or none that has a direction.

    Args:
        values: A column of lists of numbers, or a sequence of lists, arrays and None.

    Raises:
        DataError: a list of another length.
    """
    array = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(list(values))
    found = np.full((len(array), feature.width), np.nan, np.float32)
    if pa.types.is_null(array.type):
        return found
    refuse_other_widths(array, feature)
    there = np.asarray(pc.is_valid(array), bool)
    flat = pc.cast(pc.list_flatten(array), pa.float32(), safe=False)
    found[there] = np.asarray(pc.fill_null(flat, np.nan), np.float32).reshape(-1, feature.width)
    # The largest first: squares of large numbers are no number any more.
    largest = np.abs(found).max(axis=1, keepdims=True)
    found[~(np.isfinite(largest) & (largest > 0))[:, 0]] = np.nan
    scaled = found / largest
    unit: NDArray[np.float32] = scaled / np.linalg.norm(scaled, axis=1, keepdims=True)
    return unit


def refuse_other_widths(column: pa.Array | pa.ChunkedArray, feature: EmbeddingFeature) -> None:
    """Tell of the first list that is not as long as the feature says.

    Raises:
        DataError: names the row, counted from 1, and both lengths.
    """
    length = pc.fill_null(pc.list_value_length(column), feature.width)
    other = np.flatnonzero(np.asarray(length) != feature.width)
    if len(other):
        raise DataError(
            f"column '{feature.column}', row {other[0] + 1}: {length[int(other[0])]} numbers, but the feature's width "
            f"is {feature.width} ({len(other)} of {len(column)} rows differ). Mend the column, or set the width."
        )


def _pad(rows: Sequence[NDArray[np.int32]], length: int) -> NDArray[np.int32]:
    padded = np.full((len(rows), length), PADDING, np.int32)
    for place, row in enumerate(rows):
        padded[place, : len(row)] = row
    return padded
