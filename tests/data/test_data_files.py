"""Your own tables: formats, names of columns, ids, timestamps."""

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from twotower.data.prepare import PrepareConfig
from twotower.data.sources.files import FilesConfig
from twotower.data.tables import INTERACTIONS, ITEMS, USERS
from twotower.errors import RecipeError

Into = Callable[..., Path]

ROWS = [("007", 1, 1_700_000_000, 4.5), ("8", 2, 1_700_000_060, 3.0), ("007", 2, 1_700_000_120, 1.0)]
EXPECTED = [
    ("007", "1", datetime(2023, 11, 14, 22, 13, 20), 4.5),
    ("8", "2", datetime(2023, 11, 14, 22, 14, 20), 3.0),
    ("007", "2", datetime(2023, 11, 14, 22, 15, 20), 1.0),
]


def write_csv(folder: Path) -> str:
    lines = [";".join(str(value) for value in row) for row in ROWS]
    (folder / "log.csv").write_text("\n".join(["who;what;moment;stars", *lines]) + "\n")
    return "log.csv"


def arrow() -> pa.Table:
    return pa.table(dict(zip(("who", "what", "moment", "stars"), map(list, zip(*ROWS, strict=True)), strict=True)))


def write_parquet(folder: Path) -> str:
    pq.write_table(arrow(), folder / "log.parquet")
    return "log.parquet"


def write_shards(folder: Path) -> str:
    (folder / "shards").mkdir()
    for number in range(3):
        pq.write_table(arrow().slice(number, 1), folder / "shards" / f"{number}.parquet")
    return "shards"


def write_json_lines(folder: Path) -> str:
    rows = [dict(zip(("who", "what", "moment", "stars"), row, strict=True)) for row in ROWS]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "log.jsonl"


def write_query(folder: Path) -> str:
    return f"SELECT who, what, moment, stars FROM read_parquet('{folder / write_parquet(folder)}')"


def write_compressed(folder: Path) -> str:
    path = folder / "log.csv.gz"
    duckdb.connect().execute(f"COPY (SELECT * FROM '{folder / write_parquet(folder)}') TO '{path}' (COMPRESSION gzip)")
    return path.name


def read(prepared: Path, *names: str) -> list[tuple[Any, ...]]:
    table = pq.read_table(prepared / INTERACTIONS)
    return list(zip(*(table[name].to_pylist() for name in names), strict=True))


COLUMNS = {"user_id": "who", "item_id": "what", "timestamp": "moment", "rating": "stars"}


@pytest.mark.parametrize(
    "write", [write_csv, write_parquet, write_shards, write_json_lines, write_query, write_compressed]
)
def test_every_kind_of_file_gives_the_same_table(
    write: Callable[[Path], str], tmp_path: Path, prepare_into: Into
) -> None:
    files = FilesConfig(interactions=write(tmp_path), columns=COLUMNS, labels=("rating",))
    prepared = prepare_into(tmp_path / "p", PrepareConfig(source="files", data_dir=str(tmp_path), files=files))
    assert read(prepared, "user_id", "item_id", "timestamp", "rating") == EXPECTED


def test_a_query_reads_an_attached_database(tmp_path: Path, prepare_into: Into) -> None:
    with duckdb.connect(str(tmp_path / "shop.duckdb")) as shop:
        shop.execute("CREATE TABLE orders (who VARCHAR, what INTEGER, moment TIMESTAMP, price DOUBLE)")
        shop.execute("INSERT INTO orders VALUES ('a', 1, '2024-01-01', 2), ('b', 2, '2024-01-02', 3)")
        shop.execute("CREATE TABLE goods AS SELECT 1 AS what, 'Pear' AS name UNION ALL SELECT 2, 'Fig'")
    files = FilesConfig(
        attach={"shop": "shop.duckdb"},
        interactions="SELECT * FROM shop.orders WHERE price > 0",
        items="SELECT * FROM shop.goods ORDER BY what",
        columns={"user_id": "who", "item_id": "what", "timestamp": "moment"},
        title="name",
        context=("price",),
    )
    prepared = prepare_into(tmp_path / "p", PrepareConfig(source="files", data_dir=str(tmp_path), files=files))
    assert read(prepared, "user_id", "item_id", "price") == [("a", "1", 2.0), ("b", "2", 3.0)]
    assert pq.read_table(prepared / ITEMS).to_pydict() == {"item_id": ["1", "2"], "name": ["Pear", "Fig"]}


@pytest.mark.parametrize(
    ("kind", "written", "other"),
    [
        ("UUID", "6f1c7f0e-53c5-4c5a-9a5e-0c7c3c2f0a11", "7f1c7f0e-53c5-4c5a-9a5e-0c7c3c2f0a11"),
        ("JSON", "7", '{"at":8}'),
        ("INTERVAL", "3 days", "4 days"),
        ("INTERVAL[]", "[3 days]", "[4 days]"),
        ("BIGNUM", "123456789012345678901234567890123456789012", "8"),
        ("UNION(text VARCHAR, number INTEGER)", "abc", "def"),
    ],
)
def test_ids_of_unusual_types_are_kept_as_they_are_written(
    kind: str, written: str, other: str, tmp_path: Path, prepare_into: Into
) -> None:
    users = f"unnest(['{written}'::{kind}, '{other}'::{kind}])"
    query = f"SELECT {users} AS user_id, unnest([1, 2]) AS item_id, unnest([0, 0]) AS timestamp"
    files = FilesConfig(interactions=query)
    prepared = prepare_into(tmp_path / "p", PrepareConfig(source="files", data_dir=str(tmp_path), files=files))
    assert read(prepared, "user_id") == [(written,), (other,)]


