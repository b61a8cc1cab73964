"""Events and item writes as Parquet files that the next training reads: one column per label, context column, feature.

What a column holds is known only when all rows have been seen, so the rows go through a scratch file beside the target;
memory stays bounded, and the store is read once.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from twotower.data.tables import EVENT_ID, KEYS
from twotower.errors import DataError, StorageError
from twotower.serving.store.contract import BIGGEST, Store

MOST_COLUMNS = 1_000

_EVENT_FIELDS = [
    pa.field(EVENT_ID, pa.string()),
    *(pa.field(name, pa.timestamp("us", "UTC") if name == "timestamp" else pa.string()) for name in KEYS),
]
_LABELS, _CONTEXT, _FEATURES = "labels", "context", "features"
_NUMBERS = {"bool", "int", "float"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What a file holds now."""

    rows: int
    columns: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    """Context columns that have the name of a label: the label has the column."""


def write_interactions(store: Store, out: Path, *, since: int) -> Written:
    """Write the interactions from a moment on, as `prepare.files` reads them.

    Args:
        store: Where they are.
        out: A Parquet file, which appears whole.
        since: Microseconds since 1970.

    Raises:
        StorageError: the store cannot be read, or the file not be written.
        DataError: the events tell of more columns than a table can have.
    """
    return _write(out, store.interactions(since=since), fields=_EVENT_FIELDS, told=(_LABELS, _CONTEXT))


def write_items(store: Store, out: Path) -> tuple[Written, int]:
    """Write the items that were ever put, with their last features; gives also the last sequence among them.

    Raises:
        StorageError: the store cannot be read, or the file not be written.
    """
    last, pages = store.items()
    return _write(out, pages, fields=[pa.field("item_id", pa.string())], told=(_FEATURES,)), last


@dataclass(slots=True)
class _Kinds:
    """What has been seen of the columns that rows tell by name."""

    seen: dict[str, dict[str, set[str]]]
    """Part of a row -> column -> kinds of its values."""
    known: set[str | None] = field(default_factory=set)
    """Texts that were read before: the same few ratings stand in most rows."""

    def look(self, part: str, text: str | None) -> None:
        """Take note of one row's values."""
        if text is None or (part + text) in self.known:
            return
        if len(self.known) < 100_000:
            self.known.add(part + text)
        for name, value in json.loads(text).items():
            self.seen[part].setdefault(name, set()).update(_kinds(value))


def _write(
    out: Path, pages: Iterable[Sequence[tuple[Any, ...]]], *, fields: Sequence[pa.Field], told: Sequence[str]
) -> Written:
    """One file of pages whose rows hold the fields, then for each part that is told a text of JSON."""
    kinds = _Kinds({part: {} for part in told})
    scratch_schema = pa.schema([*fields, *(pa.field(part, pa.string()) for part in told)])
    with _appearing(out) as (folder, target):
        scratch = folder / "scratch.parquet"
        rows = 0
        with pq.ParquetWriter(scratch, scratch_schema) as writer:
            for page in pages:
                columns = list(zip(*page, strict=True))
                for part, texts in zip(told, columns[len(fields) :], strict=True):
                    for text in texts:
                        kinds.look(part, text)
                told_by_name = dict(zip(scratch_schema.names, columns, strict=True))
                writer.write_table(pa.table(told_by_name, schema=scratch_schema))
                rows += len(page)
                _refuse_many(kinds.seen)
        types, left_out = _types(kinds.seen)
        schema = pa.schema([*fields, *(pa.field(name, kind) for each in types.values() for name, kind in each.items())])
        with pq.ParquetWriter(target, schema) as writer:
            for batch in pq.ParquetFile(scratch).iter_batches():
                read = [[json.loads(text) if text else {} for text in batch[part].to_pylist()] for part in told]
                columns = [batch[each.name] for each in fields]
                for rows_of_part, each in zip(read, types.values(), strict=True):
                    columns += [_column(rows_of_part, name, kind) for name, kind in each.items()]
                writer.write_table(pa.table(columns, schema=schema))
    return Written(rows=rows, columns=tuple(schema.names), left_out=left_out)


def _refuse_many(seen: Mapping[str, Mapping[str, object]]) -> None:
    for part, columns in seen.items():
        if len(columns) > MOST_COLUMNS:
            first = ", ".join(list(columns)[:3])
            raise DataError(
                f"{part}: more than {MOST_COLUMNS} different names (first: {first}). A name is a column of a table; "
                "send what differs from event to event as a value."
            )


def _types(seen: Mapping[str, Mapping[str, set[str]]]) -> tuple[dict[str, dict[str, pa.DataType]], tuple[str, ...]]:
    """Part -> column -> type, each column once; and the columns that were there already."""
    types: dict[str, dict[str, pa.DataType]] = {}
    taken: set[str] = set()
    left_out: list[str] = []
    for part, columns in seen.items():
        left_out += [name for name in columns if name in taken]
        types[part] = {
            name: pa.float64() if part == _LABELS else _type(kinds)
            for name, kinds in sorted(columns.items())
            if kinds and name not in taken
        }
        taken |= set(types[part])
    return types, tuple(sorted(left_out))


def _kinds(value: Any) -> set[str]:
    """What one value is; a missing one is nothing."""
    match value:
        case None:
            return set()
        case bool():
            return {"bool"}
        case int():
            return {"int" if -BIGGEST <= value < BIGGEST else "float"}
        case float():
            return {"float"}
        case list():
            return {"list", *(f"list of {kind}" for each in value for kind in _kinds(each))}
    return {"text"}


def _type(kinds: set[str]) -> pa.DataType:
    """The narrowest type that holds them all; text holds everything."""
    if "list" in kinds:
        return pa.list_(_type({kind.removeprefix("list of ") for kind in kinds - {"list"}} or {"text"}))
    if kinds == {"bool"}:
        return pa.bool_()
    if kinds == {"int"}:
        return pa.int64()
    return pa.float64() if kinds <= _NUMBERS else pa.string()


def _column(rows: Sequence[Mapping[str, Any]], name: str, kind: pa.DataType) -> pa.Array:
    """One column out of the rows' values; null where a row has none."""
    if pa.types.is_list(kind):
        turn = _turner(kind.value_type)
        lists = (row.get(name) for row in rows)
        values = [None if each is None else [turn(one) for one in _listed(each)] for each in lists]
    else:
        turn = _turner(kind)
        values = [turn(row.get(name)) for row in rows]
    return pa.array(values, kind)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _turner(kind: pa.DataType) -> Callable[[Any], Any]:
    """What makes a value one of the type; null stays null."""
    if pa.types.is_string(kind):
        return lambda value: value if value is None or isinstance(value, str) else json.dumps(value)
    if pa.types.is_floating(kind):
        return _fraction
    return lambda value: value


def _fraction(value: float | None) -> float | None:
    """Stores from before there was a limit may hold whole numbers beyond all fractions: they count as missing."""
    try:
        return None if value is None else float(value)
    except OverflowError:
        return None


@contextmanager
def _appearing(out: Path) -> Iterator[tuple[Path, Path]]:
    """A folder beside the target to work in, and a file in it that becomes the target when the block ends.

    Raises:
        StorageError: the target cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
            new = Path(folder) / "new.parquet"
            yield Path(folder), new
            with new.open("rb+") as file:  # Before the name: events may be pruned once they are here.
                os.fsync(file.fileno())
            new.replace(out)
    except OSError as fault:
        raise StorageError(f"{out}: cannot be written ({fault.strerror}). Name a file in a folder of yours.") from fault
