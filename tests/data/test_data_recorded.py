"""The next training reads what a server recorded, beside the log and the items table that there were before."""

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from twotower.data.config import PrepareConfig
from twotower.data.database import open_database
from twotower.data.prepare import read_source
from twotower.data.profile import profile
from twotower.data.sources.files import FilesConfig
from twotower.data.tables import INTERACTIONS, ITEMS
from twotower.errors import DataError, RecipeError
from twotower.serving.store.contract import EARLIEST_US, Event, ItemChange, Store, open_store
from twotower.serving.store.event_tables import write_interactions, write_items

Into = Callable[..., Path]

NOON = 1_700_000_000_250_000
"""2023-11-14 22:13:20.25, in microseconds since 1970."""
MOMENT = datetime(2023, 11, 14, 22, 13, 20, 250_000)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "events.sqlite"))


def event(number: int, **changed: Any) -> Event:
    made = Event(event_id=f"e{number}", kind="interaction", user_id="7", item_id="i", timestamp=NOON + number)
    return replace(made, **changed)


def read(prepared: Path, *names: str) -> list[tuple[Any, ...]]:
    table = pq.read_table(prepared / INTERACTIONS)
    return list(zip(*(table[name].to_pylist() for name in names), strict=True))


def written(log: str, kind: str, folder: Path) -> str:
    """A log of one interaction, whose timestamp is written as `log` says; gives the file's name."""
    if kind == "csv":
        (folder / "log.csv").write_text(f"user_id,item_id,timestamp,rating,device\n42,1,{log},2,tv\n")
        return "log.csv"
    value: Any = datetime.fromisoformat(log) if "-" in log else int(log)
    columns = {"user_id": [42.0], "item_id": [1], "timestamp": [value], "rating": [2], "device": ["tv"]}
    pq.write_table(pa.table(columns), folder / "log.parquet")
    return "log.parquet"


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("log", ["1600000000", "1600000000000", "1600000000000000", "2020-09-13T12:26:40"])
def test_events_join_a_log_whose_moments_are_written_in_any_way(
    log: str, kind: str, store: Store, tmp_path: Path, prepare_into: Into
) -> None:
    store.add_events([event(0, user_id="42", item_id="new", labels={"rating": 4.5}, context={"device": "phone"})])
    store.add_events([event(1, labels={"rating": 1}), event(2, kind="impression")])
    write_interactions(store, tmp_path / "events.parquet", since=EARLIEST_US)
    files = FilesConfig(
        interactions=written(log, kind, tmp_path),
        new_interactions="events.parquet",
        labels=("rating",),
        context=("device",),
    )
    config = PrepareConfig(source="files", data_dir=str(tmp_path), files=files, positives="rating >= 2")
    prepared = prepare_into(tmp_path / "p", config)
    assert read(prepared, "user_id", "item_id", "timestamp", "rating", "device", "positive") == [
        ("42", "1", datetime(2020, 9, 13, 12, 26, 40), 2.0, "tv", True),
        ("42", "new", MOMENT, 4.5, "phone", True),
        ("7", "i", MOMENT.replace(microsecond=250_001), 1.0, None, False),
    ]


def test_events_alone_are_a_log(store: Store, tmp_path: Path, prepare_into: Into) -> None:
    store.add_events([event(0), event(1, user_id="8")])
    write_interactions(store, tmp_path / "events.parquet", since=EARLIEST_US)
    files = FilesConfig(interactions="events.parquet")
    prepared = prepare_into(tmp_path / "p", PrepareConfig(source="files", data_dir=str(tmp_path), files=files))
    assert read(prepared, "user_id", "timestamp") == [("7", MOMENT), ("8", MOMENT.replace(microsecond=250_001))]


def test_exports_that_overlap_count_once_and_may_have_other_columns(
    store: Store, tmp_path: Path, prepare_into: Into
) -> None:
    (tmp_path / "events").mkdir()
    store.add_events([event(0)])
    write_interactions(store, tmp_path / "events" / "1.parquet", since=EARLIEST_US)
    store.add_events([event(1, labels={"rating": 3}), event(2)])
    write_interactions(store, tmp_path / "events" / "2.parquet", since=EARLIEST_US)
    write_interactions(store, tmp_path / "events" / "3.parquet", since=NOON + 2)
    files = FilesConfig(
        interactions=written("1600000000", "csv", tmp_path), new_interactions="events/*.parquet", labels=("rating",)
    )
    config = PrepareConfig(source="files", data_dir=str(tmp_path), files=files, missing_labels="keep")
    prepared = prepare_into(tmp_path / "p", config)
    assert read(prepared, "user_id", "rating") == [("42", 2.0), ("7", None), ("7", 3.0), ("7", None)]


def test_a_fault_in_one_of_several_files_is_told_by_its_own_name_and_row(
    store: Store, tmp_path: Path, prepare_into: Into
) -> None:
    store.add_events([event(0, labels={"rating": 3}), event(1), event(2)])
    write_interactions(store, tmp_path / "events.parquet", since=EARLIEST_US)
    files = FilesConfig(
        interactions=written("1600000000", "csv", tmp_path), new_interactions="events.parquet", labels=("rating",)
    )
    config = PrepareConfig(source="files", data_dir=str(tmp_path), files=files)
    # The log's one row has a rating; of the three events the second is the first that has none.
    said = r"^events.parquet: 2 interactions have no rating, or NaN \(first in row 2\)"
    with pytest.raises(DataError, match=said):
        prepare_into(tmp_path / "p", config)
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp,rating\n42,1,1600000000,\n")
    faults = profile(config).faults
    assert re.match(r"log.csv: 1 interactions have no rating, or NaN \(first in row 1\)", faults[0])
    assert re.match(said, faults[1])
    with open_database() as database:
        raw = read_source(database, config, seed=1, out=tmp_path)
    assert [raw.place(row) for row in (1, 2, 4)] == [("log.csv", 1), ("events.parquet", 1), ("events.parquet", 3)]


