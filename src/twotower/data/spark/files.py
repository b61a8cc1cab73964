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

    # Spark finds other columns in folders than DuckDB does; without them it may look into any.
    reader = session.read.option("mergeSchema", "true").option("recursiveFileLookup", "true")
    rows = reader.parquet(*(_local_files(place) or [place]))
    file = functions.col("_metadata.file_path").alias(_FILE)
    counts = {row[_FILE]: int(row["count"]) for row in rows.groupBy(file).count().collect()}
    names = sorted(counts, key=unquote)
    before = [0, *accumulate(counts[name] for name in names)][: len(names)]
    theirs = {name.lower(): name for name in rows.columns}
    found = _folder_columns([_as_named(name, place) for name in names])
    told = {theirs.get(name.lower(), name): values for name, values in found.items()}
    table = pa.table({_FILE: pa.array(names, pa.string()), _BEFORE: pa.array(before, pa.int64()), **told})
    columns = [*rows.columns, *sorted(told.keys() - set(rows.columns))]
    of_file = [_quoted(name) for name in rows.columns if name not in told]
    numbered = rows.select(*of_file, file, functions.col("_metadata.row_index").alias(_PLACE)).join(
        functions.broadcast(session.createDataFrame(table)), _FILE
    )
    row = functions.col(_BEFORE) + functions.col(_PLACE) + 1
    return numbered.select(*(_quoted(name) for name in columns if name.lower() != INPUT_ROW), row.alias(INPUT_ROW))


def _quoted(column: str) -> str:
    return f"`{column.replace('`', '``')}`"


def _as_named(file: str, place: str) -> str:
    """A file's address as the user names it: where `place` is relative, the folders above it tell nothing."""
    here = "" if "://" in place or Path(place).is_absolute() else f"file://{Path.cwd()}"
    return unquote(file).removeprefix(here)


def _folder_columns(files: Sequence[str]) -> dict[str, pa.Array]:
    """For each file what its folders tell, as in `day=2026-11-01`: none, where they differ in what they tell."""
    told = [
        dict(unquote(folder).split("=") for folder in file.split("/")[:-1] if folder.count("=") == 1) for file in files
    ]
    if any(columns.keys() != told[0].keys() for columns in told):
        return {}
    return {name: _typed([columns[name] for columns in told]) for name in (told[0] if told else ())}


def _typed(values: Sequence[str]) -> pa.Array:
    """Values of a folder's column in the type that DuckDB takes them for."""
    texts = pa.array([None if value == "__HIVE_DEFAULT_PARTITION__" else value for value in values], pa.string())
    for kind in (pa.int64(), pa.date32()):
        try:
            return texts.cast(kind)
        except pa.ArrowInvalid:
            continue
    return texts


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
