"""Preparation on tables small enough to work out by hand."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twotower.artifact import fingerprint, read_manifest
from twotower.data.database import open_database
from twotower.data.prepare import PrepareConfig, keep_core
from twotower.data.sources.files import FilesConfig
from twotower.data.tables import INTERACTIONS, ITEMS, USERS
from twotower.errors import DataError, RecipeError

Into = Callable[..., Path]

# Ann meets a twice, Bob and Ann b at one instant (Bob first in the file), Cid only c.
LOG = """user_id,item_id,timestamp,rating,device
ann,a,10,5,phone
bob,b,20,3,tv
ann,b,20,4,phone
ann,a,30,1,tv
cid,c,5,2,tv
"""
ITEMS_TABLE = "item_id,title,genres\nz,Never met,Drama\nb,Second,Drama|War\na,First,\n"


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    (tmp_path / "log.csv").write_text(LOG)
    (tmp_path / "items.csv").write_text(ITEMS_TABLE)
    return tmp_path


def config_for(folder: Path, *, items: str = "", **settings: Any) -> PrepareConfig:
    files = FilesConfig(interactions="log.csv", items=items, labels=("rating",), context=("device",))
    return PrepareConfig(source="files", data_dir=str(folder), files=files, **settings)


def rows(prepared: Path, *names: str) -> list[tuple[Any, ...]]:
    table = pq.read_table(prepared / INTERACTIONS)
    return list(zip(*(table[name].to_pylist() for name in names), strict=True))


def test_interactions_are_in_order_of_time_and_ties_keep_the_order_of_the_file(
    tables: Path, prepare_into: Into
) -> None:
    prepared = prepare_into(tables / "p", config_for(tables))
    assert rows(prepared, "user_id", "item_id", "rating", "device") == [
        ("cid", "c", 2.0, "tv"),
        ("ann", "a", 5.0, "phone"),
        ("bob", "b", 3.0, "tv"),
        ("ann", "b", 4.0, "phone"),
        ("ann", "a", 1.0, "tv"),
    ]
    assert pq.read_schema(prepared / INTERACTIONS).names == [
        "user_id",
        "item_id",
        "timestamp",
        "rating",
        "device",
        "positive",
    ]
    metadata = read_manifest(prepared, kind="prepared")["metadata"]
    assert (metadata["label_columns"], metadata["context_columns"]) == (["rating"], ["device"])
    assert metadata["counts"] == {"interactions": 5, "users": 3, "items": 3, "positives": 5, "dropped": {}}


def test_without_an_items_table_the_items_met_are_the_catalogue(tables: Path, prepare_into: Into) -> None:
    prepared = prepare_into(tables / "p", config_for(tables))
    assert pq.read_table(prepared / ITEMS).to_pydict() == {"item_id": ["a", "b", "c"]}
    assert pq.read_table(prepared / USERS).to_pydict() == {"user_id": ["ann", "bob", "cid"]}


def test_items_that_the_table_does_not_know_are_refused_dropped_or_kept(tables: Path, prepare_into: Into) -> None:
    with pytest.raises(DataError, match=r"1 item ids are not in the items table \(first: c\)"):
        prepare_into(tables / "p", config_for(tables, items="items.csv"))
    dropped = prepare_into(tables / "dropped", config_for(tables, items="items.csv", unknown_items="drop"))
    assert Counter(rows(dropped, "item_id")) == {("a",): 2, ("b",): 2}
    assert pq.read_table(dropped / ITEMS)["item_id"].to_pylist() == ["z", "b", "a"]
    kept = prepare_into(tables / "kept", config_for(tables, items="items.csv", unknown_items="keep"))
    assert len(rows(kept, "item_id")) == 5
    assert pq.read_table(kept / ITEMS).to_pylist()[2:] == [
        {"item_id": "a", "title": "First", "genres": None},
        {"item_id": "c", "title": None, "genres": None},
    ]
    assert read_manifest(kept, kind="prepared")["metadata"]["title_column"] == "title"


def test_an_item_met_again_is_kept_or_counts_once(tables: Path, prepare_into: Into) -> None:
    first = prepare_into(tables / "first", config_for(tables, duplicates="keep_first"))
    last = prepare_into(tables / "last", config_for(tables, duplicates="keep_last"))
    assert [row for row in rows(first, "user_id", "item_id", "rating") if row[:2] == ("ann", "a")] == [("ann", "a", 5)]
    assert [row for row in rows(last, "user_id", "item_id", "rating") if row[:2] == ("ann", "a")] == [("ann", "a", 1)]
    with pytest.raises(DataError, match=r"1 pairs of user and item stand in more than one row \(one .* in row 4\)"):
        prepare_into(tables / "error", config_for(tables, duplicates="error"))


def test_the_recipe_says_what_is_positive_and_adds_labels(tables: Path, prepare_into: Into) -> None:
    config = config_for(
        tables, positives="rating >= 4", labels={"liked": "rating > 2"}, filter="device = 'phone' or rating < 4"
    )
    prepared = prepare_into(tables / "p", config)
    assert rows(prepared, "rating", "liked", "positive") == [
        (2.0, 0.0, False),
        (5.0, 1.0, True),
        (3.0, 1.0, False),
        (4.0, 1.0, True),
        (1.0, 0.0, False),
    ]
    assert read_manifest(prepared, kind="prepared")["metadata"]["label_columns"] == ["rating", "liked"]


def test_an_interaction_without_the_label_is_not_positive(tables: Path, prepare_into: Into) -> None:
    (tables / "log.csv").write_text(LOG.replace("5,phone", ",phone"))
    prepared = prepare_into(tables / "p", config_for(tables, positives="rating >= 1", missing_labels="keep"))
    assert [row for row in rows(prepared, "rating", "positive") if not row[1]] == [(None, False)]


def test_an_expression_that_cannot_be_computed_names_the_columns(tables: Path, prepare_into: Into) -> None:
    with pytest.raises(
        DataError, match=r"prepare.positives = 'stars > 3': .*stars.* over user_id, item_id, timestamp"
    ) as fault:
        prepare_into(tables / "p", config_for(tables, positives="stars > 3"))
    assert "\n" not in str(fault.value)
    with pytest.raises(RecipeError, match="'device' is a column"):
        prepare_into(tables / "p", config_for(tables, labels={"device": "1"}))


def test_minimum_counts_hold_for_users_and_items_at_once(tables: Path, prepare_into: Into) -> None:
    # c and Cid go at once; Bob has one interaction; without him b has one left, and goes; Ann keeps a twice.
    prepared = prepare_into(tables / "p", config_for(tables, min_user_interactions=2, min_item_interactions=2))
    assert rows(prepared, "user_id", "item_id") == [("ann", "a"), ("ann", "a")]
    assert pq.read_table(prepared / ITEMS).to_pydict() == {"item_id": ["a"]}


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=40),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_the_core_is_what_dropping_one_at_a_time_leaves(log: list[tuple[int, int]], users: int, items: int) -> None:
    left = list(log)
    while weak := [
        pair
        for pair in left
        if sum(other[0] == pair[0] for other in left) < users or sum(other[1] == pair[1] for other in left) < items
    ]:
        left = [pair for pair in left if pair != weak[0]]
    values = ", ".join(f"({user}, {item})" for user, item in log)
    with open_database() as database:
        table = database.create("log", f"SELECT * FROM (VALUES {values}) AS log(user_id, item_id)")
        assert Counter(database.rows(keep_core(database, table, users=users, items=items))) == Counter(left)


def test_the_same_input_gives_the_same_bytes(tables: Path, prepare_into: Into) -> None:
    config = config_for(tables, items="items.csv", unknown_items="keep")
    first, second = prepare_into(tables / "1", config), prepare_into(tables / "2", config)
    assert fingerprint(first) == fingerprint(second)


def test_a_failed_preparation_leaves_no_directory(tables: Path, prepare_into: Into) -> None:
    with pytest.raises(DataError, match="drops all of the 5 interactions"):
        prepare_into(tables / "p", config_for(tables, filter="rating > 9"))
    assert not (tables / "p").exists()


def test_columns_of_any_name_survive(tmp_path: Path, prepare_into: Into) -> None:
    log = "SELECT range % 2 AS user_id, 'i' || range % 2 AS item_id, range AS timestamp, range AS place, 'x' AS name"
    items = "SELECT 'i' || range AS item_id, 'T' || range AS title, 'p' AS place, 1 AS first_met FROM range(3);"
    files = FilesConfig(interactions=f"{log} FROM range(6)", items=items, context=("place", "name"))
    for key in ("item_id", "title"):
        config = PrepareConfig(source="files", files=files, duplicates="keep_first", item_key=key)
        prepared = prepare_into(tmp_path / key, config)
        assert rows(prepared, "user_id", "place", "name") == [("0", 0, "x"), ("1", 1, "x")]
        assert pq.read_table(prepared / ITEMS).column_names == ["item_id", "title", "place", "first_met"]
    assert rows(prepared, "item_id") == [("T0",), ("T1",)]
