"""The leakage audit: a clean data set passes, and each kind of leak is caught by the check that is there for it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from twotower.data.feature_encoders import NumberEncoder
from twotower.data.fitted_features import FittedFeatures, fit_features
from twotower.data.histories import UserLog
from twotower.data.schema import (
    CategoryFeature,
    EmbeddingFeature,
    HistoryFeature,
    IdFeature,
    MultiCategoryFeature,
    NumberFeature,
    TextFeature,
    TimestampFeature,
)
from twotower.data.split import TEST, TRAIN, SplitDataset, load_split
from twotower.evaluation.audit import Check, Facts, audit, gather_facts

QUERY = (
    IdFeature(kind="id", column="user_id"),
    TimestampFeature(kind="timestamp", column="timestamp"),
    HistoryFeature(kind="history", length=20),
)
CANDIDATE = (
    IdFeature(kind="id", column="item_id"),
    MultiCategoryFeature(kind="multi_category", column="genres"),
    TextFeature(kind="text", column="title"),
    NumberFeature(kind="number", column="year"),
    TimestampFeature(kind="timestamp", column="release_date"),
)


@pytest.fixture(scope="module")
def dataset(tiny_split: Path) -> SplitDataset:
    return load_split(tiny_split)


@pytest.fixture(scope="module")
def features(dataset: SplitDataset) -> FittedFeatures:
    return fit_features(QUERY, CANDIDATE, dataset=dataset)


@pytest.fixture(scope="module")
def facts(dataset: SplitDataset, features: FittedFeatures) -> Facts:
    return gather_facts(dataset, features)


def all_train(dataset: SplitDataset) -> SplitDataset:
    """The same log as if nothing of it were to be judged."""
    return replace(dataset, part=np.zeros(len(dataset.part), np.int8))


def failed(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.detail for check in checks if not check.passed}


def test_a_clean_data_set_passes_every_check(dataset: SplitDataset, features: FittedFeatures, facts: Facts) -> None:
    checks = audit(dataset, features, facts=facts, seed=1)
    assert failed(checks) == {}
    assert [check.name for check in checks] == [
        "split: order of time",
        "split: no row in two parts",
        "vocabularies",
        "statistics of features",
        "sampling probabilities",
        "histories in training",
        "histories of successive queries",
        "histories of static queries",
        "popularity at a moment",
    ]
    assert all(check.detail and "\n" not in check.detail for check in checks)


@pytest.mark.parametrize("protocol", ["last_out", "random", "given"])
def test_other_protocols_are_held_to_what_they_promise(
    protocol: str, dataset: SplitDataset, features: FittedFeatures
) -> None:
    # By time every user's parts are in order too.
    other = replace(dataset, metadata={**dataset.metadata, "protocol": protocol})
    checks = audit(other, features, facts=gather_facts(other, features), seed=1)
    assert failed(checks) == {}
    assert "histories of successive queries" not in [check.name for check in checks]


@pytest.mark.parametrize("protocol", ["time", "last_out"])
def test_a_train_row_that_is_later_than_the_test_part_is_caught(
    protocol: str, dataset: SplitDataset, features: FittedFeatures
) -> None:
    part = dataset.part.copy()
    part[-1] = TRAIN
    torn = replace(dataset, part=part, metadata={**dataset.metadata, "protocol": protocol})
    assert "split: order of time" in failed(audit(torn, features, facts=gather_facts(torn, features), seed=1))


def test_one_event_on_both_sides_of_the_cut_is_caught(
    dataset: SplitDataset, features: FittedFeatures, facts: Facts
) -> None:
    # The first row of the log once more, as the test part's.
    user, item, timestamp = (
        np.concatenate([column[:1], column]) for column in (dataset.user, dataset.item, dataset.timestamp)
    )
    part = np.concatenate([np.array([TEST], np.int8), dataset.part])
    torn = replace(
        dataset, user=user, item=item, timestamp=timestamp, part=part, positive=np.ones(len(part), bool),
        context=pa.table({"place": np.zeros(len(part))}),
    )  # fmt: skip
    told = failed(audit(torn, features, facts=facts, seed=1))["split: no row in two parts"]
    assert told.startswith(
        f"1 rows of one user, item and moment stand in two parts (first: user '{torn.user_ids[user[0]]}'"
    )


def test_a_vocabulary_of_the_whole_log_is_caught(dataset: SplitDataset, facts: Facts) -> None:
    leaky = fit_features(
        (CategoryFeature(kind="category", column="user_id"),), CANDIDATE[:1], dataset=all_train(dataset)
    )
    told = failed(audit(dataset, leaky, facts=facts, seed=1))
    assert list(told) == ["vocabularies"]
    assert "values that the train part does not hold (first: " in told["vocabularies"]


@pytest.mark.parametrize(
    ("query", "candidate", "where"),
    [
        ((), (NumberFeature(kind="number", column="year"),), "candidate: number_year: mean"),
        ((TimestampFeature(kind="timestamp", column="timestamp"),), (), "query: timestamp: last moment"),
        ((), (EmbeddingFeature(kind="embedding", column="vector", width=3),), "candidate: embedding_vector: mean at"),
    ],
)
def test_statistics_of_the_whole_log_are_caught(
    query: tuple[TimestampFeature, ...],
    candidate: tuple[NumberFeature | EmbeddingFeature, ...],
    where: str,
    dataset: SplitDataset,
) -> None:
    # Two items that only the test part meets stand apart from all others.
    part, count = dataset.part.copy(), len(dataset.item_ids)
    part[np.isin(dataset.item, [0, 1])] = TEST
    vectors = np.random.default_rng(1).normal(size=(count, 3)) + 1
    vectors[:2] *= -1
    far = dataset.items.drop(["year"]).append_column("year", pa.array([9e3, 8e3, *np.linspace(1950, 2000, count - 2)]))
    far = far.append_column("vector", pa.array(vectors.tolist()))
    moved = replace(dataset, items=far, part=part)
    clean = fit_features(query, candidate, dataset=moved)
    leaky = fit_features(query, candidate, dataset=all_train(moved))
    name = "statistics of features"
    assert failed(audit(moved, clean, facts=gather_facts(moved, clean), seed=1)).get(name) is None
    told = failed(audit(moved, leaky, facts=gather_facts(moved, leaky), seed=1))
    assert told[name].startswith(where)


def test_bins_of_other_numbers_are_caught(dataset: SplitDataset) -> None:
    clean = fit_features((), (NumberFeature(kind="number", column="year", bins=4),), dataset=dataset)
    facts, encoder = gather_facts(dataset, clean), clean.candidate[0]
    assert isinstance(encoder, NumberEncoder)
    assert not failed(audit(dataset, clean, facts=facts, seed=1))
    for place in range(5):
        moved = replace(clean, candidate=(replace(encoder, edges=encoder.edges + 1.0 * (np.arange(5) == place)),))
        told = failed(audit(dataset, moved, facts=facts, seed=1))["statistics of features"]
        assert told.startswith(f"candidate: number_year: edge {place + 1} ")


def test_edges_that_fall_together_but_for_rounding_are_no_leak(dataset: SplitDataset) -> None:
    # Arrow works out some quantiles of equal prices one unit in the last place off.
    prices = np.resize([1.99, 1.99, 1.99, 4.99, 0.99], len(dataset.item_ids))
    priced = replace(dataset, items=dataset.items.append_column("price", pa.array(prices)))
    features = fit_features((), (NumberFeature(kind="number", column="price", bins=8),), dataset=priced)
    assert not failed(audit(priced, features, facts=gather_facts(priced, features), seed=1))


def test_sampling_probabilities_of_the_whole_log_are_caught(
    dataset: SplitDataset, features: FittedFeatures, facts: Facts
) -> None:
    counts = np.bincount(dataset.item, minlength=len(dataset.item_ids))[facts.arrays.catalogue_row]
    leaky = replace(facts.arrays, probability=(counts / counts.sum()).astype(np.float32))
    told = failed(audit(dataset, features, facts=replace(facts, arrays=leaky), seed=1))
    assert list(told) == ["sampling probabilities"]


def test_a_negative_that_only_the_test_part_meets_is_caught(
    dataset: SplitDataset, features: FittedFeatures, facts: Facts
) -> None:
    part = np.where(dataset.item == facts.arrays.catalogue_row[0], TEST, dataset.part).astype(np.int8)
    later = replace(dataset, part=part)
    own, whole = gather_facts(later, features), facts.arrays
    leaky = replace(own.arrays, catalogue_row=whole.catalogue_row, probability=whole.probability)
    told = failed(audit(later, features, facts=replace(own, arrays=leaky), seed=1))["sampling probabilities"]
    name = dataset.item_ids[facts.arrays.catalogue_row[0]]
    assert told == f"1 items differ from those of the train part (first: '{name}')"


def test_a_history_of_others_that_reaches_into_the_next_user_is_caught(dataset: SplitDataset) -> None:
    query = (HistoryFeature(kind="history", length=20, training="others"),)
    features = fit_features(query, CANDIDATE, dataset=dataset)
    facts = gather_facts(dataset, features)
    (told,) = [
        check for check in audit(dataset, features, facts=facts, seed=1) if check.name == "histories in training"
    ]
    assert told.passed
    assert told.detail.endswith("all else that was met in train, as the recipe says")
    leaky = replace(facts, arrays=replace(facts.arrays, last=facts.arrays.last + 1))
    found = failed(audit(dataset, features, facts=leaky, seed=1))
    assert list(found) == ["histories in training"]
    assert "were met in the train part" in found["histories in training"]


def test_a_train_example_whose_history_holds_itself_is_caught(
    dataset: SplitDataset, features: FittedFeatures, facts: Facts
) -> None:
    leaky = replace(facts.arrays, end=facts.arrays.end + 1)
    told = failed(audit(dataset, features, facts=replace(facts, arrays=leaky), seed=1))
    assert list(told) == ["histories in training"]
    assert "were met before it in the train part" in told["histories in training"]


def test_a_history_that_knows_the_moment_of_asking_is_caught(
    dataset: SplitDataset, features: FittedFeatures, facts: Facts
) -> None:
    # A log a second too early: what is asked for then counts as met before.
    queries = facts.queries["successive"]
    log = queries.known_positives
    early = UserLog(item=log.item, timestamp=log.timestamp - 1_000_000, start=log.start)
    leaky = replace(facts, queries=facts.queries | {"successive": replace(queries, known_positives=early)})
    told = failed(audit(dataset, features, facts=leaky, seed=1))
    assert list(told) == ["histories of successive queries"]
    assert told["histories of successive queries"].endswith("the item that is asked for stands in the history")


def test_a_static_query_that_knows_of_the_test_part_is_caught(
    dataset: SplitDataset, features: FittedFeatures, facts: Facts
) -> None:
    queries = facts.queries["static"]
    whole = dataset.user_log(0, 1, 2, positives_only=True)
    later = replace(queries, known_positives=whole, timestamp=np.full(len(queries), dataset.timestamp.max() + 1))
    told = failed(audit(dataset, features, facts=replace(facts, queries={"static": later}), seed=1))
    assert list(told) == ["histories of static queries"]


def test_ties_of_the_train_part_are_in_the_order_of_the_file_where_the_last_is_taken_out(
    make_dataset: Callable[..., SplitDataset],
) -> None:
    # Four positives at one second, then one for validation and one for test: others learn from the order of the first.
    rows = [(0, item, 1, 0) for item in range(4)] + [(0, 4, 2, 1), (0, 5, 3, 2), (1, 0, 1, 0)]
    ties = make_dataset(rows, users=2, items=6, protocol="last_out")
    features = fit_features(QUERY[2:], CANDIDATE[:1], dataset=ties)
    facts = gather_facts(ties, features)
    assert failed(audit(ties, features, facts=facts, seed=1)) == {}
    assert (facts.arrays.end - facts.arrays.first).tolist() == [0, 1, 2, 3, 0]
    strict = replace(ties, metadata={**ties.metadata, "protocol": "given"})
    assert "histories in training" in failed(audit(strict, features, facts=facts, seed=1))


def test_popularity_that_counts_the_moment_itself_or_the_future_is_caught(
    dataset: SplitDataset, features: FittedFeatures, facts: Facts
) -> None:
    late = replace(facts.arrays, snapshot=facts.arrays.snapshot + 1)
    told = failed(audit(dataset, features, facts=replace(facts, arrays=late), seed=1))
    assert list(told) == ["popularity at a moment"]
    assert told["popularity at a moment"].startswith("training, ")
    # The static queries know nothing of the test part, which the log of the successive ones holds.
    trends = facts.trends["successive"]
    early = replace(trends, moment=trends.moment - 10**9)
    told = failed(audit(dataset, features, facts=replace(facts, trends=facts.trends | {"static": early}), seed=1))
    assert list(told) == ["popularity at a moment"]
    assert told["popularity at a moment"].startswith("static queries, ")
    others = trends.arrays._replace(counts=trends.arrays.counts[:, ::-1])
    swapped = replace(trends, arrays=others)
    told = failed(audit(dataset, features, facts=replace(facts, trends=facts.trends | {"successive": swapped}), seed=1))
    assert told == {
        "popularity at a moment": "successive queries, a snapshot counts other items than the first of the log"
    }


def test_a_model_without_a_history_has_none_to_leak(dataset: SplitDataset) -> None:
    plain = fit_features(QUERY[:1], CANDIDATE[:1], dataset=dataset)
    checks = audit(dataset, plain, facts=gather_facts(dataset, plain), seed=1)
    assert failed(checks) == {}
    assert {check.detail for check in checks if check.name.startswith("histories")} == {"the model reads none"}