def test_an_empty_export_adds_nothing(store: Store, tmp_path: Path, prepare_into: Into) -> None:
    write_interactions(store, tmp_path / "events.parquet", since=EARLIEST_US)
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp,rating\n1,a,1600000000,3\n2,b,1600000001,4\n")
    files = FilesConfig(interactions="log.csv", new_interactions="events.parquet", labels=("rating",))
    prepared = prepare_into(tmp_path / "p", PrepareConfig(source="files", data_dir=str(tmp_path), files=files))
    assert read(prepared, "user_id", "rating") == [("1", 3.0), ("2", 4.0)]


def test_events_are_trained_on_where_the_files_name_their_parts(
    store: Store, tmp_path: Path, prepare_into: Into
) -> None:
    store.add_events([event(0)])
    write_interactions(store, tmp_path / "events.parquet", since=EARLIEST_US)
    for number, name in enumerate(("train", "test")):
        (tmp_path / f"{name}.csv").write_text(f"user_id,item_id,timestamp\n{number},a,1600000000\n")
    files = FilesConfig(interactions="train.csv", test="test.csv", new_interactions="events.parquet")
    prepared = prepare_into(tmp_path / "p", PrepareConfig(source="files", data_dir=str(tmp_path), files=files))
    assert read(prepared, "user_id", "given_part") == [("0", 0), ("1", 2), ("7", 0)]


ITEM_ROWS = "item_id,title,year,genres,added\n1,One,1990,Comedy|Drama,2001-02-03\n2,Two,1991,Drama,2001-02-04\n"


def test_items_put_take_the_place_of_those_with_their_id_and_follow_the_others(
    store: Store, tmp_path: Path, prepare_into: Into
) -> None:
    (tmp_path / "items.csv").write_text(ITEM_ROWS)
    store.write_items(
        [
            ItemChange(item_id="1", features={"title": "Uno", "year": 1990.5, "genres": ["Comedy", "Noir"]}),
            ItemChange(item_id="3", features={"title": "Three", "added": "2024-05-06", "genres": "Noir"}),
            ItemChange(item_id="3", features=None),
        ]
    )
    assert write_items(store, tmp_path / "new-items.parquet")[1] == 3
    files = FilesConfig(
        interactions="SELECT range AS user_id, range + 1 AS item_id, 1e9 AS timestamp FROM range(3)",
        items="items.csv",
        new_items="new-items.parquet",
    )
    prepared = prepare_into(tmp_path / "p", PrepareConfig(source="files", data_dir=str(tmp_path), files=files))
    assert pq.read_table(prepared / ITEMS).to_pylist() == [
        {"item_id": "2", "title": "Two", "year": 1991.0, "genres": "Drama", "added": datetime(2001, 2, 4)},
        {"item_id": "1", "title": "Uno", "year": 1990.5, "genres": "Comedy|Noir", "added": None},
        {"item_id": "3", "title": "Three", "year": None, "genres": "Noir", "added": datetime(2024, 5, 6)},
    ]


def test_lists_stay_lists_where_the_items_table_has_them(store: Store, tmp_path: Path, prepare_into: Into) -> None:
    pq.write_table(pa.table({"item_id": ["1"], "genres": [["Comedy"]]}), tmp_path / "items.parquet")
    store.write_items(
        [
            ItemChange(item_id="2", features={"genres": ["Noir", "War"]}),
            ItemChange(item_id="3", features={"genres": "War"}),
        ]
    )
    write_items(store, tmp_path / "new-items.parquet")
    files = FilesConfig(
        interactions="SELECT range AS user_id, range + 1 AS item_id, 1e9 AS timestamp FROM range(3)",
        items="items.parquet",
        new_items="new-items.parquet",
    )
    prepared = prepare_into(tmp_path / "p", PrepareConfig(source="files", data_dir=str(tmp_path), files=files))
    assert pq.read_table(prepared / ITEMS)["genres"].to_pylist() == [["Comedy"], ["Noir", "War"], ["War"]]


def test_what_is_no_export_or_does_not_fit_is_told(store: Store, tmp_path: Path, prepare_into: Into) -> None:
    def prepared_with(**named: str) -> None:
        (tmp_path / "items.csv").write_text(ITEM_ROWS)
        files = replace(FilesConfig(interactions="log.csv", labels=("rating",)), **named)
        prepare_into(tmp_path / "p", PrepareConfig(source="files", data_dir=str(tmp_path), files=files))

    written("1600000000", "csv", tmp_path)
    with pytest.raises(DataError, match=r"log.csv: its timestamps are VARCHAR, no moments. Write it by"):
        prepared_with(new_interactions="log.csv")
    pq.write_table(
        pa.table({"user_id": ["1"], "item_id": ["2"], "timestamp": [datetime.now(UTC)], "rating": ["good"]}),
        tmp_path / "events.parquet",
    )
    with pytest.raises(DataError, match=r"events.parquet: its column 'rating' is VARCHAR, no numbers"):
        prepared_with(new_interactions="events.parquet")
    store.write_items([ItemChange(item_id="2", features={"year": "soon"})])
    write_items(store, tmp_path / "new-items.parquet")
    with pytest.raises(DataError, match=r"new-items.parquet: .*'soon'.*Put it as the items table has it"):
        prepared_with(items="items.csv", new_items="new-items.parquet")
    with pytest.raises(RecipeError, match=r"new_items: there is no prepare.files.items beside it"):
        prepared_with(new_items="new-items.parquet")
