"""What the preparation asks of the engine that runs its Ibis expressions: DuckDB in this process, or Spark.

Expressions are the same on both. What engines do not agree on has a name here, and each engine says how it is done:
which text is a number or a moment, how a recipe's SQL is run, how a fault is told, and who reads a file.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import ibis
import ibis.expr.types as ir
import pyarrow as pa

from twotower.data.config import PrepareConfig

if TYPE_CHECKING:
    from twotower.data.database import Database


class Engine(Protocol):
    """Tables by name, and the expressions over them."""

    @property
    def local(self) -> "Database":
        """The DuckDB session of this process, which reads what no other engine can."""

    def take(self, name: str) -> ir.Table:
        """A table of `local`, handed over under its name."""

    def load(self, name: str, path: Path) -> ir.Table:
        """A Parquet file that we wrote, as a table."""

    def spread_parquet(self, name: str, place: str) -> ir.Table | None:
        """Parquet files with their rows numbered in order, read by many machines; None where `local` is to read them.

        Args:
            name: What the table is to be called.
            place: A file, a folder, a pattern or an address.
        """

    def table(self, name: str) -> ir.Table:
        """The table as an Ibis expression."""

    def create(self, name: str, content: ir.Table) -> ir.Table:
        """Store what an expression gives, under a name."""

    def keep(self, name: str, condition: str, *, of: str) -> ir.Table:
        """Store the rows of the table `of` that fulfil a SQL condition in DuckDB's words."""

    def compute(self, name: str, column: str, expression: str) -> ir.Table:
        """Add a column to a stored table: a SQL expression over the others in DuckDB's words."""

    def rows(self, expression: ir.Table) -> Sequence[tuple[Any, ...]]:
        """What the expression gives, as Python values: for a few rows."""

    def count(self, expression: ir.Table) -> int:
        """How many rows the expression gives."""

    def batches(self, expression: ir.Table) -> pa.RecordBatchReader:
        """What the expression gives, in its order, in Arrow batches: for any number of rows."""

    def faults_told(self, where: str, advice: str) -> AbstractContextManager[None]:
        """Turn the engine's complaint about a user's file or expression into one line that says what to do."""


@contextmanager
def open_engine(config: PrepareConfig) -> Iterator[Engine]:
    """The engine that the recipe asks for; what it stored is gone when the block ends.

    Raises:
        MissingExtraError: it is Spark, and pyspark or Java is not installed.
        RecipeError: Spark cannot be started as the recipe says.
    """
    from twotower.data.database import open_database

    with open_database() as database:
        if config.engine == "duckdb":
            yield database
            return
        from twotower.data.spark.session import open_session

        with open_session(config.spark_master, config.spark_settings, local=database) as session:
            yield session


def _function(name: str, *, takes: str, gives: str) -> Callable[[ir.Value], ir.Value]:
    """A function that every engine defines under this name when it starts; Ibis is told no more than its types."""
    told: Callable[[ir.Value], ir.Value] = ibis.udf.scalar.builtin(
        lambda value: value, name=name, signature=((takes,), gives)
    )
    return told


number_from_text = _function("twotower_number", takes="string", gives="float64")
"""The number that a text spells, or null."""
moment_from_text = _function("twotower_moment", takes="string", gives="timestamp(6)")
"""The moment that a text spells by ISO 8601, in UTC and without a zone, or null."""
moment_at = _function("twotower_moment_at", takes="int64", gives="timestamp(6)")
"""The moment so many microseconds after 1970."""
id_from_fraction = _function("twotower_fraction_id", takes="float64", gives="string")
"""The id that a number is which is not whole, or too large to be exact."""
