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
from twotower.data.spark.start import in_one_line, is_this_machine, start_spark
from twotower.errors import DataError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_NUMBER = "twotower_number"
_ROWS_AT_ONCE = 1_048_576
"""Rows that leave Spark together, at most."""
_PART = 1 << 33
"""From so many times its own number on, `monotonically_increasing_id` counts the rows of a part."""

# Spark takes a year for its first day, and an hour for that hour of today.
_ISO = (
    "^[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}"
    "([T ][0-9]{1,2}:[0-9]{1,2}(:[0-9]{1,2}([.][0-9]+)?)?(Z|[+-][0-9]{2}(:?[0-9]{2})?)?)?$"
)

# Java takes 5d and 0x1p3 for numbers, DuckDB 1_000 and -nan.
_SPELLED = (
    "REGEXP_REPLACE(REGEXP_REPLACE(x, '(?<=[0-9.])(?=[dDfFxX])', ' '), '(?<=[0-9])_(?=[0-9])|[+-](?=[nN][aA][nN])', '')"
)

_ADVICE = "Check the files, and that Spark's workers see them."

_AS_TEXT = ("UUID", "TIME", "TIME_NS", "TIME WITH TIME ZONE")
"""DuckDB's types that Spark does not read."""

_FUNCTIONS = {
    "twotower_spelled(x STRING) RETURNS STRING": _SPELLED,
    "twotower_number(x STRING) RETURNS DOUBLE": f"TRY_CAST({_SPELLED} AS DOUBLE)",
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
        sizes = [(int(row[0]), int(row[1])) for row in rows.groupBy(functions.spark_partition_id()).count().collect()]
        schema = _as_duckdb_tells(rows.limit(0).toArrow().schema)
        numbered = rows.withColumn(_NUMBER, functions.monotonically_increasing_id())

        def fetch() -> Iterator[pa.RecordBatch]:
            for first, last in _runs(sorted(sizes)):
                run = numbered.filter(functions.col(_NUMBER).between(first, last)).drop(_NUMBER)
                yield from run.toArrow().cast(schema).to_batches()

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
        DataError: a worker cannot read a file, or an id is a number that engines write differently.
    """
    with start_spark(master, settings) as spark, scratch_folder(master) as scratch:
        from py4j.protocol import Py4JError
        from pyspark.errors import PySparkException

        try:
            yield Session(spark, local=local, scratch=scratch)
        except (PySparkException, Py4JError) as fault:
            advice = "" if "[USER_RAISED_EXCEPTION]" in str(fault) else f" {_ADVICE}"
            raise DataError(f"prepare: {in_one_line(fault)}.{advice}") from fault


@contextmanager
def scratch_folder(master: str) -> Iterator[Path]:
    """A folder for what is handed over to Spark; workers on other machines may run under another user's name.

    Args:
        master: A master URL.
    """
    with tempfile.TemporaryDirectory(prefix="twotower-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        if not is_this_machine(master):
            folder.chmod(0o755)
        yield folder


def _runs(sizes: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """First and last number of the rows that leave together, from parts and how many rows each holds."""
    first, last, rows = 0, 0, 0
    for part, size in sizes:
        for begin in range(0, size, _ROWS_AT_ONCE):
            count = min(size - begin, _ROWS_AT_ONCE)
            if rows + count > _ROWS_AT_ONCE:
                yield first, last
                rows = 0
            first = first if rows else part * _PART + begin
            last, rows = part * _PART + begin + count - 1, rows + count
    if rows:
        yield first, last


def _texts(table: ir.Table) -> list[str]:
    return [name for name, kind in table.schema().items() if kind.is_string()]


def _for_spark(column: str, kind: str) -> str:
    """The column in a type that Spark reads: it knows microseconds, and no finer moments."""
    name = quote(column)
    if kind in ("TIMESTAMP_NS", "TIMESTAMP_MS", "TIMESTAMP_S"):
        return f"{name}::TIMESTAMP AS {name}"
    single = kind.rstrip("[]")
    return f"{name}::VARCHAR{kind.removeprefix(single)} AS {name}" if single in _AS_TEXT else name


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
