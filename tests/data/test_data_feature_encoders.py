"""One contract for every kind of feature: known, unknown and missing values; saved and loaded; trained as served."""

import json
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from twotower.data.fitted_features import FittedFeatures, fit_features
from twotower.data.schema import (
    CandidateFeature,
    CategoryFeature,
    EmbeddingFeature,
    HistoryFeature,
    IdFeature,
    MultiCategoryFeature,
    NumberFeature,
    SequenceFeature,
    TextFeature,
    TimestampFeature,
)
from twotower.data.split import TEST, TRAIN, SplitDataset
from twotower.data.vocabulary import texts
from twotower.errors import DataError, RecipeError

DAY = 86_400_000_000

KINDS: list[tuple[CandidateFeature, object, object]] = [
    (IdFeature(kind="id", column="item_id"), "a", "never met"),
    (CategoryFeature(kind="category", column="studio"), "north", "never met"),
    (CategoryFeature(kind="category", column="colour"), True, "never met"),
    (CategoryFeature(kind="category", column="year"), 1990.0, 1990.5),
    (CategoryFeature(kind="category", column="shelf"), 7, 8),
    (CategoryFeature(kind="category", column="printed"), date(1990, 5, 1), date(1990, 5, 2)),
    (CategoryFeature(kind="category", column="released"), datetime(1970, 1, 1), datetime(1970, 1, 2)),
    (IdFeature(kind="id", column="shelf"), 7, 8),
    (MultiCategoryFeature(kind="multi_category", column="genres"), "crime|drama", "opera"),
    (MultiCategoryFeature(kind="multi_category", column="colour"), True, "opera"),
    (MultiCategoryFeature(kind="multi_category", column="year"), [1990], [1991]),
    (MultiCategoryFeature(kind="multi_category", column="shelf"), 7, 8),
    (MultiCategoryFeature(kind="multi_category", column="printed"), date(1990, 5, 1), date(1990, 5, 2)),
    (MultiCategoryFeature(kind="multi_category", column="cast"), ["Ada", "Bo"], ["Cy"]),
    (NumberFeature(kind="number", column="year"), 1990.0, 1e12),
    (NumberFeature(kind="number", column="year", bins=2), 1990.0, 1e12),
    (TextFeature(kind="text", column="title"), "the long river", "zzz"),
    (TimestampFeature(kind="timestamp", column="released"), 5 * DAY, 900 * DAY),
    (EmbeddingFeature(kind="embedding", column="blurb", width=2), [3.0, 4.0], [-1.0, 0.5]),
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
            "colour": [True, None, False],
            "shelf": [7, 0, 8],
            "printed": [date(1990, 5, 1), None, date(1990, 5, 2)],
            "cast": [["Ada", "Bo"], None, ["Cy"]],
            "blurb": [[3.0, 4.0], [0.8, -0.6], [1.0, 0.0]],
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


@pytest.mark.parametrize(("feature", "known", "unknown"), KINDS, ids=lambda value: getattr(value, "kind", None))
def test_every_kind_reads_a_column_as_it_reads_its_values_in_a_request(
    feature: CandidateFeature, known: object, unknown: object
) -> None:
    (encoder,) = fitted(feature).candidate
    column = films().items[feature.column]
    encoded = encoder.encode(column)
    assert np.array_equal(encoder.encode(column.to_pylist()), encoded)
    assert not np.array_equal(encoded[0], encoder.encode([None])[0])
    if feature.kind in ("id", "category"):
        assert encoded[0] > 0


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([True, np.bool_(True), pa.array([True]), np.array([True])], "true"),
        ([1, 1.0, np.int64(1), np.float32(1), Decimal("1.00"), pa.array([1.0]), pa.array([1], pa.int8())], "1"),
        ([0, 0.0, -0.0, pa.array([-0.0]), Decimal("0.0")], "0"),
        ([0.1, Decimal("0.10"), np.float32(0.1), pa.array([0.1], pa.float32()), pa.array([Decimal("0.1")])], "0.1"),
        ([10**16, 1e16, pa.array([1e16])], "10000000000000000"),
        ([date(2024, 3, 1), pa.array([date(2024, 3, 1)]), np.datetime64("2024-03-01")], "2024-03-01"),
        (
            [
                datetime(2024, 3, 1, 12),
                datetime(2024, 3, 1, 12, tzinfo=UTC),
                pa.array([datetime(2024, 3, 1, 12)], pa.timestamp("s")),
                pa.array([datetime(2024, 3, 1, 12)], pa.timestamp("ns", "Europe/Berlin")),
            ],
            "2024-03-01T12:00:00",
        ),
        (["a", np.str_("a"), pa.array(["a"]).dictionary_encode(), np.array(["a"], object)], "a"),
        ([None, float("nan"), pa.array([None], pa.int64()), pa.array([float("nan")])], None),
    ],
)
def test_equal_values_have_one_text_wherever_they_come_from(values: list[Any], text: str | None) -> None:
    found = [texts(value if isinstance(value, pa.Array | np.ndarray) else [value]) for value in values]
    assert found == [[text]] * len(values)


