import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twotower import artifact
from twotower.bundle import Bundle, popularity
from twotower.errors import ArtifactError

USERS, ITEMS, CANDIDATES = 25, 40, 12
"""As in `conftest.py`."""


@pytest.fixture
def copy(bundle_directory: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle_directory, tmp_path / "copy"))


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0x10
    path.write_bytes(bytes(content))


def test_a_bundle_tells_what_it_is(world: Any, bundle_directory: Path) -> None:
    bundle = Bundle.load(bundle_directory)
    metadata = bundle.metadata
    assert bundle.id.startswith("tiny-")
    assert (metadata["name"], metadata["index"], metadata["candidates"]) == ("tiny", "exact", CANDIDATES)
    assert metadata["counts"] == {
        "users": USERS,
        "items": ITEMS,
        "interactions": len(world.dataset.item),
        "positives": int(world.dataset.positive.sum()),
    }
    assert metadata["created"].endswith("+00:00")
    assert set(metadata["versions"]) >= {"twotower", "onnxruntime"}


def test_a_bundle_keeps_the_whole_log_by_user(world: Any, bundle_directory: Path) -> None:
    bundle, data = Bundle.load(bundle_directory), world.dataset
    for user in range(USERS):
        mine = data.user == user
        span = slice(*bundle.log.start[user : user + 2])
        assert bundle.log.item[span].tolist() == data.item[mine].tolist()
        assert bundle.log.timestamp[span].tolist() == data.timestamp[mine].tolist()
        assert bundle.positive[span].tolist() == data.positive[mine].tolist()


def test_arrays_stay_on_disk_until_they_are_read(bundle_directory: Path) -> None:
    bundle = Bundle.load(bundle_directory)
    for array in (bundle.candidates, bundle.log.item, bundle.positive, bundle.popularity, bundle.index.embeddings):
        assert isinstance(array.base, np.memmap)


def test_a_flipped_byte_is_refused_by_file_name(copy: Path) -> None:
    for name in artifact.read_manifest(copy, kind="bundle")["files"]:
        middle = (copy / name).stat().st_size // 2
        flip(copy / name, middle)
        with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
            Bundle.load(copy)
        flip(copy / name, middle)
    Bundle.load(copy)


def test_a_missing_file_is_refused_by_name(copy: Path, tmp_path: Path) -> None:
    for name in artifact.read_manifest(copy, kind="bundle")["files"]:
        (copy / name).rename(tmp_path / "aside")
        with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
            Bundle.load(copy)
        (tmp_path / "aside").rename(copy / name)


def test_a_file_that_was_put_there_later_is_refused(copy: Path) -> None:
    (copy / "model" / "more.onnx").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"more\.onnx: in no manifest"):
        Bundle.load(copy)


def test_no_flipped_byte_of_the_manifest_changes_what_is_served(bundle_directory: Path, copy: Path) -> None:
    # The manifest is hashed nowhere. A flip is refused, or falls on the moment of writing, which nothing goes by.
    path, whole = copy / artifact.MANIFEST, Bundle.load(bundle_directory)
    content, hashed = path.read_bytes(), json.loads((copy / "bundle.json").read_text())
    opened = 0
    for place in range(0, len(content), 11):
        path.write_bytes(content)
        flip(path, place)
        try:
            bundle = Bundle.load(copy)
        except ArtifactError:
            continue
        opened += 1
        assert bundle.id == whole.id
        assert {key: bundle.metadata[key] for key in hashed} == hashed
    assert opened <= 4


def test_without_hashing_a_bundle_opens_and_sizes_are_still_compared(copy: Path) -> None:
    assert Bundle.load(copy, verify=False).items.num_rows == ITEMS
    np.save(copy / "popularity.npy", np.zeros(3))
    with pytest.raises(ArtifactError, match=r"popularity\.npy: holds 3 rows, expected 40"):
        Bundle.load(copy, verify=False)


def test_an_array_of_objects_is_refused(copy: Path) -> None:
    np.save(copy / "popularity.npy", np.array([{}], object))
    with pytest.raises(ArtifactError, match=r"popularity\.npy: not readable"):
        Bundle.load(copy, verify=False)


def test_a_directory_of_another_kind_is_refused(world: Any, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds a 'model' directory"):
        Bundle.load(world.directory / "model")
    with pytest.raises(ArtifactError, match="not a bundle directory"):
        Bundle.load(tmp_path)


def test_equal_content_gives_an_equal_id(world: Any, bundle_directory: Path, tmp_path: Path) -> None:
    assert Bundle.load(world.write(tmp_path / "again")).id == Bundle.load(bundle_directory).id


def test_an_index_over_another_model_is_refused(world: Any, tmp_path: Path) -> None:
    index = Path(shutil.copytree(world.directory / "index", tmp_path / "index"))
    embeddings = np.load(index / "embeddings.npy")
    np.save(index / "embeddings.npy", embeddings[:, ::-1])
    with pytest.raises(ArtifactError, match="of another model or catalogue"):
        world.write(tmp_path / "bundle", index=index)
    np.save(index / "embeddings.npy", embeddings[:-1])
    description = {"kind": "exact", "items": len(embeddings) - 1, "dim": embeddings.shape[1]}
    (index / "index.json").write_text(json.dumps(description))
    with pytest.raises(ArtifactError, match="holds 39 items, the catalogue 40"):
        world.write(tmp_path / "bundle", index=index)
    assert not (tmp_path / "bundle").exists()


def test_what_is_popular_is_counted_in_the_latest_positives_and_the_whole_log_parts_equals(world: Any) -> None:
    positives = world.dataset.item[world.dataset.positive]
    counted = popularity(world.dataset, latest=10)
    for row in range(ITEMS):
        assert int(counted[row]) == np.count_nonzero(positives[-10:] == row)
    ever = np.bincount(positives, minlength=ITEMS)
    never_lately = np.flatnonzero(counted < 1)
    assert (np.argsort(-counted[never_lately], kind="stable") == np.argsort(-ever[never_lately], kind="stable")).all()
