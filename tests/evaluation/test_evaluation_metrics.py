"""Metrics worked by hand, laws, and agreement with ir-measures."""

from itertools import pairwise

import ir_measures
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from twotower.evaluation import metrics

KS = (1, 5, 10)


def starts(sizes: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def of(ranks: list[int], sizes: list[int], ks: tuple[int, ...] = (3,)) -> dict[str, np.ndarray]:
    return metrics.query_metrics(np.array(ranks, np.int32), starts(sizes), ks=ks)


def test_metrics_of_ranks_one_and_three_of_three_relevant() -> None:
    found = of([3, 1, 7], [3])
    assert found["recall@3"] == pytest.approx([2 / 3])
    assert found["hit_rate@3"] == [1.0]
    assert found["mrr@3"] == [1.0]
    # Gains at ranks 1 and 3: 1 and 1 / log2(4); the best order gains at 1, 2 and 3.
    assert found["ndcg@3"] == pytest.approx([1.5 / (1 + 1 / np.log2(3) + 0.5)])
    # Precision at rank 1 is 1/1, at rank 3 it is 2/3, over three relevant items.
    assert found["map@3"] == pytest.approx([(1 + 2 / 3) / 3])


def test_nothing_counts_beyond_the_cut_off() -> None:
    assert all(value == [0.0] for value in of([4], [1]).values())


def test_ideal_gain_stops_at_the_cut_off() -> None:
    # Four relevant on the first four ranks: within the first two nothing could be better.
    assert of([1, 2, 3, 4], [4], ks=(2,))["ndcg@2"] == [1.0]


def test_each_query_is_judged_by_itself() -> None:
    assert_allclose(of([1, 9, 2], [1, 1, 1])["mrr@3"], [1.0, 0.0, 0.5])


def test_top_k_categorical_accuracy_counts_test_rows_not_users() -> None:
    # One user with two test items, one of them met twice; another user with one.
    ranks, count = np.array([1, 12, 3], np.int32), np.array([2, 1, 1], np.int32)
    assert metrics.top_k_categorical_accuracy(ranks, count, k=10) == 0.75
    assert metrics.top_k_categorical_accuracy(ranks, count, k=1) == 0.5


@st.composite
def queries(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=6))
    ranks = [draw(st.lists(st.integers(1, 30), min_size=size, max_size=size, unique=True)) for size in sizes]
    return np.concatenate(ranks).astype(np.int32), starts(sizes)


@given(queries())
def test_metrics_lie_between_zero_and_one_and_grow_with_k(case: tuple[np.ndarray, np.ndarray]) -> None:
    found = metrics.query_metrics(*case, ks=KS)
    for values in found.values():
        assert ((values >= 0) & (values <= 1 + 1e-12)).all()
    for name in ("recall", "hit_rate", "mrr", "map"):
        assert (found[f"{name}@1"] <= found[f"{name}@5"]).all()
        assert (found[f"{name}@5"] <= found[f"{name}@10"]).all()


@given(queries(), st.randoms(use_true_random=False))
def test_metrics_do_not_depend_on_the_order_of_pairs(case: tuple[np.ndarray, np.ndarray], random: object) -> None:
    ranks, start = case
    shuffled = ranks.copy()
    for first, end in pairwise(start):
        part = shuffled[first:end].tolist()
        random.shuffle(part)  # type: ignore[attr-defined]
        shuffled[first:end] = part
    one, other = (metrics.query_metrics(values, start, ks=KS) for values in (ranks, shuffled))
    for name in one:
        assert_allclose(one[name], other[name])


@given(queries(), st.integers(0, 100))
def test_a_better_rank_never_lowers_a_metric(case: tuple[np.ndarray, np.ndarray], seed: int) -> None:
    ranks, start = case
    better = ranks.copy()
    place = seed % len(ranks)
    better[place] = max(1, better[place] - 1)
    for name, values in metrics.query_metrics(better, start, ks=KS).items():
        assert (values >= metrics.query_metrics(ranks, start, ks=KS)[name] - 1e-12).all()


