"""Which column is what: guesses from names and from what the columns hold, each with its reason.

`twotower init` writes the guesses into a recipe, where they are read, corrected and kept; nothing guesses later.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from twotower.data.database import Database, faults_told, literal, quote
from twotower.data.sources.text_files import is_blank
from twotower.errors import DataError

SAMPLE = 20_000
"""Rows of which text columns are judged."""

ROLE_NAMES = {
    "user_id": "user customer visitor member account client viewer reviewer profile person uid session",
    "item_id": "item product movie article asin sku track song book isbn video content listing offer game news goods",
    "timestamp": "timestamp ts time datetime date eventtime createdat occurredat unixreviewtime orderdate tdat day",
}
"""Words by which others name our key columns, the most telling first; `_id` may follow."""

TITLE_NAMES = "title name itemname itemtitle productname producttitle productdisplayname movietitle"
RATING_NAMES = "rating stars score overall ratingvalue reviewrating grade"
EVENT_NAMES = "eventtype event action behavior behaviour interactiontype activity"

SEPARATORS = ("|", ";", ", ")
FEW = 50
"""Whole numbers with at most so many distinct values are codes, not quantities."""
MANY = 5_000
"""Text with more distinct values than this is no category."""

LONG_HISTORY = 20
"""Interactions of the median user from which the order of a history has something to tell: in shorter ones, most of the
places that a transformer reads are empty."""
LARGE_LOG = 100_000
"""Interactions from which a transformer's weights have enough to learn from."""
MANY_USERS = 200_000
"""Users beyond which it takes too long to begin with: every history is gone through at every epoch."""
TOLD_APART = 0.2
"""Least share of moments of their own among a user's interactions; many at one moment have no order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """What one column of a user's file holds."""

    name: str
    type: str
    """DuckDB's word for it."""
    rows: int
    distinct: int
    missing: float
    """Share of rows, in percent."""
    low: str
    high: str
    examples: tuple[str, ...]
    width: int | None = None
    """Length of its lists, where it holds lists of fractions that are all of one length."""

    @property
    def is_text(self) -> bool:
        """A string that is no number and no date."""
        return self.type == "VARCHAR"

    @property
    def is_whole(self) -> bool:
        """A whole number."""
        return "INT" in self.type

    @property
    def is_number(self) -> bool:
        """A number of any type."""
        return self.is_whole or self.type in ("DOUBLE", "FLOAT") or self.type.startswith("DECIMAL")

    @property
    def is_moment(self) -> bool:
        """A date, or a date and time."""
        return self.type.startswith(("TIMESTAMP", "DATE"))


def read_columns(database: Database, query: str, *, where: str) -> list[Column]:
    """What each column of a query holds.

    Raises:
        DataError: the query or the file that it names cannot be read.
    """
    if is_blank(Path(where)):
        raise DataError(f"{where}: the file is empty. Name a file that holds a header and rows.")
    with faults_told(where, "Name a CSV, Parquet or JSON file, or a query that DuckDB can run."):
        summary = database.execute(f"SELECT column_name, column_type, min, max, approx_unique, count, null_percentage "
                                   f"FROM (SUMMARIZE {query})")  # fmt: skip
        return [
            Column(
                name=name,
                type=kind,
                rows=int(rows),
                distinct=int(distinct),
                missing=float(missing or 0),
                low=str(low),
                high=str(high),
                examples=_examples(database, query, name, rows=FEW if kind.endswith("]") else SAMPLE),
                width=_width(database, query, name) if _FRACTIONS.match(kind) else None,
            )
            for name, kind, low, high, distinct, rows, missing in summary
        ]


_FRACTIONS = re.compile(r"(FLOAT|DOUBLE|DECIMAL.*)\[\d*\]$")
"""The types whose values can be embeddings; whole numbers in lists are rather codes."""


def _width(database: Database, query: str, name: str) -> int | None:
    """The one length of all lists, if it is one; DuckDB has no length of an array, only of a list."""
    length = f"len(CAST({quote(name)} AS DOUBLE[]))"
    low, high = database.execute(f"SELECT min({length}), max({length}) FROM ({query})")[0]
    return int(low) if low is not None and low == high and low > 1 else None


