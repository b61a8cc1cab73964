"""Parquet files as one table whose rows are numbered, however many machines read them."""

import glob
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pyarrow as pa

from twotower.data.tables import INPUT_ROW

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_FILE, _PLACE, _BEFORE = "twotower_file", "twotower_place", "twotower_before"


def read_numbered(session: "SparkSession", place: str) -> "DataFrame":
    """The rows of Parquet files, numbered from 1: files in the order of their names, rows as they lie in each.

    A row's place in its file is told by the file itself, so that the numbers depend neither on how files are parted
    among machines nor on which of them is read first.

    Args:
        session: Where they are read.
        place: A file, a folder, a pattern or an address.
    """
    from pyspark.sql import functions

    files = _local_files(place)
    reader = session.read.option("mergeSchema", "true")
    if len(files) > 1:
        reader = reader.option("basePath", str(_base(place)))
    rows = reader.parquet(*(files or [place]))
    columns = [name for name in rows.columns if name.lower() != INPUT_ROW]
    rows = rows.select(
        *(functions.col(f"`{name.replace('`', '``')}`") for name in columns),
        functions.col("_metadata.file_path").alias(_FILE),
        functions.col("_metadata.row_index").alias(_PLACE),
    )
    counts = {row[_FILE]: int(row["count"]) for row in rows.groupBy(_FILE).count().collect()}
    names = sorted(counts, key=unquote)
    before = [0, *accumulate(counts[name] for name in names)][: len(names)]
    table = pa.table({_FILE: pa.array(names, pa.string()), _BEFORE: pa.array(before, pa.int64())})
    for name in _folder_columns(names):
        if rows.schema[name].dataType.typeName() == "integer":  # DuckDB takes a whole number for a long one.
            rows = rows.withColumn(name, functions.col(f"`{name}`").cast("long"))
    numbered = rows.join(functions.broadcast(session.createDataFrame(table)), _FILE)
    row = functions.col(_BEFORE) + functions.col(_PLACE) + 1
    return numbered.withColumn(INPUT_ROW, row).drop(_FILE, _PLACE, _BEFORE)


def _folder_columns(files: Sequence[str]) -> set[str]:
    """The columns that are told by folders' names, as in `day=2026-11-01`."""
    folders = {part for file in files for part in unquote(file).split("/")[:-1] if "=" in part}
    return {folder.partition("=")[0] for folder in folders}


def _local_files(place: str) -> list[str]:
    """The files of this machine's folder or pattern, in order; none where `place` is one file or an address."""
    if "://" in place:
        return []
    path = Path(place)
    if path.is_dir():
        return sorted(str(file) for file in path.rglob("*.parquet"))
    if path.is_file():
        return []
    return sorted(glob.glob(place, recursive=True))  # noqa: PTH207 - an absolute pattern


def _base(place: str) -> Path:
    """The folder from which a file's own folders tell columns, as in `day=2026-11-01`."""
    path = Path(place)
    while any(sign in str(path) for sign in "*?["):
        path = path.parent
    return path
