"""Spark as the engine of the preparation.

What is stored is checkpointed on the workers, so that a step that is repeated, as minimum counts are, does not carry
the whole path behind it. What leaves Spark leaves in its order, a few of its parts at a time.
"""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ibis
import ibis.expr.types as ir
import pyarrow as pa

from twotower.data.database import Database, literal, quote
from twotower.data.spark.dialect import NotAgreedError, in_spark
from twotower.data.spark.files import read_numbered
from twotower.data.spark.start import in_one_line, start_spark
from twotower.errors import DataError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_ROWS_AT_ONCE = 1_048_576
"""Rows that leave Spark together, as far as its parts allow."""

# Spark takes a year for its first day, and an hour for that hour of today.
_ISO = (
    "^[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}"
    "([T ][0-9]{1,2}:[0-9]{1,2}(:[0-9]{1,2}([.][0-9]+)?)?(Z|[+-][0-9]{2}(:?[0-9]{2})?)?)?$"
)

_FUNCTIONS = {
    # Java takes 5d and 0x1p3 for numbers.
    "twotower_number(x STRING) RETURNS DOUBLE": "TRY_CAST(IF(x RLIKE '[dDfFxX]', NULLIF(x, x), x) AS DOUBLE)",
    "twotower_moment(x STRING) RETURNS TIMESTAMP_NTZ": (
        f"CAST(TRY_CAST(IF(x RLIKE '{_ISO}', x, NULLIF(x, x)) AS TIMESTAMP_LTZ) AS TIMESTAMP_NTZ)"
    ),
    "twotower_moment_at(x BIGINT) RETURNS TIMESTAMP_NTZ": "CAST(TIMESTAMP_MICROS(x) AS TIMESTAMP_NTZ)",
    "twotower_fraction_id(x DOUBLE) RETURNS STRING": (
        "RAISE_ERROR(CONCAT('an id is the number ', x, ', which Spark and DuckDB write differently. Store ids as text "
        "or whole numbers'))"
    ),
}


class Session:
    """Spark's tables by name, and the expressions over them; see `Engine`."""

    def __init__(self, spark: "SparkSession", *, local: Database, scratch: Path) -> None:
        self._spark, self._local, self._scratch = spark, local, scratch
        _ = ibis.pyspark  # Once named, it registers the options that its compiler reads.
        for head, body in _FUNCTIONS.items():
            spark.sql(f"CREATE TEMPORARY FUNCTION {head} RETURN {body}")

    @property
    def local(self) -> Database:
        return self._local

    def take(self, name: str) -> ir.Table:
        path = self._scratch / f"{name}.parquet"
        columns = ", ".join(_for_spark(column, kind) for column, kind in self._local.types(name).items())
        self._local.execute(f"COPY (SELECT {columns} FROM {quote(name)}) TO {literal(str(path))} (FORMAT parquet)")
        self._local.execute(f"DROP TABLE {quote(name)}")
        return self.load(name, path)

    def load(self, name: str, path: Path) -> ir.Table:
        return self._view(name, self._spark.read.parquet(str(path.resolve())))

    def spread_parquet(self, name: str, place: str) -> ir.Table:
        return self._view(name, read_numbered(self._spark, place))

    def table(self, name: str) -> ir.Table:
        schema = ibis.Schema.from_pyarrow(_nullable(self._spark.table(f"`{name}`").limit(0).toArrow().schema))
        return ibis.table(schema, name=name)

    def create(self, name: str, content: ir.Table) -> ir.Table:
        return self._store(name, self._run(content))

    def keep(self, name: str, condition: str, *, of: str) -> ir.Table:
        translated = in_spark(condition, texts=_texts(self.table(of)))
        return self._store(name, self._spark.sql(f"SELECT * FROM `{of}` WHERE ({translated})"))

    def compute(self, name: str, column: str, expression: str) -> ir.Table:
        translated = in_spark(expression, texts=_texts(self.table(name)))
        alias = column.replace("`", "``")
        return self._store(name, self._spark.sql(f"SELECT *, {translated} AS `{alias}` FROM `{name}`"))

    def rows(self, expression: ir.Table) -> Sequence[tuple[Any, ...]]:
        return [tuple(row) for row in self._run(expression).collect()]

    def count(self, expression: ir.Table) -> int:
        return self._run(expression).count()

    def batches(self, expression: ir.Table) -> pa.RecordBatchReader:
        from pyspark.sql import functions

        rows = self._checkpointed(self._run(expression))
        part = functions.spark_partition_id()
        sizes = [(int(row[0]), int(row[1])) for row in rows.groupBy(part).count().collect()]
        schema = _as_duckdb_tells(rows.limit(0).toArrow().schema)

        def fetch() -> Iterator[pa.RecordBatch]:
            for first, last in _runs(sorted(sizes)):
                yield from rows.filter(part.between(first, last)).toArrow().cast(schema).to_batches()

        return pa.RecordBatchReader.from_batches(schema, fetch())

    @contextmanager
    def faults_told(self, where: str, advice: str) -> Iterator[None]:
        from py4j.protocol import Py4JError
        from pyspark.errors import PySparkException

        try:
            with self._local.faults_told(where, advice):
                yield
        except NotAgreedError as fault:
            raise DataError(f"{where}: {fault}. {advice}") from fault
        except (PySparkException, Py4JError) as fault:
            raise DataError(f"{where}: {in_one_line(fault)}. {advice}") from fault

    def _run(self, expression: ir.Table) -> "DataFrame":
        return self._spark.sql(str(ibis.to_sql(expression, dialect="pyspark")))

    def _store(self, name: str, rows: "DataFrame") -> ir.Table:
        return self._view(name, self._checkpointed(rows))

    def _view(self, name: str, rows: "DataFrame") -> ir.Table:
        rows.createOrReplaceTempView(f"`{name}`")
        return self.table(name)

    def _checkpointed(self, rows: "DataFrame") -> "DataFrame":
        """The rows computed, on the workers, or where `spark.checkpoint.dir` says."""
        return rows.checkpoint() if self._spark.sparkContext.getCheckpointDir() else rows.localCheckpoint()


