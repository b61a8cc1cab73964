"""The train part as Parquet shards, each with all that some of its users did: what training streams from disk.

Users are dealt out by how much they did, one to each shard in turn, so that all shards are of one size and each is a
fair sample. Because users are whole, a history lies in the shard that asks for it.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from twotower.artifact import hash_json, read_manifest, recover, write_artifact
from twotower.data.examples import Rows
from twotower.data.pieces import count_rows, digest, digest_table, pieces, rows_of
from twotower.data.split import TRAIN, SplitDataset
from twotower.errors import ArtifactError

KIND = "shards"
OPEN_AT_ONCE = 128
"""Shards written in one pass over the log."""
_KEYS = ("user", "item", "timestamp", "positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shards:
    """A directory of shards."""

    directory: Path
    rows: tuple[int, ...]
    """Interactions in each."""
    positives: tuple[int, ...]
    """Positive ones in each."""
    identity: str
    """A hash of all that they hold."""
    labels: tuple[str, ...]

    def read(self, number: int) -> Rows:
        """The interactions of one shard, in the order of time."""
        table = pq.read_table(self.directory / _name(number))
        keys: dict[str, Any] = {name: table[name].to_numpy() for name in _KEYS}
        return Rows(
            **keys,
            labels=[table[_label(name)].to_numpy() for name in self.labels],
            context=table.select([name for name in table.column_names if name.startswith(_CONTEXT)]).rename_columns(
                [name.removeprefix(_CONTEXT) for name in table.column_names if name.startswith(_CONTEXT)]
            ),
        )


def open_shards(directory: Path, dataset: SplitDataset, *, labels: Sequence[str], count: int, seed: int) -> Shards:
    """The shards of the train part: those that lie there, if they are of the same data, or new ones.

    Args:
        directory: Where they lie, or will.
        dataset: The log.
        labels: Labels to keep; one that the data set lacks is missing everywhere.
        count: How many shards.
        seed: Decides among users who did equally much.
    """
    columns = [dataset.part, *(getattr(dataset, name) for name in _KEYS)]
    known = [dataset.labels[name] for name in labels if name in dataset.labels]
    of = {"data": digest(*columns, *known), "labels": list(labels), "count": count, "seed": seed}
    identity = hash_json(of | {"context": digest_table(dataset.context)})
    recover(directory)
    try:
        metadata = read_manifest(directory, kind=KIND)["metadata"]
    except ArtifactError:
        metadata = {}
    if metadata.get("identity") != identity:
        shard_of = deal_users(count_rows(dataset, TRAIN, by="user"), count=count, seed=seed)
        metadata = {"identity": identity, **_sizes(dataset, shard_of, count=count)}
        with write_artifact(directory, kind=KIND, metadata=metadata) as out:
            for first in range(0, count, OPEN_AT_ONCE):
                numbers = range(first, min(first + OPEN_AT_ONCE, count))
                _write(dataset, shard_of, numbers=numbers, labels=labels, out=out)
    return Shards(
        directory=directory,
        rows=tuple(metadata["rows"]),
        positives=tuple(metadata["positives"]),
        identity=identity,
        labels=tuple(labels),
    )


def deal_users(rows: NDArray[np.int64], *, count: int, seed: int) -> NDArray[np.int32]:
    """`[U]` the shard of each user: the busiest first, to each shard in turn and back again.

    Args:
        rows: `[U]` interactions of each user.
        count: How many shards.
        seed: Decides among users who did equally much.
    """
    order = np.lexsort((np.random.default_rng(seed).random(len(rows)), -rows))
    turn, place = np.divmod(np.arange(len(rows)), count)
    shard_of = np.empty(len(rows), np.int32)
    shard_of[order] = np.where(turn % 2, count - 1 - place, place)
    return shard_of


def _sizes(dataset: SplitDataset, shard_of: NDArray[np.int32], *, count: int) -> dict[str, list[int]]:
    found = {}
    for name, positives_only in (("rows", False), ("positives", True)):
        of_user = count_rows(dataset, TRAIN, by="user", positives_only=positives_only)
        found[name] = np.bincount(shard_of, of_user, minlength=count).astype(np.int64).tolist()
    return found


def _write(
    dataset: SplitDataset, shard_of: NDArray[np.int32], *, numbers: range, labels: Sequence[str], out: Path
) -> None:
    """Write some of the shards in one pass over the log."""
    with ExitStack() as stack:
        writers: dict[int, pq.ParquetWriter] = {}
        for table, shard in _tables(dataset, shard_of, numbers=numbers, labels=labels):
            if shard not in writers:
                writer = pq.ParquetWriter(out / _name(shard), table.schema, compression="lz4", use_dictionary=False)
                writers[shard] = stack.enter_context(writer)
            writers[shard].write_table(table)


def _tables(
    dataset: SplitDataset, shard_of: NDArray[np.int32], *, numbers: range, labels: Sequence[str]
) -> Iterator[tuple[pa.Table, int]]:
    """Piece by piece, each shard's rows; every shard at least once, so that an empty one has a file as well."""
    for number, piece in enumerate(pieces(len(dataset.user))):
        shard = np.where(dataset.part[piece] == TRAIN, shard_of[dataset.user[piece]], -1)
        order = np.argsort(shard, kind="stable")
        edges = np.searchsorted(shard[order], np.arange(numbers.start, numbers.stop + 1))
        table = _columns(dataset, order[edges[0] : edges[-1]] + piece.start, labels=labels)
        for place, each in enumerate(numbers):
            start, stop = edges[place] - edges[0], edges[place + 1] - edges[0]
            if stop > start or number == 0:
                yield table.slice(start, stop - start), each


def _columns(dataset: SplitDataset, rows: NDArray[np.int64], *, labels: Sequence[str]) -> pa.Table:
    missing = np.full(len(rows), np.nan, np.float32)
    columns = {name: getattr(dataset, name)[rows] for name in _KEYS}
    columns |= {_label(name): dataset.labels[name][rows] if name in dataset.labels else missing for name in labels}
    context = rows_of(dataset.context, rows)
    return pa.table(columns | {_CONTEXT + name: context[name] for name in context.column_names})


_CONTEXT = "context "


def _label(name: str) -> str:
    return f"label {name}"


def _name(number: int) -> str:
    return f"{number:05d}.parquet"
