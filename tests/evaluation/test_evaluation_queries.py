"""What each protocol asks, and what it lets a query know."""

from collections.abc import Callable

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from twotower.data.split import SplitDataset
from twotower.evaluation.queries import Queries, labelled, seen_pairs, static, successive

Make = Callable[..., SplitDataset]
TRAIN, VALIDATION, TEST = 0, 1, 2
#       user, item, second, part
ROWS = [
    (0, 0, 1, TRAIN),
    (1, 1, 2, TRAIN),
    (0, 2, 3, VALIDATION),
    (0, 3, 5, TEST),
    (0, 1, 5, TEST),
    (2, 0, 6, TEST),
    (0, 0, 7, TEST),
]


def history(queries: Queries, place: int) -> list[int]:
    first, end = queries.known_positives.before(queries.user, queries.timestamp)
    return queries.known_positives.item[first[place] : end[place]].tolist()


def test_successive_asks_once_per_test_interaction_with_what_came_before(make_dataset: Make) -> None:
    queries = successive(make_dataset(ROWS, users=3, items=4))
    assert queries.user.tolist() == [0, 0, 0, 2]
    assert queries.relevant.tolist() == [3, 1, 0, 0]
    # The two at second 5 do not see each other; the one at second 7 sees both.
    assert [history(queries, place) for place in range(4)] == [[0, 2], [0, 2], [0, 2, 3, 1], []]


def test_static_asks_once_per_user_and_knows_nothing_of_the_test_part(make_dataset: Make) -> None:
    queries = static(make_dataset(ROWS, users=3, items=4))
    assert queries.user.tolist() == [0, 2]
    assert queries.relevant.tolist() == [0, 1, 3, 0]
    assert queries.relevant_start.tolist() == [0, 3, 4]
    assert queries.timestamp.tolist() == [5_000_000, 5_000_000]
    assert [history(queries, place) for place in range(2)] == [[0, 2], []]


def test_static_knows_all_earlier_parts_when_the_split_is_not_by_time(make_dataset: Make) -> None:
    rows = [(0, 0, 9, TRAIN), (0, 1, 2, TEST), (0, 2, 4, VALIDATION)]
    queries = static(make_dataset(rows, users=1, items=3, protocol="random"))
    assert history(queries, 0) == [2, 0]


def test_only_positives_are_asked_for_and_enter_histories_but_all_count_as_seen(make_dataset: Make) -> None:
    rows = [(0, 0, 1, TRAIN), (0, 1, 2, TRAIN), (0, 1, 5, TEST), (0, 2, 6, TEST)]
    dataset = make_dataset(rows, users=1, items=3, positive=[True, False, True, False])
    queries = successive(dataset)
    assert queries.relevant.tolist() == [1]
    assert history(queries, 0) == [0]
    assert seen_pairs(queries, 3).tolist() == [True]
    assert labelled(dataset, np.array([2, 3])).relevant.tolist() == [1, 2]


def test_an_item_met_twice_in_the_test_part_is_one_pair_with_a_count(make_dataset: Make) -> None:
    queries = static(make_dataset([(0, 0, 1, TRAIN), (0, 1, 5, TEST), (0, 1, 6, TEST)], users=1, items=2))
    assert queries.relevant.tolist() == [1]
    assert queries.relevant_count.tolist() == [2]


def test_dropping_pairs_drops_the_queries_left_without_any(make_dataset: Make) -> None:
    queries = static(make_dataset(ROWS, users=3, items=4)).keep_pairs(np.array([False, True, True, False]))
    assert queries.user.tolist() == [0]
    assert queries.relevant.tolist() == [1, 3]
    assert queries.relevant_start.tolist() == [0, 2]


def test_a_block_of_queries_keeps_its_own_pairs(make_dataset: Make) -> None:
    queries = static(make_dataset(ROWS, users=3, items=4)).take(1, 2)
    assert (queries.user.tolist(), queries.relevant.tolist(), queries.relevant_start.tolist()) == ([2], [0], [0, 1])


logs = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 6), st.just(0)), min_size=2, max_size=40)


@given(logs, st.integers(1, 6))
def test_no_query_knows_anything_at_or_after_its_moment(make_dataset: Make, rows: list, cut: int) -> None:
    dataset = make_dataset([(*row[:3], TEST if row[2] >= cut else TRAIN) for row in rows], users=4, items=5)
    for queries in (successive(dataset), static(dataset)):
        for log in (queries.known, queries.known_positives):
            first, end = log.before(queries.user, queries.timestamp)
            for place in range(len(queries)):
                assert (log.timestamp[first[place] : end[place]] < queries.timestamp[place]).all()


@given(logs, st.integers(1, 6))
def test_seen_pairs_agree_with_a_plain_search(make_dataset: Make, rows: list, cut: int) -> None:
    dataset = make_dataset([(*row[:3], TEST if row[2] >= cut else TRAIN) for row in rows], users=4, items=5)
    queries = successive(dataset)
    expected = [
        any(
            (dataset.user[row], dataset.item[row]) == (user, item) and dataset.timestamp[row] < moment
            for row in range(len(dataset.user))
        )
        for user, item, moment in zip(queries.user, queries.relevant, queries.timestamp, strict=True)
    ]
    assert seen_pairs(queries, 5).tolist() == expected
