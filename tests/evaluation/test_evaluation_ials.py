"""iALS against dense weighted least squares that shares no line with it."""

from collections.abc import Callable

import numpy as np
import scipy.sparse as sparse
from numpy.testing import assert_allclose
from numpy.typing import NDArray

from twotower.data.split import SplitDataset
from twotower.evaluation.ials import Ials, Penalty, best_rows, ials
from twotower.evaluation.queries import successive

Make = Callable[..., SplitDataset]
TRAIN, TEST = 0, 2
MET = np.array([[1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1], [0, 0, 1, 0, 1]], np.float32)
PENALTY = Penalty(unobserved=0.2, l2=0.05)


def least_squares(weights: NDArray[np.float64], fixed: NDArray[np.float64], penalty: Penalty) -> NDArray[np.float64]:
    """One row's factors, as an ordinary least squares problem: each part of the loss becomes equations of its own."""
    total = weights.sum() + penalty.unobserved * len(fixed)
    equations = np.vstack(
        [
            np.sqrt(weights)[:, None] * fixed,
            np.sqrt(penalty.unobserved) * fixed,
            np.sqrt(penalty.l2 * total) * np.eye(fixed.shape[1]),
        ]
    )
    wanted = np.concatenate([np.sqrt(weights), np.zeros(len(fixed) + fixed.shape[1])])
    solution: NDArray[np.float64] = np.linalg.lstsq(equations, wanted, rcond=None)[0]
    return solution


def loss(met: NDArray[np.float32], users: NDArray[np.float64], items: NDArray[np.float64], penalty: Penalty) -> float:
    scores = users @ items.T
    by_user = (met.sum(axis=1) + penalty.unobserved * met.shape[1]) @ (users**2).sum(axis=1)
    by_item = (met.sum(axis=0) + penalty.unobserved * met.shape[0]) @ (items**2).sum(axis=1)
    fit = (met * (scores - 1) ** 2).sum() + penalty.unobserved * (scores**2).sum()
    return float(fit + penalty.l2 * (by_user + by_item))


def test_each_row_is_the_weighted_least_squares_solution() -> None:
    fixed = np.random.default_rng(0).normal(size=(5, 3))
    weights = MET * np.array([1.0, 0.5, 0.25, 1.0, 0.8], np.float32)
    found = best_rows(sparse.csr_array(weights), fixed.astype(np.float32), penalty=PENALTY)
    assert_allclose(found, [least_squares(row, fixed, PENALTY) for row in weights.astype(np.float64)], atol=1e-5)


def test_more_sweeps_end_where_no_side_can_do_better_alone() -> None:
    model = ials(sparse.csr_array(MET), dim=2, penalty=PENALTY, sweeps=200, seed=1)
    items = model.items.astype(np.float64)
    users = np.array([least_squares(row, items, PENALTY) for row in MET.astype(np.float64)])
    again = np.array([least_squares(column, users, PENALTY) for column in MET.T.astype(np.float64)])
    assert_allclose(again, items, atol=1e-3)
    generator = np.random.default_rng(2)
    best = loss(MET, users, items, PENALTY)
    for _ in range(50):
        nudged_users, nudged_items = (side + 0.01 * generator.normal(size=side.shape) for side in (users, items))
        assert loss(MET, nudged_users, nudged_items, PENALTY) > best


def test_a_query_is_folded_in_from_the_history_it_has_by_then(make_dataset: Make) -> None:
    rows = [(0, 0, 1, TRAIN), (0, 1, 2, TRAIN), (0, 2, 3, TEST), (0, 3, 3, TEST), (0, 4, 9, TEST), (1, 4, 9, TEST)]
    queries = successive(make_dataset(rows, users=2, items=5))
    factors = np.random.default_rng(3).normal(size=(5, 3))
    scores = Ials(items=factors.astype(np.float32), penalty=PENALTY, decay=0.5).score(queries)
    # Items 0 and 1 at second 3, asked twice; then 2 and 3 as well, the latest counting most; user 1 has nothing.
    first, last = [0.5, 1, 0, 0, 0], [0.125, 0.25, 0.5, 1, 0]
    expected = [factors @ least_squares(np.array(one), factors, PENALTY) for one in (first, first, last, [0.0] * 5)]
    assert_allclose(scores, expected, atol=1e-4)


def test_the_same_seed_gives_the_same_factors_and_another_seed_others() -> None:
    one, same, other = (
        ials(sparse.csr_array(MET), dim=2, penalty=PENALTY, sweeps=1, seed=seed).items for seed in (1, 1, 2)
    )
    assert one.tolist() == same.tolist()
    assert one.tolist() != other.tolist()