@contextmanager
def open_session(master: str, settings: Mapping[str, str], *, local: Database) -> Iterator[Session]:
    """Spark, started or joined, with what the preparation needs.

    Args:
        master: A master URL.
        settings: Spark's own settings.
        local: The DuckDB session that reads what Spark cannot.

    Raises:
        MissingExtraError, RecipeError: as for `start_spark`.
        DataError: an id is a number that engines write differently.
    """
    with (
        start_spark(master, settings) as spark,
        tempfile.TemporaryDirectory(prefix="twotower-", ignore_cleanup_errors=True) as scratch,
    ):
        from pyspark.errors import PySparkException

        try:
            yield Session(spark, local=local, scratch=Path(scratch))
        except PySparkException as fault:
            if "[USER_RAISED_EXCEPTION]" not in str(fault):
                raise
            raise DataError(f"prepare: {in_one_line(fault)}.") from fault


def _runs(sizes: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """First and last of neighbouring parts that hold about `_ROWS_AT_ONCE` rows together."""
    first, last, rows = 0, 0, 0
    for part, size in sizes:
        if rows and rows + size > _ROWS_AT_ONCE:
            yield first, last
            first, rows = part, 0
        last, rows = part, rows + size
    if rows:
        yield first, last


def _texts(table: ir.Table) -> list[str]:
    return [name for name, kind in table.schema().items() if kind.is_string()]


def _for_spark(column: str, kind: str) -> str:
    """The column in a type that Spark reads: it knows microseconds, and no finer moments."""
    name = quote(column)
    return f"{name}::TIMESTAMP AS {name}" if kind in ("TIMESTAMP_NS", "TIMESTAMP_MS", "TIMESTAMP_S") else name


def _nullable(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field.with_nullable(True) for field in schema])


def _as_duckdb_tells(schema: pa.Schema) -> pa.Schema:
    """The schema as DuckDB's Arrow has it: any value may be missing, and a list's are called `l`."""
    return pa.schema([pa.field(field.name, _told(field.type)) for field in schema])


def _told(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_list(kind):
        return pa.list_(pa.field("l", _told(kind.value_type)))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _told(field.type)) for field in kind])
    return kind
