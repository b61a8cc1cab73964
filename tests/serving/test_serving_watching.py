"""A registry watched for its champion, in a folder and in an object store, as `twotower deploy` changes it."""

import gc
import json
import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twotower import artifact, storage
from twotower.champion import champion_address, version_address
from twotower.release.registry import Registry
from twotower.serving.live.deployment import Deployment, Live, Variant
from twotower.serving.live.watching import EVERY_S, SELDOM_S, Watch
from twotower.serving.recommender import Recommender


@pytest.fixture(scope="module")
def bundles(world: Any, bundle_directory: Path) -> list[Path]:
    """Three bundles of different ids."""
    hnsw = world.write(world.directory / "watched-hnsw", index=world.directory / "hnsw")
    third = Path(shutil.copytree(bundle_directory, world.directory / "watched-third"))
    (third / "recipe.toml").write_text('name = "tiny"\nseed = 3\n')
    manifest = json.loads((third / artifact.MANIFEST).read_text())
    manifest["files"]["recipe.toml"] = artifact.sha256(third / "recipe.toml")
    (third / artifact.MANIFEST).write_text(json.dumps(manifest))
    return [bundle_directory, hnsw, third]


@pytest.fixture(scope="module")
def registered(world: Any, bundles: list[Path]) -> tuple[Registry, list[str]]:
    """A registry in a folder that knows the three, the first of them the champion; tests change a copy."""
    registry = Registry(address=str(world.directory / "registry"), name="tiny")
    versions = [registry.add(bundle, model=world.directory / "model") for bundle in bundles]
    registry.promote(versions[0])
    return registry, versions


@pytest.fixture
def versions(registered: tuple[Registry, list[str]]) -> list[str]:
    """Of the three, the first of them the champion."""
    return registered[1]


@pytest.fixture(params=["folder", "s3"])
def registry(request: pytest.FixtureRequest, registered: tuple[Registry, list[str]], tmp_path: Path) -> Registry:
    """A registry of the three in a folder, or in an object store."""
    source = Path(registered[0].address)
    if request.param == "folder":
        return Registry(address=str(shutil.copytree(source, tmp_path / "registry")), name="tiny")
    objects = request.getfixturevalue("s3").objects
    for file in source.rglob("*"):
        if file.is_file():
            objects[f"bucket/registry/{file.relative_to(source).as_posix()}"] = file.read_bytes()
    return Registry(address="s3://bucket/registry", name="tiny")


IN_A_FOLDER = pytest.mark.parametrize("registry", ["folder"], indirect=True)
"""Of what does not depend on the kind of store."""
IN_A_STORE = pytest.mark.parametrize("registry", ["s3"], indirect=True)


@pytest.fixture
def live(bundles: list[Path], tmp_path: Path) -> Iterator[Live]:
    """The first answers."""
    live = Live(cache=tmp_path / "cache")
    variant = Variant(name="main", recommender=live.load(str(bundles[0])), share=1.0)
    live.replace(Deployment(variants=(variant,)))
    yield live
    live.close()


def folder(registry: Registry) -> str:
    return storage.join(registry.address, registry.name)


def watch_of(live: Live, registry: Registry, *, refused: Callable[[], object] = lambda: None, **options: Any) -> Watch:
    return Watch(
        live,
        address=folder(registry),
        swap=lambda recommender: live.swap("main", recommender),
        refused=refused,
        **options,
    )


def answering(live: Live) -> Recommender:
    return live.current.variants[0].recommender


def test_a_new_champion_takes_over_and_a_rolled_back_one_comes_back_without_loading(
    registry: Registry, versions: list[str], live: Live
) -> None:
    watch, first = watch_of(live, registry), answering(live)
    watch.look()
    assert answering(live) is first  # It answers already.
    registry.promote(versions[1])
    assert answering(live) is first
    watch.look()
    assert answering(live).bundle.id == versions[1]
    registry.roll_back()
    watch.look()
    assert answering(live) is first


@IN_A_FOLDER
def test_what_an_admin_rolled_back_stays_back_until_there_is_another_champion(
    registry: Registry, versions: list[str], live: Live
) -> None:
    watch, first = watch_of(live, registry), answering(live)
    registry.promote(versions[1])
    watch.look()
    live.rollback()
    watch.look()
    assert answering(live) is first
    registry.promote(versions[2])
    watch.look()
    assert answering(live).bundle.id == versions[2]


def damage(registry: Registry, version: str) -> None:
    name = storage.join(version_address(folder(registry), version), "candidates.npy")
    content = bytearray(storage.read_bytes(name))
    content[-1] ^= 1
    storage.write_bytes(name, bytes(content))


