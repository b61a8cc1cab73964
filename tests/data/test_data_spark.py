"""Preparation on Spark gives what DuckDB gives, to the byte: one session, every kind of setting."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import ibis
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from twotower.artifact import read_manifest, write_artifact
from twotower.data.config import FilesConfig, PrepareConfig
from twotower.data.engine import moment_from_text, number_from_text, open_engine
from twotower.data.prepare import fetch
from twotower.data.profile import profile
from twotower.data.spark.session import scratch_folder
from twotower.data.spark.start import start_spark
from twotower.data.tables import INTERACTIONS, ITEMS, USERS
from twotower.errors import DataError, MissingExtraError, RecipeError, TwotowerError

Into = Callable[..., Path]

MASTER = "local[2]"
SETTINGS = {
    # Tables this small are planned and compiled for longer than they are computed.
    "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
    "spark.driver.memory": "1g",
    "spark.sql.adaptive.enabled": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.shuffle.partitions": "3",
}
ON_SPARK: dict[str, Any] = {"engine": "spark", "spark_master": MASTER, "spark_settings": SETTINGS}

LOG = """who,item_id,timestamp,rating,device
ann,a,2026-10-30T10:00:00Z,5,phone
bob,b,2026-10-30 12:00:00+02:00,3.5,tv
ann,b,2026-10-30T10:00:00Z,4,phone
ann,a,2026-10-31,1,tv
cid,c,2026-10-31T00:00:00.25,,tv
bob,é,2026-10-31,2e0,
007,a,2026-09-01,3,phone
"""
ITEMS_TABLE = "item_id,title,year,genres\nz,Never met,1990,Drama\nb,Twin,,Drama|War\na,First,2001,\né,Twin,1999.5,x\n"
USERS_TABLE = "who,age,since\nbob,30,2020-01-01\nzoe,,2021-02-03\n007,7,2019-05-05\n"


@pytest.fixture(scope="module", autouse=True)
def _spark() -> Iterator[None]:
    """One Spark for all; each preparation joins it with tables of its own."""
    pytest.importorskip("pyspark")
    if shutil.which("java") is None:
        pytest.skip("no Java; install 17 or 21")
    with start_spark(MASTER, SETTINGS):
        yield


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    (tmp_path / "log.csv").write_text(LOG, encoding="utf-8")
    (tmp_path / "items.csv").write_text(ITEMS_TABLE, encoding="utf-8")
    (tmp_path / "users.csv").write_text(USERS_TABLE, encoding="utf-8")
    (tmp_path / "test.csv").write_text("who,item_id,timestamp,rating,device\nann,z,2026-10-31,4,tv\n")
    (tmp_path / "odd.csv").write_text("who,item_id,timestamp\nann,a,10:30\n")
    rows = [{"user_id": user, "item_id": f"i{place}", "timestamp": 1_700_000_000} for user in (1, 2) for place in "abc"]
    (tmp_path / "shards" / "day=2").mkdir(parents=True)
    (tmp_path / "shards" / "day=1").mkdir()
    for number, folder in enumerate(("day=2", "day=2", "day=1")):
        table = pa.Table.from_pylist(rows[number * 2 : number * 2 + 2])
        pq.write_table(table, tmp_path / "shards" / folder / f"{9 - number}.parquet")
    return tmp_path


def own_files(folder: Path, *, settings: dict[str, Any], **files: Any) -> PrepareConfig:
    named = {"interactions": "log.csv", "columns": {"user_id": "who"}, "labels": ("rating",), "context": ("device",)}
    return PrepareConfig(source="files", data_dir=str(folder), files=FilesConfig(**(named | files)), **settings)


def assert_alike(folder: Path, config: PrepareConfig, prepare_into: Into) -> Path:
    """Prepare on both engines and compare: rows, order, types and bytes of the tables, and what the manifest tells."""
    ours = prepare_into(folder / "duckdb", config)
    theirs = prepare_into(folder / "spark", replace(config, **ON_SPARK))
    for name in (INTERACTIONS, USERS, ITEMS):
        expected, found = pq.read_table(ours / name), pq.read_table(theirs / name)
        assert found.schema == expected.schema
        assert found.to_pylist() == expected.to_pylist()
        assert (theirs / name).read_bytes() == (ours / name).read_bytes()
    told = [read_manifest(prepared, kind="prepared")["metadata"] for prepared in (ours, theirs)]
    assert told[0] == told[1]
    return theirs


def test_text_files_are_alike_under_every_setting_that_keeps_or_drops(tables: Path, prepare_into: Into) -> None:
    config = own_files(
        tables,
        items="items.csv",
        users="users.csv",
        settings={
            "filter": "device <> 'tablet' OR device IS NULL",
            "until": "2026-11-01",
            "window_days": 30,
            "unknown_items": "drop",
            "missing_labels": "keep",
            "duplicates": "keep_first",
            "labels": {"liked": "rating > 2.5", "share": "rating / 3"},
            "positives": "rating >= 2 AND timestamp < '2026-10-31 00:00:00.5'",
        },
    )
    prepared = assert_alike(tables, config, prepare_into)
    table = pq.read_table(prepared / INTERACTIONS)
    # Out of the window goes 007, out of the catalogue c, and Ann's second meeting with a.
    assert table["item_id"].to_pylist() == ["a", "b", "b", "é"]
    assert table["share"].to_pylist() == [5 / 3, 3.5 / 3, 4 / 3, 2 / 3]


def test_given_parts_items_by_title_and_the_core_are_alike(tables: Path, prepare_into: Into) -> None:
    config = own_files(
        tables,
        items="items.csv",
        test="test.csv",
        settings={
            "item_key": "title",
            "unknown_items": "keep",
            "missing_labels": "keep",
            "duplicates": "keep_last",
            "min_user_interactions": 2,
            "min_item_interactions": 1,
        },
    )
    prepared = assert_alike(tables, config, prepare_into)
    assert pq.read_table(prepared / INTERACTIONS)["given_part"].to_pylist() == [0, 0, 2]
    assert pq.read_table(prepared / ITEMS)["item_id"].to_pylist() == ["Never met", "Twin", "First"]


def test_shards_that_spark_reads_itself_keep_the_order_of_their_names(tables: Path, prepare_into: Into) -> None:
    config = own_files(tables, interactions="shards", columns={}, labels=(), context=("day",), settings={})
    prepared = assert_alike(tables, config, prepare_into)
    # All at one moment: only the names of the files, and the rows within each, tell the order.
    assert pq.read_table(prepared / INTERACTIONS).select(["item_id", "day"]).to_pydict() == {
        "item_id": ["ib", "ic", "ic", "ia", "ia", "ib"],
        "day": [1, 1, 2, 2, 2, 2],
    }


@pytest.mark.parametrize(
    ("place", "context", "expected"),
    [
        ("log/day=2026-11-01", ("day",), [(date(2026, 11, 1), "a"), (date(2026, 11, 1), "b")]),
        ("log/day=2026-11-01/5.parquet", ("day",), [(date(2026, 11, 1), "a"), (date(2026, 11, 1), "b")]),
        ("mixed", (), [("c",), ("d",)]),
        ("region=eu/more", ("region",), [("eu", "c"), ("eu", "d")]),
        ("region=eu/shop=1.5", ("region", "shop"), [("eu", "1.5", "e"), ("eu", "1.5", "f")]),
    ],
)
def test_folders_tell_the_columns_that_they_tell_duckdb(
    place: str, context: tuple[str, ...], expected: list[tuple[Any, ...]], tmp_path: Path, prepare_into: Into
) -> None:
    log = {
        "log/day=2026-11-01/5.parquet": ["a", "b"],
        "mixed/day=1/1.parquet": ["c"],
        "mixed/hour=1/2.parquet": ["d"],
        "region=eu/more/1.parquet": ["c"],
        "region=eu/more/deeper/2.parquet": ["d"],
        "region=eu/shop=1.5/3.parquet": ["e", "f"],
    }
    for name, items in log.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        table = {"user_id": items, "item_id": items, "timestamp": list(range(len(items)))}
        pq.write_table(pa.table(table), tmp_path / name)
    config = own_files(tmp_path, interactions=place, columns={}, labels=(), context=context, settings={})
    table = pq.read_table(assert_alike(tmp_path, config, prepare_into) / INTERACTIONS)
    assert list(zip(*(table[name].to_pylist() for name in (*context, "item_id")), strict=True)) == expected


def test_what_a_query_gives_in_types_that_spark_does_not_know_is_alike(tmp_path: Path, prepare_into: Into) -> None:
    query = (
        "SELECT range AS user_id, 'a' AS item_id, 0 AS timestamp, TIME '10:00' AS hour, [uuid()] AS ids, "
        "('00000000-0000-0000-0000-00000000000' || range)::UUID AS visit FROM range(2)"
    )
    config = own_files(tmp_path, interactions=query, columns={}, labels=(), context=("visit",), settings={})
    prepared = assert_alike(tmp_path, config, prepare_into)
    assert pq.read_table(prepared / INTERACTIONS)["visit"][1].as_py() == "00000000-0000-0000-0000-000000000001"


@pytest.mark.parametrize(("master", "mode"), [("local[2]", 0o700), ("spark://head:7077", 0o755)])
def test_what_is_handed_over_may_be_read_by_the_workers_of_other_machines(master: str, mode: int) -> None:
    with scratch_folder(master) as folder:
        assert folder.stat().st_mode & 0o777 == mode


def test_spark_that_another_thread_started_is_joined_and_left_as_it_was(tmp_path: Path) -> None:
    from pyspark.sql import SparkSession

    theirs = SparkSession.builder.getOrCreate()
    theirs.conf.set("spark.sql.shuffle.partitions", "5")

    def count() -> int:
        pq.write_table(pa.table({"x": [1, 2, 3]}), tmp_path / "x.parquet")
        with open_engine(PrepareConfig(**ON_SPARK)) as engine:
            return engine.count(engine.load("x", tmp_path / "x.parquet"))

    with ThreadPoolExecutor(max_workers=1) as pool:
        assert pool.submit(count).result() == 3
    assert theirs.conf.get("spark.sql.shuffle.partitions") == "5"
    assert theirs.range(2).count() == 2
    theirs.conf.unset("spark.sql.shuffle.partitions")


def test_movielens_100k_is_alike(data_dir: Path, tmp_path: Path, prepare_into: Into) -> None:
    config = PrepareConfig(
        source="movielens-100k",
        data_dir=str(data_dir),
        positives="rating >= 4",
        min_user_interactions=20,
        min_item_interactions=20,
    )
    prepared = assert_alike(tmp_path, config, prepare_into)
    assert pq.read_metadata(prepared / INTERACTIONS).num_rows == 94_443


@pytest.mark.slow
@pytest.mark.parametrize("duplicates", ["keep", "keep_last"])
def test_movielens_1m_is_alike(duplicates: Any, data_dir: Path, tmp_path: Path, prepare_into: Into) -> None:
    config = PrepareConfig(source="movielens-1m", data_dir=str(data_dir), duplicates=duplicates)
    prepared = assert_alike(tmp_path, config, prepare_into)
    assert pq.read_metadata(prepared / INTERACTIONS).num_rows == 1_000_209


def test_what_is_fetched_on_spark_is_what_is_fetched_on_duckdb(tables: Path) -> None:
    for engine in ({}, ON_SPARK):
        config = own_files(tables, items="items.csv", settings=engine)
        metadata: dict[str, Any] = {}
        with write_artifact(tables / f"raw-{len(engine)}", kind="raw", metadata=metadata) as out:
            metadata.update(fetch(config, seed=1, out=out))
    for name in (INTERACTIONS, ITEMS):
        ours, theirs = (pq.read_table(tables / folder / name) for folder in ("raw-0", f"raw-{len(ON_SPARK)}"))
        assert theirs.equals(ours)


def test_the_profile_on_spark_tells_the_faults_that_duckdb_tells(tables: Path) -> None:
    found = [
        profile(own_files(tables, items="items.csv", settings={"duplicates": "error"} | engine))
        for engine in ({}, ON_SPARK)
    ]
    assert found[0] == found[1]
    assert len(found[0].faults) == 3  # A rating is missing, c is not in the items table, Ann meets a twice.
    # Spark alone takes 10:30 for a moment of today.
    odd = own_files(tables, interactions="odd.csv", labels=(), context=(), settings=ON_SPARK)
    assert "timestamp of row 1 is '10:30', not a moment" in profile(odd).faults[0]


AGREED = [
    "rating >= 4",
    "x / 3 + 0.1 * 3",
    "-x % 3 < 0 OR NOT (x = 2 OR x IS NULL)",
    "text IN ('a', 'B') OR text BETWEEN 'c' AND 'd'",
    "text LIKE 'a%' OR starts_with(text, 'x') OR contains(text, 'é')",
    r"regexp_matches(text, '^\w\d+$') OR regexp_matches(text, 'é')",
    "CASE WHEN rating > 3 THEN 1 WHEN rating IS NULL THEN -1 ELSE 0.5 END",
    "coalesce(rating, nullif(x, 2), greatest(x, 7), 9) + least(x, rating)",
    "abs(x) + floor(rating) + ceil(rating) * round(rating) + sqrt(abs(rating))",
    "length(text) / 2",
    "year(moment) * 10000 + month(moment) * 100 + day(moment) + hour(moment) / 24",
    "moment >= '2026-10-31' OR moment + INTERVAL 2 DAYS < TIMESTAMP '2026-10-30 10:00:00.25'",
    "moment < DATE '1970-01-01'",
    *(
        f"date_trunc('{unit}', moment) < moment"
        for unit in ("year", "quarter", "month", "day", "hour", "minute", "SECOND")
    ),
    "date_trunc('week', moment) = TIMESTAMP '2026-10-26'",
    "list_contains(tags, 'b')",
    "rating IS DISTINCT FROM 4",
    'TRY_CAST("odd name" AS DOUBLE) + CAST(x AS DOUBLE)',
    "TRY_CAST(CASE WHEN x > 2 OR x IS NULL THEN text ELSE coalesce(nullif(\"odd name\", 'x'), '7d') END AS DOUBLE)",
    "x / 0.3 / 0.7",
]
VALUES = pa.table(
    {
        "rating": [4.0, 3.5, 2.5, -0.5, None, 12345.625, 1.0, 9.0],
        "x": [2, -7, None, 3, 0, 12, 1, 1],
        "text": ["a1", "B", "éß", "", None, "c9", "5f", "9"],
        "moment": pa.array([1_793_000_000_250_000, 1_793_404_800_000_000, None, 0, -1, 4e15, 0, 60], pa.float64())
        .cast(pa.int64())
        .cast(pa.timestamp("us")),
        "tags": [["a", "b"], [], None, ["b"], ["c"], ["a"], [], []],
        "odd name": ["1", "x", None, " 2.5 ", "1e3", "", "5d", "1_000"],
    }
)


def test_what_passes_for_both_gives_the_same_values_on_both(tmp_path: Path) -> None:
    pq.write_table(VALUES, tmp_path / "values.parquet")
    found = []
    for engine_settings in ({}, ON_SPARK):
        with open_engine(PrepareConfig(**engine_settings)) as engine:
            engine.load("given", tmp_path / "values.parquet")
            for number, expression in enumerate(AGREED):
                engine.compute("given", f"c{number}", f"CAST(({expression}) AS DOUBLE)")
            found.append(engine.batches(engine.table("given").order_by("x", "text")).read_all())
    for number, expression in enumerate(AGREED):
        values = [table[f"c{number}"].to_pylist() for table in found]
        assert values[0] == values[1], expression
        assert len(set(map(str, values[0]))) > 1, expression


NUMBERS = "5 1_000 0x10 5d 5f +5 .5 5. 1e3 1e 1e400 nan inf -Infinity 0x1p3 1,5 - --1 12345678901234567890"
DAYS = "2023 2023-01 2023-1-5 2023/01/05 2023-01-05 20230105 T10:11 10:11 epoch now today 2023-02-30 12023-01-05"
MOMENTS = [
    *(f"2023-01-05{sign}10:11{rest}" for sign in "T t" for rest in ("", ":12", ":12Z", ":12z", ":12.5", ":60", " UTC")),
    *(f"2023-01-05T10:11:12{zone}" for zone in ("+02", "+0230", "+02:30", "-00:30", "+2", " +02:00", ".1234567Z")),
    *("2023-01-05 10", "2023-01-05T24:00:00", "2023-1-5 1:2:3", " 2023-01-05 ", "2023-01-05 10:11:12 Europe/Berlin"),
]


def test_a_text_is_never_one_number_or_moment_to_duckdb_and_another_to_spark(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [*NUMBERS.split(), *DAYS.split(), *MOMENTS]}), tmp_path / "texts.parquet")
    found = []
    for engine_settings in ({}, ON_SPARK):
        with open_engine(PrepareConfig(**engine_settings)) as engine:
            text = engine.load("texts", tmp_path / "texts.parquet")
            number, moment = number_from_text(text["text"]), moment_from_text(text["text"])
            told = text.select("text", number=ibis.ifelse(number.abs() < 1e30, number, None), moment=moment)
            found.append({row[0]: row[1:] for row in engine.rows(told)})
    for text, (number, moment) in found[1].items():
        assert number == found[0][text][0], text
        assert moment in (None, found[0][text][1]), text
    for text in ("5", ".5", "1e3", "2023-01-05", "2023-01-05T10:11:12.5", "2023-01-05T10:11:12+0230"):
        assert found[1][text] == found[0][text] != (None, None), text


def test_a_text_that_only_one_engine_takes_for_a_number_is_refused_by_both(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["1_000", "5d"]}), tmp_path / "texts.parquet")
    for engine_settings in ({}, ON_SPARK):
        with open_engine(PrepareConfig(**engine_settings)) as engine:
            engine.load("texts", tmp_path / "texts.parquet")
            with pytest.raises(DataError, match=r"^here: .*'5 ?d'.* Mend it"), engine.faults_told("here", "Mend it."):
                engine.compute("texts", "number", "CAST(text AS DOUBLE)")


def test_a_part_that_is_larger_than_what_leaves_spark_together_leaves_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twotower.data.spark.session._ROWS_AT_ONCE", 4)
    pq.write_table(pa.table({"x": list(range(10, 0, -1))}), tmp_path / "x.parquet")
    with open_engine(PrepareConfig(**ON_SPARK)) as engine:
        table = engine.load("x", tmp_path / "x.parquet")
        # One part as the file has it, and three that each hold a range of x.
        for rows, expected in ((table, range(10, 0, -1)), (table.order_by("x"), range(1, 11))):
            batches = list(engine.batches(rows))
            assert max(batch.num_rows for batch in batches) <= 4
            assert [number for batch in batches for number in batch["x"].to_pylist()] == list(expected)


FRACTIONS = "SELECT range + 0.5::DOUBLE AS who, 'a' AS item_id, 0 AS timestamp FROM range(2)"


@pytest.mark.parametrize(
    ("settings", "files", "message"),
    [
        ({"positives": "stars > 3"}, {}, r"^prepare.positives = 'stars > 3': .*stars.* over user_id, item_id"),
        ({"filter": "log(rating) > 1"}, {}, r"^prepare.filter = 'log\(rating\) > 1': LOG.*same on Spark\. Write"),
        ({"labels": {"n": "device"}}, {}, r"^prepare.labels.n = 'device': .*'phone'.*cast.* Write a SQL"),
        ({}, {"interactions": "broken.parquet"}, r"^broken.parquet: .* Check the files, or read them by a query"),
        ({}, {"interactions": "damaged.parquet"}, r"^prepare: .*damaged.parquet.* Check the files, and that"),
        ({}, {"interactions": FRACTIONS}, "an id is the number [01].5"),
    ],
)
def test_a_fault_found_on_spark_is_one_line(
    settings: dict[str, Any], files: dict[str, Any], message: str, tables: Path, prepare_into: Into
) -> None:
    (tables / "broken.parquet").write_bytes(b"no Parquet")
    damaged = tables / "damaged.parquet"
    pq.write_table(pa.table({"who": ["ann"], "item_id": ["a"], "timestamp": [0]}), damaged)
    # Its end, which tells the columns, is whole.
    damaged.write_bytes(b"PAR1" + b"\xff" * 20 + damaged.read_bytes()[24:])
    if files:
        files = {"labels": (), "context": ()} | files
    config = own_files(tables, settings={"missing_labels": "keep"} | settings | ON_SPARK, **files)
    with pytest.raises(DataError, match=message) as fault:
        prepare_into(tables / "p", config)
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize(
    ("changed", "expected", "message"),
    [
        ({"spark_master": "local[3]"}, RecipeError, "Spark runs in this process with spark.master = 'local"),
        ({"spark_settings": {"spark.sql.ansi.enabled": "false"}}, RecipeError, "ansi.enabled has to be 'true'"),
        ({"spark_settings": {"spark.driver.memory": "2g"}}, RecipeError, "with spark.driver.memory = '1g'"),
    ],
)
def test_a_recipe_that_the_running_spark_cannot_follow_is_refused(
    changed: dict[str, Any], expected: type[TwotowerError], message: str
) -> None:
    with pytest.raises(expected, match=message), open_engine(PrepareConfig(**(ON_SPARK | changed))):
        pass


def test_an_interrupt_means_what_it_meant_once_spark_has_started() -> None:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_machine_without_java_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("JAVA_HOME", "PATH"):
        with monkeypatch.context() as patch:
            patch.delenv("JAVA_HOME", raising=False)
            patch.setenv(name, str(tmp_path))
            with pytest.raises(MissingExtraError, match=r"no Java .*openjdk-17-jre-headless"), start_spark(MASTER, {}):
                pass


def test_a_master_that_is_none_is_one_line_and_java_writes_nothing_beside_it() -> None:
    # In a process of its own: this one's Java runs already.
    arguments = ["validate", "--set", "prepare.engine=spark", "--set", "prepare.spark_master=nowhere"]
    finished = subprocess.run(
        [sys.executable, "-m", "twotower", *arguments], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 2
    assert finished.stderr.startswith("Error: prepare.spark_master = 'nowhere': Master must")
    assert finished.stderr.count("\n") == 1
