"""Ranks: ties, scores that are no number, exclusion, and agreement with a plain count."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.testing import assert_array_equal

from twotower.evaluation.ranks import Excluded, embedding_ranks, ranks_in_block, silence, top_items

INF = np.float32(np.inf)


def block(scores: list[list[float]]) -> np.ndarray:
    return np.array(scores, np.float32)


def ranks_of(
    scores: np.ndarray, relevant: list[list[int]], excluded: list[tuple[int, int]] | None = None
) -> tuple[list[int], int]:
    """Ranks of the relevant items of each query, and how many scores were no number."""
    pairs = np.array(excluded or [], np.int64).reshape(-1, 2)
    out = Excluded(query=pairs[:, 0], item=pairs[:, 1].astype(np.int32))
    missing = silence(scores, out)
    start = np.concatenate([[0], np.cumsum([len(items) for items in relevant])])
    found = ranks_in_block(
        scores,
        start,
        relevant=np.concatenate(relevant).astype(np.int32),
        candidates=scores.shape[1] - out.count(len(scores)),
    )
    return found.tolist(), missing


def test_rank_is_one_for_the_best_item() -> None:
    assert ranks_of(block([[0.1, 0.9, 0.5]]), [[1, 2, 0]])[0] == [1, 2, 3]


def test_ties_count_against_the_model() -> None:
    assert ranks_of(block([[0.0, 0.0, 0.0, 0.0]]), [[2]])[0] == [4]
    assert ranks_of(block([[1.0, 1.0, 0.0]]), [[0, 1]])[0] == [2, 2]


def test_excluded_items_do_not_compete() -> None:
    assert ranks_of(block([[0.9, 0.8, 0.1]]), [[2]], [(0, 0)])[0] == [2]
    # Also where the relevant item scores as low as an excluded one does.
    assert ranks_of(block([[0.9, 0.8, -np.inf]]), [[2]], [(0, 0)])[0] == [2]


def test_a_score_that_is_no_number_ranks_last_and_is_counted() -> None:
    assert ranks_of(block([[np.nan, 0.5, np.nan, 0.1]]), [[0]]) == ([4], 2)
    assert ranks_of(block([[np.nan, 0.5, 0.4]]), [[2]]) == ([2], 1)


def test_a_score_of_an_excluded_item_may_be_no_number() -> None:
    assert ranks_of(block([[np.nan, 0.5]]), [[1]], [(0, 0)]) == ([1], 0)


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, list[list[int]], list[tuple[int, int]]]:
    queries, items = draw(st.integers(1, 4)), draw(st.integers(2, 12))
    scores = draw(arrays.arrays(np.float32, (queries, items), elements=st.sampled_from([-INF, 0, 1, 2, 3, np.nan])))
    relevant, excluded = [], []
    for query in range(queries):
        order = draw(st.permutations(range(items)))
        cut = draw(st.integers(1, items))
        out = draw(st.integers(0, items - cut))
        relevant.append(order[:cut])
        excluded += [(query, item) for item in order[cut : cut + out]]
    return scores, relevant, excluded


@given(cases())
def test_ranks_agree_with_a_plain_count(case: tuple[np.ndarray, list[list[int]], list[tuple[int, int]]]) -> None:
    scores, relevant, excluded = case
    clean = np.where(np.isnan(scores), -INF, scores)
    expected = [
        1
        + sum(
            clean[query, other] >= clean[query, item]
            for other in range(scores.shape[1])
            if other != item and (query, other) not in excluded
        )
        for query, items in enumerate(relevant)
        for item in items
    ]
    assert ranks_of(scores.copy(), relevant, excluded)[0] == expected


@given(
    arrays.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 90)), elements=st.sampled_from([0, 1, 2, 3])),
    st.integers(1, 100),
)
def test_top_items_agree_with_a_stable_sort(scores: np.ndarray, k: int) -> None:
    assert_array_equal(top_items(scores, k), np.argsort(-scores, axis=1, kind="stable")[:, :k])


def test_top_items_of_a_large_catalogue_agree_with_a_stable_sort() -> None:
    scores = np.random.default_rng(1).normal(size=(50, 3_001)).astype(np.float32)
    scores[:, ::3] = -np.inf
    for k in (1, 10, 100, 5_000):
        assert_array_equal(top_items(scores, k), np.argsort(-scores, axis=1, kind="stable")[:, :k])


@pytest.mark.parametrize("excluding", [False, True])
def test_embedding_ranks_agree_with_a_plain_count(excluding: bool) -> None:
    generator = np.random.default_rng(3)
    users, items = generator.normal(size=(40, 8)).astype(np.float32), generator.normal(size=(70, 8)).astype(np.float32)
    met = generator.random((40, 70))
    pair_user, pair_item = np.nonzero(met < 0.2)
    shuffled = generator.permutation(len(pair_user))
    pair_user, pair_item = pair_user[shuffled], pair_item[shuffled]
    seen = np.nonzero(met > 0.8)
    found = embedding_ranks(
        users, items, pair_user=pair_user, pair_item=pair_item, seen=seen if excluding else None, block=7
    )
    scores = users @ items.T
    if excluding:
        scores[seen] = -np.inf
    own = scores[pair_user, pair_item]
    # Products of differently shaped blocks differ in the last digit; no two scores are that near here.
    assert_array_equal(found, (scores[pair_user] >= own[:, None] - 1e-7).sum(1))
