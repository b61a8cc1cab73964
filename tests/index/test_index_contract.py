"""What every index promises. A new one joins by a line in `twotower.index.build.KINDS`; nothing here changes."""

import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from twotower.errors import ArtifactError, RequestError
from twotower.index.build import KINDS, load_index, recall_against, save_index
from twotower.index.contract import Index
from twotower.index.exact import ExactIndex, best

ITEMS, DIM = 3_000, 16


def clustered(rows: int, *, seed: int) -> NDArray[np.float32]:
    centres = np.random.default_rng(0).normal(size=(40, DIM))
    generator = np.random.default_rng(seed)
    points = centres[generator.integers(40, size=rows)] + 0.7 * generator.normal(size=(rows, DIM))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def embeddings() -> NDArray[np.float32]:
    return clustered(ITEMS, seed=1)


@pytest.fixture(scope="module")
def queries() -> NDArray[np.float32]:
    return clustered(60, seed=2)


@pytest.fixture(scope="module", params=sorted(KINDS))
def index(request: pytest.FixtureRequest, embeddings: NDArray[np.float32]) -> Index:
    return KINDS[request.param].build(embeddings)


def test_nearly_all_of_the_best_are_found(
    index: Index, embeddings: NDArray[np.float32], queries: NDArray[np.float32]
) -> None:
    exact = ExactIndex.build(embeddings)
    assert recall_against(exact, index, queries=queries, k=10) >= 0.99
    assert recall_against(exact, index, queries=queries, k=100) >= 0.99


def test_scores_are_inner_products_best_first(
    index: Index, embeddings: NDArray[np.float32], queries: NDArray[np.float32]
) -> None:
    rows, scores = index.search(queries, 20)
    assert rows.shape == scores.shape == (60, 20)
    assert (rows.dtype, scores.dtype) == (np.int64, np.float32)
    np.testing.assert_allclose(scores, np.einsum("qd,qkd->qk", queries, embeddings[rows]), rtol=1e-5)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert all(len(set(row)) == 20 for row in rows.tolist())


def test_more_than_the_catalogue_gives_the_catalogue(index: Index, queries: NDArray[np.float32]) -> None:
    rows, scores = index.search(queries[:3], ITEMS + 50)
    assert rows.shape == (3, ITEMS)
    assert np.isfinite(scores).all()
    np.testing.assert_array_equal(np.sort(rows, axis=1), np.broadcast_to(np.arange(ITEMS), rows.shape))


def test_equal_scores_come_by_row(index: Index) -> None:
    same = type(index).build(np.ones((30, 4), np.float32))
    assert same.search(np.ones((1, 4), np.float32), 30)[0].tolist() == [list(range(30))]


def test_saved_and_loaded_it_answers_the_same(index: Index, queries: NDArray[np.float32], tmp_path: Path) -> None:
    save_index(index, tmp_path)
    loaded = load_index(tmp_path)
    assert loaded.kind == index.kind
    np.testing.assert_array_equal(loaded.embeddings, index.embeddings)
    for found, expected in zip(loaded.search(queries, 50), index.search(queries, 50), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_no_queries_give_no_rows(index: Index) -> None:
    rows, scores = index.search(np.empty((0, DIM), np.float32), 5)
    assert rows.shape == scores.shape == (0, 5)


def test_one_item_is_enough(index: Index) -> None:
    alone = type(index).build(np.ones((1, 4), np.float32))
    rows, scores = alone.search(np.ones((2, 4), np.float32), 10)
    assert (rows.tolist(), scores.tolist()) == ([[0], [0]], [[4.0], [4.0]])


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_query_that_is_no_number_is_refused(index: Index, queries: NDArray[np.float32], wrong: float) -> None:
    broken = queries[:3].copy()
    broken[2, 5] = wrong
    with pytest.raises(RequestError, match="query 2 holds NaN"):
        index.search(broken, 5)


@pytest.mark.parametrize("shape", [(DIM,), (2, DIM - 1), (1, 1, DIM)])
def test_queries_of_another_shape_are_refused(index: Index, shape: tuple[int, ...]) -> None:
    with pytest.raises(RequestError, match=f"width {DIM}"):
        index.search(np.zeros(shape, np.float32), 5)


def test_fewer_than_one_item_is_refused(index: Index, queries: NDArray[np.float32]) -> None:
    with pytest.raises(RequestError, match="k is 0"):
        index.search(queries, 0)


def test_embeddings_that_cannot_be_searched_are_refused(index: Index) -> None:
    with pytest.raises(ArtifactError, match="first: row 1"):
        type(index).build(np.array([[1, 2], [np.nan, 1]], np.float32))
    with pytest.raises(ArtifactError, match="with items"):
        type(index).build(np.empty((0, 4), np.float32))


def test_threads_get_the_answers_that_one_would(index: Index, queries: NDArray[np.float32]) -> None:
    expected = [index.search(queries[row : row + 1], 1 + row)[0] for row in range(len(queries))]
    found: dict[int, NDArray[np.int64]] = {}

    def search(first: int) -> None:
        for row in range(first, len(queries), 4):
            found[row] = index.search(queries[row : row + 1], 1 + row)[0]

    threads = [threading.Thread(target=search, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for row, rows in enumerate(expected):
        np.testing.assert_array_equal(found[row], rows)


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32),
    shape=st.tuples(st.integers(0, 4), st.integers(1, 400)),
    distinct=st.sampled_from([1, 3, 50, 10_000]),
    k=st.integers(1, 400),
)
def test_the_best_of_many_equal_scores_are_those_of_a_stable_sort(
    seed: int, shape: tuple[int, int], distinct: int, k: int
) -> None:
    scores = (np.random.default_rng(seed).integers(0, distinct, shape) - distinct // 2).astype(np.float32)
    k = min(k, shape[1])
    rows, kept = best(scores, k)
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(kept, np.take_along_axis(scores, expected, axis=1))


def test_the_best_few_of_very_many_are_found_by_group_maxima_too() -> None:
    scores = np.random.default_rng(5).normal(size=(3, 50_021)).astype(np.float32)
    scores[:, [50_020, 50_000]] = 9  # In the columns that no group holds.
    rows, _ = best(scores, 100)
    np.testing.assert_array_equal(rows, np.argsort(-scores, axis=1, kind="stable")[:, :100])
    assert rows[:, :2].tolist() == [[50_000, 50_020]] * 3
