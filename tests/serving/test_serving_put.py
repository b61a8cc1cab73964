"""Items put since the bundle was made: whatever was written, the catalogue takes it and the server starts."""

import sqlite3
import time
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twotower.data.fitted_features import fit_features
from twotower.data.schema import EmbeddingFeature, IdFeature
from twotower.errors import RequestError
from twotower.serving.answers.catalogue import MAX_PUT
from twotower.serving.answers.put import checked_items
from twotower.serving.answers.stages import RANKED_AT_ONCE
from twotower.serving.api.deploying import KEEP_UP_S
from twotower.serving.recommender import Recommender
from twotower.serving.store.contract import ItemChange, open_store

ITEMS, CANDIDATES = 40, 12
"""As in `conftest.py`."""
COLUMNS: dict[str, pa.DataType] = {
    "year": pa.int64(),
    "price": pa.float32(),
    "adult": pa.bool_(),
    "released": pa.timestamp("s"),
    "genres": pa.list_(pa.string()),
    "vector": pa.list_(pa.float32()),
}


@pytest.fixture(scope="module")
def typed(world: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose items have a column of every kind."""
    items = world.dataset.items
    for name, kind in COLUMNS.items():
        items = items.append_column(pa.field(name, kind), pa.nulls(ITEMS, kind))
    with_columns = replace(world, dataset=replace(world.dataset, items=items))
    return with_columns.write(tmp_path_factory.mktemp("typed") / "bundle")


@pytest.fixture
def fresh(typed: Path) -> Recommender:
    """Nothing was put yet."""
    return Recommender.load(typed)


def column(recommender: Recommender, name: str) -> list[Any]:
    values: list[Any] = recommender.catalogue.put.table[name].to_pylist()
    return values


VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
LIKELY = st.sampled_from(["2001-02-03", "9999-12-31T23:59:59", "1", "-5", 2000, 2000.5, 1e300, ["a", 1], [0.5], []])
FEATURES = st.dictionaries(st.sampled_from(["title", *COLUMNS]), VALUES | LIKELY | st.lists(VALUES, max_size=3))


@given(st.lists(FEATURES, min_size=1, max_size=6))
@settings(max_examples=40)
def test_whatever_was_written_is_taken_and_reads_as_if_it_stood_alone(typed: Path, told: list[dict[str, Any]]) -> None:
    together = Recommender.load(typed, verify=False)
    together.write_items({f"new{place}": features for place, features in enumerate(told)})
    for place, features in enumerate(told):
        alone = Recommender.load(typed, verify=False)
        alone.write_items({f"new{place}": features})
        for name in ("title", *COLUMNS):
            assert column(together, name)[place] == column(alone, name)[0]
    assert len(together.recommend(k=100, filter="not year == 7").items) >= ITEMS


def test_a_moment_after_the_year_9999_counts_as_missing_and_is_refused(fresh: Recommender) -> None:
    last = {"m1": {"released": 253_402_300_799_000}}
    first_after = {"m2": {"released": 253_402_300_800_000}}
    fresh.write_items(last | first_after)
    assert column(fresh, "released") == [datetime(9999, 12, 31, 23, 59, 59), None]
    checked_items(fresh.bundle, last)
    with pytest.raises(
        RequestError, match=r"item 'm2': column 'released' holds timestamp\[ms\], 2534023008\d* does not"
    ):
        checked_items(fresh.bundle, first_after)


def test_texts_and_numbers_side_by_side_each_fit_as_they_do_alone(fresh: Recommender) -> None:
    items = {"m1": {"title": "abc"}, "m2": {"title": 5}, "m3": {"title": "x", "released": "2001-02-03"}, "m4": {}}
    checked_items(fresh.bundle, items)
    fresh.write_items(items)
    assert column(fresh, "title") == ["abc", "5", "x", None]
    assert column(fresh, "released") == [None, None, datetime(2001, 2, 3), None]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("year", 2000.5),
        ("year", True),
        ("title", True),
        ("price", False),
        ("genres", "Drama"),
        ("genres", [True]),
        ("released", "soon"),
        ("released", 1.5),
        ("released", 2**62),
    ],
)
def test_a_value_is_refused_rather_than_cut_spelled_or_taken_apart(fresh: Recommender, name: str, value: Any) -> None:
    with pytest.raises(RequestError, match=f"item 'b': column '{name}' holds .* does not fit"):
        checked_items(fresh.bundle, {"a": {"title": "fine"}, "b": {name: value}})
    fresh.write_items({"a": {"title": "fine"}, "b": {name: value}})  # As from a store that another bundle had written.
    assert column(fresh, name)[1] is None


def test_a_vector_of_another_width_than_the_model_reads_is_refused_and_counts_as_missing(
    world: Any, fresh: Recommender
) -> None:
    vectors = pa.array([[1.0, 0.0], [0.0, 1.0]] * (ITEMS // 2), COLUMNS["vector"])
    dataset = replace(world.dataset, items=world.dataset.items.append_column("vector", vectors))
    candidate = (
        IdFeature(kind="id", column="item_id"),
        EmbeddingFeature(kind="embedding", column="vector", width=2),
    )
    fresh.bundle.model.features = fit_features((), candidate, dataset=dataset)
    items = {"right": {"vector": [3, 4]}, "wrong": {"vector": [1, 2, 3]}}
    with pytest.raises(RequestError, match=r"item 'wrong': column 'vector' .* \[1, 2, 3\] does not fit"):
        checked_items(fresh.bundle, items)
    fresh.write_items(items)
    assert column(fresh, "vector") == [[3, 4], None]
    assert fresh.catalogue.put.is_told.tolist() == [True, False]


def test_a_store_that_holds_more_than_there_is_room_for_still_serves_the_latest(
    bundle_directory: Path, tmp_path: Path, start_server: Any
) -> None:
    path = tmp_path / "serving.db"
    store = open_store(str(path))
    store.write_items([ItemChange(item_id=f"new{place}", features={}) for place in range(MAX_PUT + 1)])
    store.close()

    def held() -> int:
        with closing(sqlite3.connect(path)) as connection:
            count: int = connection.execute("SELECT count(*) FROM items WHERE removed = 0").fetchone()[0]
        return count

    with (
        start_server(bundle_directory, "--store", str(path)) as server,
        httpx.Client(base_url=server.url, timeout=60) as api,
    ):
        ranked = api.post("/v1/rank", json={"history": ["i1"], "items": ["new0", "new1", f"new{MAX_PUT}"]}).json()
        assert {item["item_id"] for item in ranked["items"]} == {"new1", f"new{MAX_PUT}"}
        refused = api.put("/v1/items", json={"items": [{"item_id": "another", "features": {}}]})
        assert (refused.status_code, "are the most" in refused.json()["error"]) == (400, True)
        assert held() == MAX_PUT + 1
        again = api.put("/v1/items", json={"items": [{"item_id": "new7", "features": {"title": "Again"}}]})
        assert (again.status_code, again.json()["items"]) == (200, ITEMS + MAX_PUT)
        removed = api.request("DELETE", "/v1/items", json={"item_ids": ["new8"]})
        assert removed.json()["items"] == ITEMS + MAX_PUT - 1
        assert api.put("/v1/items", json={"items": [{"item_id": "another", "features": {}}]}).status_code == 200


def test_a_store_that_cannot_be_read_for_a_while_is_followed_again(
    bundle_directory: Path, tmp_path: Path, start_server: Any
) -> None:
    path = tmp_path / "serving.db"
    with (
        start_server(bundle_directory, "--store", str(path)) as server,
        httpx.Client(base_url=server.url, timeout=60) as api,
        closing(sqlite3.connect(path)) as other,
    ):
        other.execute("INSERT INTO items (item_id, features, removed) VALUES ('broken', '{no JSON', 0)")
        other.commit()
        time.sleep(3 * KEEP_UP_S)
        other.execute("UPDATE items SET features = '{}'")
        other.commit()
        for _ in range(200):
            found = api.post("/v1/rank", json={"history": ["i1"], "items": ["broken"]})
            if found.status_code == 200:
                break
            time.sleep(0.05)
        assert [item["item_id"] for item in found.json()["items"]] == ["broken"]


def test_a_popular_item_that_is_put_anew_keeps_its_place_and_is_not_called_new(fresh: Recommender) -> None:
    before = [(item.item_id, item.score) for item in fresh.recommend(k=ITEMS).items]
    met = [item.item_id for item in fresh.recommend("u3", k=ITEMS).items]
    fresh.write_items({item_id: {"title": "Again"} for item_id, _ in before[:3]} | {"new": {}})
    after = fresh.recommend(k=ITEMS + 1, explain=True).items
    popularity = dict(before) | {"new": 0.0}
    assert {item.item_id: item.score for item in after} == popularity
    assert [item.score for item in after] == sorted(popularity.values(), reverse=True)
    source = {item.item_id: item.explanation.source for item in after if item.explanation}
    assert source == dict.fromkeys(popularity, "popular") | {"new": "new"}
    explained = fresh.recommend("u3", k=len(met), explain=True).items
    assert {item.explanation.source for item in explained if item.explanation and item.item_id != "new"} == {"index"}


def test_of_an_item_that_says_nothing_none_is_like(fresh: Recommender) -> None:
    fresh.write_items({"blank": {"title": "The model does not read it"}, "i3": {"title": "Known by its id"}})
    assert fresh.similar("blank").items == ()
    assert len(fresh.similar("i3", k=5).items) == 5


def test_a_list_of_the_caller_s_own_is_ranked_without_what_was_removed(fresh: Recommender) -> None:
    fresh.write_items({"i3": None, "i4": None})
    answer = fresh.rank(["i3", "i5"], "u1")
    assert [item.item_id for item in answer.items] == ["i5"]
    assert answer.notes == ("items: not in the catalogue, passed over: 'i3'",)
    with pytest.raises(RequestError, match="none is in the catalogue"):
        fresh.rank(["i3", "i4"], "u1")


def test_a_list_that_the_ranking_head_takes_in_parts_gets_the_scores_of_its_items_alone(fresh: Recommender) -> None:
    fresh.write_items({f"new{place}": {} for place in range(RANKED_AT_ONCE)})
    listed = [*(f"new{place}" for place in range(RANKED_AT_ONCE)), *(f"i{row}" for row in range(ITEMS))]
    answer = fresh.rank(listed, "u3")
    assert len(answer.items) == len(listed)
    scores = {item.item_id: item.score for item in answer.items}
    assert list(scores.values()) == sorted(scores.values(), reverse=True)
    for item in fresh.rank([f"i{row}" for row in range(ITEMS)], "u3").items:
        assert scores[item.item_id] == pytest.approx(item.score, abs=1e-5)


def test_the_first_items_of_a_long_answer_are_explained_by_what_was_met(fresh: Recommender) -> None:
    fresh.write_items({f"new{place}": {} for place in range(30)})
    answer = fresh.recommend(history=["i1", "i2"], k=60, explain=True)
    reasons = [item.explanation.because for item in answer.items if item.explanation]
    assert len(reasons) == 60
    assert any(reasons[:50])
    assert not any(reasons[50:])
    assert answer.notes == ("explain: what was met is told of the first 50 items",)


def test_of_a_long_history_the_latest_are_tried(fresh: Recommender) -> None:
    catalogue = fresh.catalogue
    asking = fresh._asking
    told, _ = asking.met(["i1", "i2", "i3"], catalogue=catalogue, moment=10**9)
    whole, ids = asking.without_each(None, catalogue=catalogue, moment=10**9, most=3, told=told)
    latest, last = asking.without_each(None, catalogue=catalogue, moment=10**9, most=2, told=told)
    assert (ids, last) == (["i1", "i2", "i3"], ["i2", "i3"])
    for name, values in latest.items():
        np.testing.assert_array_equal(values, whole[name][1:])


def test_an_answer_tells_how_many_candidates_retrieval_brought(fresh: Recommender) -> None:
    assert fresh.recommend(history=["i1"], k=5).retrieved == CANDIDATES
    assert fresh.recommend(history=["i1"], k=5, filter='item_id in ["i2", "i3"]').retrieved == 2


def test_what_to_begin_with_are_the_most_popular_items_that_can_come(fresh: Recommender) -> None:
    first, second = fresh.example_items[:2]
    assert fresh.example_items == fresh.search("", most=20)
    fresh.write_items({first[0]: None})
    assert fresh.example_items[0] == second
    assert len(fresh.example_users) == 20
