"""The DuckDB session: reads what users have, and is the engine of the preparation unless the recipe names another.

Expressions are written in Ibis and compiled for DuckDB here. The session lives in a file of its own, not in memory: a
log larger than the machine's memory is sorted and counted on disk.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import duckdb
import ibis
import ibis.expr.types as ir
import pyarrow as pa

from twotower.errors import DataError

_FUNCTIONS = {
    "twotower_number(x)": "TRY_CAST(x AS DOUBLE)",
    "twotower_moment(x)": "TRY_CAST(x AS TIMESTAMPTZ)::TIMESTAMP",
    "twotower_moment_at(x)": "make_timestamp(x)",
    "twotower_fraction_id(x)": "x::VARCHAR",
}
"""The functions of `engine.py`."""
_AS_TEXT = {"UUID": "{}::VARCHAR", "JSON": "{} ->> '$'"}
"""Types that Ibis takes for text already -> what makes them so; of JSON a string is what stands between the quotes."""


class Database:
    """Tables by name, and the expressions over them; see `Engine`."""

    def __init__(self, path: Path) -> None:
        self._connection = duckdb.connect(str(path))
        # One zone everywhere: a table without one is taken as UTC, never as the machine's.
        self._connection.execute("SET TimeZone = 'UTC'; SET enable_progress_bar = false")
        # Half of the machine's memory; what wants more is worked on in the session's file.
        self._connection.execute("SET memory_limit = '50%'")
        for head, body in _FUNCTIONS.items():
            self._connection.execute(f"CREATE TEMP MACRO {head} AS {body}")

    @property
    def local(self) -> "Database":
        return self

    def take(self, name: str) -> ir.Table:
        return self.table(name)

    def load(self, name: str, path: Path) -> ir.Table:
        return self.create(name, f"SELECT * FROM read_parquet({literal(str(path))})")

    def spread_parquet(self, name: str, place: str) -> None:
        """DuckDB reads them by SQL, as it does all else."""

    def execute(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Run one SQL statement of ours and fetch its rows."""
        return self._connection.execute(sql, list(parameters)).fetchall()

    def table(self, name: str) -> ir.Table:
        """The table as an Ibis expression."""
        return ibis.table(ibis.Schema.from_pyarrow(self._fields(name)), name=name)

    def _fields(self, name: str) -> pa.Schema:
        return self._connection.sql(f"SELECT * FROM {quote(name)} LIMIT 0").to_arrow_table().schema

    def columns(self, query: str) -> list[str]:
        """Names of a query's columns, without running it."""
        return list(self._connection.sql(f"SELECT * FROM ({query}) LIMIT 0").columns)

    def create(self, name: str, content: ir.Table | pa.Table | str) -> ir.Table:
        """Store what an expression, an Arrow table or a query gives, under a name.

        What Ibis has no type for becomes text, as do UUIDs and JSON.
        """
        if isinstance(content, pa.Table):
            self._connection.register("arrow_source", content)
            self.execute(f"CREATE OR REPLACE TABLE {quote(name)} AS SELECT * FROM arrow_source")
            self._connection.unregister("arrow_source")
        else:
            sql = content if isinstance(content, str) else compile_sql(content)
            self.execute(f"CREATE OR REPLACE TABLE {quote(name)} AS {sql}")
        for field, (column, kind) in zip(self._fields(name), self.types(name).items(), strict=True):
            if kind in _AS_TEXT or not _is_known(field):
                text = _AS_TEXT.get(kind, "{}::VARCHAR").format(quote(column))
                self.execute(f"ALTER TABLE {quote(name)} ALTER COLUMN {quote(column)} TYPE VARCHAR USING {text}")
        return self.table(name)

    def keep(self, name: str, condition: str, *, of: str) -> ir.Table:
        return self.create(name, f"SELECT * FROM {quote(of)} WHERE ({condition})")

    def compute(self, name: str, column: str, expression: str) -> ir.Table:
        return self.create(name, f"SELECT *, {expression} AS {quote(column)} FROM {quote(name)}")

    def types(self, name: str) -> dict[str, str]:
        """Column -> DuckDB's name of its type."""
        return {row[0]: row[1] for row in self.execute(f"DESCRIBE SELECT * FROM {quote(name)}")}

    def rows(self, expression: ir.Table) -> list[tuple[Any, ...]]:
        """What the expression gives, as Python values: for a few rows."""
        return self.execute(compile_sql(expression))

    def count(self, expression: ir.Table) -> int:
        """How many rows the expression gives."""
        return int(self.execute(f"SELECT count(*) FROM ({compile_sql(expression)})")[0][0])

    def batches(self, expression: ir.Table) -> pa.RecordBatchReader:
        """What the expression gives, in Arrow batches: for any number of rows."""
        return self._connection.sql(compile_sql(expression)).to_arrow_reader(131_072)

    def faults_told(self, where: str, advice: str) -> AbstractContextManager[None]:
        return faults_told(where, advice)

    def close(self) -> None:
        """End the session; its file may be removed then."""
        self._connection.close()


@contextmanager
def open_database() -> Iterator[Database]:
    """A session whose file is gone when the block ends."""
    with tempfile.TemporaryDirectory(prefix="twotower-") as directory:
        database = Database(Path(directory) / "session.duckdb")
        try:
            yield database
        finally:
            database.close()


def _is_known(field: pa.Field) -> bool:
    """Whether Ibis has a type for it."""
    try:
        ibis.Schema.from_pyarrow(pa.schema([field]))
    except (KeyError, ValueError):
        return False
    return True


def compile_sql(expression: ir.Table) -> str:
    """The expression in DuckDB's SQL."""
    return str(ibis.to_sql(expression, dialect="duckdb"))


def quote(name: str) -> str:
    """A column's or table's name, safe in SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A string, safe in SQL."""
    return "'" + text.replace("'", "''") + "'"


@contextmanager
def faults_told(where: str, advice: str) -> Iterator[None]:
    """Turn DuckDB's complaint about a user's file or expression into one line that says what to do.

    Raises:
        DataError: DuckDB raised anything inside the block.
    """
    try:
        yield
    except duckdb.Error as fault:
        raise DataError(f"{where}: {_in_one_line(fault)}. {advice}") from fault


def _in_one_line(fault: duckdb.Error) -> str:
    """What DuckDB found, without its hints and its picture of the query."""
    found = []
    for line in str(fault).strip().splitlines():
        if not line.strip() or line.startswith(("Possible", "LINE", "Candidate")):
            break
        found.append(line.strip().rstrip("."))
    return "; ".join(found)[:300]
