"""The columns of a log as arrays: in memory, or where the log is long, in a temporary file that is mapped into it.

What is mapped costs address space, not memory: the system keeps of it what is read, and lets it go where memory is
wanted. The file has no name any more when it is first used, so nothing stays of it however the process ends.
"""

import errno
import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from twotower.data.tables import PART
from twotower.errors import DataError

MAPPED_ROWS = 20_000_000
"""Interactions above which a log's columns are mapped: they take about 22 bytes each."""
GROUPS_AT_ONCE = 4
"""Row groups decoded together: raw ids are looked up once for all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """`n` interactions, as in `SplitDataset`."""

    user: NDArray[np.int32]
    item: NDArray[np.int32]
    timestamp: NDArray[np.int64]
    positive: NDArray[np.bool_]
    part: NDArray[np.int8]
    labels: dict[str, NDArray[np.float32]]
    context: pa.Table


def read_columns(
    path: Path, *, user_ids: pa.ChunkedArray, item_ids: pa.ChunkedArray, labels: Sequence[str], context: Sequence[str]
) -> Columns:
    """Read the interactions of a split directory some row groups at a time.

    Args:
        path: The Parquet file.
        user_ids: Raw ids in the order of the rows that number them.
        item_ids: The same of items.
        labels: Names of the label columns.
        context: Names of the context columns.
    """
    kept = _Kept(mapped=pq.read_metadata(path).num_rows > MAPPED_ROWS)
    types = {"user_id": np.int32, "item_id": np.int32, "timestamp": np.int64, "positive": np.bool_, PART: np.int8}
    found = read_arrays(
        path,
        types | dict.fromkeys(labels, np.float32),
        ids={"user_id": user_ids, "item_id": item_ids},
        beside=context,
        keep=kept.write,
    )
    return Columns(
        user=found["user_id"],
        item=found["item_id"],
        timestamp=found["timestamp"],
        positive=found["positive"],
        part=found[PART],
        labels={name: found[name] for name in labels},
        context=kept.table() if context else pa.table({}),
    )


def read_arrays(
    path: Path,
    types: Mapping[str, Any],
    *,
    ids: Mapping[str, pa.ChunkedArray],
    beside: Sequence[str] = (),
    keep: Callable[[pa.Table], None] | None = None,
) -> dict[str, NDArray[Any]]:
    """Read columns of a Parquet file some row groups at a time.

    Args:
        path: The file.
        types: Column -> the type of its array.
        ids: Column of raw ids -> all of them, in the order of the rows that its array numbers them by.
        beside: Further columns.
        keep: Told what stands in these, some rows after the other.
    """
    with pq.ParquetFile(path, read_dictionary=list(ids)) as file:
        rows, groups = file.metadata.num_rows, file.num_row_groups
        room = _mapped if rows > MAPPED_ROWS else np.empty
        found = {name: room(rows, dtype) for name, dtype in types.items()}
        done = 0
        for first in range(0, groups, GROUPS_AT_ONCE):
            some = range(first, min(first + GROUPS_AT_ONCE, groups))
            table = file.read_row_groups(list(some), columns=[*types, *beside])
            for name, values in found.items():
                values[done : done + table.num_rows] = _numbers(table[name], ids=ids.get(name))
            if beside and keep is not None:
                keep(table.select(list(beside)))
            done += table.num_rows
    return found


class _Kept:
    """Keeps tables as they come; a long log's in a file of Arrow's own, which is mapped."""

    def __init__(self, *, mapped: bool) -> None:
        self.tables: list[pa.Table] = []
        self.mapped = mapped
        self.file: IO[bytes] | None = None
        self.writer: Any = None

    def write(self, table: pa.Table) -> None:
        if not self.mapped:
            self.tables.append(table)
            return
        with _lack_of_room_told():
            if self.file is None:
                self.file = tempfile.TemporaryFile()  # noqa: SIM115 - until it is mapped.
                self.writer = pa.ipc.new_file(pa.PythonFile(self.file, mode="w"), table.schema)
            self.writer.write_table(table)

    def table(self) -> pa.Table:
        if self.file is None:
            return pa.concat_tables(self.tables)
        with self.file as file:
            with _lack_of_room_told():
                self.writer.close()
                file.flush()
            return pa.ipc.open_file(pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))).read_all()


def _numbers(column: pa.ChunkedArray, *, ids: pa.ChunkedArray | None) -> NDArray[Any]:
    if ids is not None:
        encoded = column.unify_dictionaries().combine_chunks()
        encoded = encoded.chunk(0) if isinstance(encoded, pa.ChunkedArray) else encoded
        return np.asarray(pc.index_in(encoded.dictionary, value_set=ids.combine_chunks()).take(encoded.indices))
    moments = pa.types.is_timestamp(column.type)
    return np.asarray((column.cast(pa.int64()) if moments else column).to_numpy())


def _mapped(rows: int, dtype: Any) -> NDArray[Any]:
    """Room in a file of its own that is gone from its directory already."""
    with _lack_of_room_told(), tempfile.TemporaryFile() as file:
        _reserve(file, rows * np.dtype(dtype).itemsize)
        return np.asarray(np.memmap(file, dtype=dtype, mode="w+", shape=(rows,)))


def _reserve(file: IO[bytes], size: int) -> None:
    """Take the room on disk at once: where it ran out later, writing to what is mapped would end the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    elif shutil.disk_usage(tempfile.gettempdir()).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def _lack_of_room_told() -> Iterator[None]:
    """Turn a fault of the folder for temporary files into one line that says what to do.

    Raises:
        DataError: there is no such folder, or no room in it.
    """
    try:
        yield
    except OSError as fault:
        raise DataError(
            f"{tempfile.tempdir or 'TMPDIR'}: a log of more than {MAPPED_ROWS:,} interactions does not fit this folder "
            f"for temporary files ({fault.strerror}). Make room in it, or name a folder on a larger disk by TMPDIR."
        ) from fault
