"""Popularity and age at a moment: counted by hand, blind to the future, alike in NumPy and JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twotower.data.trends import TREND_FEATURES, TrendArrays, Trends, lookup, unmet

DAY = 86_400
Log = list[tuple[int, int]]


def features(trends: Trends, second: int, item: list[int]) -> np.ndarray:
    snapshot = trends.snapshot_at(np.array([second]))
    return np.asarray(lookup(np, trends.arrays, snapshot, np.array([item]))[0])


def of(log: Log, *, items: int, block: int | None = None) -> Trends:
    ordered = sorted(log, key=lambda entry: entry[1])
    item, second = (np.array([entry[place] for entry in ordered], np.int64) for place in (0, 1))
    return Trends.build(item.astype(np.int32), second, items=items, block=block)


def test_windows_count_back_from_the_last_block_that_is_complete() -> None:
    # Blocks of two, on days 0 to 5: [0 0] [0 1] [1 2]. On the morning of day 4 the third lacks its second interaction.
    log = [(0, 0), (0, DAY), (0, 2 * DAY), (1, 3 * DAY), (1, 4 * DAY), (2, 5 * DAY)]
    trends = of(log, items=3, block=2)
    found = features(trends, 4 * DAY, [0, 1, 2])
    last_block, both = np.log1p(2 / 3), np.log1p(4 / 3)  # the mean item's
    assert found[:, 0] == pytest.approx(np.log1p([1, 1, 0]) - last_block)
    assert found[:, 1] == pytest.approx(np.log1p([3, 1, 0]) - both)
    assert found[:, 4] == pytest.approx(np.log1p([3, 1, 0]) - both)
    # The snapshot is of day 3: item 0 was met three days before, item 1 that day, item 2 never.
    assert found[:, 5] == pytest.approx([np.log(4) / 8, 0, 0])
    assert found[:, 6].tolist() == [0, 0, 1]


def test_a_snapshot_counts_only_strictly_after_its_last_interaction() -> None:
    trends = of([(0, 10), (0, 20), (1, 20), (1, 30)], items=2, block=2)
    assert trends.moment.tolist()[1:] == [20, 30]
    assert trends.snapshot_at(np.array([5, 20, 21, 30, 31])).tolist() == [0, 0, 1, 1, 2]


def test_before_the_first_block_every_item_is_average_and_unmet() -> None:
    found = features(of([(0, 10), (1, 20)], items=3, block=2), 15, [0, 1, 2])
    assert found.tolist() == [[0.0] * 6 + [1.0]] * 3


def test_the_end_of_the_log_counts_windows_back_from_there() -> None:
    # Five interactions in blocks of two: the last two are items 1 and 2, the last eight are all.
    trends = of([(0, 1), (0, 2), (0, 3), (1, 4), (2, 5)], items=3, block=2)
    latest = trends.latest()
    assert latest.shape == (3, TREND_FEATURES)
    assert latest[:, 0] == pytest.approx(np.log1p([0, 1, 1]) - np.log1p(2 / 3))
    assert latest[:, 1] == pytest.approx(np.log1p([3, 1, 1]) - np.log1p(5 / 3))
    assert features(trends, 6, [0, 1, 2]) == pytest.approx(latest)
    assert features(trends, 5, [0])[0, 0] == pytest.approx(np.log1p(1) - np.log1p(2 / 3))


def test_wider_windows_end_where_narrower_ones_do() -> None:
    # Item 0 in the first 40 blocks of one, item 1 in the next 40.
    trends = of([(int(place >= 40), place) for place in range(80)], items=2, block=1)
    found = np.expm1(features(trends, 80, [0, 1])[:, :5] + np.log1p(np.array([1, 4, 16, 64, 80]) / 2))
    assert found == pytest.approx(np.array([[0, 0, 0, 24, 40], [1, 4, 16, 40, 40]]), abs=1e-4)


def test_a_log_is_cut_into_no_more_blocks_than_asked_for_or_than_memory_holds() -> None:
    item, second = np.zeros(1000, np.int32), np.arange(1000)
    assert Trends.build(item, second, items=5, snapshots=256).block == 4
    assert Trends.build(item, second, items=5_000_000, snapshots=256).block == 100


def test_an_empty_log_has_features() -> None:
    trends = of([], items=2)
    assert trends.latest().tolist() == [[0.0] * 6 + [1.0]] * 2


entries = st.tuples(st.integers(0, 4), st.integers(0, 40))


@given(st.lists(entries, max_size=40), st.lists(entries, min_size=1), st.lists(entries, min_size=1), st.integers(1, 5))
def test_features_at_a_moment_are_blind_to_what_comes_then_or_later(
    before: Log, later: Log, otherwise: Log, block: int
) -> None:
    now = 41
    found = [
        features(of(before + [(item, second + now) for item, second in rest], items=5, block=block), now, [*range(5)])
        for rest in (later, otherwise)
    ]
    np.testing.assert_array_equal(found[0], found[1])


@given(st.lists(entries, max_size=40), st.integers(1, 5), st.integers(0, 50))
def test_counts_are_those_of_the_blocks_before_the_moment(log: Log, block: int, now: int) -> None:
    trends = of(log, items=5, block=block)
    known = sorted((entry for entry in log if entry[1] < now), key=lambda entry: entry[1])
    known = known[: len(known) if len(known) == len(log) else len(known) // block * block]
    for window, place in ((1, 0), (4, 1), (16, 2), (10_000, 4)):
        seen = [item for item, _ in known[max(0, len(known) - window * block) :]]
        expected = np.log1p(np.bincount(np.array(seen, int), minlength=5)) - np.log1p(len(seen) / 5)
        assert features(trends, now, [*range(5)])[:, place] == pytest.approx(expected, abs=1e-5)


def test_jax_and_numpy_find_the_same() -> None:
    generator = np.random.default_rng(3)
    second = np.sort(generator.integers(10**9, 10**9 + 10**8, 5000))
    trends = Trends.build(generator.integers(0, 50, 5000).astype(np.int32), second, items=60)
    snapshot = trends.snapshot_at(generator.choice(second, 20))
    item = generator.integers(0, 60, (20, 7)).astype(np.int32)
    arrays = TrendArrays(*(jnp.asarray(array) for array in trends.arrays))
    found = jax.jit(lambda arrays, snapshot, item: lookup(jnp, arrays, snapshot, item))(arrays, snapshot, item)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.asarray(found), lookup(np, trends.arrays, snapshot, item), atol=2e-6)


def test_queries_may_share_their_candidates() -> None:
    trends = of([(0, 1), (1, 2), (1, 3), (2, 4)], items=3, block=1)
    snapshot, item = trends.snapshot_at(np.array([2, 4])), np.array([[0, 2]])
    shared = lookup(np, trends.arrays, snapshot, item)
    np.testing.assert_array_equal(shared, lookup(np, trends.arrays, snapshot, np.repeat(item, 2, axis=0)))


@given(st.integers(0, 40), st.integers(1, 7))
def test_an_item_that_comes_after_the_log_has_what_one_of_the_catalogue_would_have_that_nobody_met(
    length: int, block: int
) -> None:
    log = [(number % 3, number * DAY) for number in range(length)]
    latest = of(log, items=4, block=block).latest()
    np.testing.assert_allclose(unmet(length, items=4, block=block), latest[3], rtol=1e-6)