def test_a_bad_version_is_told_once_and_the_old_one_goes_on_answering_until_the_next(
    registry: Registry, versions: list[str], live: Live, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    refused: list[bool] = []
    watch, first = watch_of(live, registry, refused=lambda: refused.append(True)), answering(live)
    damage(registry, versions[1])
    registry.promote(versions[1])
    for _ in range(3):
        watch.look()
    assert answering(live) is first
    assert refused == [True]
    (told,) = caplog.messages
    assert told.startswith(f"watch: {versions[1]} is refused, and not tried again: ")
    assert "candidates.npy: damaged" in told
    assert watch.wait_s == EVERY_S
    registry.promote(versions[2])
    watch.look()
    assert answering(live).bundle.id == versions[2]
    assert caplog.messages[1:] == [f"{versions[2]} answers now"]


@IN_A_FOLDER
def test_a_version_that_holds_another_bundle_is_refused(
    registry: Registry, versions: list[str], live: Live, caplog: pytest.LogCaptureFixture
) -> None:
    record = json.loads(storage.read_bytes(champion_address(folder(registry))))
    false = "tiny-000000000000"
    storage.upload(answering(live).bundle.directory, version_address(folder(registry), false))
    storage.write_bytes(champion_address(folder(registry)), json.dumps(record | {"version": false}).encode())
    watch_of(live, registry).look()
    assert f"version {false} holds another bundle, {versions[0]}" in caplog.text


@IN_A_FOLDER
@pytest.mark.parametrize("record", [b"{", b"[]", b'{"version": "../other"}', b'{"more": 1}'])
def test_a_damaged_record_is_told_once_and_changes_nothing(
    registry: Registry, versions: list[str], live: Live, caplog: pytest.LogCaptureFixture, record: bytes
) -> None:
    watch, first = watch_of(live, registry), answering(live)
    storage.write_bytes(champion_address(folder(registry)), record)
    watch.look()
    watch.look()
    assert answering(live) is first
    (told,) = caplog.messages
    assert "champion.json: damaged" in told
    assert versions[0] == first.bundle.id


@IN_A_FOLDER
def test_no_version_leads_out_of_the_registry(
    registry: Registry, versions: list[str], live: Live, caplog: pytest.LogCaptureFixture
) -> None:
    address = champion_address(folder(registry))
    record = json.loads(storage.read_bytes(address))
    for version in ("../versions/" + versions[1], "/tmp/bundle", "..", "", "a\\b", "a b"):
        storage.write_bytes(address, json.dumps(record | {"version": version}).encode())
        watch_of(live, registry).look()
        assert answering(live).bundle.id == versions[0]
        assert "no version is called" in caplog.messages[-1]


def test_a_registry_without_a_champion_is_waited_for(
    registry: Registry, versions: list[str], live: Live, caplog: pytest.LogCaptureFixture
) -> None:
    empty = Registry(address=storage.join(registry.address, "empty"), name="tiny")
    watch, first = watch_of(live, empty), answering(live)
    watch.look()
    watch.look()
    (told,) = caplog.messages
    assert "champion.json: there is no champion yet." in told
    record = storage.read_bytes(champion_address(folder(registry)))
    storage.write_bytes(champion_address(folder(empty)), record)
    watch.look()
    assert answering(live) is first
    assert first.bundle.id == versions[0]


@IN_A_STORE
def test_a_store_that_goes_away_is_asked_less_and_less_often_and_its_version_is_tried_again(
    registry: Registry, versions: list[str], live: Live, s3: Any, caplog: pytest.LogCaptureFixture
) -> None:
    watch, first = watch_of(live, registry), answering(live)
    registry.promote(versions[1])
    s3.refused = True
    waits = []
    for _ in range(8):
        watch.look()
        waits.append(watch.wait_s)
    assert waits == [20, 40, 80, 160, SELDOM_S, SELDOM_S, SELDOM_S, SELDOM_S]
    assert answering(live) is first
    assert len(caplog.messages) == 1
    s3.refused = False
    missing = s3.objects.pop(f"bucket/registry/tiny/versions/{versions[1]}/manifest.json")
    watch.look()  # The record is there, but not all of the version: a registry that is just being copied.
    s3.objects[f"bucket/registry/tiny/versions/{versions[1]}/manifest.json"] = missing
    watch.look()
    assert watch.wait_s == EVERY_S


def test_no_secret_of_an_address_is_logged(live: Live, s3: Any, caplog: pytest.LogCaptureFixture) -> None:
    s3.refused = True
    address = f"s3://key:verysecret@bucket/registry/tiny?scheme=http&endpoint_override={s3.address[7:]}&x=hidden"
    Watch(live, address=address, swap=lambda _: None, refused=lambda: None).look()
    assert "s3://bucket/registry/tiny/champion.json" in caplog.text
    assert "verysecret" not in caplog.text
    assert "hidden" not in caplog.text


@IN_A_FOLDER
def test_the_watch_runs_in_a_thread_of_its_own_and_ends_when_it_is_told(
    registry: Registry, versions: list[str], live: Live
) -> None:
    swapped = threading.Event()

    def swap(recommender: Recommender) -> None:
        live.swap("main", recommender)
        if recommender.bundle.id == versions[2]:
            swapped.set()

    with Watch(live, address=folder(registry), swap=swap, refused=lambda: None, every_s=0.01):
        registry.promote(versions[1])
        registry.promote(versions[2])
        assert swapped.wait(30)
    assert answering(live).bundle.id == versions[2]
    assert "twotower-watch" not in [thread.name for thread in threading.enumerate()]


@IN_A_FOLDER
def test_a_fault_of_the_servers_own_is_logged_and_does_not_end_the_watch(
    registry: Registry, versions: list[str], live: Live, caplog: pytest.LogCaptureFixture
) -> None:
    done, asked = threading.Event(), []

    def swap(recommender: Recommender) -> None:
        asked.append(recommender.bundle.id)
        if len(asked) == 1:
            raise KeyError("a bug")
        done.set()

    registry.promote(versions[1])
    with Watch(live, address=folder(registry), swap=swap, refused=lambda: None, every_s=0.01):
        assert done.wait(30)
    assert asked[:2] == [versions[1]] * 2
    assert "KeyError" in caplog.text


@IN_A_STORE
def test_copies_of_versions_that_no_longer_answer_are_removed(
    registry: Registry, versions: list[str], live: Live, tmp_path: Path, world: Any
) -> None:
    watch = watch_of(live, registry)
    for version in (versions[1], versions[2], versions[0], versions[1], versions[2]):
        registry.promote(version)
        watch.look()
        gc.collect()
        assert answering(live).bundle.id == version
        assert len(list((tmp_path / "cache").rglob("manifest.json"))) <= 2
    answers = answering(live).bundle.candidates
    np.testing.assert_array_equal(answers, world.candidates())
