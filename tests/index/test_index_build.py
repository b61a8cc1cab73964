import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from twotower.errors import ArtifactError
from twotower.index.build import IndexConfig, build_index, load_index, recall_against, save_index
from twotower.index.exact import ExactIndex


@pytest.fixture(scope="module")
def embeddings() -> NDArray[np.float32]:
    return np.random.default_rng(3).normal(size=(400, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def queries() -> NDArray[np.float32]:
    return np.random.default_rng(4).normal(size=(20, 8)).astype(np.float32)


@pytest.mark.parametrize(("exact_below", "kind"), [(401, "exact"), (400, "hnsw")])
def test_auto_goes_by_the_size_of_the_catalogue(
    embeddings: NDArray[np.float32], queries: NDArray[np.float32], tmp_path: Path, exact_below: int, kind: str
) -> None:
    facts = build_index(IndexConfig(exact_below=exact_below), embeddings=embeddings, queries=queries, out=tmp_path)
    assert facts["kind"] == load_index(tmp_path).kind == kind
    assert (facts["items"], facts["dim"], facts["queries"]) == (400, 8, 20)
    assert set(facts["ms_per_query"]) == {"exact", "hnsw"}
    assert set(facts["recall"]) == {"10", "100"}
    assert 0.95 <= facts["recall"]["100"] <= 1
    assert json.loads(json.dumps(facts)) == facts


def test_exact_on_request_builds_no_graph(
    embeddings: NDArray[np.float32], queries: NDArray[np.float32], tmp_path: Path
) -> None:
    facts = build_index(IndexConfig(kind="exact"), embeddings=embeddings, queries=queries, out=tmp_path)
    assert "recall" not in facts
    assert sorted(path.name for path in tmp_path.iterdir()) == ["embeddings.npy", "index.json"]


def test_recall_is_the_share_of_the_best_that_was_found() -> None:
    # Scores of the query: 4, 3, 2, 1. The other index does not hold the second-best item: of the best two it finds one.
    embeddings = np.array([[4], [3], [2], [1]], np.float32)
    exact, lossy = ExactIndex.build(embeddings), ExactIndex.build(embeddings[[0, 2, 3]])
    assert recall_against(exact, lossy, queries=np.ones((1, 1), np.float32), k=2) == 0.5


def test_either_of_two_equals_counts_as_found() -> None:
    exact = ExactIndex.build(np.array([[4], [3], [3]], np.float32))
    other = ExactIndex.build(np.array([[4], [1], [3]], np.float32))
    assert recall_against(exact, other, queries=np.ones((1, 1), np.float32), k=2) == 1.0


def test_without_queries_nothing_is_measured_but_the_index_is_built(
    embeddings: NDArray[np.float32], tmp_path: Path
) -> None:
    facts = build_index(IndexConfig(), embeddings=embeddings, queries=np.empty((0, 8), np.float32), out=tmp_path)
    assert facts.keys() == {"kind", "items", "dim", "queries", "build_seconds"}
    assert load_index(tmp_path).embeddings.shape == (400, 8)


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_a_damaged_index_is_refused_by_file_name(
    embeddings: NDArray[np.float32], queries: NDArray[np.float32], tmp_path: Path, kind: str
) -> None:
    build_index(IndexConfig(kind=kind), embeddings=embeddings, queries=queries, out=tmp_path)  # type: ignore[arg-type]
    for path in sorted(tmp_path.iterdir()):
        whole = path.read_bytes()
        path.write_bytes(whole[:20])
        with pytest.raises(ArtifactError, match=path.name):
            load_index(tmp_path)
        path.unlink()
        with pytest.raises(ArtifactError, match=path.name):
            load_index(tmp_path)
        path.write_bytes(whole)
    load_index(tmp_path)


def test_a_graph_over_other_embeddings_is_refused(embeddings: NDArray[np.float32], tmp_path: Path) -> None:
    build_index(IndexConfig(kind="hnsw"), embeddings=embeddings, queries=embeddings[:1], out=tmp_path)
    save_index(ExactIndex.build(embeddings[:10]), tmp_path)
    (tmp_path / "index.json").write_text('{"kind": "hnsw", "items": 10, "dim": 8}')
    with pytest.raises(ArtifactError, match=r"graph\.faiss: not a graph over"):
        load_index(tmp_path)


def test_a_kind_of_a_later_release_is_refused(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text('{"kind": "quantum", "items": 1, "dim": 1}')
    with pytest.raises(ArtifactError, match=r"index\.json.*quantum"):
        load_index(tmp_path)


@pytest.mark.parametrize("wrong", [{"kind": "ivf"}, {"links": 1}, {"exact_below": 0}, {"depth": 3}])
def test_settings_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(IndexConfig).validate_python(wrong)
