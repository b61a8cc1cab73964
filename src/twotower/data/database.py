"""The DuckDB session in which the Ibis expressions of the preparation run.

Expressions are written in Ibis and compiled for DuckDB here, so that no other file knows the engine. The session lives
in a file of its own, not in memory: a log larger than the machine's memory is sorted and counted on disk.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import ibis
import ibis.expr.types as ir
import pyarrow as pa

from twotower.errors import DataError


class Database:
    """Tables by name, and the expressions over them."""

    def __init__(self, path: Path) -> None:
        self._connection = duckdb.connect(str(path))
        # One zone everywhere: a table without one is taken as UTC, never as the machine's.
        self._connection.execute("SET TimeZone = 'UTC'; SET enable_progress_bar = false")

    def execute(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Run one SQL statement of ours and fetch its rows."""
        return self._connection.execute(sql, list(parameters)).fetchall()

    def table(self, name: str) -> ir.Table:
        """The table as an Ibis expression."""
        return ibis.table(self.schema(f"SELECT * FROM {quote(name)}"), name=name)

    def schema(self, query: str) -> ibis.Schema:
        """Names and types of a query's columns, without running it."""
        return ibis.Schema.from_pyarrow(
            self._connection.sql(f"SELECT * FROM ({query}) LIMIT 0").to_arrow_table().schema
        )

    def create(self, name: str, content: ir.Table | pa.Table | str) -> ir.Table:
        """Store what an expression, an Arrow table or a query gives, under a name."""
        if isinstance(content, pa.Table):
            self._connection.register("arrow_source", content)
            self.execute(f"CREATE OR REPLACE TABLE {quote(name)} AS SELECT * FROM arrow_source")
            self._connection.unregister("arrow_source")
        else:
            sql = content if isinstance(content, str) else compile_sql(content)
            self.execute(f"CREATE OR REPLACE TABLE {quote(name)} AS {sql}")
        return self.table(name)

    def rows(self, expression: ir.Table) -> list[tuple[Any, ...]]:
        """What the expression gives, as Python values: for a few rows."""
        return self.execute(compile_sql(expression))

    def count(self, expression: ir.Table) -> int:
        """How many rows the expression gives."""
        return int(self.execute(f"SELECT count(*) FROM ({compile_sql(expression)})")[0][0])

    def batches(self, expression: ir.Table) -> pa.RecordBatchReader:
        """What the expression gives, in Arrow batches: for any number of rows."""
        return self._connection.sql(compile_sql(expression)).to_arrow_reader(131_072)

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