def test_ids_of_json_lines_are_the_same_whether_numbers_or_strings(tmp_path: Path, prepare_into: Into) -> None:
    ids = ("1", '"a"', '{"b": 2}')
    lines = [f'{{"user_id": {each}, "item_id": {place}, "timestamp": 0}}\n' for place, each in enumerate(ids)]
    (tmp_path / "log.jsonl").write_text("".join(lines))
    files = FilesConfig(interactions="log.jsonl")
    prepared = prepare_into(tmp_path / "p", PrepareConfig(source="files", data_dir=str(tmp_path), files=files))
    assert read(prepared, "user_id") == [("1",), ("a",), ('{"b":2}',)]


@pytest.mark.parametrize(
    ("written", "how"),
    [
        ("1700000000", "auto"),
        ("1700000000.25", "auto"),
        ("1700000000000", "auto"),
        ("1700000000000000", "auto"),
        ("1700000000", "s"),
        ("1700000000000", "ms"),
        ("1700000000000000", "us"),
        ("2023-11-14T22:13:20Z", "auto"),
        ("2023-11-14 22:13:20", "iso"),
        ("2023-11-15T00:13:20+02:00", "auto"),
    ],
)
def test_a_moment_is_read_however_it_is_written(written: str, how: Any, tmp_path: Path, prepare_into: Into) -> None:
    (tmp_path / "log.csv").write_text(f"user_id,item_id,timestamp\n1,a,{written}\n2,b,{written}\n")
    files = FilesConfig(interactions="log.csv", timestamp_format=how)
    prepared = prepare_into(tmp_path / "p", PrepareConfig(source="files", data_dir=str(tmp_path), files=files))
    expected = EXPECTED[0][2].replace(microsecond=250_000 if "." in written else 0)
    assert read(prepared, "timestamp") == [(expected,)] * 2


def test_a_date_column_and_one_with_a_zone_are_moments_already(tmp_path: Path, prepare_into: Into) -> None:
    for number, kind in enumerate(("DATE", "TIMESTAMPTZ", "TIMESTAMP_NS", "TIMESTAMP_S")):
        query = f"SELECT range AS user_id, 1 AS item_id, '2024-03-01'::{kind} AS timestamp FROM range(2)"
        prepared = prepare_into(
            tmp_path / str(number), PrepareConfig(source="files", files=FilesConfig(interactions=query))
        )
        assert read(prepared, "timestamp") == [(datetime(2024, 3, 1),)] * 2


def test_whole_numbers_that_were_stored_as_floats_are_ids_without_a_point(tmp_path: Path, prepare_into: Into) -> None:
    query = "SELECT (range + 1)::DOUBLE AS user_id, range::INTEGER AS item_id, 1e9 + range AS timestamp FROM range(2)"
    prepared = prepare_into(tmp_path / "p", PrepareConfig(source="files", files=FilesConfig(interactions=query)))
    assert read(prepared, "user_id", "item_id") == [("1", "0"), ("2", "1")]


def test_users_have_their_columns_and_those_not_in_the_table_have_none(tmp_path: Path, prepare_into: Into) -> None:
    (tmp_path / "users.csv").write_text("who,age\n8,30\n9,\n")
    files = FilesConfig(interactions=write_csv(tmp_path), users="users.csv", columns=COLUMNS)
    prepared = prepare_into(tmp_path / "p", PrepareConfig(source="files", data_dir=str(tmp_path), files=files))
    assert pq.read_table(prepared / USERS).to_pydict() == {"user_id": ["8", "9", "007"], "age": [30, None, None]}


def test_rows_keep_the_order_of_a_large_file(tmp_path: Path, prepare_into: Into) -> None:
    lines = "".join(f"{number % 50},i{number},1700000000\n" for number in range(300_000))
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n" + lines)
    files = FilesConfig(interactions="log.csv")
    prepared = prepare_into(tmp_path / "p", PrepareConfig(source="files", data_dir=str(tmp_path), files=files))
    found = pq.read_table(prepared / INTERACTIONS)["item_id"].to_pylist()
    assert found == [f"i{number}" for number in range(300_000)]


def test_a_recipe_that_names_no_readable_table_is_refused() -> None:
    from twotower.data.database import open_database
    from twotower.data.sources.files import read_files

    with open_database() as database:
        with pytest.raises(RecipeError, match="interactions names no table"):
            read_files(database, FilesConfig(), data_dir=None)
        with pytest.raises(RecipeError, match=r"no prepare.files.test beside it"):
            read_files(database, FilesConfig(interactions="a.csv", validation="b.csv"), data_dir=None)
