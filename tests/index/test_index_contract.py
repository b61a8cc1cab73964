"""What every index promises. A new one joins by a line in `twotower.index.build.KINDS`; nothing here changes."""

import threading
from collections.abc import Callable, Iterator
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
from twotower.index.inverted import IvfIndex
from twotower.index.partitioned import ScannIndex, is_installed
from twotower.index.reach import Reach

ITEMS, DIM = 3_000, 16
Build = Callable[[NDArray[np.float32]], Index]
BUILDS: dict[str, Build] = {kind: index.build for kind, index in KINDS.items()}
BUILDS["ivf, nibbles"] = lambda embeddings: IvfIndex.build(embeddings).recoded("nibbles")
LISTED = "scann, lists"
"""With so few items ScaNN makes lists only where it is told that 200 are many."""
if is_installed():
    BUILDS[LISTED] = lambda embeddings: ScannIndex.build(embeddings).reaching(Reach(depth=100, lists=40, rescored=500))


def clustered(rows: int, *, seed: int) -> NDArray[np.float32]:
    centres = np.random.default_rng(0).normal(size=(40, DIM))
    generator = np.random.default_rng(seed)
    points: NDArray[np.float64] = centres[generator.integers(40, size=rows)] + 0.7 * generator.normal(size=(rows, DIM))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def mask(share: float, *, seed: int = 0) -> NDArray[np.bool_]:
    return np.random.default_rng(seed).random(ITEMS) < share


@pytest.fixture(scope="module")
def embeddings() -> NDArray[np.float32]:
    return clustered(ITEMS, seed=1)


@pytest.fixture(scope="module")
def queries() -> NDArray[np.float32]:
    return clustered(60, seed=2)


@pytest.fixture(scope="module", params=sorted(BUILDS))
def build(request: pytest.FixtureRequest) -> Iterator[Build]:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == LISTED:
            patch.setattr("twotower.index.partitioned.SCANNED", 200)
        yield BUILDS[request.param]


@pytest.fixture(scope="module")
def index(build: Build, embeddings: NDArray[np.float32]) -> Index:
    return build(embeddings)


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


def test_equal_scores_come_by_row(build: Build) -> None:
    same = build(np.ones((30, 4), np.float32))
    assert same.search(np.ones((1, 4), np.float32), 30)[0].tolist() == [list(range(30))]
    odd = np.arange(30) % 2 == 1
    assert same.search(np.ones((1, 4), np.float32), 30, allowed=odd)[0].tolist() == [list(range(1, 30, 2))]


def test_saved_and_loaded_it_answers_the_same(index: Index, queries: NDArray[np.float32], tmp_path: Path) -> None:
    save_index(index, tmp_path)
    loaded = load_index(tmp_path)
    assert loaded.kind == index.kind
    np.testing.assert_array_equal(loaded.embeddings, index.embeddings)
    for allowed in (None, mask(0.6)):
        found, expected = (each.search(queries, 50, allowed=allowed) for each in (loaded, index))
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)


def test_the_embeddings_of_a_loaded_index_stay_on_disk(index: Index, tmp_path: Path) -> None:
    save_index(index, tmp_path)
    assert isinstance(load_index(tmp_path).embeddings.base, np.memmap)


def test_no_queries_give_no_rows(index: Index) -> None:
    rows, scores = index.search(np.empty((0, DIM), np.float32), 5)
    assert rows.shape == scores.shape == (0, 5)


def test_one_item_is_enough(build: Build) -> None:
    alone = build(np.ones((1, 4), np.float32))
    rows, scores = alone.search(np.ones((2, 4), np.float32), 10)
    assert (rows.tolist(), scores.tolist()) == ([[0], [0]], [[4.0], [4.0]])


@given(share=st.sampled_from([0.0005, 0.01, 0.3, 0.9, 1.0]), seed=st.integers(0, 2**32), k=st.integers(1, 500))
@settings(deadline=None, max_examples=40)
def test_only_what_is_allowed_comes_and_so_many_do(
    index: Index, queries: NDArray[np.float32], share: float, seed: int, k: int
) -> None:
    allowed = mask(share, seed=seed)
    rows, scores = index.search(queries[:5], k, allowed=allowed)
    assert rows.shape == scores.shape == (5, min(k, allowed.sum()))
    assert allowed[rows].all()
    assert all(len(set(row)) == rows.shape[1] for row in rows.tolist())
    assert (np.diff(scores, axis=1) <= 0).all()
    expected = np.einsum("qd,qkd->qk", queries[:5], index.embeddings[rows])
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)