_VECTOR_TEXT = re.compile(r"\[\s*-?\d+\.\d[^a-df-zA-DF-Z]*\]")
"""What a list of fractions looks like where a CSV holds it; an `e` may stand in an exponent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogShape:
    """What decides how a history is best read."""

    interactions: int
    users: int
    median: float
    """Interactions of the user in the middle."""
    moments: float
    """Share of a user's interactions that have a moment of their own, on average over all interactions."""


def read_shape(database: Database, query: str, *, user: str, timestamp: str, where: str) -> LogShape:
    """How long the histories of an interactions table are, and whether moments tell their items apart.

    Raises:
        DataError: the query cannot be run.
    """
    with faults_told(where, "Name a CSV, Parquet or JSON file, or a query that DuckDB can run."):
        interactions, users, median, moments = database.execute(
            "SELECT coalesce(sum(met), 0), count(*), coalesce(median(met), 0), coalesce(sum(apart) / sum(met), 0) FROM "
            f"(SELECT count(*) AS met, count(DISTINCT {quote(timestamp)}) AS apart FROM ({query}) "
            f"WHERE {quote(user)} IS NOT NULL GROUP BY {quote(user)})"
        )[0]
    return LogShape(interactions=int(interactions), users=int(users), median=float(median), moments=float(moments))


def guess_history(shape: LogShape) -> "FeatureGuess":
    """The kind that reads the history: in its order where there is enough of it to learn from, else pooled."""
    of = f"{shape.interactions:,} interactions of {shape.users:,} users, {shape.median:,.0f} at the median"
    against = []
    if shape.median < LONG_HISTORY:
        against.append(f"the order of a history begins to tell at about {LONG_HISTORY} at the median")
    if shape.interactions < LARGE_LOG:
        against.append(f"a transformer wants some {LARGE_LOG:,} interactions")
    if shape.users > MANY_USERS:
        against.append(f"a transformer's epoch takes long beyond {MANY_USERS:,} users")
    if shape.moments < TOLD_APART:
        against.append("most of a user's interactions share a moment with others, and have no order")
    if against:
        return FeatureGuess(toml='kind = "history"', reason=f"pooled, without its order: {of}; {'; '.join(against)}")
    return FeatureGuess(
        toml='kind = "sequence", length = 100', reason=f"read in its order: {of}, enough to learn an order from"
    )


def _examples(database: Database, query: str, name: str, *, rows: int) -> tuple[str, ...]:
    """Distinct values as text, the most frequent first, of so many first rows."""
    column = f"CAST({quote(name)} AS VARCHAR)"
    found = database.execute(
        f"SELECT value FROM (SELECT {column} AS value FROM ({query}) LIMIT {rows}) "
        "WHERE value IS NOT NULL GROUP BY value ORDER BY count(*) DESC, value LIMIT 200"
    )
    return tuple(row[0] for row in found)


def table_query(source: str) -> str:
    """A file's name, or a query, as a query."""
    return source if re.match(r"\s*(select|from|with)\b", source, re.IGNORECASE) else f"SELECT * FROM {literal(source)}"


def find(columns: Sequence[Column], names: str) -> Column | None:
    """The column whose name is the earliest of the names, bare or followed by `id`."""
    by_word = {_word(column.name): column for column in columns}
    for name in names.split():
        for word in (f"{name}id", name):
            if word in by_word:
                return by_word[word]
    return None


def find_role(columns: Sequence[Column], role: str) -> tuple[Column, str] | None:
    """The column for `user_id`, `item_id` or `timestamp`, with the reason; `None` where it has to be asked for."""
    if column := find(columns, ROLE_NAMES[role]):
        return column, "by its name"
    if role == "timestamp" and len(moments := [column for column in columns if column.is_moment]) == 1:
        return moments[0], "the only column of dates"
    stem = role.partition("_")[0]
    if len(alike := [column for column in columns if stem in _word(column.name)]) == 1:
        return alike[0], f"the only name with {stem!r} in it"
    return None


