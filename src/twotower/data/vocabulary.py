"""Raw values <-> rows of an embedding table; row 0 is for whatever training did not meet."""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

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
        counts = pc.value_counts(pc.drop_null(pc.cast(values, pa.string())))
        table = pa.table({"value": counts.field("values"), "count": counts.field("counts")})
        table = table.sort_by([("count", "descending"), ("value", "ascending")])
        return cls(table["value"].combine_chunks())

    @property
    def size(self) -> int:
        """Rows of the embedding table: every value and the out-of-vocabulary row."""
        return len(self.values) + 1

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {value: row for row, value in enumerate(self.values.to_pylist(), start=1)}

    def rows(self, values: Iterable[str | None]) -> NDArray[np.int32]:
        """`[n]` the row of each value; missing and unknown ones are `OUT_OF_VOCABULARY`."""
        row_of = self._row_of
        return np.fromiter(
            (row_of.get(value, OUT_OF_VOCABULARY) if value is not None else 0 for value in values), np.int32
        )

    def save(self, path: Path) -> None:
        """Write the values as one Parquet column."""
        pq.write_table(pa.table({"value": self.values}), path)

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        """Read what `save` wrote."""
        return cls(pq.read_table(path)["value"].combine_chunks())
