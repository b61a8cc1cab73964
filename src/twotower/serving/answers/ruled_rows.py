"""What boosts and caps say of the rows of an items table, worked out once, so that a request only looks it up."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from twotower.serve_config import CapConfig
from twotower.serving.answers.filters import Filter


@dataclass(frozen=True, slots=True, kw_only=True)
class RuledRows:
    """`n` rows, `B` boosts and `C` caps."""

    is_boosted: NDArray[np.bool_]
    """`[B, n]` whether a boost applies."""
    start: NDArray[np.int64]
    """`[n + 1]` where each row's categories begin in `category`."""
    category: NDArray[np.int64]
    """Of all caps, as `number * C + cap`, with `number` the value's among the values of the cap."""

    @classmethod
    def of(
        cls, items: pa.Table, *, boosts: tuple[Filter, ...], caps: tuple[CapConfig, ...], known: tuple[pa.Array, ...]
    ) -> tuple[Self, tuple[pa.Array, ...]]:
        """The rows of a table; and by cap the values by number, those known before first."""
        rows, categories, values = [np.empty(0, np.int64)], [np.empty(0, np.int64)], []
        for place, (cap, before) in enumerate(zip(caps, known, strict=True)):
            row, number, now = _numbered(items[cap.column], known=before)
            rows.append(row)
            categories.append(number * len(caps) + place)
            values.append(now)
        row, category = _distinct(np.concatenate(rows), np.concatenate(categories))
        masks = [boost.mask(items) for boost in boosts]
        found = cls(
            is_boosted=np.array(masks, np.bool_).reshape(len(boosts), items.num_rows),
            start=np.searchsorted(row, np.arange(items.num_rows + 1)),
            category=category,
        )
        return found, tuple(values)

    @property
    def count(self) -> int:
        """How many rows there are."""
        return len(self.start) - 1

    def lookup(self, row: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """`[B, r]` which boosts apply to `r` of the rows, and `[r, W]` their categories, -1 after the last of each."""
        start, end = self.start[row], self.start[row + 1]
        place = start[:, None] + np.arange(np.max(end - start, initial=0))
        is_held = place < end[:, None]
        return self.is_boosted[:, row], np.where(is_held, self.category[np.where(is_held, place, 0)], -1)


def value_type(held: pa.DataType) -> pa.DataType:
    """The type of the values in a column, be they in lists or held as codes."""
    is_nested = pa.types.is_list(held) or pa.types.is_large_list(held) or pa.types.is_dictionary(held)
    return value_type(held.value_type) if is_nested else held


def _numbered(column: pa.ChunkedArray, *, known: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.int64], pa.Array]:
    """The row and the number of each value that is there, those of a list side by side; and all values by number."""
    rows, values, first = [np.empty(0, np.int64)], [known[:0]], 0
    for chunk in column.chunks:
        row = np.arange(first, first + len(chunk))
        first += len(chunk)
        if pa.types.is_list(chunk.type) or pa.types.is_large_list(chunk.type):
            row = np.repeat(row, pc.list_value_length(chunk).fill_null(0).to_numpy())
            chunk = chunk.flatten()
        if pa.types.is_dictionary(chunk.type):
            chunk = chunk.dictionary_decode()
        is_there = pc.invert(pc.is_null(chunk, nan_is_null=True))
        rows.append(row[is_there.to_numpy(zero_copy_only=False)])
        values.append(chunk.filter(is_there))
    value = pa.concat_arrays(values)
    fresh = value.unique()
    known = pa.concat_arrays([known, fresh.filter(pc.invert(pc.is_in(fresh, value_set=known)))])
    return np.concatenate(rows), pc.index_in(value, value_set=known).to_numpy().astype(np.int64), known


def _distinct(row: NDArray[np.int64], category: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The pairs by row, then category, each once: a list may hold a value twice."""
    categories = int(category.max(initial=0)) + 1
    pair = np.sort(row * categories + category)
    is_first = np.ones(len(pair), np.bool_)
    is_first[1:] = pair[1:] != pair[:-1]
    pair = pair[is_first]
    return pair // categories, pair % categories
