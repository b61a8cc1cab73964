"""Items put since the bundle was made: plain values -> what the bundle's items table and its model hold of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from twotower.bundle import Bundle
from twotower.data.item_columns import readable_items
from twotower.data.trends import unmet
from twotower.errors import DataError, RequestError

Features = Mapping[str, Any]
"""Column -> value."""

MISFITS = (pa.ArrowException, DataError, TypeError, ValueError, OverflowError)
"""What is raised over a value that a column or a model's feature cannot hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Put:
    """`N` items put since the bundle was made, encoded by the candidate tower."""

    ids: tuple[str, ...]
    table: pa.Table
    """`N` rows: `item_id` and features, as the bundle's items have them."""
    embedding: NDArray[np.float32]
    """`[N, D]` what retrieval compares."""
    ranking: NDArray[np.float32]
    """`[N, R]` what the ranking head reads."""
    trends: NDArray[np.float32]
    """`[N, F]` of an item of the bundle what it had there, else of one that nobody met."""
    popularity: NDArray[np.float64]
    """`[N]` likewise."""
    is_told: NDArray[np.bool_]
    """`[N]` whether the model can read anything of it."""

    @classmethod
    def encode(cls, bundle: Bundle, items: Mapping[str, Features], row: Mapping[str, int]) -> Self:
        """Items as the bundle's model reads them, whatever their values: those that do not fit count as missing.

        Args:
            bundle: Whose model.
            items: Id -> features.
            row: Id -> the bundle's row, of its own items.
        """
        table = _table(bundle, items)
        known = np.array([row.get(item_id, -1) for item_id in items], np.int64)
        if not items:
            dim, width, features = bundle.index.embeddings.shape[1], bundle.candidates.shape[1], bundle.trends.shape[1]
            embedding, ranking, trends = (np.empty((0, size), np.float32) for size in (dim, width, features))
            is_told = np.empty(0, np.bool_)
        else:
            inputs = bundle.model.features.candidate_inputs(table)
            vectors = bundle.model.embed_candidates(inputs)
            embedding, ranking = np.ascontiguousarray(vectors.embedding), vectors.ranking
            trends = np.where((known >= 0)[:, None], bundle.trends[np.maximum(known, 0)], _unmet(bundle))
            is_told = _is_told(bundle, inputs, items=len(items))
        return cls(
            ids=tuple(items),
            table=table,
            embedding=embedding,
            ranking=ranking,
            trends=trends.astype(np.float32, copy=False),
            popularity=np.where(known >= 0, bundle.popularity[np.maximum(known, 0)], 0.0),
            is_told=is_told,
        )

    def followed_by(self, other: Self, *, kept: list[int]) -> Self:
        """The items at some places, then others."""
        return type(self)(
            ids=(*(self.ids[place] for place in kept), *other.ids),
            table=pa.concat_tables([self.table.take(pa.array(kept, pa.int64())), other.table]),
            embedding=np.concatenate([self.embedding[kept], other.embedding]),
            ranking=np.concatenate([self.ranking[kept], other.ranking]),
            trends=np.concatenate([self.trends[kept], other.trends]),
            popularity=np.concatenate([self.popularity[kept], other.popularity]),
            is_told=np.concatenate([self.is_told[kept], other.is_told]),
        )


def checked_items(bundle: Bundle, items: Mapping[str, Features]) -> None:
    """Refuse items that the bundle's items table cannot hold, or its model not read.

    Raises:
        RequestError: a column that the table does not have, or a value that does not fit.
    """
    columns = [name for name in bundle.items.column_names if name != "item_id"]
    for item_id, features in items.items():
        if strange := sorted(set(features) - set(columns)):
            raise RequestError(
                f"item '{item_id}': the catalogue has no column '{strange[0]}', it has {', '.join(columns)}."
            )
    table = _table(bundle, items)
    is_missing = {name: table[name].is_null().to_pylist() for name in columns}
    for place, (item_id, features) in enumerate(items.items()):
        for name, value in features.items():
            if value is not None and is_missing[name][place]:
                kind = bundle.items.schema.field(name).type
                raise RequestError(f"item '{item_id}': column '{name}' holds {kind}, {value!r:.60} does not fit.")


def _table(bundle: Bundle, items: Mapping[str, Features]) -> pa.Table:
    """The items as rows of the bundle's items table; null where there is no value, or none that fits."""
    columns = {}
    for field in bundle.items.schema:
        if field.name == "item_id":
            columns[field.name] = pa.array(list(items), field.type)
            continue
        values = [told.get(field.name) for told in items.values()]
        column = _column(values, field.type)
        if column is None:
            column = _joined([_column([value], field.type) for value in values], field.type)
        if not _is_read(bundle, field, column):
            singles = [column.slice(place, 1) for place in range(len(column))]
            column = _joined([each if _is_read(bundle, field, each) else None for each in singles], field.type)
        columns[field.name] = column
    return pa.table(columns, schema=bundle.items.schema)


def _joined(values: list[pa.Array | None], kind: pa.DataType) -> pa.Array:
    """Columns of one value each as one column, null for None."""
    return pa.concat_arrays([pa.nulls(1, kind) if each is None else each for each in values])


def _column(values: list[Any], kind: pa.DataType) -> pa.Array | None:
    """The values as a column of a type, a moment as text among them; None where one does not fit."""
    if not all(_suits(value, kind) for value in values):
        return None
    try:
        return pa.array(values, kind)
    except MISFITS:
        pass
    if len({type(value) for value in values if value is not None}) > 1:
        return None  # Arrow would look for a type that all of them have: one would be read as its neighbours are.
    try:
        return pa.array(values).cast(kind)
    except MISFITS:
        return None


def _suits(value: Any, kind: pa.DataType) -> bool:
    """Whether a type can stand for a value: Arrow would cut fractions, spell truth values and take texts apart."""
    if value is None:
        return True
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return isinstance(value, list | tuple) and all(_suits(each, kind.value_type) for each in value)
    if isinstance(value, bool):
        return bool(pa.types.is_boolean(kind))
    if isinstance(value, float) and not value.is_integer():
        return not (pa.types.is_integer(kind) or pa.types.is_temporal(kind))
    return True


def _is_read(bundle: Bundle, field: pa.Field, column: pa.Array) -> bool:
    """Whether the model and the filters can read a column."""
    features = bundle.model.features
    table = pa.table({field.name: column}, schema=pa.schema([field]))
    try:
        readable = readable_items(table, features)[field.name]
        if pa.types.is_timestamp(readable.type):
            readable.to_pylist()  # Raises over a moment after the year 9999, which no filter can name.
        for encoder in features.candidate:
            if encoder.column == field.name:
                encoder.encode(table[field.name])
    except MISFITS:
        return False
    return True


def _is_told(bundle: Bundle, inputs: Mapping[str, NDArray[Any]], *, items: int) -> NDArray[np.bool_]:
    """`[items]` where the inputs differ from those of an item of which nothing is known."""
    nothing = bundle.model.features.candidate_inputs(bundle.items.schema.empty_table().take(pa.nulls(1, pa.int64())))
    differs = np.zeros(items, np.bool_)
    for name, values in inputs.items():
        differs |= (values != nothing[name]).reshape(items, -1).any(axis=1)
    return differs


def _unmet(bundle: Bundle) -> NDArray[np.float32]:
    """`[F]` how popular and how old an item is that nobody met."""
    counts = bundle.metadata["counts"]
    block = bundle.model.trend_block or 1
    return unmet(int(counts["positives"]), items=int(counts["items"]), block=block)