def test_whole_numbers_of_a_request_are_those_of_the_column() -> None:
    # JSON writes the year 1990 with or without a point, and tables with gaps store it with one.
    (encoder,) = fitted(CategoryFeature(kind="category", column="year")).candidate
    assert encoder.encode(json.loads("[1990, 1990.0, 2000, 1990.5]")).tolist() == [1, 1, 2, 0]


def test_a_vocabulary_counts_values_of_one_text_together() -> None:
    items = films().items.drop(["year"]).append_column("year", pa.array([0.0, -0.0, 7.0]))
    features = fit_features(
        (), (CategoryFeature(kind="category", column="year"),), dataset=replace(films(), items=items)
    )
    assert features.candidate[0].encode([0, 7]).tolist() == [1, 0]


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_number_that_is_not_finite_counts_as_missing(value: float) -> None:
    # Train holds it and 2000: mean 2000, and no deviation, so 1 in its place.
    items = films().items.drop(["year"]).append_column("year", pa.array([value, 2000.0, 5000.0]))
    features = fit_features((), (NumberFeature(kind="number", column="year"),), dataset=replace(films(), items=items))
    assert features.candidate[0].encode([value, 2001.0]).tolist() == [[0.0, 1.0], [1.0, 0.0]]


def test_equal_numbers_leave_no_deviation_to_divide_by() -> None:
    # The mean of ten times 0.1 is not 0.1 to the last bit.
    items = films().items.drop(["year"]).append_column("year", pa.array([0.1, 0.1, 0.1]))
    ids = np.array([f"film {row}" for row in range(30)], object)
    met = np.arange(4, dtype=np.int32) * 7
    dataset = replace(films(), items=pa.concat_tables([items] * 10), item_ids=ids, item=met)
    features = fit_features((), (NumberFeature(kind="number", column="year"),), dataset=dataset)
    assert features.candidate[0].encode([0.1, 1.1])[:, 0].tolist() == pytest.approx([0.0, 1.0])