def test_metrics_agree_with_ir_measures() -> None:
    generator = np.random.default_rng(5)
    items, sizes = 60, generator.integers(1, 9, 40)
    scores = np.stack([generator.permutation(items) for _ in sizes]).astype(float)
    relevant = [generator.choice(items, size, replace=False) for size in sizes]
    ranks = [1 + (row[None, :] > row[chosen][:, None]).sum(1) for row, chosen in zip(scores, relevant, strict=True)]
    found = metrics.query_metrics(np.concatenate(ranks).astype(np.int32), starts(sizes.tolist()), ks=KS)
    qrels = {f"q{q}": {f"d{item}": 1 for item in chosen} for q, chosen in enumerate(relevant)}
    for k in KS:
        run = {
            f"q{q}": {f"d{item}": row[item] for item in np.argsort(-row)[:k].tolist()} for q, row in enumerate(scores)
        }
        theirs = {
            "recall": ir_measures.R @ k,
            "hit_rate": ir_measures.Success @ k,
            "ndcg": ir_measures.nDCG @ k,
            "mrr": ir_measures.RR,
            "map": ir_measures.AP @ k,
        }
        got = ir_measures.pytrec_eval.calc_aggregate(list(theirs.values()), qrels, run)
        for name, measure in theirs.items():
            assert found[f"{name}@{k}"].mean() == pytest.approx(got[measure], abs=1e-6)


def test_rmse_and_mae_worked_by_hand() -> None:
    found = metrics.regression(np.array([1.0, 5.0]), np.array([4.0, 1.0]))
    assert found == {"rmse": pytest.approx(np.sqrt(12.5)), "mae": 3.5}


def test_auc_counts_a_tie_as_half() -> None:
    # Pairs (positive, negative): .9 > .5 and .9 > .1 win, .5 = .5 is half, .5 > .1 wins.
    assert metrics.auc(np.array([0.9, 0.5, 0.5, 0.1]), np.array([1.0, 1, 0, 0])) == 3.5 / 4


def test_auc_of_one_class_is_no_number() -> None:
    assert np.isnan(metrics.auc(np.array([0.1, 0.9]), np.ones(2)))


def test_log_loss_worked_by_hand_and_finite_for_a_sure_mistake() -> None:
    found = metrics.binary(np.array([0.8, 0.4]), np.array([1.0, 0.0]))
    assert found["log_loss"] == pytest.approx(-(np.log(0.8) + np.log(0.6)) / 2)
    assert np.isfinite(metrics.binary(np.array([0.0, 1.0]), np.array([1.0, 0.0]))["log_loss"])


def test_a_constant_at_the_base_rate_is_calibrated() -> None:
    actual = np.array([0.0, 1.0] * 50)
    curve = metrics.calibration(np.full(100, 0.5), actual, bins=5)
    assert sum(point["count"] for point in curve) == 100
    assert metrics.calibration_error(curve) == 0.0


def test_lists_are_measured_by_hand() -> None:
    popularity = np.array([6, 1, 1, 0])
    found = metrics.list_metrics(
        np.array([[0, 1], [0, -1]], np.int32),
        popularity,
        head=metrics.head_items(popularity),
        chosen=np.array([1, 2], np.int32),
    )
    assert found["coverage"] == 0.5
    # Counts plus one over 12: items 0, 1, 0.
    assert found["novelty_bits"] == pytest.approx((-np.log2(7 / 12) * 2 - np.log2(2 / 12)) / 3)
    assert found["popularity_ratio"] == pytest.approx((6 + 1 + 6) / 3)
    assert found["head_share"] == pytest.approx(2 / 3)


def test_head_items_are_the_fewest_that_hold_half() -> None:
    assert metrics.head_items(np.array([2, 5, 2, 1, 0])).tolist() == [False, True, False, False, False]
    assert metrics.head_items(np.array([2, 2, 2, 2])).tolist() == [True, True, False, False]