@given(count=st.integers(1, 200), seed=st.integers(0, 2**32), k=st.integers(1, 300))
@settings(deadline=None, max_examples=40)
def test_among_few_the_best_come_as_if_the_others_were_not_there(
    index: Index, queries: NDArray[np.float32], count: int, seed: int, k: int
) -> None:
    places = np.sort(np.random.default_rng(seed).permutation(ITEMS)[:count])
    allowed = np.zeros(ITEMS, np.bool_)
    allowed[places] = True
    rows, scores = index.search(queries[:5], k, allowed=allowed)
    expected_rows, expected_scores = ExactIndex.build(index.embeddings[places]).search(queries[:5], k)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5, atol=1e-6)
    if len(np.unique(expected_scores)) == expected_scores.size:
        np.testing.assert_array_equal(rows, places[expected_rows])


@pytest.mark.parametrize("share", [0.2, 0.5, 0.95])
def test_among_many_nearly_all_of_the_best_are_found(
    index: Index, queries: NDArray[np.float32], share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twotower.index.inverted.SCANNED", 0)  # As in a catalogue that is not so small.
    allowed = mask(share)
    rows, _ = index.search(queries, 40, allowed=allowed)
    expected, _ = ExactIndex(index.embeddings).search(queries, 40, allowed=allowed)
    found = [len(set(one) & set(other)) / 40 for one, other in zip(rows.tolist(), expected.tolist(), strict=True)]
    assert np.mean(found) >= 0.97


def test_where_nothing_is_allowed_nothing_comes(index: Index, queries: NDArray[np.float32]) -> None:
    rows, scores = index.search(queries[:4], 10, allowed=np.zeros(ITEMS, np.bool_))
    assert rows.shape == scores.shape == (4, 0)


@pytest.mark.parametrize("wrong", [np.ones(ITEMS - 1, np.bool_), np.ones(ITEMS, np.int64), np.ones((1, ITEMS), bool)])
def test_a_mask_that_fits_no_catalogue_is_refused(
    index: Index, queries: NDArray[np.float32], wrong: NDArray[np.bool_]
) -> None:
    with pytest.raises(RequestError, match=f"the index holds {ITEMS} items"):
        index.search(queries, 5, allowed=wrong)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_query_that_is_no_number_is_refused(index: Index, queries: NDArray[np.float32], wrong: float) -> None:
    broken = queries[:3].copy()
    broken[2, 5] = wrong
    with pytest.raises(RequestError, match="query 2 holds NaN"):
        index.search(broken, 5)


def test_a_query_of_huge_numbers_is_searched_with(index: Index, queries: NDArray[np.float32]) -> None:
    huge = queries[:3] * np.float32(2**100)  # The sum of its squares is more than a float32 holds.
    np.testing.assert_array_equal(index.search(huge, 5)[0], index.search(queries[:3], 5)[0])


@pytest.mark.parametrize("shape", [(DIM,), (2, DIM - 1), (1, 1, DIM)])
def test_queries_of_another_shape_are_refused(index: Index, shape: tuple[int, ...]) -> None:
    with pytest.raises(RequestError, match=f"width {DIM}"):
        index.search(np.zeros(shape, np.float32), 5)


def test_fewer_than_one_item_is_refused(index: Index, queries: NDArray[np.float32]) -> None:
    with pytest.raises(RequestError, match="k is 0"):
        index.search(queries, 0)


def test_embeddings_that_cannot_be_searched_are_refused(build: Build) -> None:
    with pytest.raises(ArtifactError, match="first: row 1"):
        build(np.array([[1, 2], [np.nan, 1]], np.float32))
    with pytest.raises(ArtifactError, match="with items"):
        build(np.empty((0, 4), np.float32))


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
