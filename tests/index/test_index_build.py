import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from twotower.artifact import sha256
from twotower.errors import ArtifactError
from twotower.index.build import build_index, load_index, recall_against, save_index
from twotower.index.config import IndexConfig
from twotower.index.exact import ExactIndex
from twotower.index.inverted import IvfIndex
from twotower.index.reach import Reach

FILES = {
    "exact": ["embeddings.npy", "index.json"],
    "ivf": ["embeddings.npy", "index.json", "lists.faiss", "reach.json"],
    "hnsw": ["embeddings.npy", "graph.faiss", "index.json"],
}


@pytest.fixture(scope="module")
def embeddings() -> NDArray[np.float32]:
    return np.random.default_rng(3).normal(size=(400, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def queries() -> NDArray[np.float32]:
    return np.random.default_rng(4).normal(size=(20, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def many() -> NDArray[np.float32]:
    """A catalogue in which scoring everything takes ten times as long as reading a few lists."""
    generator = np.random.default_rng(5)
    centres = generator.normal(size=(300, 8))
    return (centres[generator.integers(300, size=100_000)] + 0.1 * generator.normal(size=(100_000, 8))).astype("f4")


def test_a_small_catalogue_is_searched_exactly_and_nothing_is_built_to_compare_with(
    embeddings: NDArray[np.float32], queries: NDArray[np.float32], tmp_path: Path
) -> None:
    facts = build_index(IndexConfig(exact_below=401), embeddings=embeddings, queries=queries, out=tmp_path)
    assert facts.keys() == {"kind", "items", "dim", "queries", "candidates", "ms_per_query"}
    assert (facts["kind"], facts["items"], facts["dim"], facts["queries"]) == ("exact", 400, 8, 20)
    assert facts["ms_per_query"].keys() == {"exact"}
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES["exact"]


def test_a_large_one_is_searched_by_lists_where_that_is_faster(
    many: NDArray[np.float32], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twotower.index.build.is_installed", lambda: False)
    facts = build_index(IndexConfig(), embeddings=many, queries=many[:200], candidates=50, out=tmp_path)
    assert facts["kind"] == load_index(tmp_path).kind == "ivf"
    assert facts["ms_per_query"].keys() == {"exact", "ivf"}
    assert facts["recall"].keys() == {"10", "50", "100"}
    assert facts["recall"]["50"] >= 0.98
    assert facts["build_seconds"] > 0
    assert json.loads(json.dumps(facts)) == facts


def test_lists_that_find_too_little_are_not_taken(tmp_path: Path) -> None:
    # Lists form along the first number, which the query leaves out; a byte of the second tells only who lies far below.
    generator = np.random.default_rng(0)
    second = np.where(generator.random(3_000) < 0.02, -1e4, generator.uniform(1, 1.02, 3_000))
    embeddings = np.stack([generator.uniform(-1e5, 1e5, 3_000), second], axis=1).astype(np.float32)
    queries = np.array([[0.0, 1.0]], np.float32)
    config = IndexConfig(exact_below=1, recall=0.9)
    facts = build_index(config, embeddings=embeddings, queries=queries, candidates=10, out=tmp_path)
    assert facts["kind"] == load_index(tmp_path).kind == "exact"
    assert "recall" not in facts


def test_exact_on_request_builds_nothing_else(
    embeddings: NDArray[np.float32], queries: NDArray[np.float32], tmp_path: Path
) -> None:
    config = IndexConfig(kind="exact", exact_below=1)
    facts = build_index(config, embeddings=embeddings, queries=queries, out=tmp_path)
    assert "recall" not in facts
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES["exact"]


def test_a_higher_recall_is_asked_for_and_reached(many: NDArray[np.float32], tmp_path: Path) -> None:
    reached: list[IvfIndex] = []
    for recall in (0.8, 0.995):
        out = tmp_path / str(recall)
        out.mkdir()
        config = IndexConfig(kind="ivf", recall=recall)
        facts = build_index(config, embeddings=many[:20_000], queries=many[:100], candidates=200, out=out)
        assert facts["recall"]["200"] >= recall - 0.01
        loaded = load_index(out)
        assert isinstance(loaded, IvfIndex)
        reached.append(loaded)
    assert reached[0].reach.lists < reached[1].reach.lists
    assert [each.reach.depth for each in reached] == [200, 200]


def test_equal_embeddings_and_queries_give_equal_files(many: NDArray[np.float32], tmp_path: Path) -> None:
    written = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        build_index(IndexConfig(kind="ivf"), embeddings=many, queries=many[:20], out=tmp_path / name)
        written.append({path.name: sha256(path) for path in (tmp_path / name).iterdir()})
    assert written[0] == written[1]


def test_recall_is_the_share_of_the_best_that_was_found() -> None:
    # Scores of the query: 4, 3, 2, 1. The other index does not hold the second-best item: of the best two it finds one.
    embeddings = np.array([[4], [3], [2], [1]], np.float32)
    exact, lossy = ExactIndex.build(embeddings), ExactIndex.build(embeddings[[0, 2, 3]])
    assert recall_against(exact, lossy, queries=np.ones((1, 1), np.float32), k=2) == 0.5


def test_either_of_two_equals_counts_as_found() -> None:
    exact = ExactIndex.build(np.array([[4], [3], [3]], np.float32))
    other = ExactIndex.build(np.array([[4], [1], [3]], np.float32))
    assert recall_against(exact, other, queries=np.ones((1, 1), np.float32), k=2) == 1.0


@pytest.mark.parametrize(("kind", "built"), [("auto", "exact"), ("ivf", "ivf"), ("hnsw", "hnsw")])
def test_without_queries_nothing_is_measured(
    embeddings: NDArray[np.float32], tmp_path: Path, kind: str, built: str
) -> None:
    config = IndexConfig(kind=kind, exact_below=1)  # type: ignore[arg-type]
    facts = build_index(config, embeddings=embeddings, queries=np.empty((0, 8), np.float32), out=tmp_path)
    assert facts.keys() - {"build_seconds"} == {"kind", "items", "dim", "queries", "candidates"}
    assert facts["kind"] == load_index(tmp_path).kind == built
    assert load_index(tmp_path).embeddings.shape == (400, 8)


@pytest.mark.parametrize("kind", sorted(FILES))
def test_a_damaged_index_is_refused_by_file_name(
    embeddings: NDArray[np.float32], queries: NDArray[np.float32], tmp_path: Path, kind: str
) -> None:
    build_index(IndexConfig(kind=kind), embeddings=embeddings, queries=queries, out=tmp_path)  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES[kind]
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


@pytest.mark.parametrize(
    ("kind", "message"), [("hnsw", r"graph\.faiss: not a graph over"), ("ivf", r"lists\.faiss: not lists over")]
)
def test_what_was_built_over_other_embeddings_is_refused(
    embeddings: NDArray[np.float32], tmp_path: Path, kind: str, message: str
) -> None:
    config = IndexConfig(kind=kind)  # type: ignore[arg-type]
    build_index(config, embeddings=embeddings, queries=embeddings[:1], out=tmp_path)
    save_index(ExactIndex.build(embeddings[:10]), tmp_path)
    (tmp_path / "index.json").write_text(json.dumps({"kind": kind, "items": 10, "dim": 8}))
    with pytest.raises(ArtifactError, match=message):
        load_index(tmp_path)


@pytest.mark.parametrize(
    "reach", ['{"depth": 100, "lists": 0, "rescored": 200}', '{"depth": 100, "lists": 3}', '{"lists": "many"}', "[3]"]
)
def test_a_reach_that_cannot_be_is_refused(embeddings: NDArray[np.float32], tmp_path: Path, reach: str) -> None:
    save_index(IvfIndex.build(embeddings), tmp_path)
    (tmp_path / "reach.json").write_text(reach)
    with pytest.raises(ArtifactError, match=r"reach\.json: not readable"):
        load_index(tmp_path)


def test_a_search_that_goes_deeper_or_among_fewer_reads_more() -> None:
    # Tuned for the best 100. The best 200 of a quarter of the items lie among the best 800 of all: eight times as far.
    reach = Reach(depth=100, lists=3, rescored=250)
    assert reach.of(50) == Reach(depth=50, lists=3, rescored=250)
    assert reach.of(200) == Reach(depth=200, lists=6, rescored=500)
    assert reach.of(200, share=0.25) == Reach(depth=200, lists=24, rescored=500)


def test_a_query_whose_nearest_lists_hold_too_little_finds_what_is_allowed_in_the_others(
    many: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twotower.index.inverted.SCANNED", 0)
    embeddings, query = many[:3_000], many[:1]
    index = IvfIndex.build(embeddings).reaching(Reach(depth=40, lists=1, rescored=50))
    allowed = (embeddings @ query[0]) < np.median(embeddings @ query[0])  # The half that lies away from it.
    rows, _ = index.search(query, 40, allowed=allowed)
    expected, _ = ExactIndex(embeddings).search(query, 40, allowed=allowed)
    assert allowed[rows].all()
    assert len(set(rows[0].tolist()) & set(expected[0].tolist())) >= 38


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted as Linux lists them")
def test_a_search_by_lists_starts_no_thread(embeddings: NDArray[np.float32], tmp_path: Path) -> None:
    save_index(IvfIndex.build(np.tile(embeddings, (20, 1))), tmp_path)
    code = """
import os, sys
from pathlib import Path
from twotower.index.build import load_index
index = load_index(Path(sys.argv[1]))
before = len(os.listdir("/proc/self/task"))
index.search(index.embeddings[:100], 20)
print(len(os.listdir("/proc/self/task")) - before)
"""
    finished = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert finished.stdout == "0\n"


def test_a_kind_of_a_later_release_is_refused(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text('{"kind": "quantum", "items": 1, "dim": 1}')
    with pytest.raises(ArtifactError, match=r"index\.json.*quantum"):
        load_index(tmp_path)


@pytest.mark.parametrize(
    "wrong", [{"kind": "quantum"}, {"links": 1}, {"exact_below": 0}, {"recall": 0.0}, {"recall": 1.1}, {"depth": 3}]
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(IndexConfig).validate_python(wrong)