def find_rating(columns: Sequence[Column]) -> Column | None:
    """The column that says how much the user liked the item."""
    column = find(columns, RATING_NAMES)
    return column if column is not None and column.is_number else None


def find_event(columns: Sequence[Column]) -> Column | None:
    """The column that says what the user did: a few words, such as view and purchase."""
    column = find(columns, EVENT_NAMES)
    return column if column is not None and column.is_text and column.distinct <= FEW else None


BINS = 8
"""Of a number; with these and the next, items that nobody has met yet are placed better (docs/decisions.md)."""
ADDED_UP = 'combiner = "sum"'
"""How several values become one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureGuess:
    """A feature as the recipe writes it, or `None` for a column that is better left out, with the reason."""

    toml: str | None
    reason: str


def guess_feature(column: Column, *, called: str) -> FeatureGuess:
    """The feature kind that suits what the column holds, under the name that the recipe calls it by."""
    name = f"column = {json.dumps(called, ensure_ascii=False)}"
    if column.distinct <= 1:
        return FeatureGuess(toml=None, reason="the same in every row")
    if column.width is not None:
        toml = f'kind = "embedding", {name}, width = {column.width}'
        return FeatureGuess(toml=toml, reason=f"lists of {column.width} numbers each")
    if column.type.endswith("]"):
        return FeatureGuess(toml=f'kind = "multi_category", {name}, {ADDED_UP}', reason="lists")
    if column.is_moment:
        return FeatureGuess(toml=f'kind = "timestamp", {name}', reason=f"moments, {column.low} to {column.high}")
    if column.is_whole and column.distinct <= FEW:
        return FeatureGuess(toml=f'kind = "category", {name}', reason=f"codes, {_distinct(column)}")
    if column.is_number:
        toml = f'kind = "number", {name}, bins = {BINS}'
        return FeatureGuess(toml=toml, reason=f"numbers, {column.low} to {column.high}")
    if column.is_text:
        return _guess_text(column, name)
    if column.type == "BOOLEAN":
        return FeatureGuess(toml=f'kind = "category", {name}', reason="true or false")
    return FeatureGuess(toml=None, reason=f"no feature kind reads {column.type}")


def _guess_text(column: Column, name: str) -> FeatureGuess:
    if column.examples and all(map(_VECTOR_TEXT.fullmatch, column.examples)):
        return FeatureGuess(
            toml=None, reason="numbers in brackets, as text: keep them as lists in Parquet for kind 'embedding'"
        )
    for separator in SEPARATORS:
        if values := _few_parts(column, separator):
            toml = f'kind = "multi_category", {name}, separator = "{separator}", {ADDED_UP}'
            return FeatureGuess(
                toml=toml, reason=f"several values between {separator!r}, such as {', '.join(values[:3])}"
            )
    if column.distinct <= min(MANY, column.rows / 2):
        return FeatureGuess(toml=f'kind = "category", {name}', reason=_distinct(column))
    words = sum(len(value.split()) for value in column.examples) / max(1, len(column.examples))
    if words >= 2:
        return FeatureGuess(toml=f'kind = "text", {name}', reason=f"text, {words:.0f} words on average")
    return FeatureGuess(toml=None, reason=f"{_distinct(column)}: too many for a category, no text")


def _few_parts(column: Column, separator: str) -> list[str]:
    """The values that stand between separators, where most rows have several and the same ones come again."""
    parts = [value.split(separator) for value in column.examples]
    several = sum(len(values) > 1 for values in parts)
    distinct = list(dict.fromkeys(part.strip() for values in parts for part in values))
    comes_again = len(distinct) <= sum(map(len, parts)) / 2
    return distinct if several >= len(parts) / 3 and comes_again else []


def _distinct(column: Column) -> str:
    return f"{column.distinct:,} distinct, such as {', '.join(column.examples[:3])}"


def _word(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