@pytest.mark.parametrize(
    ("feature", "told"),
    [
        (NumberFeature(kind="number", column="title"), "'title' holds string, but kind 'number' reads numbers .*river"),
        (NumberFeature(kind="number", column="cast"), "'cast' holds list"),
        (TimestampFeature(kind="timestamp", column="title"), "'title' holds string, but kind 'timestamp' reads timest"),
        (CategoryFeature(kind="category", column="cast"), "'cast' holds list.*kind 'category' reads single values"),
        (TextFeature(kind="text", column="cast"), "'cast' holds list.*kind 'text' reads text"),
        (EmbeddingFeature(kind="embedding", column="year", width=2), "'year' holds double.*reads lists of numbers"),
        (EmbeddingFeature(kind="embedding", column="cast", width=2), "'cast' holds list.*reads lists of numbers"),
    ],
)
def test_a_column_that_does_not_fit_its_kind_is_told_with_what_fits(feature: CandidateFeature, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        fitted(feature)


def test_numbers_are_scaled_by_the_items_of_the_train_part_alone() -> None:
    # Train holds 1990 and 2000: mean 1995, deviation 5. The year 5000 of the test film moves nothing.
    (encoder,) = fitted(NumberFeature(kind="number", column="year")).candidate
    assert encoder.encode([2000.0, None]).tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_bins_fill_up_between_the_quantiles_of_the_train_part() -> None:
    # Train holds 1990 and 2000, so that two bins are 1990 to 1995 and 1995 to 2000.
    (encoder,) = fitted(NumberFeature(kind="number", column="year", bins=2)).candidate
    bins = encoder.encode([1980.0, 1991.0, 1995.0, 1999.0, 5000.0, None])[:, 2:]
    assert bins.tolist() == [
        [0.0, 0.0],
        pytest.approx([0.2, 0.0]),
        [1.0, 0.0],
        pytest.approx([1.0, 0.8]),
        [1.0, 1.0],
        [0.0, 0.0],
    ]


def test_bins_whose_edges_fall_together_stay_empty_and_keep_their_place() -> None:
    items = films().items.drop(["year"]).append_column("year", pa.array([5.0, 5.0, 9.0]))
    feature = NumberFeature(kind="number", column="year", bins=4)
    (encoder,) = fit_features((), (feature,), dataset=replace(films(), items=items)).candidate
    assert encoder.encode([1.0, 5.0, 7.0])[:, 2:].tolist() == [[0.0] * 4] * 3


def test_bins_of_a_column_without_numbers_stay_empty() -> None:
    items = films().items.drop(["year"]).append_column("year", pa.array([None, None, 9.0], pa.float64()))
    feature = NumberFeature(kind="number", column="year", bins=2)
    (encoder,) = fit_features((), (feature,), dataset=replace(films(), items=items)).candidate
    assert encoder.encode([7.0]).tolist() == [[7.0, 0.0, 0.0, 0.0]]


def test_numbers_of_a_model_from_before_bins_are_read(tmp_path: Path) -> None:
    features = fitted(NumberFeature(kind="number", column="year"))
    features.save(tmp_path)
    path = tmp_path / "features.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    del content["candidate"][0]["state"]["edges"]
    path.write_text(json.dumps(content), encoding="utf-8")
    assert FittedFeatures.load(tmp_path).candidate[0].encode([2000.0]).tolist() == [[1.0, 0.0]]


def test_an_embedding_goes_in_by_its_direction_standardised_on_the_train_part() -> None:
    # Directions in train: (.6, .8) and (.8, -.6); mean (.7, .1); what is left: (-.1, .7) and (.1, -.7), so that the
    # deviation is the root of .25 = (.01 + .49 + .01 + .49) / 4. The third film's (1, 0) moves nothing.
    (encoder,) = fitted(EmbeddingFeature(kind="embedding", column="blurb", width=2)).candidate
    assert encoder.encode([[30.0, 40.0], [1, 0], None]).tolist() == [
        pytest.approx([-0.2, 1.4, 0.0], abs=1e-6),
        pytest.approx([0.6, -0.2, 0.0], abs=1e-6),
        [0.0, 0.0, 1.0],
    ]


@pytest.mark.parametrize("vector", [[0.0, 0.0], [float("nan"), 1.0], [1.0, None], [float("inf"), 1.0], None])
def test_a_vector_without_a_direction_counts_as_missing(vector: object) -> None:
    (encoder,) = fitted(EmbeddingFeature(kind="embedding", column="blurb", width=2)).candidate
    assert encoder.encode([vector, [3e38, 3e38]])[:, 2].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("kind", [pa.list_(pa.float64()), pa.large_list(pa.float32()), pa.list_(pa.float16(), 2)])
def test_an_embedding_is_read_from_lists_of_every_type(kind: pa.DataType) -> None:
    (encoder,) = fitted(EmbeddingFeature(kind="embedding", column="blurb", width=2)).candidate
    rows: list[Any] = [[3.0, 4.0], None, [np.float16(1.0), np.float16(0.0)]]
    column = pa.chunked_array([pa.array(rows, pa.list_(pa.float16())).cast(kind) for _ in range(2)])
    expected = encoder.encode([[3.0, 4.0], None, [1.0, 0.0]] * 2)
    assert np.array_equal(encoder.encode(column), expected)
    assert np.array_equal(encoder.encode(column.slice(1, 3)), expected[1:4])


def test_vectors_that_are_all_alike_leave_nothing_to_blow_up() -> None:
    items = films().items.drop(["blurb"]).append_column("blurb", pa.array([[0.1, 0.3], [0.2, 0.6], [5.0, 1.0]]))
    features = fit_features(
        (), (EmbeddingFeature(kind="embedding", column="blurb", width=2),), dataset=replace(films(), items=items)
    )
    assert features.candidate[0].encode([[1.0, 3.0]])[0].tolist() == pytest.approx([0.0, 0.0, 0.0], abs=1e-6)


def test_a_vector_of_another_length_is_told_by_row_even_where_training_does_not_meet_it() -> None:
    # The third film is met in the test part alone.
    items = films().items.drop(["blurb"]).append_column("blurb", pa.array([[1.0, 2.0], None, [1.0, 2.0, 3.0]]))
    feature = EmbeddingFeature(kind="embedding", column="blurb", width=2)
    told = r"column 'blurb', row 3: 3 numbers, but the feature's width is 2 \(1 of 3 rows differ\)"
    with pytest.raises(DataError, match=told):
        fit_features((), (feature,), dataset=replace(films(), items=items))
    (encoder,) = fitted(feature).candidate
    with pytest.raises(DataError, match="row 1: 1 numbers"):
        encoder.encode([[1.0]])


def test_an_embedding_of_the_user_or_of_the_context_feeds_the_query_tower() -> None:
    users = films().users.append_column("taste", pa.array([[1.0, 0.0], [0.0, 1.0]]))
    context = films().context.append_column("mood", pa.array([[1.0], None, [-1.0], [1.0]]))
    dataset = replace(films(), users=users, context=context)
    query = (
        EmbeddingFeature(kind="embedding", column="taste", width=2),
        EmbeddingFeature(kind="embedding", column="mood", width=1),
    )
    features = fit_features(query, (), dataset=dataset)
    assert features.user_inputs(users)["embedding_taste"].shape == (2, 3)
    # Train holds 1, none and -1: mean 0, deviation 1.
    encoded = features.context_inputs(context, dataset.timestamp)["embedding_mood"]
    assert encoded.tolist() == [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [1.0, 0.0]]


@pytest.mark.parametrize(
    "feature",
    [HistoryFeature(kind="history", length=3), SequenceFeature(kind="sequence", length=3)],
    ids=lambda feature: feature.kind,
)
def test_the_history_is_saved_and_loaded_as_the_kind_that_it_is(
    feature: HistoryFeature | SequenceFeature, tmp_path: Path
) -> None:
    features = fit_features((feature,), (IdFeature(kind="id", column="item_id"),), dataset=films())
    features.save(tmp_path / "model")
    again = FittedFeatures.load(tmp_path / "model").history
    assert again is not None
    assert again.config == feature
    history = again.encode([(["a", "b", "a"], [1 * DAY, 2 * DAY, 3 * DAY])], np.array([4 * DAY]))
    # "a" is met twice in train and stands first in the vocabulary; newest first.
    assert history["history_items"].tolist() == [[1, 2, 1]]
    assert history["history_days"].tolist() == [[1.0, 2.0, 3.0]]


def test_a_tower_reads_the_history_in_one_way() -> None:
    both = (HistoryFeature(kind="history"), SequenceFeature(kind="sequence"))
    with pytest.raises(RecipeError, match="'history' and 'sequence' both read the history"):
        fit_features(both, (IdFeature(kind="id", column="item_id"),), dataset=films())


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
