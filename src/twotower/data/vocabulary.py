"""Raw values <-> rows of an embedding table; row 0 is for whatever training did not meet."""

import math
from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from twotower.errors import ArtifactError

OUT_OF_VOCABULARY = 0
"""The row of a value that is missing, or that the train part does not hold."""


class Vocabulary:
    """Numbers the distinct values of one column from 1; `rows` looks them up, `size` counts the reserved row too."""

    def __init__(self, values: pa.Array) -> None:
        """Take `values` in the order of their rows: the first is row 1."""
        self.values = values.cast(pa.string())

    @classmethod
    def fit(cls, values: pa.Array | pa.ChunkedArray) -> "Vocabulary":
        """Number the distinct values that are not null, the most frequent first, equals by their text."""
        counts = pc.value_counts(pc.drop_null(values))
        value = counts.field("values")
        if not is_text(value):
            value = pa.array(texts(value), pa.string())
        table = pa.table({"value": value, "count": counts.field("counts")}).drop_null()
        table = table.group_by("value").aggregate([("count", "sum")])
        table = table.sort_by([("count_sum", "descending"), ("value", "ascending")])
        found = cls(table["value"].combine_chunks())
        del counts, value, table
        pa.default_memory_pool().release_unused()  # Arrow would keep what counting and sorting have taken.
        return found

    @property
    def size(self) -> int:
        """Rows of the embedding table: every value and the out-of-vocabulary row."""
        return len(self.values) + 1

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {value: row for row, value in enumerate(self.values.to_pylist(), start=1)}

    def rows(self, values: Iterable[str | None] | pa.Array | pa.ChunkedArray) -> NDArray[np.int32]:
        """`[n]` the row of each value; missing and unknown ones are `OUT_OF_VOCABULARY`.

        A column of Arrow's is looked up there: Python's own table takes ten times the memory, and is made for whoever
        asks with a few at a time.
        """
        if is_text(values):
            if "_row_of" not in self.__dict__:
                found = pc.index_in(values.cast(pa.string()), value_set=self.values)
                rows = np.array(pc.add(pc.fill_null(found, -1), 1), np.int32)
                pa.default_memory_pool().release_unused()  # Arrow would keep what hashing all values has taken.
                return rows
            values = values.to_pylist()
        values = list(values)
        if all(value is None for value in values):  # Nothing to look up, and no reason to make the table.
            return np.zeros(len(values), np.int32)
        row_of = self._row_of
        return np.fromiter(
            (row_of.get(value, OUT_OF_VOCABULARY) if value is not None else 0 for value in values), np.int32
        )

    def save(self, path: Path) -> None:
        """Write the values as one Parquet column."""
        pq.write_table(pa.table({"value": self.values}), path)

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        """Read what `save` wrote.

        Raises:
            ArtifactError: there is no such file, or no values in it.
        """
        try:
            return cls(pq.read_table(path)["value"].combine_chunks())
        except (OSError, KeyError, pa.ArrowException) as fault:
            raise ArtifactError(f"{path}: no vocabulary ({fault}). Train the model again.") from fault


def is_text(values: Any) -> TypeGuard[pa.Array | pa.ChunkedArray]:
    """Whether it is a column of texts."""
    return isinstance(values, pa.Array | pa.ChunkedArray) and bool(
        pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
    )


def texts(values: Any) -> list[str | None]:
    """The text by which a vocabulary knows each value, None where it is missing: for columns and requests alike."""
    return [value if type(value) is str else _text(value) for value in plain(values)]


def plain(values: Any) -> list[Any]:
    """An Arrow column, a NumPy array or a sequence as Python values."""
    if isinstance(values, np.ndarray):
        values = values.tolist() if values.dtype == object else pa.array(values)
    if not isinstance(values, pa.Array | pa.ChunkedArray):
        return list(values)
    if pa.types.is_timestamp(values.type):  # Python knows no nanoseconds, and its moments without a zone are in UTC.
        values = pc.cast(values, pa.timestamp("us"), safe=False)
    elif pa.types.is_float16(values.type) or pa.types.is_float32(values.type):  # 0.1 stays 0.1, not 0.10000000149.
        values = pc.cast(pc.cast(values, pa.string()), pa.float64())
    return list(values.to_pylist())


def _text(value: Any) -> str | None:
    """One text for equal values: 1, 1.0 and Decimal("1.00") are "1", as JSON and tables with gaps mix them."""
    if isinstance(value, np.generic):
        (value,) = plain(np.array([value]))
    match value:
        case None:
            return None
        case bool():
            return "true" if value else "false"
        case float() if math.isnan(value):
            return None
        case float() if value.is_integer():
            return str(int(value))
        case Decimal():
            return f"{value.normalize():f}"
        case datetime():  # Before `date`, of which it is one too.
            return (value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value).isoformat()
        case _:
            return str(value)
