"""The interactions table: who met what, when, with which labels; its columns, its checks.

A source hands over the table as it lies in the user's files (`RawData`). `typed` gives every column its canonical type,
and `find_faults` tells, one line each, what cannot be used.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import ibis
import ibis.expr.types as ir

from twotower.data.config import TimestampFormat
from twotower.data.engine import Engine, id_from_fraction, moment_at, moment_from_text, number_from_text
from twotower.data.tables import INPUT_ROW
from twotower.errors import DataError

_MICROSECONDS = {"s": 1_000_000, "ms": 1_000, "us": 1}
_EARLIEST_US, _LATEST_US = -2_208_988_800_000_000, 7_258_118_400_000_000  # The years 1900 and 2200.


@dataclass(frozen=True, slots=True, kw_only=True)
class RawData:
    """What a source found, columns named as ours but typed as the files had them."""

    name: str
    """Where it is from; stands first in every message."""
    interactions: ir.Table
    """`user_id`, `item_id`, `timestamp`, labels, context columns, `input_row`, maybe `given_part`."""
    users: ir.Table | None
    """`user_id`, features, `input_row`."""
    items: ir.Table | None
    """`item_id`, features, `input_row`."""
    labels: tuple[str, ...] = ()
    context: tuple[str, ...] = ()
    title_column: str | None = None
    """The column of the items table that a reader knows an item by."""
    timestamp_format: TimestampFormat = "auto"
    parts: tuple[tuple[str, int], ...] = ()
    """Where the interactions lie in several tables: the name and the last `input_row` of each, in their order."""

    def place(self, row: int) -> tuple[str, int]:
        """The table that an interaction is from, and its row there."""
        before = 0
        for name, last in self.parts:
            if row <= last:
                return name, row - before
            before = last
        return self.name, row


def require_columns(where: str, found: Sequence[str], *, needed: Sequence[str], advice: str) -> None:
    """Refuse a table that lacks a column.

    Raises:
        DataError: names the column that is missing and those that there are.
    """
    for column in needed:
        if column not in found:
            there = ", ".join(name for name in found if name != INPUT_ROW) or "none"
            raise DataError(f"{where}: no column {column!r}; there are {there}. {advice}")


def typed(engine: Engine, raw: RawData) -> ir.Table:
    """The interactions with canonical types; null wherever a value cannot be read as its type.

    Ids become strings and empty ids null; labels become numbers, and NaN and the infinities null.
    """
    table = raw.interactions
    ids = {name: string_id(table[name]) for name in ("user_id", "item_id")}
    labels = {name: _number(table[name]) for name in raw.labels}
    moment = _moment(table["timestamp"], timestamp_format(engine, raw))
    return table.mutate(**ids, timestamp=moment, **labels)


def timestamp_format(engine: Engine, raw: RawData) -> str:
    """How the timestamp column is to be read: "s", "ms", "us", "iso", or "moment" where it is one already."""
    column = raw.interactions["timestamp"]
    if column.type().is_temporal():
        return "moment"
    if raw.timestamp_format != "auto":
        return raw.timestamp_format
    number = _number(column)
    summary = raw.interactions.aggregate(size=number.abs().approx_median(), numbers=number.count(), all=column.count())
    (size, numbers, everything) = engine.rows(summary)[0]
    if not numbers or numbers < everything / 2:
        return "iso"
    return "s" if size < 1e11 else "ms" if size < 1e14 else "us"  # 1e11 s is the year 5138; 1e11 ms is 1973.


def string_id(column: ir.Column) -> ir.Column:
    """An id as a string, null where empty; 42.0, as tables with gaps store the number 42, is "42"."""
    text = column.cast("string")
    if column.type().is_floating():
        whole = (column == column.floor()) & (column.abs() < 2**53)
        text = ibis.ifelse(whole, column.try_cast("int64").cast("string"), id_from_fraction(column))
        text = ibis.ifelse(column.isnan(), None, text)
    return text.nullif("")


def _number(column: ir.Column) -> ir.Column:
    """The column as numbers; null where it holds none, NaN or an infinity."""
    number = number_from_text(column) if column.type().is_string() else column.try_cast("float64")
    return ibis.ifelse(number.abs() < float("inf"), number, None)  # NaN is above all numbers, in SQL.


def _moment(column: ir.Column, how: str) -> ir.Column:
    """Timestamps in microseconds, UTC, without a zone; null where unreadable or outside of the years 1900 to 2200."""
    if how in ("moment", "iso"):
        if column.type().is_temporal():
            moment = column.try_cast("timestamp('UTC')").cast("timestamp(6)")
        else:
            moment = moment_from_text(column.cast("string"))
        return ibis.ifelse(moment.between(ibis.timestamp("1900-01-01"), ibis.timestamp("2200-01-01")), moment, None)
    number = _number(column) * _MICROSECONDS[how]
    within = number.between(_EARLIEST_US, _LATEST_US)
    microseconds = ibis.ifelse(within, number, None).round().cast("int64")
    return moment_at(microseconds)


def find_faults(engine: Engine, raw: RawData, table: ir.Table, *, missing_labels: str) -> Iterator[str]:
    """Tell what in the `typed` table cannot be used, one line each, the gravest first."""
    if not engine.count(table.limit(1)):
        yield f"{raw.name}: no interactions. Check that the right file is named, and that it holds more than a header."
        return
    for name in ("user_id", "item_id"):
        for count, first in _count_and_first(engine, raw, table.filter(table[name].isnull())):
            where, row = raw.place(first)
            yield f"{where}: {count} interactions have no {name} (first in row {row}). Fill it in, or remove them."
    moment = "moment between 1900 and 2200"
    yield from _unreadable(engine, raw, table, name="timestamp", expected=moment, advice=_TIMESTAMP_ADVICE)
    for name in raw.labels:
        advice = "Mend it, or do not list it as a label."
        yield from _unreadable(engine, raw, table, name=name, expected="number", advice=advice)
        if missing_labels == "error":
            yield from _missing_labels(engine, raw, table, name=name)
    users = [
        user for (user,) in engine.rows(table.select("user_id").filter(table.user_id.notnull()).distinct().limit(2))
    ]
    if len(users) == 1:
        yield f"{raw.name}: only one user ({users[0]}). Taste is learned from several; check the user column."


def find_duplicates(engine: Engine, raw: RawData, table: ir.Table) -> Iterator[str]:
    """Tell of users who met an item more than once."""
    pairs = table.group_by("user_id", "item_id").aggregate(count=lambda t: t.count(), row=lambda t: t[INPUT_ROW].max())
    pairs = pairs.filter(pairs["count"] > 1)
    if count := engine.count(pairs):
        where, row = raw.place(engine.rows(pairs.aggregate(row=pairs["row"].min()))[0][0])
        there = "" if where == raw.name else f" of {where}"
        yield (
            f"{raw.name}: {count} pairs of user and item stand in more than one row (one of them in row {row}{there}). "
            "Remove the repeats, or set prepare.duplicates = 'keep_first', 'keep_last' or 'keep'."
        )


_TIMESTAMP_ADVICE = "Mend it, or name the format: prepare.files.timestamp_format = 's', 'ms', 'us' or 'iso'."


def _unreadable(
    engine: Engine, raw: RawData, table: ir.Table, *, name: str, expected: str, advice: str
) -> Iterator[str]:
    """Tell of values that were there before typing and are not after it."""
    text = raw.interactions[name].cast("string")
    missing = text.nullif("").isnull() | text.lower().isin(_NO_NUMBER)
    original = raw.interactions.select(INPUT_ROW, text=text).filter(~missing if name in raw.labels else True)
    original = original.semi_join(table.filter(table[name].isnull()), INPUT_ROW)
    for count, first in _count_and_first(engine, raw, original):
        value = engine.rows(original.filter(original[INPUT_ROW] == first).select("text"))[0][0]
        where, row = raw.place(first)
        yield f"{where}: {name} of row {row} is {value or ''!r}, not a {expected} ({count} such rows). {advice}"


_NO_NUMBER = ("nan", "inf", "-inf", "infinity", "-infinity")


def _missing_labels(engine: Engine, raw: RawData, table: ir.Table, *, name: str) -> Iterator[str]:
    for count, first in _count_and_first(engine, raw, table.filter(table[name].isnull())):
        where, row = raw.place(first)
        yield (
            f"{where}: {count} interactions have no {name}, or NaN (first in row {row}). "
            "Fill it in, or set prepare.missing_labels = 'keep' to learn it from the others alone."
        )


def _count_and_first(engine: Engine, raw: RawData, table: ir.Table) -> Iterator[tuple[int, int]]:
    """For each of the user's tables that has some of the rows: how many, and the first one's `input_row`."""
    found = [table]
    if raw.parts:
        ends = [0, *(last for _, last in raw.parts)]
        found = [table.filter(table[INPUT_ROW].between(before + 1, last)) for before, last in pairwise(ends)]
    for rows in found:
        count, first = engine.rows(rows.aggregate(count=rows.count(), row=rows[INPUT_ROW].min()))[0]
        if count:
            yield count, first
