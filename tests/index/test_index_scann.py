"""What holds of ScaNN's lists alone; what holds of every index is in the contract test."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from twotower.artifact import sha256
from twotower.errors import ArtifactError, MissingExtraError
from twotower.index.build import build_index, load_index, recall_against, save_index
from twotower.index.config import IndexConfig
from twotower.index.exact import ExactIndex
from twotower.index.partitioned import ScannIndex, is_installed
from twotower.index.reach import Reach

ITEMS, DIM = 6_000, 16
needs_scann = pytest.mark.skipif(not is_installed(), reason="ScaNN has wheels for Linux alone")


@pytest.fixture(autouse=True)
def few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twotower.index.partitioned.SCANNED", 200)


@pytest.fixture(scope="module")
def embeddings() -> NDArray[np.float32]:
    """Each item is there twice, so that many scores are equal."""
    generator = np.random.default_rng(1)
    centres = generator.normal(size=(100, DIM))
    points = centres[generator.integers(100, size=ITEMS // 2)] + 0.5 * generator.normal(size=(ITEMS // 2, DIM))
    return np.tile((points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32), (2, 1))


@pytest.fixture(scope="module")
def index(embeddings: NDArray[np.float32]) -> ScannIndex:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("twotower.index.partitioned.SCANNED", 200)
        return ScannIndex.build(embeddings)


@needs_scann
def test_the_best_come_with_their_scores_and_equal_ones_by_row(index: ScannIndex) -> None:
    queries = index.embeddings[:40]
    rows, scores = index.search(queries, 20)
    assert rows.shape == scores.shape == (40, 20)
    np.testing.assert_allclose(scores, np.einsum("qd,qkd->qk", queries, index.embeddings[rows]), rtol=1e-5)
    assert (rows[:, 0] == np.arange(40)).all()
    assert (rows[:, 1] == np.arange(40) + ITEMS // 2).all()
    assert (np.lexsort((rows, -scores), axis=1) == np.arange(20)).all()
    assert recall_against(ExactIndex(index.embeddings), index, queries=queries, k=20) >= 0.97


@needs_scann
def test_of_many_equal_items_the_first_rows_come_first_among_the_allowed_too(embeddings: NDArray[np.float32]) -> None:
    index = ScannIndex.build(np.tile(embeddings[:300], (20, 1)))
    for allowed in (None, np.arange(ITEMS) % 3 > 0):
        rows, scores = index.search(embeddings[:50], 60, allowed=allowed)
        assert (np.lexsort((rows, -scores), axis=1) == np.arange(60)).all()
        assert (scores[:, 1:] == scores[:, :-1]).mean() > 0.8


@needs_scann
def test_a_query_alone_gets_the_answer_that_it_gets_among_others(index: ScannIndex) -> None:
    near, queries = index.reaching(Reach(depth=20, lists=10, rescored=60)), index.embeddings[:40]
    for allowed in (None, np.arange(ITEMS) % 3 > 0):
        rows, scores = near.search(queries, 20, allowed=allowed)
        for line in range(40):
            row, score = near.search(queries[line : line + 1], 20, allowed=allowed)
            assert row.dtype == rows.dtype == np.int64
            np.testing.assert_array_equal(row, rows[line : line + 1])
            np.testing.assert_array_equal(score, scores[line : line + 1])


@needs_scann
@pytest.mark.parametrize("share", [0.04, 0.2, 0.9])
def test_only_what_is_allowed_comes_and_so_many_do(index: ScannIndex, share: float) -> None:
    allowed = np.random.default_rng(2).random(ITEMS) < share
    rows, _ = index.search(index.embeddings[:30], 25, allowed=allowed)
    assert rows.shape == (30, 25)
    assert allowed[rows].all()
    expected, _ = ExactIndex(index.embeddings).search(index.embeddings[:30], 25, allowed=allowed)
    assert np.mean([len(set(one) & set(other)) for one, other in zip(rows, expected, strict=True)]) >= 24


@needs_scann
def test_a_query_among_whose_nearest_little_is_allowed_is_answered_exactly(index: ScannIndex) -> None:
    near = index.reaching(Reach(depth=40, lists=2, rescored=50))
    query = index.embeddings[:1]
    allowed = (index.embeddings @ query[0]) < np.median(index.embeddings @ query[0])  # The half that lies away from it.
    expected = ExactIndex(index.embeddings).search(query, 40, allowed=allowed)
    for one, other in zip(near.search(query, 40, allowed=allowed), expected, strict=True):
        np.testing.assert_array_equal(one, other)


@needs_scann
def test_equal_embeddings_give_equal_files(embeddings: NDArray[np.float32], tmp_path: Path) -> None:
    written = []
    for name in ("one", "two"):
        one = ScannIndex.build(embeddings[: ITEMS // 2])
        (tmp_path / name).mkdir()
        save_index(one, tmp_path / name)
        files = (path for path in (tmp_path / name).rglob("*") if path.is_file())
        written.append({path.relative_to(tmp_path / name): sha256(path) for path in files})
    assert written[0] == written[1]


@needs_scann
def test_saved_and_loaded_it_answers_the_same(index: ScannIndex, tmp_path: Path) -> None:
    save_index(index, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".pkl", ".pbtxt")]
    loaded = load_index(tmp_path)
    assert isinstance(loaded, ScannIndex)
    assert loaded.lists == index.lists == 77  # The root of 6,000.
    for found, expected in zip(
        loaded.search(index.embeddings[:50], 30), index.search(index.embeddings[:50], 30), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


@needs_scann
def test_auto_takes_it_where_it_is_installed(embeddings: NDArray[np.float32], tmp_path: Path) -> None:
    config = IndexConfig(exact_below=1, recall=0.9)
    many = np.tile(embeddings, (20, 1)) + np.random.default_rng(0).normal(0, 0.05, (20 * ITEMS, 1)).astype(np.float32)
    facts = build_index(config, embeddings=many, queries=embeddings[:100], candidates=50, out=tmp_path)
    assert facts["kind"] == load_index(tmp_path).kind == "scann"
    assert facts["recall"]["50"] >= 0.9
    assert json.loads(json.dumps(facts)) == facts


@needs_scann
@pytest.mark.parametrize("file", ["ah_codebook.pb", "serialized_partitioner.pb", "hashed_dataset.npy"])
def test_a_damaged_file_is_refused_by_the_name_of_the_folder(index: ScannIndex, tmp_path: Path, file: str) -> None:
    save_index(index, tmp_path)
    path = tmp_path / "scann" / file
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ArtifactError, match="scann: not readable"):
        load_index(tmp_path)
    path.unlink()
    with pytest.raises(ArtifactError, match="scann: not readable"):
        load_index(tmp_path)


@needs_scann
def test_lists_over_other_embeddings_are_refused(index: ScannIndex, tmp_path: Path) -> None:
    save_index(index, tmp_path)
    np.save(tmp_path / "embeddings.npy", index.embeddings[:-1])
    (tmp_path / "index.json").write_text(json.dumps({"kind": "scann", "items": ITEMS - 1, "dim": DIM}))
    with pytest.raises(ArtifactError, match="scann: not readable"):
        load_index(tmp_path)


@needs_scann
def test_who_serves_such_an_index_without_the_library_is_told_which_one_and_what_to_install(
    index: ScannIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_index(index, tmp_path)
    monkeypatch.setitem(sys.modules, "scann.scann_ops.py", None)
    with pytest.raises(MissingExtraError, match=rf'^{tmp_path}/scann: scann is .*pip install "twotower\[scann\]"'):
        load_index(tmp_path)


def test_without_the_library_the_fault_says_what_to_install(
    embeddings: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "scann.scann_ops.py", None)
    assert not is_installed()
    with pytest.raises(MissingExtraError, match=r'pip install "twotower\[scann\]"'):
        ScannIndex.build(embeddings)
