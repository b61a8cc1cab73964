"""Baselines: EASE against independent solutions, item-kNN by hand, and histories that advance."""

from collections.abc import Callable

import numpy as np
import scipy.sparse as sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from twotower.data.split import SplitDataset
from twotower.evaluation import baselines
from twotower.evaluation.queries import static, successive

Make = Callable[..., SplitDataset]
TRAIN, TEST = 0, 2
MET = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 1), (2, 2), (2, 3), (3, 0), (3, 3), (4, 2), (4, 3), (4, 4), (5, 1)]


def matrix(pairs: list[tuple[int, int]]) -> sparse.csr_array:
    users, items = np.array(pairs).T
    return sparse.csr_array((np.ones(len(pairs), np.float32), (users, items)))


def test_ease_agrees_with_rectools() -> None:
    # RecTools 0.19, EASEModel(regularization=2.0), fitted once on these pairs; on all of MovieLens-100K's u1.base with
    # a regularization of 300 the two differ by at most 1e-8.
    theirs = [
        [0.0, 0.3442623, 0.0357143, 0.1400966, -0.1082251],
        [0.3165829, 0.0, 0.25, -0.0241546, 0.1428571],
        [0.040201, 0.3060109, 0.0, 0.3478261, 0.1038961],
        [0.1457286, -0.0273224, 0.3214286, 0.0, 0.1515152],
        [-0.1256281, 0.1803279, 0.1071429, 0.1690821, 0.0],
    ]
    assert_allclose(baselines.ease(matrix([*MET, (5, 4)]), l2=2.0).weights, theirs, atol=1e-6)


def test_ease_is_a_ridge_regression_of_each_item_on_all_others() -> None:
    generator = np.random.default_rng(0)
    dense = (generator.random((80, 12)) < 0.3).astype(np.float64)
    ours = baselines.ease(sparse.csr_array(dense.astype(np.float32)), l2=3.0).weights
    for item in range(12):
        others = np.delete(np.arange(12), item)
        # The ridge as an ordinary least squares problem: the penalty becomes extra rows. No inverse is taken.
        rows = np.vstack([dense[:, others], np.sqrt(3.0) * np.eye(11)])
        solution, *_ = np.linalg.lstsq(rows, np.concatenate([dense[:, item], np.zeros(11)]), rcond=None)
        assert_allclose(ours[others, item], solution, atol=1e-5)
        assert ours[item, item] == 0.0


def test_item_knn_worked_by_hand() -> None:
    # Items 0 and 1 share two of 3 and 3 users; 1 and 2 share one; 0 and 2 share one, of 3 and 2.
    weights = baselines.item_knn(
        matrix([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 1), (2, 2), (3, 0)]), neighbours=3, shrinkage=1.0
    ).weights
    expected = [
        [0.0, 2 / (3 + 1), 1 / (np.sqrt(6) + 1)],
        [2 / (3 + 1), 0.0, 2 / (np.sqrt(6) + 1)],
        [1 / (np.sqrt(6) + 1), 2 / (np.sqrt(6) + 1), 0.0],
    ]
    assert_allclose(weights.toarray(), expected, rtol=1e-6)


def test_item_knn_keeps_the_nearest_neighbours_of_the_scored_item() -> None:
    pairs = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 1), (2, 2), (3, 0)]
    weights = baselines.item_knn(matrix(pairs), neighbours=1, shrinkage=1.0).weights.toarray()
    # Item 0 is scored by item 1 alone, items 1 by item 2, item 2 by item 1.
    assert np.argwhere(weights > 0).tolist() == [[1, 0], [1, 2], [2, 1]]


def test_item_knn_does_not_depend_on_its_blocks() -> None:
    met = matrix(MET)
    one, other = (baselines.item_knn(met, neighbours=2, shrinkage=1.0, cells=cells).weights for cells in (1, 1000))
    assert_allclose(one.toarray(), other.toarray())


logs = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5), st.integers(0, 9)), min_size=3, max_size=40)


@given(logs, st.integers(1, 9), st.integers(1, 5))
@settings(max_examples=60)
def test_histories_advance_by_what_is_new(make_dataset: Make, rows: list, cut: int, block: int) -> None:
    dataset = make_dataset([(*row, TEST if row[2] >= cut else TRAIN) for row in rows], users=3, items=6)
    weights = np.random.default_rng(1).normal(size=(6, 6)).astype(np.float32)
    model = baselines.ItemWeights(name="any", weights=weights)
    for queries in (successive(dataset), static(dataset)):
        first, end = queries.known_positives.before(queries.user, queries.timestamp)
        for start in range(0, len(queries), block):
            part = queries.take(start, min(start + block, len(queries)))
            expected = [
                weights[np.unique(queries.known_positives.item[first[place] : end[place]])].sum(axis=0)
                for place in range(start, start + len(part))
            ]
            assert_allclose(model.score(part), expected, atol=1e-5)


@given(logs, st.integers(1, 9), st.integers(1, 6))
@settings(max_examples=60)
def test_recent_popularity_counts_the_window_before_each_moment(
    make_dataset: Make, rows: list, cut: int, window: int
) -> None:
    dataset = make_dataset([(*row, TEST if row[2] >= cut else TRAIN) for row in rows], users=3, items=6)
    queries = successive(dataset)
    if not len(queries):
        return
    scores = baselines.RecentPopularity.of(dataset, TRAIN, 1, TEST, window=window).score(queries)
    for place, moment in enumerate(queries.timestamp):
        before = dataset.item[dataset.timestamp < moment][-window:]
        assert scores[place].tolist() == np.bincount(before, minlength=6).tolist()


def test_popularity_counts_the_train_part_alone(make_dataset: Make) -> None:
    rows = [(0, 0, 1, TRAIN), (1, 0, 2, TRAIN), (0, 1, 3, 1), (1, 1, 4, TEST), (2, 1, 5, TEST)]
    dataset = make_dataset(rows, users=3, items=2)
    popularity = baselines.Popularity(counts=baselines.train_popularity(dataset))
    assert popularity.score(successive(dataset)).tolist() == [[2.0, 0.0], [2.0, 0.0]]


def test_a_faded_history_forgets_what_hardly_counts_and_an_item_met_again_counts_once(make_dataset: Make) -> None:
    # The user meets items 0, 1, 0, 2, 3 and asks; with a decay of 0.1 what is older than two steps counts below 1%.
    rows = [(0, item, second, TRAIN) for second, item in enumerate([0, 1, 0, 2, 3])]
    queries = successive(make_dataset([*rows, (0, 4, 9, TEST)], users=1, items=5))
    short, whole = (baselines.faded_histories(queries, items=5, decay=decay).toarray() for decay in (0.1, 1.0))
    assert_allclose(short, [[0, 0, 0.1, 1.0, 0]])
    assert_allclose(whole, [[1, 1, 1, 1, 0]])
    # Of the two meetings with item 0, 0.5 ** 4 and 0.5 ** 2 count.
    assert_allclose(
        baselines.faded_histories(queries, items=5, decay=0.5).toarray(), [[0.0625 + 0.25, 0.125, 0.5, 1.0, 0]]
    )


def test_weights_written_out_give_the_same_scores(make_dataset: Make) -> None:
    queries = successive(make_dataset([(0, 0, 1, TRAIN), (0, 1, 2, TRAIN), (0, 4, 9, TEST)], users=1, items=5))
    model = baselines.item_knn(matrix([*MET, (5, 4)]), neighbours=3, shrinkage=1.0)
    written = baselines.quick(model)
    assert isinstance(written.weights, np.ndarray)
    assert_allclose(written.score(queries), model.score(queries), rtol=1e-6)
