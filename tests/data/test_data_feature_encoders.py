"""One contract for every kind of feature: known, unknown and missing values; saved and loaded; trained as served."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from twotower.data.fitted_features import FittedFeatures, fit_features
from twotower.data.schema import (
    CandidateFeature,
    CategoryFeature,
    HistoryFeature,
    IdFeature,
    MultiCategoryFeature,
    NumberFeature,
    TextFeature,
    TimestampFeature,
)
from twotower.data.split import TEST, TRAIN, SplitDataset
from twotower.errors import RecipeError

DAY = 86_400_000_000

KINDS: list[tuple[CandidateFeature, object, object]] = [
    (IdFeature(kind="id", column="item_id"), "a", "never met"),
    (CategoryFeature(kind="category", column="studio"), "north", "never met"),
    (MultiCategoryFeature(kind="multi_category", column="genres"), "crime|drama", "opera"),
    (NumberFeature(kind="number", column="year"), 1990.0, 1e12),
    (TextFeature(kind="text", column="title"), "the long river", "zzz"),
    (TimestampFeature(kind="timestamp", column="released"), 5 * DAY, 900 * DAY),
]
"""Feature, a value that training met, one that it did not: a new kind joins by one line."""


def films() -> SplitDataset:
    """Three films, the last of which is met in the test part alone."""
    items = pa.table(
        {
            "item_id": ["a", "b", "c"],
            "studio": ["north", None, "south"],
            "genres": ["crime|drama", "drama", "space"],
            "year": pa.array([1990.0, 2000.0, 5000.0]),
            "title": ["the long river", "river", "the end"],
            "released": pa.array([0, 10 * DAY, 999 * DAY], pa.timestamp("us")),
        }
    )
    return SplitDataset(
        user_ids=np.array(["u", "v"], object),
        item_ids=np.array(["a", "b", "c"], object),
        users=pa.table({"user_id": ["u", "v"], "home": ["x", "y"]}),
        items=items,
        user=np.array([0, 0, 1, 1], np.int32),
        item=np.array([0, 1, 0, 2], np.int32),
        timestamp=np.array([1, 2, 3, 4]) * DAY,
        positive=np.ones(4, bool),
        part=np.array([TRAIN, TRAIN, TRAIN, TEST], np.int8),
        labels={},
        context=pa.table({"device": ["phone", "tv", "phone", "watch"]}),
        metadata={"protocol": "time"},
    )


def fitted(feature: CandidateFeature) -> FittedFeatures:
    return fit_features((), (feature,), dataset=films())


@pytest.mark.parametrize(("feature", "known", "unknown"), KINDS, ids=lambda value: getattr(value, "kind", None))
def test_every_kind_tells_known_unknown_and_missing_apart(
    feature: CandidateFeature, known: object, unknown: object, tmp_path: Path
) -> None:
    features = fitted(feature)
    (encoder,) = features.candidate
    encoded = encoder.encode([known, unknown, None])
    assert len(encoded) == 3
    assert not np.isnan(encoded).any()
    assert not np.array_equal(encoded[0], encoded[1])
    assert not np.array_equal(encoded[0], encoded[2])
    assert np.array_equal(encoder.encode([known]), encoded[:1])
    features.save(tmp_path / "model")
    (again,) = FittedFeatures.load(tmp_path / "model").candidate
    assert np.array_equal(again.encode([known, unknown, None]), encoded)


def test_numbers_are_scaled_by_the_items_of_the_train_part_alone() -> None:
    # Train holds 1990 and 2000: mean 1995, deviation 5. The year 5000 of the test film moves nothing.
    (encoder,) = fitted(NumberFeature(kind="number", column="year")).candidate
    assert encoder.encode([2000.0, None]).tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_vocabularies_number_what_the_train_part_holds_by_frequency() -> None:
    features = fit_features((CategoryFeature(kind="category", column="device"),), (), dataset=films())
    (encoder,) = features.query
    assert encoder.encode(["phone", "tv", "watch", None]).tolist() == [1, 2, 0, 0]


def test_a_request_is_encoded_as_the_data_set_is() -> None:
    query = (
        IdFeature(kind="id", column="user_id"),
        CategoryFeature(kind="category", column="home"),
        CategoryFeature(kind="category", column="device"),
        TimestampFeature(kind="timestamp", column="timestamp"),
    )
    dataset = films()
    features = fit_features(query, (), dataset=dataset)
    whole = features.user_inputs(dataset.users) | {}
    context = features.context_inputs(dataset.context, dataset.timestamp)
    request = features.query_inputs(
        columns={"user_id": ["v"], "home": ["y"], "device": ["phone"]},
        timestamp=dataset.timestamp[2:3],
        history=[([], [])],
    )
    for key, values in whole.items():
        assert np.array_equal(request[key], values[1:2])
    for key, values in context.items():
        assert np.array_equal(request[key], values[2:3])


def test_a_history_needs_item_ids_to_embed_it_by() -> None:
    with pytest.raises(RecipeError, match="history needs the candidate tower's item ids"):
        fit_features((HistoryFeature(kind="history"),), (NumberFeature(kind="number", column="year"),), dataset=films())


def test_a_column_that_does_not_exist_is_named_with_those_that_do() -> None:
    with pytest.raises(RecipeError, match=r"no column 'director' in the items table .*item_id, studio"):
        fitted(CategoryFeature(kind="category", column="director"))


def test_a_feature_declared_twice_is_refused() -> None:
    twice = (NumberFeature(kind="number", column="year"), NumberFeature(kind="number", column="year"))
    with pytest.raises(RecipeError, match="'number year' is declared twice"):
        fit_features((), twice, dataset=films())
