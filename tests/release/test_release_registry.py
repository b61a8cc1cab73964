"""Versions and the champion, in a folder and in an object store."""

import json
from pathlib import Path
from typing import Any

import pytest

from twotower import artifact, storage
from twotower.bundle_config import MODEL_KEY, bundle_id
from twotower.champion import Champion
from twotower.errors import ArtifactError, StorageError
from twotower.release.registry import Registry


def made(folder: Path, content: str) -> tuple[Path, Path]:
    """A sealed model, and a sealed bundle of it, whose content is a word."""
    model, bundle = folder / content / "model", folder / content / "bundle"
    with artifact.write_artifact(model, kind="model") as out:
        (out / "weights.npz").write_text(content, encoding="utf-8")
    metadata = {"name": "films", MODEL_KEY: artifact.fingerprint(model)}
    with artifact.write_artifact(bundle, kind="bundle", metadata=metadata) as out:
        (out / "model").mkdir()
        (out / "model" / "towers.onnx").write_text(content, encoding="utf-8")
    return model, bundle


@pytest.fixture(params=["folder", "s3"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Registry:
    """An empty registry."""
    if request.param == "folder":
        return Registry(address=str(tmp_path / "registry"), name="films")
    request.getfixturevalue("s3")
    return Registry(address="s3://bucket/registry", name="films")


IN_A_FOLDER = pytest.mark.parametrize("registry", ["folder"], indirect=True)
"""Of what does not depend on the kind of store."""


@pytest.fixture
def added(registry: Registry, tmp_path: Path) -> list[str]:
    """Three versions, none of which answers yet."""
    versions = []
    for content in ("one", "two", "three"):
        model, bundle = made(tmp_path / "made", content)
        versions.append(registry.add(bundle, model=model))
    return versions


def model_of(tmp_path: Path, content: str) -> str:
    return artifact.fingerprint(tmp_path / "made" / content / "model")


def test_a_version_is_named_by_its_bundle_and_lies_there_whole(registry: Registry, tmp_path: Path) -> None:
    model, bundle = made(tmp_path, "one")
    version = registry.add(bundle, model=model)
    assert version == bundle_id(artifact.read_manifest(bundle, kind="bundle"))
    assert version.startswith("films-")
    for kind, address in (("bundle", registry.version_address(version)), ("model", registry.model_address(version))):
        copy = storage.download(address, tmp_path / "copies" / kind)
        assert artifact.fingerprint(copy) == artifact.fingerprint({"bundle": bundle, "model": model}[kind])
        artifact.verify(copy, kind=kind)
    assert registry.champion() is None
    assert registry.add(bundle, model=model) == version


def test_a_version_that_is_there_is_never_changed(registry: Registry, tmp_path: Path) -> None:
    model, bundle = made(tmp_path, "one")
    version = registry.add(bundle, model=model)
    place = storage.join(registry.version_address(version), "model", "towers.onnx")
    storage.write_bytes(place, b"marked")
    registry.add(bundle, model=model)
    assert storage.read_bytes(place) == b"marked"


def test_champions_follow_one_another(registry: Registry, added: list[str], tmp_path: Path) -> None:
    one, two, _ = added
    first = registry.promote(one)
    assert first == registry.champion()
    assert (first.version, first.previous, first.sequence) == (one, None, 1)
    assert first.model == model_of(tmp_path, "one")
    second = registry.promote(two)
    assert (second.version, second.previous, second.sequence) == (two, one, 2)
    assert (first.rival, second.rival) == ("", one)
    assert registry.promote(two) == second, "the champion again changes nothing"


def test_a_rollback_brings_the_one_before_and_a_second_one_undoes_it(registry: Registry, added: list[str]) -> None:
    one, two, three = added
    for version in added:
        registry.promote(version)
    assert registry.before_champion() == two
    back = registry.roll_back()
    assert (back.version, back.previous, back.sequence) == (two, three, 4)
    undone = registry.roll_back()
    assert (undone.version, undone.previous, undone.sequence) == (three, two, 5)
    registry.roll_back()
    registry.promote(one)
    assert registry.before_champion() == two


@IN_A_FOLDER
def test_there_is_nothing_to_go_back_to_at_first(registry: Registry, added: list[str]) -> None:
    with pytest.raises(ArtifactError, match=r"no version to go back to \(nothing is deployed\)"):
        registry.roll_back()
    registry.promote(added[0])
    with pytest.raises(ArtifactError, match=rf"no version to go back to \({added[0]} is the first one\)"):
        registry.roll_back()


@IN_A_FOLDER
def test_a_model_is_not_its_own_rival(registry: Registry, added: list[str], tmp_path: Path) -> None:
    one, two, _ = added
    assert registry.rival_of(model_of(tmp_path, "one")) == ""
    registry.promote(one)
    assert registry.rival_of(model_of(tmp_path, "one")) == ""
    assert registry.rival_of(model_of(tmp_path, "two")) == one
    registry.promote(two)
    # A run that is made again has the rival that it had the first time.
    assert registry.rival_of(model_of(tmp_path, "two")) == one
    assert registry.rival_of(model_of(tmp_path, "one")) == two
    assert registry.rival_of(model_of(tmp_path, "three")) == two


@IN_A_FOLDER
def test_a_version_that_was_never_registered_cannot_be_promoted(registry: Registry, added: list[str]) -> None:
    with pytest.raises(ArtifactError, match=r"no version of a bundle\. `twotower register` adds one"):
        registry.promote("films-000000000000")
    assert registry.champion() is None


def test_a_version_whose_manifest_never_arrived_is_not_there(registry: Registry, tmp_path: Path) -> None:
    model, bundle = made(tmp_path, "one")
    version = bundle_id(artifact.read_manifest(bundle, kind="bundle"))
    storage.upload(bundle / "model", storage.join(registry.version_address(version), "model"))
    with pytest.raises(ArtifactError, match="no version of a bundle"):
        registry.promote(version)
    assert registry.add(bundle, model=model) == version
    assert registry.promote(version).version == version


def test_a_damaged_record_is_told_and_what_to_do(registry: Registry) -> None:
    for content in ("", "{", "[]", "7", '{"version": "x"}', '{"version": "x", "more": 1}', "\xff"):
        storage.write_bytes(storage.join(registry.address, "films", "champion.json"), content.encode("latin-1"))
        with pytest.raises(ArtifactError, match=r"champion\.json: damaged \(.*Deploy a version again") as fault:
            registry.champion()
        assert "\n" not in str(fault.value)


@IN_A_FOLDER
def test_recommenders_in_one_registry_do_not_meet(registry: Registry, added: list[str]) -> None:
    registry.promote(added[0])
    other = Registry(address=registry.address, name="books")
    assert other.champion() is None
    assert other.rival_of("anything") == ""
    with pytest.raises(ArtifactError, match="no version of a bundle"):
        other.promote(added[0])


@IN_A_FOLDER
def test_the_record_is_plain_json(registry: Registry, added: list[str]) -> None:
    champion = registry.promote(added[0])
    record = json.loads(storage.read_bytes(storage.join(registry.address, "films", "champion.json")))
    assert Champion(**record) == champion
    assert record["since"].endswith("+00:00")


@IN_A_FOLDER
@pytest.mark.parametrize("damaged", ["model", "bundle"])
def test_what_is_damaged_is_not_registered(registry: Registry, tmp_path: Path, damaged: str) -> None:
    model, bundle = made(tmp_path, "one")
    file = model / "weights.npz" if damaged == "model" else bundle / "model" / "towers.onnx"
    file.write_text("two", encoding="utf-8")
    with pytest.raises(ArtifactError, match=f"{file.name}: damaged"):
        registry.add(bundle, model=model)
    assert not storage.exists(storage.join(registry.address, "films"))


def test_a_store_that_goes_away_between_model_and_bundle_leaves_no_version(s3: Any, tmp_path: Path) -> None:
    registry = Registry(address="s3://bucket/registry", name="films")
    model, bundle = made(tmp_path, "one")
    version = bundle_id(artifact.read_manifest(bundle, kind="bundle"))
    s3.refused_after = f"models/{version}/manifest.json"
    with pytest.raises(StorageError, match="ACCESS_DENIED"):
        registry.add(bundle, model=model)
    assert s3.keys() == [f"bucket/registry/films/models/{version}/{name}" for name in ("manifest.json", "weights.npz")]
    s3.refused, s3.refused_after = False, None
    with pytest.raises(ArtifactError, match="no version of a bundle"):
        registry.promote(version)
    assert registry.add(bundle, model=model) == version
    artifact.verify(storage.download(registry.version_address(version), tmp_path / "copy"), kind="bundle")


def test_a_folder_that_cannot_be_written_between_model_and_bundle_leaves_no_version(tmp_path: Path) -> None:
    registry = Registry(address=str(tmp_path / "registry"), name="films")
    model, bundle = made(tmp_path, "one")
    in_the_way = tmp_path / "registry" / "films" / "versions"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("a file", encoding="utf-8")
    with pytest.raises(StorageError, match="not to be read or written"):
        registry.add(bundle, model=model)
    in_the_way.unlink()
    assert registry.versions() == []
    version = registry.add(bundle, model=model)
    assert registry.versions() == [version]


def test_versions_are_listed_by_name_without_those_that_are_not_whole(registry: Registry, tmp_path: Path) -> None:
    assert registry.versions() == []
    versions = [registry.add(bundle, model=model) for model, bundle in (made(tmp_path, "b"), made(tmp_path, "a"))]
    storage.upload(tmp_path / "a" / "bundle" / "model", storage.join(registry.version_address("films-0"), "model"))
    assert registry.versions() == sorted(versions)
    with pytest.raises(ArtifactError, match=f"there are: {', '.join(sorted(versions))}"):
        registry.promote("films-0")


@IN_A_FOLDER
def test_a_version_that_was_held_against_another_champion_does_not_take_its_place(
    registry: Registry, added: list[str]
) -> None:
    one, two, three = added
    registry.promote(one, rival="")
    with pytest.raises(ArtifactError, match=f"{one} was promoted since {two} was held against nothing. Run again"):
        registry.promote(two, rival="")
    assert registry.promote(two, rival=one).rival == one
    with pytest.raises(ArtifactError, match=f"{two} was promoted since {three} was held against {one}"):
        registry.promote(three, rival=one)
    champion = registry.champion()
    assert champion is not None
    assert (champion.version, champion.sequence) == (two, 2)
    assert registry.promote(three).version == three, "who asks by hand gets it"


@IN_A_FOLDER
def test_a_model_that_was_rolled_back_is_remembered_until_somebody_brings_it_back(
    registry: Registry, added: list[str], tmp_path: Path
) -> None:
    one, two, three = added
    first, second, third = (model_of(tmp_path, content) for content in ("one", "two", "three"))
    assert registry.withdrawn(first) == ""
    registry.promote(one)
    registry.promote(two)
    registry.roll_back()
    assert [registry.withdrawn(model) for model in (first, second, third)] == ["", two, ""]
    registry.promote(three)
    assert registry.withdrawn(second) == two, "another promotion does not forget it"
    registry.promote(two)
    assert registry.withdrawn(second) == ""
    registry.roll_back()
    registry.roll_back()
    assert [registry.withdrawn(model) for model in (first, second, third)] == ["", "", ""], "the undoing undoes it"
