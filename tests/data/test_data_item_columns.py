"""The items table as filters and rules read it."""

from datetime import date, datetime, timedelta, timezone
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from twotower.data import item_columns
from twotower.data.fitted_features import FittedFeatures, fit_features
from twotower.data.item_columns import readable_items
from twotower.data.schema import IdFeature, MultiCategoryFeature
from twotower.data.split import SplitDataset

ITEMS = pa.table(
    {
        "item_id": ["a", "b", "c", "d"],
        "title": ["One", "Two", None, "One"],
        "genres": ["Comedy| Drama", "", None, "|Drama||War "],
        "tags": [["x", None], [], None, ["x", "y"]],
        "price": [Decimal("19.99"), Decimal("0.07"), None, Decimal("1234567.89")],
        "day": [date(1970, 1, 2), None, date(1969, 12, 31), date(2026, 11, 30)],
        "year": [1999, 2000, None, 2001],
    }
)


@pytest.fixture(scope="module")
def features() -> FittedFeatures:
    dataset = SplitDataset(
        user_ids=np.array(["u"], object),
        item_ids=np.array(["a", "b", "c", "d"], object),
        users=pa.table({"user_id": ["u"]}),
        items=ITEMS,
        user=np.zeros(4, np.int32),
        item=np.arange(4, dtype=np.int32),
        timestamp=np.arange(4, dtype=np.int64),
        positive=np.ones(4, bool),
        part=np.zeros(4, np.int8),
        labels={},
        context=pa.table({"device": ["tv"] * 4}),
        metadata={},
    )
    read = (IdFeature(kind="id", column="item_id"), MultiCategoryFeature(kind="multi_category", column="genres"))
    return fit_features((IdFeature(kind="id", column="user_id"),), read, dataset=dataset)


def in_pieces(table: pa.Table) -> pa.Table:
    return pa.concat_tables([table.slice(0, 1), table.slice(1, 2), table.slice(3)])


@pytest.mark.parametrize("items", [ITEMS, in_pieces(ITEMS)], ids=["whole", "in pieces"])
def test_a_string_of_several_values_is_the_list_that_the_model_reads(items: pa.Table, features: FittedFeatures) -> None:
    found = readable_items(items, features)
    assert found["genres"].to_pylist() == [["Comedy", "Drama"], [], None, ["Drama", "War"]]
    assert found["tags"].to_pylist() == [["x", None], [], None, ["x", "y"]]
    assert found.column_names == items.column_names


def test_decimals_are_the_nearest_floats(features: FittedFeatures) -> None:
    assert readable_items(ITEMS, features)["price"].to_pylist() == [19.99, 0.07, None, 1234567.89]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "Europe/Rome"])
def test_moments_of_any_unit_and_zone_are_microseconds_in_utc(
    unit: str, zone: str | None, features: FittedFeatures
) -> None:
    east = timezone(timedelta(hours=2))
    moment = datetime(2026, 7, 1, 12, tzinfo=east) if zone else datetime(2026, 7, 1, 10)
    items = pa.table({"item_id": ["a"], "released": pa.array([moment], pa.timestamp(unit, zone))})
    found = readable_items(items, features)["released"]
    assert found.type == pa.timestamp("us")
    assert found.to_pylist() == [datetime(2026, 7, 1, 10)]


def test_a_day_is_its_first_moment(features: FittedFeatures) -> None:
    found = readable_items(ITEMS, features)["day"].to_pylist()
    assert found == [datetime(1970, 1, 2), None, datetime(1969, 12, 31), datetime(2026, 11, 30)]


def test_texts_that_come_again_are_held_as_codes_and_others_are_not_copied(
    features: FittedFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = readable_items(ITEMS, features)
    assert pa.types.is_dictionary(found["title"].type)
    assert pa.types.is_dictionary(found["genres"].type.value_type)
    assert found["title"].to_pylist() == ITEMS["title"].to_pylist()
    assert found["item_id"] is not None
    assert found["item_id"].type == pa.string()
    assert found["year"].chunk(0).buffers()[1].address == ITEMS["year"].chunk(0).buffers()[1].address

    monkeypatch.setattr(item_columns, "CODED", 1)
    many = readable_items(ITEMS, features)
    assert many["title"].type == pa.string()
    assert many["genres"].type == pa.list_(pa.string())


def test_a_dictionary_of_numbers_becomes_numbers(features: FittedFeatures) -> None:
    items = pa.table({"item_id": ["a", "b", "c"], "year": pa.array([1999, None, 1999]).dictionary_encode()})
    assert readable_items(items, features)["year"].combine_chunks().equals(pa.array([1999, None, 1999]))


def test_no_items_are_read_as_no_items(features: FittedFeatures) -> None:
    found = readable_items(ITEMS.slice(0, 0), features)
    assert found.num_rows == 0
    assert found.schema.field("genres").type.value_type.value_type == pa.string()
