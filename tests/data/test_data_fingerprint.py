"""Any local file that a source reads changes the source's fingerprint."""

from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from twotower.data.fingerprint import fingerprint_source
from twotower.data.prepare import PrepareConfig
from twotower.data.sources.files import FilesConfig

HEADER = "user_id,item_id,timestamp\n"


def change_text(path: Path) -> None:
    path.write_text(path.read_text() + "9,z,900\n")


def change_table(path: Path) -> None:
    pq.write_table(pa.table({"user_id": [9]}), path)


def change_database(path: Path) -> None:
    with duckdb.connect(str(path)) as shop:
        shop.execute("INSERT INTO orders VALUES (9)")


FILES: list[tuple[str, Callable[[Path], None]]] = [
    ("train.csv", change_text),
    ("validation.csv", change_text),
    ("test.csv", change_text),
    ("users.csv", change_text),
    ("shards/deep/0.parquet", change_table),
    ("shop.duckdb", change_database),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("train.csv", "validation.csv", "test.csv", "users.csv", "unread.csv"):
        (tmp_path / name).write_text(HEADER)
    (tmp_path / "shards" / "deep").mkdir(parents=True)
    pq.write_table(pa.table({"user_id": [1]}), tmp_path / "shards" / "deep" / "0.parquet")
    with duckdb.connect(str(tmp_path / "shop.duckdb")) as shop:
        shop.execute("CREATE TABLE orders AS SELECT 1 AS who")
    return tmp_path


def source(folder: Path, **named: object) -> PrepareConfig:
    return PrepareConfig(source="files", data_dir=str(folder), files=FilesConfig(**named))  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "change"), FILES)
def test_each_file_that_is_read_counts_and_no_other(name: str, change: Callable[[Path], None], folder: Path) -> None:
    config = source(
        folder,
        interactions="train.csv",
        validation="validation.csv",
        test="test.csv",
        users="users.csv",
        items="shards",
        attach={"shop": "shop.duckdb"},
    )
    before = fingerprint_source(config)
    assert sorted(before) == sorted(str(folder / file) for file, _ in FILES)
    change_text(folder / "unread.csv")
    assert fingerprint_source(config) == before
    change(folder / name)
    after = fingerprint_source(config)
    assert [file for file in before if before[file] != after[file]] == [str(folder / name)]


def test_a_pattern_counts_every_file_that_it_names_and_those_that_come_to_it(folder: Path) -> None:
    config = source(folder, interactions="t*.csv", items="shards/**/*.parquet")
    before = fingerprint_source(config)
    assert [Path(file).name for file in before] == ["0.parquet", "test.csv", "train.csv"]
    (folder / "third.csv").write_text(HEADER)
    assert fingerprint_source(config).keys() - before.keys() == {str(folder / "third.csv")}


def test_files_within_a_query_count_and_the_query_itself_is_no_file(folder: Path) -> None:
    condition = " AND ".join(f"item_id != 'item number {number}'" for number in range(100))
    query = f"SELECT * FROM read_csv('{folder}/t*.csv') WHERE {condition}"
    assert [Path(file).name for file in fingerprint_source(source(folder, interactions=query))] == [
        "test.csv",
        "train.csv",
    ]


def test_what_was_written_to_a_database_last_counts(folder: Path) -> None:
    config = source(folder, interactions="SELECT * FROM shop.orders", attach={"shop": f"duckdb:{folder}/shop.duckdb"})
    before = fingerprint_source(config)
    assert list(before) == [str(folder / "shop.duckdb")]
    with duckdb.connect(str(folder / "shop.duckdb")) as shop:
        shop.execute("PRAGMA disable_checkpoint_on_shutdown")
        shop.execute("INSERT INTO orders VALUES (9)")
    assert fingerprint_source(config) != before


@pytest.mark.parametrize("place", ["s3://bucket/log.parquet", "https://example.org/log.csv", "missing.csv"])
def test_what_is_not_on_this_machine_is_not_hashed(place: str, folder: Path) -> None:
    assert fingerprint_source(source(folder, interactions=place)) == {}


def test_a_simulated_world_reads_no_file() -> None:
    assert fingerprint_source(PrepareConfig()) == {}
