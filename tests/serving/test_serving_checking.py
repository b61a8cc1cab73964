"""A real bundle, damaged in every way: by accident, or on purpose with a manifest that agrees."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import numpy_helper

from twotower import artifact
from twotower.errors import ArtifactError
from twotower.serving.live.checking import check

FILES = [
    "bundle.json",
    "candidates.npy",
    "golden.json",
    "histories/item.npy",
    "histories/positive.npy",
    "histories/start.npy",
    "histories/timestamp.npy",
    "index/embeddings.npy",
    "index/index.json",
    "items.parquet",
    "model/candidate_tower.onnx",
    "model/features.json",
    "model/model.json",
    "model/query_tower.onnx",
    "model/ranking.onnx",
    "model/vocabularies/candidate_id_item_id.parquet",
    "model/vocabularies/query_category_gender.parquet",
    "popularity.npy",
    "recipe.toml",
    "report/card.md",
    "report/report.html",
    "report/report.json",
    "serve.json",
    "trends.npy",
    "users.parquet",
]
READ = [name for name in FILES if not name.startswith("report/")]
"""What an answer depends on."""
GRAPHS = [name for name in FILES if name.endswith(".onnx")]
ITEMS, DIM, WIDTH = 40, 4, 6
"""As in `conftest.py`."""


@pytest.fixture
def copy(bundle_directory: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle_directory, tmp_path / "copy"))


def seal_again(directory: Path) -> None:
    """Make the manifest agree with the files, whatever they are now."""
    path = directory / artifact.MANIFEST
    manifest = json.loads(path.read_text())
    there = sorted(file for file in directory.rglob("*") if file.is_file() and file != path)
    manifest["files"] = {file.relative_to(directory).as_posix(): artifact.sha256(file) for file in there}
    manifest["metadata"] |= json.loads((directory / "bundle.json").read_text())
    path.write_text(json.dumps(manifest))


def refused(directory: Path) -> str:
    with pytest.raises(ArtifactError) as told:
        check(directory)
    assert "\n" not in str(told.value)
    return str(told.value).removeprefix(f"{directory}/")


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_graph(path: Path, name: str, edit: Callable[[np.ndarray], np.ndarray]) -> None:
    """Replace one tensor of weights."""
    graph = onnx.load(path)
    (weights,) = (tensor for tensor in graph.graph.initializer if tensor.name == name)
    weights.CopyFrom(numpy_helper.from_array(edit(numpy_helper.to_array(weights).copy()), name))
    onnx.save(graph, path)


def edit_array(path: Path, edit: Callable[[np.ndarray], np.ndarray]) -> None:
    np.save(path, edit(np.load(path)))


def put(value: float, *place: int) -> Callable[[np.ndarray], np.ndarray]:
    """An edit that sets one number."""

    def edit(array: np.ndarray) -> np.ndarray:
        array[place] = value
        return array

    return edit


def test_a_whole_bundle_may_answer(bundle_directory: Path) -> None:
    assert check(bundle_directory).id.startswith("tiny-")


def test_a_bundle_with_an_approximate_index_may_answer(world: Any, tmp_path: Path) -> None:
    assert check(world.write(tmp_path / "bundle", index=world.directory / "hnsw")).index.kind == "hnsw"


def test_a_truncated_graph_of_neighbours_is_refused_by_name_though_the_manifest_agrees(
    world: Any, tmp_path: Path
) -> None:
    bundle = world.write(tmp_path / "bundle", index=world.directory / "hnsw")
    path = bundle / "index" / "graph.faiss"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    seal_again(bundle)
    assert refused(bundle).startswith("index/graph.faiss: not readable")


def test_these_are_all_files_of_a_bundle(bundle_directory: Path) -> None:
    assert sorted(artifact.read_manifest(bundle_directory, kind="bundle")["files"]) == FILES


def test_the_golden_answers_are_those_of_users_of_the_log_and_of_nobody(world: Any, bundle_directory: Path) -> None:
    golden = json.loads((bundle_directory / "golden.json").read_text())
    data = world.dataset
    met = np.unique(data.user[data.positive])
    asked = [met[0], met[(len(met) - 1) // 3], met[2 * (len(met) - 1) // 3], met[-1], None]
    for place, user in enumerate(asked):
        known = {} if user is None else data.users.slice(user, 1).drop_columns(["user_id"]).to_pylist()[0]
        history = [] if user is None else data.item_ids[data.item[(data.user == user) & data.positive]][-5:].tolist()
        query = world.query(history=history, **known)
        scores = world.candidates()[:, :DIM] @ query[:DIM]
        best = np.argsort(-scores, kind="stable")[:20]
        np.testing.assert_allclose(golden["embedding"][place], query[:DIM], atol=1e-5)
        assert golden["item_id"][place] == data.item_ids[best].tolist()
        np.testing.assert_allclose(golden["retrieval"][place], scores[best], atol=1e-5)
        np.testing.assert_allclose(golden["ranking"]["rating"][place], world.logits(query)[best, 1], atol=1e-5)
    assert len(golden["embedding"]) == 5


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_flipped_or_missing_file_is_refused_by_name(copy: Path, name: str) -> None:
    path = copy / name
    content = path.read_bytes()
    place = len(content) // 2
    for damaged in (content[:place], b"", content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]):
        path.write_bytes(damaged)
        assert refused(copy).startswith(f"{name}: damaged")
    path.unlink()
    assert refused(copy).startswith(f"{name}: listed in the manifest, but missing")


@pytest.mark.parametrize("name", READ)
def test_a_truncated_file_is_refused_by_name_though_the_manifest_agrees(copy: Path, name: str) -> None:
    path = copy / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    if name != "bundle.json":
        seal_again(copy)
    assert refused(copy).startswith(f"{name}: ")


@pytest.mark.parametrize("name", READ)
def test_a_missing_file_is_refused_by_name_though_the_manifest_agrees(copy: Path, name: str) -> None:
    (copy / name).unlink()
    if name != "bundle.json":
        seal_again(copy)
    assert refused(copy).startswith(f"{name}: ")


@pytest.mark.parametrize("name", READ)
def test_no_flipped_byte_does_worse_than_a_refusal_though_the_manifest_agrees(copy: Path, name: str) -> None:
    # What opens all the same answers the golden queries as before.
    path = copy / name
    content = path.read_bytes()
    for place in range(0, len(content), max(1, len(content) // 12)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x44]) + content[place + 1 :])
        try:
            seal_again(copy)
            check(copy)
        except (ArtifactError, ValueError) as fault:  # No JSON to seal.
            assert isinstance(fault, ArtifactError) or name == "bundle.json"  # noqa: PT017


@pytest.mark.parametrize(
    ("name", "tensor", "place"),
    [
        ("model/query_tower.onnx", "items", (11, 2)),
        ("model/query_tower.onnx", "age", (1, 0)),
        ("model/candidate_tower.onnx", "items", (0, 0)),
        ("model/ranking.onnx", "bias", (1,)),
    ],
)
def test_a_single_weight_that_is_no_number_is_refused_by_the_graphs_name(
    copy: Path, name: str, tensor: str, place: tuple[int, ...]
) -> None:
    for value in (np.nan, np.inf):
        edit_graph(copy / name, tensor, put(value, *place))
        seal_again(copy)
        told = refused(copy)
        assert told.startswith(f"{name}: 1 of the ")
        assert f"weights in '{tensor}' are NaN or infinite" in told


@pytest.mark.parametrize(
    ("name", "tensor", "place"),
    [
        ("model/query_tower.onnx", "age", (0, 1)),
        ("model/candidate_tower.onnx", "items", (1, 1)),
        ("model/ranking.onnx", "head", (3, 0)),
    ],
)
def test_other_weights_are_refused_by_the_golden_answers(
    copy: Path, name: str, tensor: str, place: tuple[int, ...]
) -> None:
    edit_graph(copy / name, tensor, put(3.0, *place))
    seal_again(copy)
    assert refused(copy).startswith(f"{name}: ")


@pytest.mark.parametrize(
    ("name", "place"),
    [("index/embeddings.npy", (39, 3)), ("candidates.npy", (17, 5)), ("trends.npy", (0, 0)), ("popularity.npy", (39,))],
)
def test_an_array_with_a_number_that_is_none_is_refused_by_name_and_row(
    copy: Path, name: str, place: tuple[int, ...]
) -> None:
    for value in (np.nan, -np.inf):
        edit_array(copy / name, put(value, *place))
        seal_again(copy)
        assert refused(copy).startswith(f"{name}: holds NaN or infinity (first: row {place[0]})")


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".npy")])
def test_an_array_of_another_type_or_rank_is_refused_by_name(copy: Path, name: str) -> None:
    whole = np.load(copy / name)
    for changed in (whole.astype(np.longdouble), whole[:, None], whole[:-1]):
        np.save(copy / name, changed)
        seal_again(copy)
        assert refused(copy).startswith(name.removesuffix("/embeddings.npy"))


def narrower_index(bundle: Path) -> None:
    edit_array(bundle / "index" / "embeddings.npy", lambda array: array[:, :-1])
    edit_json(bundle / "index" / "index.json", dim=DIM - 1)


def wider_query(bundle: Path) -> None:
    for name in ("items", "genders", "age"):
        edit_graph(bundle / "model/query_tower.onnx", name, lambda array: np.pad(array, ((0, 0), (0, 1))))


def wider_candidate(bundle: Path) -> None:
    edit_graph(bundle / "model/candidate_tower.onnx", "items", lambda array: np.pad(array, ((0, 0), (0, 1))))


def one_label_less(bundle: Path) -> None:
    edit_graph(bundle / "model/ranking.onnx", "head", lambda array: array[:, :1])
    edit_graph(bundle / "model/ranking.onnx", "bias", lambda array: array[:1])
    edit_graph(bundle / "model/ranking.onnx", "fortunes", lambda array: array[:, :1])


def one_item_more_in_the_vocabulary(bundle: Path) -> None:
    path = bundle / "model/vocabularies/candidate_id_item_id.parquet"
    values = pq.read_table(path)["value"].to_pylist()
    pq.write_table(pa.table({"value": [*values, "one more"]}), path)


def two_items_change_places(bundle: Path) -> None:
    golden = json.loads((bundle / "golden.json").read_text())
    first, second = golden["row"][0][:2]
    table = pq.read_table(bundle / "items.parquet")
    order = np.arange(table.num_rows)
    order[[first, second]] = order[[second, first]]
    pq.write_table(table.take(pa.array(order)), bundle / "items.parquet")


def twice_the_same(name: str, column: str) -> Callable[[Path], None]:
    def edit(bundle: Path) -> None:
        table = pq.read_table(bundle / name)
        ids = table[column].to_pylist()
        ids[-1] = ids[0]
        pq.write_table(table.set_column(table.column_names.index(column), column, pa.array(ids)), bundle / name)

    return edit


def without(name: str, column: str) -> Callable[[Path], None]:
    return lambda bundle: pq.write_table(pq.read_table(bundle / name).drop_columns([column]), bundle / name)


def in_json(name: str, **changes: Any) -> Callable[[Path], None]:
    return lambda bundle: edit_json(bundle / name, **changes)


def in_array(name: str, edit: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    return lambda bundle: edit_array(bundle / name, edit)


def no_recipe(bundle: Path) -> None:
    (bundle / "recipe.toml").write_text("[")


def other_golden_scores(bundle: Path) -> None:
    golden = json.loads((bundle / "golden.json").read_text())
    golden["ranking"]["score"][0][0] += 0.01
    (bundle / "golden.json").write_text(json.dumps(golden))


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "an index narrower than the model": (narrower_index, "index/embeddings.npy: holds float32 (40, 3)"),
    "a model that says another width": (in_json("model/model.json", embedding_dim=5), "index/embeddings.npy: holds"),
    "candidates narrower than embeddings": (
        in_array("candidates.npy", lambda array: array[:, : DIM - 1]),
        "candidates.npy: holds float32 (40, 3)",
    ),
    "candidates wider than the ranking head reads": (
        in_array("candidates.npy", lambda array: np.pad(array, ((0, 0), (0, 1)))),
        "model/candidate_tower.onnx: what candidates.npy holds of shape (",
    ),
    "a query tower wider than the ranking head reads": (wider_query, "model/ranking.onnx: does not fit"),
    "a candidate tower wider than the candidates": (wider_candidate, "model/candidate_tower.onnx: what candidates.npy"),
    "a ranking head with a label less": (one_label_less, "model/ranking.onnx: does not fit"),
    "trends of another width": (
        in_array("trends.npy", lambda array: array[:, :2]),
        "trends.npy: holds float32 (40, 2)",
    ),
    "an index of another model": (
        in_array("index/embeddings.npy", lambda array: array[:, ::-1]),
        "index/embeddings.npy: holds other embeddings than candidates.npy",
    ),
    "a vocabulary larger than its table": (
        one_item_more_in_the_vocabulary,
        "model/candidate_tower.onnx: no table 'candidate_id_item_id' of 40 rows",
    ),
    "a vocabulary that names a value twice": (
        twice_the_same("model/vocabularies/candidate_id_item_id.parquet", "value"),
        "model/vocabularies/candidate_id_item_id.parquet: column 'value' holds 1 values twice",
    ),
    "items in another order": (two_items_change_places, "model/candidate_tower.onnx: what candidates.npy holds is"),
    "an item twice": (twice_the_same("items.parquet", "item_id"), "items.parquet: column 'item_id' holds 1 values"),
    "a user twice": (twice_the_same("users.parquet", "user_id"), "users.parquet: column 'user_id' holds 1 values"),
    "items without ids": (without("items.parquet", "item_id"), "items.parquet: has no column 'item_id' of text"),
    "items without titles": (without("items.parquet", "title"), "bundle.json: 'title_column' is 'title'"),
    "no candidates at all": (in_json("bundle.json", candidates=0), "bundle.json: 'candidates' is 0"),
    "an end of the log in words": (in_json("bundle.json", last_us="now"), "bundle.json: 'last_us' is 'now'"),
    "other counts": (in_json("bundle.json", counts={"items": 1}), "bundle.json: 'counts' is"),
    "a temperature of nothing": (in_json("model/model.json", temperature=0.0), "model/model.json: the temperature is"),
    "an order by a label that is none": (
        in_json("model/model.json", order={"x": 1.0}),
        "model/model.json: orders by 'x'",
    ),
    "a history of items that are not there": (
        in_array("histories/item.npy", put(ITEMS, 3)),
        "histories/item.npy: names an item that is not among 40",
    ),
    "a history that runs backwards": (
        in_array("histories/timestamp.npy", lambda array: array[::-1]),
        "histories/timestamp.npy: is not in the order of time",
    ),
    "users that share interactions": (
        in_array("histories/start.npy", put(10_000, 2)),
        "histories/start.npy: does not part",
    ),
    "golden answers of another bundle": (other_golden_scores, "model/ranking.onnx: score is"),
    "an index of a kind unknown": (in_json("index/index.json", kind="other"), "index/index.json: no index"),
    "features of a kind unknown": (in_json("model/features.json", query=[{"feature": {}}]), "model/features.json: not"),
    "a recipe that is none": (no_recipe, "recipe.toml: not readable"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bundle_is_refused_by_name_though_every_hash_agrees(copy: Path, fault: str) -> None:
    edit, expected = FAULTS[fault]
    edit(copy)
    seal_again(copy)
    assert refused(copy).startswith(expected)


def test_nothing_outside_of_the_folder_is_read_by_name(copy: Path) -> None:
    outside = copy.parent / "outside.npy"
    shutil.copyfile(copy / "popularity.npy", outside)
    for name in ("../outside.npy", "model/../../outside.npy", str(outside)):
        seal_again(copy)
        manifest = json.loads((copy / artifact.MANIFEST).read_text())
        manifest["files"][name] = artifact.sha256(outside)
        (copy / artifact.MANIFEST).write_text(json.dumps(manifest))
        assert refused(copy).startswith(f"{artifact.MANIFEST}: names '{name}'")


def test_nothing_outside_of_the_folder_is_read_by_a_link(copy: Path) -> None:
    outside = copy.parent / "outside"
    outside.mkdir()
    shutil.move(copy / "popularity.npy", outside / "popularity.npy")
    (copy / "popularity.npy").symlink_to(outside / "popularity.npy")
    assert refused(copy).startswith("popularity.npy: a link that leads out of")
    (copy / "popularity.npy").unlink()
    shutil.move(outside / "popularity.npy", copy / "popularity.npy")
    shutil.move(copy / "histories", outside / "histories")
    (copy / "histories").symlink_to(outside / "histories")
    assert refused(copy).startswith("histories/item.npy: a link that leads out of")


def test_a_bundle_may_itself_be_reached_by_a_link(bundle_directory: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(bundle_directory)
    assert check(tmp_path / "current").items.num_rows == ITEMS


@pytest.mark.parametrize("name", GRAPHS)
def test_weights_kept_in_another_file_are_refused_by_the_graphs_name_wherever_that_file_is(
    copy: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = onnx.load(copy / name)
    onnx.save(
        graph, copy / name, save_as_external_data=True, location="weights.bin", size_threshold=0, convert_attribute=True
    )
    seal_again(copy)
    told = refused(copy)
    assert told.startswith(f"{name}: keeps the numbers of ")
    assert "'weights.bin'" in told
    # Where ONNX Runtime itself would look for it.
    shutil.move(copy / name.replace(Path(name).name, "weights.bin"), copy.parent / "weights.bin")
    monkeypatch.chdir(copy.parent)
    seal_again(copy)
    assert refused(copy).startswith(f"{name}: keeps the numbers of ")


def test_a_vocabulary_cannot_be_read_from_elsewhere(copy: Path) -> None:
    path = copy / "model" / "features.json"
    described = json.loads(path.read_text())
    (gender,) = (entry for entry in described["query"] if entry["feature"]["column"] == "gender")
    gender["feature"]["column"] = "/../../../../gender"
    path.write_text(json.dumps(described))
    seal_again(copy)
    assert "leads out of" in refused(copy)
