"""Exported events and items: which columns there are, of which types, and that a file appears whole."""

import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from twotower.errors import DataError, RequestError, StorageError
from twotower.serving.store import event_tables
from twotower.serving.store.contract import EARLIEST_US, Event, ItemChange, Store, open_store
from twotower.serving.store.event_tables import write_interactions, write_items

NOON = 1_700_000_000_000_000
MOMENT = datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "events.sqlite"))


def event(number: int, *, kind: Any = "interaction", labels: Any = None, context: Any = None) -> Event:
    return Event(
        event_id=f"e{number}",
        kind=kind,
        user_id="u",
        item_id="i",
        timestamp=NOON + number,
        labels=labels or {},
        context=context or {},
    )


def exported(store: Store, folder: Path, *, since: int = EARLIEST_US) -> pa.Table:
    write_interactions(store, folder / "events.parquet", since=since)
    return pq.read_table(folder / "events.parquet")


def test_each_label_and_each_context_column_becomes_a_column(store: Store, tmp_path: Path) -> None:
    store.add_events([event(1, labels={"rating": 4}, context={"device": "tv", "old": True})])
    store.add_events([event(2, kind="impression", labels={"shown": 1}), event(3, context={"device": None, "page": 3})])
    table = exported(store, tmp_path)
    assert table.to_pylist() == [
        {"event_id": "e1", "user_id": "u", "item_id": "i", "timestamp": MOMENT.replace(microsecond=1)}
        | {"rating": 4.0, "device": "tv", "old": True, "page": None},
        {"event_id": "e3", "user_id": "u", "item_id": "i", "timestamp": MOMENT.replace(microsecond=3)}
        | {"rating": None, "device": None, "old": None, "page": 3},
    ]
    assert [str(table.schema.field(name).type) for name in ("timestamp", "rating", "old", "page")] == [
        "timestamp[us, tz=UTC]",
        "double",
        "bool",
        "int64",
    ]


def test_a_whole_number_that_no_column_holds_is_refused_and_an_old_store_with_one_is_exported(
    store: Store, tmp_path: Path
) -> None:
    for value in (1 << 63, -(1 << 63) - 1, [int("9" * 400)]):
        with pytest.raises(RequestError, match=r"context\.x: a whole number of more than 64 bits"):
            event(1, context={"x": value})
    store.add_events([event(number, context={"x": number}) for number in range(3)])
    with sqlite3.connect(tmp_path / "events.sqlite") as file:
        for number, value in ((1, 1 << 63), (2, int("9" * 400))):
            file.execute("UPDATE events SET context = ? WHERE event_id = ?", (f'{{"x":{value}}}', f"e{number}"))
    file.close()
    assert exported(store, tmp_path)["x"].to_pylist() == [0.0, float(1 << 63), None]


@pytest.mark.parametrize(
    ("values", "kind", "found"),
    [
        ([1, 2.5, None], "double", [1.0, 2.5, None]),
        ([1, True], "double", [1.0, 1.0]),
        ([1, "one", 1.5, False], "string", ["1", "one", "1.5", "false"]),
        ([["a"], "b", [], None], "list<element: string>", [["a"], ["b"], [], None]),
        ([[1, None], [2]], "list<element: int64>", [[1, None], [2]]),
        ([[1], ["a"]], "list<element: string>", [["1"], ["a"]]),
        ([[]], "list<element: string>", [[]]),
    ],
)
def test_a_column_has_the_narrowest_type_that_holds_all_its_values(
    values: list[Any], kind: str, found: list[Any], store: Store, tmp_path: Path
) -> None:
    store.add_events([event(number, context={"x": value}) for number, value in enumerate(values)])
    column = exported(store, tmp_path)["x"]
    assert (str(column.type), column.to_pylist()) == (kind, found)


def test_a_column_that_holds_nothing_is_no_column(store: Store, tmp_path: Path) -> None:
    store.add_events([event(1, context={"x": None})])
    assert exported(store, tmp_path).column_names == ["event_id", "user_id", "item_id", "timestamp"]


def test_of_a_label_and_a_context_column_of_one_name_the_label_stays_and_the_other_is_told(
    store: Store, tmp_path: Path
) -> None:
    store.add_events([event(1, labels={"x": 1}), event(2, context={"x": "one", "y": 2})])
    written = write_interactions(store, tmp_path / "events.parquet", since=EARLIEST_US)
    assert written.left_out == ("x",)
    assert pq.read_table(tmp_path / "events.parquet").select(["x", "y"]).to_pylist() == [
        {"x": 1.0, "y": None},
        {"x": None, "y": 2},
    ]


def test_only_what_came_since_a_moment_is_written(store: Store, tmp_path: Path) -> None:
    store.add_events([event(3), event(1), event(2)])
    assert exported(store, tmp_path, since=NOON + 2)["event_id"].to_pylist() == ["e3", "e2"]
    assert exported(store, tmp_path, since=NOON + 9).num_rows == 0


def test_many_pages_become_one_table(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twotower.serving.store.sqlite.PAGE", 7)
    # The label is first met on a later page.
    store.add_events([event(number, labels={"late": number} if number > 90 else {}) for number in range(100)])
    table = exported(store, tmp_path)
    assert table["event_id"].to_pylist() == [f"e{number}" for number in range(100)]
    assert table["late"].to_pylist() == [float(number) if number > 90 else None for number in range(100)]


def test_items_are_written_with_their_last_features(store: Store, tmp_path: Path) -> None:
    store.write_items(
        [
            ItemChange(item_id="a", features={"year": 1999, "genres": ["x"]}),
            ItemChange(item_id="b", features={"year": 1.5}),
            ItemChange(item_id="c", features=None),
            ItemChange(item_id="a", features=None),
        ]
    )
    written, last = write_items(store, tmp_path / "items.parquet")
    assert (written.rows, last) == (2, store.items_after(0)[-1].sequence)
    assert pq.read_table(tmp_path / "items.parquet").to_pylist() == [
        {"item_id": "b", "genres": None, "year": 1.5},
        {"item_id": "a", "genres": ["x"], "year": 1999.0},
    ]


def test_more_columns_than_a_table_can_have_are_refused_and_the_old_file_stays(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported(store, tmp_path)
    before = (tmp_path / "events.parquet").read_bytes()
    monkeypatch.setattr(event_tables, "MOST_COLUMNS", 3)
    store.add_events([event(number, context={f"key{number}": 1}) for number in range(4)])
    with pytest.raises(DataError, match=r"^context: more than 3 different names \(first: key0, key1, key2\)"):
        write_interactions(store, tmp_path / "events.parquet", since=EARLIEST_US)
    assert (tmp_path / "events.parquet").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir() if ".parquet" in path.name) == ["events.parquet"]


def test_a_folder_that_is_not_there_is_told(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"no/events.parquet: cannot be written \(No such file or directory\)"):
        write_interactions(store, tmp_path / "no" / "events.parquet", since=EARLIEST_US)
