"""Where a version answers from: a folder that is another bundle as a whole, or the one that it was."""

import os
from pathlib import Path

import pytest

from twotower import artifact
from twotower.bundle_config import MODEL_KEY
from twotower.errors import ArtifactError, RecipeError, StorageError
from twotower.release.registry import Registry
from twotower.release.target import put_in_place, roll_back


def at(folder: Path, version: str) -> Path:
    """Where a version lies in the registry below a folder."""
    return Path(Registry(address=str(folder / "registry"), name="films").version_address(version))


def bundle_of(folder: Path, content: str) -> Path:
    place = at(folder, content)
    with artifact.write_artifact(place, kind="bundle", metadata={"name": "films", MODEL_KEY: "m"}) as out:
        (out / "model").mkdir()
        (out / "model" / "towers.onnx").write_text(content, encoding="utf-8")
        (out / f"only-in-{content}").write_text(content, encoding="utf-8")
    return place


def put(bundle: Path, to: Path | str) -> None:
    registry = Registry(address=str(bundle.parents[2]), name="films")
    put_in_place(bundle.name, str(to), registry=registry, image="", report=lambda _: None)


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_becomes_the_bundle_as_a_whole(tmp_path: Path) -> None:
    one, two = bundle_of(tmp_path, "one"), bundle_of(tmp_path, "two")
    target = tmp_path / "deployed" / "bundle"
    put(one, target)
    assert artifact.fingerprint(target) == artifact.fingerprint(one)
    put(two, target)
    assert artifact.verify(target, kind="bundle") == artifact.read_manifest(two, kind="bundle")
    assert names(target) == {"manifest.json", "model/towers.onnx", "only-in-two"}
    assert [path.name for path in target.parent.iterdir()] == ["bundle"], "nothing is left beside it"


def test_a_file_address_is_a_folder_too_and_without_a_target_nothing_is_put(tmp_path: Path) -> None:
    put(bundle_of(tmp_path, "one"), (tmp_path / "deployed").as_uri())
    assert (tmp_path / "deployed" / "only-in-one").is_file()
    before = names(tmp_path)
    put(at(tmp_path, "one"), "")
    assert names(tmp_path) == before


def test_a_folder_that_holds_the_bundle_already_is_not_touched(tmp_path: Path) -> None:
    one, target = bundle_of(tmp_path, "one"), tmp_path / "bundle"
    put(one, target)
    os.utime(target, (1, 1))
    before = target.stat()
    put(one, target)
    assert (target.stat().st_mtime, target.stat().st_ino) == (1, before.st_ino)


def test_a_damaged_bundle_is_never_deployed(tmp_path: Path) -> None:
    one, two = bundle_of(tmp_path, "one"), bundle_of(tmp_path, "two")
    target = tmp_path / "deployed" / "bundle"
    put(one, target)
    (two / "model" / "towers.onnx").write_text("twp", encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"towers\.onnx: damaged"):
        put(two, target)
    assert artifact.fingerprint(target) == artifact.fingerprint(one)
    assert [path.name for path in target.parent.iterdir()] == ["bundle"]


def test_a_damaged_folder_is_mended_by_the_same_version(tmp_path: Path) -> None:
    one, target = bundle_of(tmp_path, "one"), tmp_path / "bundle"
    put(one, target)
    (target / "model" / "towers.onnx").write_text("onf", encoding="utf-8")
    put(one, target)
    artifact.verify(target, kind="bundle")


def test_a_folder_of_somebody_elses_is_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "letter.txt").write_text("dear", encoding="utf-8")
    with pytest.raises(ArtifactError, match="exists and was not written by twotower"):
        put(bundle_of(tmp_path, "one"), mine)
    assert names(mine) == {"letter.txt"}


def test_what_is_not_there_or_is_no_bundle_is_not_deployed(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="there is nothing"):
        put(at(tmp_path, "none"), tmp_path / "bundle")
    with artifact.write_artifact(at(tmp_path, "model"), kind="model"):
        pass
    with pytest.raises(ArtifactError, match="holds a 'model' directory, not a 'bundle' one"):
        put(at(tmp_path, "model"), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("to", ["s3://bucket/bundle", "gs://bucket/bundle", "https://example.org/bundle"])
def test_an_address_that_nothing_answers_from_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    monkeypatch.chdir(tmp_path)
    bundle = bundle_of(tmp_path, "one")
    before = names(tmp_path)
    with pytest.raises(RecipeError, match=r"no server answers from there\. Name a folder, or kubernetes:NAMESPACE"):
        put(bundle, to)
    assert names(tmp_path) == before


def test_kubernetes_without_a_namespace_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no namespace is named\. Name one, as in kubernetes:twotower"):
        put(bundle_of(tmp_path, "one"), "kubernetes:")


def test_a_rollback_brings_the_folder_back_and_then_the_record(tmp_path: Path) -> None:
    registry = Registry(address=str(tmp_path / "registry"), name="films")
    with artifact.write_artifact(tmp_path / "model", kind="model"):
        pass
    versions = [registry.add(bundle_of(tmp_path / "made", name), model=tmp_path / "model") for name in ("one", "two")]
    target = tmp_path / "bundle"
    for version in versions:
        put(Path(registry.version_address(version)), target)
        registry.promote(version)
    assert roll_back(registry, str(target), image="", report=lambda _: None).version == versions[0]
    assert (target / "only-in-one").is_file()
    assert roll_back(registry, str(target), image="", report=lambda _: None).version == versions[1]
    assert (target / "only-in-two").is_file()


def test_a_rollback_to_a_damaged_version_changes_neither_folder_nor_record(tmp_path: Path) -> None:
    registry = Registry(address=str(tmp_path / "registry"), name="films")
    with artifact.write_artifact(tmp_path / "model", kind="model"):
        pass
    one, two = (registry.add(bundle_of(tmp_path / "made", name), model=tmp_path / "model") for name in ("one", "two"))
    target = tmp_path / "bundle"
    for version in (one, two):
        put(Path(registry.version_address(version)), target)
        registry.promote(version)
    (Path(registry.version_address(one)) / "only-in-one").write_text("onf", encoding="utf-8")
    with pytest.raises(ArtifactError, match="only-in-one: damaged"):
        roll_back(registry, str(target), image="", report=lambda _: None)
    assert (target / "only-in-two").is_file()
    champion = registry.champion()
    assert champion is not None
    assert champion.version == two
