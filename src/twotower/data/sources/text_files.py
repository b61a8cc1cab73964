"""Reading CSV files so that a faulty row is told by its line and no id loses its zeros.

All columns are read as they are written. Which of them are numbers or moments is decided from the whole file, by a rule
that can be said in a line: a column is a number where every value is one and none begins with a needless zero.
"""

import codecs
import csv
import gzip
from collections.abc import Sequence
from pathlib import Path

from twotower.data.database import Database, literal, quote
from twotower.errors import DataError

SUFFIXES = (".csv", ".tsv", ".txt")

_DELIMITERS = ",;\t|"
_BLOCK = 1 << 20


def csv_query(place: str, path: Path | None) -> str:
    """The SQL that reads a CSV with a header, every column as text.

    Args:
        place: File, pattern or URI.
        path: The one file on this machine that `place` is, or None; its header is read here, since guessing the dialect
            from its rows would let a faulty row change the columns.

    Raises:
        DataError: the header is empty or not UTF-8, or names a column twice.
    """
    if path is None or path.suffix not in (*SUFFIXES, ".gz"):
        return f"SELECT * FROM read_csv({literal(place)}, header = true, all_varchar = true, union_by_name = true)"
    header = _first_line(path)
    delimiter = max(_DELIMITERS, key=header.count)
    names = next(csv.reader([header], delimiter=delimiter), [])
    if not names:
        raise DataError(f"{path}: the first line is empty. Begin the file with a header.")
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{path}: the header names {name!r} twice. Give each column a name of its own.")
    columns = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in names)
    dialect = f"delim = {literal(delimiter)}, quote = '\"', escape = '\"', header = true, auto_detect = false"
    return f"SELECT * FROM read_csv({literal(place)}, {dialect}, columns = {{{columns}}})"


def typed_columns(database: Database, table: str, columns: Sequence[str]) -> str:
    """The assignments `x::TYPE AS x` for those of the stored table's text columns that hold no text.

    Args:
        database: The session that holds the table.
        table: Its name.
        columns: The columns to look at.
    """
    if not columns:
        return ""
    tests = ", ".join(
        f"coalesce(bool_and({test.format(quote(column))}), false)" for column in columns for test in _TYPES.values()
    )
    verdicts = database.execute(f"SELECT {tests} FROM {quote(table)}")[0]
    found = []
    for place, column in enumerate(columns):
        verdict = verdicts[place * len(_TYPES) : (place + 1) * len(_TYPES)]
        kind = next((kind for kind, holds in zip(_TYPES, verdict, strict=True) if holds), None)
        if kind is not None:
            found.append(f"{quote(column)}::{kind} AS {quote(column)}")
    return ", ".join(found)


_TYPES = {
    "BIGINT": "regexp_full_match({0}, '-?(0|[1-9][0-9]{{0,17}})')",
    "DOUBLE": "TRY_CAST({0} AS DOUBLE) IS NOT NULL AND NOT regexp_matches({0}, '^[+-]?0[0-9]')",
    "TIMESTAMP": "TRY_CAST({0} AS TIMESTAMP) IS NOT NULL AND regexp_matches({0}, '^[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}')",
}
"""Type -> the condition that every value that is there fulfils; the first that holds is taken."""


def is_blank(path: Path) -> bool:
    """Whether this is a file that holds nothing, or line ends alone."""
    try:
        with path.open("rb") as file:
            return not file.read(_BLOCK).strip()
    except OSError:  # A query, an address or a folder.
        return False


def find_encoding_fault(path: Path) -> str | None:
    """What is not UTF-8 in a text file, by line; None where all of it is."""
    decoder, line = codecs.getincrementaldecoder("utf-8")(), 1
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        while block := file.read(_BLOCK):
            try:
                decoder.decode(block)
            except UnicodeDecodeError as fault:
                line += fault.object[: fault.start].count(b"\n")
                byte = fault.object[fault.start]
                return f"{path}: line {line} is not UTF-8 (byte 0x{byte:02x}). Save the file as UTF-8."
            line += block.count(b"\n")
    return None


def _first_line(path: Path) -> str:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        line = file.readline()
    try:
        return line.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as fault:
        raise DataError(find_encoding_fault(path) or f"{path}: line 1 is not UTF-8. Save the file as UTF-8.") from fault
