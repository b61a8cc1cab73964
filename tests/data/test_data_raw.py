"""Raw tables as a directory: `prepare` gives the same bytes from them as from the source itself."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from twotower.artifact import fingerprint, read_manifest, write_artifact
from twotower.data.config import FilesConfig, PrepareConfig, SimulatedConfig
from twotower.data.prepare import fetch, prepare
from twotower.data.profile import profile
from twotower.data.tables import INTERACTIONS
from twotower.errors import ArtifactError, DataError

LOG = "who,what,moment,stars,device\n007,1,2024-01-01T10:00:00Z,4,tv\n8,2,2024-01-02,,\n007,2,2024-01-03,1,phone\n"
TEST_LOG = "who,what,moment,stars,device\n8,1,2024-02-01,5,tv\n"
USERS = "who,age\n9,\n8,30\n"
ITEMS = "what,name,price\n2,Pear,1.5\n1,,2\n3,Fig,\n"
SEED = 3


def raw_of(config: PrepareConfig, to: Path) -> Path:
    metadata: dict[str, Any] = {}
    with write_artifact(to, kind="raw", metadata=metadata) as out:
        metadata |= fetch(config, seed=SEED, out=out)
    return to


def prepared_of(config: PrepareConfig, to: Path, *, raw: Path | None = None) -> Path:
    metadata: dict[str, Any] = {}
    with write_artifact(to, kind="prepared", metadata=metadata) as out:
        metadata |= prepare(config, seed=SEED, out=out, raw_from=raw)
    return to


def assert_equal_from_raw(config: PrepareConfig, folder: Path, *, gone: PrepareConfig) -> Path:
    """Both ways of preparing agree; from the raw tables also where the source is gone."""
    raw = raw_of(config, folder / "raw")
    from_source = prepared_of(config, folder / "source")
    from_raw = prepared_of(gone, folder / "prepared", raw=raw)
    files = read_manifest(from_source, kind="prepared")["files"]
    assert read_manifest(from_raw, kind="prepared")["files"] == files
    assert fingerprint(from_raw) == fingerprint(from_source)
    assert fingerprint(raw_of(config, folder / "again")) == fingerprint(raw)
    return from_raw


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    for name, text in (("log.csv", LOG), ("test.csv", TEST_LOG), ("users.csv", USERS), ("items.csv", ITEMS)):
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def files_config(folder: Path, **files: Any) -> PrepareConfig:
    columns = {"user_id": "who", "item_id": "what", "timestamp": "moment", "rating": "stars"}
    settings = {"labels": ("rating",), "context": ("device",), "columns": columns} | files
    return PrepareConfig(
        source="files",
        data_dir=str(folder),
        files=FilesConfig(interactions="log.csv", **settings),
        missing_labels="keep",
        positives="rating >= 2",
        labels={"liked": "rating > 3"},
    )


@pytest.mark.parametrize(
    "files",
    [
        {"labels": (), "context": ()},
        {},
        {"users": "users.csv"},
        {"items": "items.csv", "title": "name"},
        {"users": "users.csv", "items": "items.csv", "title": "name", "test": "test.csv"},
    ],
    ids=["keys alone", "label and context", "users", "items", "everything, and a given test part"],
)
def test_files_give_the_same_from_raw_tables(tables: Path, tmp_path: Path, files: dict[str, Any]) -> None:
    config = files_config(tables, **files)
    if not files.get("labels", True):
        config = replace(config, positives="true", labels={})
    prepared = assert_equal_from_raw(config, tmp_path / "out", gone=replace(config, data_dir=str(tmp_path / "gone")))
    table = pq.read_table(prepared / INTERACTIONS)
    assert ("given_part" in table.column_names) == ("test" in files)
    assert table.num_rows == (4 if "test" in files else 3)


def test_items_named_by_another_column_give_the_same_from_raw_tables(tables: Path, tmp_path: Path) -> None:
    (tables / "items.csv").write_text("what,name\n1,Pear\n2,Pear\n", encoding="utf-8")
    config = replace(files_config(tables, items="items.csv", title="name"), item_key="name")
    prepared = assert_equal_from_raw(config, tmp_path / "out", gone=replace(config, data_dir=str(tmp_path / "gone")))
    assert set(pq.read_table(prepared / INTERACTIONS)["item_id"].to_pylist()) == {"Pear"}


def test_a_simulated_world_gives_the_same_from_raw_tables_and_keeps_its_truth(tmp_path: Path) -> None:
    world = SimulatedConfig(users=60, items=40, interactions=600, clusters=4)
    config = PrepareConfig(simulated=world, positives="rating >= 3")
    prepared = assert_equal_from_raw(config, tmp_path, gone=config)
    assert (prepared / "world.npz").read_bytes() == (tmp_path / "raw" / "world.npz").read_bytes()


def test_movielens_gives_the_same_from_raw_tables(data_dir: Path, tmp_path: Path) -> None:
    config = PrepareConfig(source="movielens-100k", data_dir=str(data_dir), positives="rating >= 4")
    prepared = assert_equal_from_raw(config, tmp_path, gone=replace(config, data_dir=str(tmp_path / "gone")))
    assert read_manifest(prepared, kind="prepared")["metadata"]["counts"]["interactions"] == 100_000


def test_a_profile_of_raw_tables_is_that_of_the_source(tables: Path, tmp_path: Path) -> None:
    config = files_config(tables, users="users.csv", items="items.csv")
    raw = raw_of(config, tmp_path / "raw")
    assert profile(config, raw_from=raw) == profile(config)


def test_faults_that_the_source_has_are_told_from_the_raw_tables_too(tables: Path, tmp_path: Path) -> None:
    (tables / "log.csv").write_text(LOG.replace("2024-01-02", "soon"), encoding="utf-8")
    config = files_config(tables)
    raw = raw_of(config, tmp_path / "raw")
    with pytest.raises(DataError) as from_source:
        prepared_of(config, tmp_path / "p")
    with pytest.raises(DataError) as from_raw:
        prepared_of(config, tmp_path / "p", raw=raw)
    assert str(from_raw.value) == str(from_source.value)
    assert "timestamp of row 2 is 'soon'" in str(from_raw.value)


def test_a_damaged_raw_table_is_refused_by_name(tables: Path, tmp_path: Path) -> None:
    config = files_config(tables)
    raw = raw_of(config, tmp_path / "raw")
    content = (raw / INTERACTIONS).read_bytes()
    (raw / INTERACTIONS).write_bytes(content[:-1] + b"?")
    with pytest.raises(ArtifactError, match=r"interactions\.parquet: damaged"):
        prepared_of(config, tmp_path / "p", raw=raw)
    assert not (tmp_path / "p").exists()


def test_a_fault_is_told_by_its_own_file_also_from_raw_tables(tables: Path) -> None:
    (tables / "test.csv").write_text(TEST_LOG.replace("2024-02-01", "soon"), encoding="utf-8")
    config = files_config(tables, test="test.csv")
    with pytest.raises(DataError, match=r"^test.csv: timestamp of row 1 is 'soon'"):
        prepared_of(config, tables / "prepared", raw=raw_of(config, tables / "raw"))
