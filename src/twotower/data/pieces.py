"""Going through a log a piece at a time: what a log that outgrows the memory is counted, hashed and narrowed by."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from twotower.data.feature_encoders import SECOND
from twotower.data.split import SplitDataset
from twotower.data.trends import Trends

PIECE = 1 << 20
"""Interactions looked at at a time."""


def pieces(length: int, *, size: int = PIECE) -> Iterator[slice]:
    """The places from 0 up to but without `length`, in order."""
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def count_rows(dataset: SplitDataset, *parts: int, by: str, positives_only: bool = False) -> NDArray[np.int64]:
    """Interactions in the parts named, of each user or of each item.

    Args:
        dataset: The log.
        parts: Of the split.
        by: "user" or "item".
        positives_only: Whether only positive ones count.
    """
    column, rows = (dataset.user, len(dataset.user_ids)) if by == "user" else (dataset.item, len(dataset.item_ids))
    counts = np.zeros(rows, np.int64)
    for piece in pieces(len(column)):
        counts += np.bincount(column[piece][_chosen(dataset, piece, parts, positives_only)], minlength=rows)
    return counts


def span_of(dataset: SplitDataset, *parts: int) -> tuple[int, int]:
    """The first and the last moment of the parts named, in microseconds; the wrong way round where there are none."""
    first, last = np.iinfo(np.int64).max, np.iinfo(np.int64).min
    for piece in pieces(len(dataset.part)):
        moments = dataset.timestamp[piece][_chosen(dataset, piece, parts, False)]
        if len(moments):
            first, last = min(first, int(moments.min())), max(last, int(moments.max()))
    return first, last


def trends_of(dataset: SplitDataset, *parts: int, block: int | None = None) -> Trends:
    """The fortunes of all items over the positives of the parts named."""
    items = len(dataset.item_ids)
    length = int(count_rows(dataset, *parts, by="item", positives_only=True).sum())

    def positives() -> Iterator[tuple[NDArray[np.int32], NDArray[np.int64]]]:
        for piece in pieces(len(dataset.item)):
            chosen = _chosen(dataset, piece, parts, True)
            yield dataset.item[piece][chosen], dataset.timestamp[piece][chosen] // SECOND

    return Trends.of_pieces(positives(), length=length, items=items, block=block)


def digest(*columns: NDArray[Any]) -> str:
    """A hash of the columns' values."""
    found = hashlib.sha256()
    for column in map(np.atleast_1d, columns):
        for piece in pieces(len(column)):
            found.update(np.ascontiguousarray(column[piece]).data)
    return found.hexdigest()


def digest_table(table: pa.Table) -> str:
    """A hash of a table's columns and values."""
    found = hashlib.sha256(" ".join(table.column_names).encode())
    for piece in pieces(table.num_rows if table.num_columns else 0):
        for batch in table.slice(piece.start, piece.stop - piece.start).combine_chunks().to_batches():
            found.update(batch.serialize())
    return found.hexdigest()


def narrowed(dataset: SplitDataset, users: NDArray[np.bool_]) -> SplitDataset:
    """Only what some users did, for whoever asks about these; what is counted over all is counted in its `whole`.

    Args:
        dataset: The log.
        users: `[U]` which of them.
    """
    rows = np.concatenate(
        [np.flatnonzero(users[dataset.user[piece]]) + piece.start for piece in pieces(len(dataset.user))]
        or [np.zeros(0, np.int64)]
    )
    return replace(
        dataset,
        user=dataset.user[rows],
        item=dataset.item[rows],
        timestamp=dataset.timestamp[rows],
        positive=dataset.positive[rows],
        part=dataset.part[rows],
        labels={name: values[rows] for name, values in dataset.labels.items()},
        context=rows_of(dataset.context, rows),
        whole=dataset.whole or dataset,
    )


def rows_of(table: pa.Table, rows: NDArray[np.int64]) -> pa.Table:
    """The rows named; a table without columns is given back as it is."""
    return table.take(pa.array(rows)) if table.num_columns else table


def _chosen(dataset: SplitDataset, piece: slice, parts: tuple[int, ...], positives_only: bool) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = np.isin(dataset.part[piece], parts)
    return found & dataset.positive[piece] if positives_only else found
