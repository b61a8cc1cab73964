"""What answers, and how it changes: on real bundles, loaded as a server loads them."""

import gc
import shutil
import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twotower import storage
from twotower.errors import ArtifactError, RequestError, StorageError, TwotowerError
from twotower.serving.live.deployment import COPY, Deployment, Live, Variant
from twotower.serving.recommender import Recommender

USERS = [f"user {number}" for number in range(100_000)]


@pytest.fixture(scope="module")
def other_directory(world: Any) -> Path:
    """A bundle of another id, with the same answers."""
    return Path(world.write(world.directory / "other", index=world.directory / "hnsw"))


def deal(recommender: Recommender, shares: dict[str, float], salt: str = "") -> Deployment:
    variants = tuple(Variant(name=name, recommender=recommender, share=share) for name, share in shares.items())
    return Deployment(variants=variants, salt=salt)


def dealt(deployment: Deployment) -> list[str]:
    return [deployment.choose(user, "any").name for user in USERS]


def of(recommender: Recommender) -> Deployment:
    return deal(recommender, {"main": 1.0})


def test_users_are_dealt_out_by_the_shares(recommender: Recommender) -> None:
    shares = {"a": 0.5, "b": 0.3, "c": 0.15, "d": 0.05}
    found = Counter(dealt(deal(recommender, shares)))
    for name, share in shares.items():
        assert abs(found[name] / len(USERS) - share) < 0.01


def test_a_user_is_always_answered_by_the_same_and_nobody_by_chance(recommender: Recommender) -> None:
    deployment = deal(recommender, {"a": 0.5, "b": 0.5})
    assert len({deployment.choose("u1", f"request {number}").name for number in range(100)}) == 1
    nobody = Counter(deployment.choose(None, f"request {number}").name for number in range(10_000))
    assert abs(nobody["a"] / 10_000 - 0.5) < 0.02
    assert deployment.choose(None, "request 1") is deployment.choose(None, "request 1")


def test_another_salt_deals_the_users_out_anew(recommender: Recommender) -> None:
    shares = {"a": 0.5, "b": 0.5}
    before, after = (np.array(dealt(deal(recommender, shares, salt))) for salt in ("one", "two"))
    # Independent of each other: half of the users stay by chance.
    assert abs((before == after).mean() - 0.5) < 0.01


def test_a_share_that_grows_takes_users_from_the_others_and_moves_none_between_them(recommender: Recommender) -> None:
    before = dealt(deal(recommender, {"a": 0.2, "b": 0.5, "c": 0.3}))
    after = dealt(deal(recommender, {"a": 0.6, "b": 0.25, "c": 0.15}))
    moved = Counter((old, new) for old, new in zip(before, after, strict=True) if old != new)
    assert set(moved) == {("b", "a"), ("c", "a")}
    assert abs(sum(moved.values()) / len(USERS) - 0.4) < 0.01


def test_a_variant_that_ends_gives_its_users_to_the_others_and_moves_no_one_else(recommender: Recommender) -> None:
    before = dealt(deal(recommender, {"a": 0.2, "b": 0.4, "c": 0.4}))
    after = dealt(deal(recommender, {"c": 0.5, "b": 0.5}))  # Their order is of no importance either.
    assert {old for old, new in zip(before, after, strict=True) if old != new} == {"a"}


@given(
    user=st.none() | st.text(st.characters(), max_size=20) | st.just("\ud800"),
    request_id=st.text(max_size=20),
    salt=st.text(max_size=10),
)
def test_any_id_is_answered(recommender: Recommender, user: str | None, request_id: str, salt: str) -> None:
    deployment = deal(recommender, {"a": 0.5, "b": 0.5}, salt)
    assert deployment.choose(user, request_id) in deployment.variants


@pytest.mark.parametrize(
    ("shares", "told"),
    [
        ({}, "there is none"),
        ({"a": 0.5}, "add up to 0.5"),
        ({"a": 0.5, "b": 0.5 + 1e-8}, r"add up to 1\.00000001"),
        ({"a": 1.5, "b": -0.5}, "share of 'b' is -0.5"),
        ({"a": 1.0, "b": 0.0}, "share of 'b' is 0.0"),
        ({"a": float("nan")}, "share of 'a' is nan"),
        ({"a b": 1.0}, "'a b' is no name"),
        ({"": 1.0}, "'' is no name"),
    ],
)
def test_shares_and_names_that_make_no_sense_are_refused(
    recommender: Recommender, shares: dict[str, float], told: str
) -> None:
    with pytest.raises(RequestError, match=told):
        deal(recommender, shares)


def test_a_name_stands_for_one_variant_or_shadow(recommender: Recommender) -> None:
    variant = Variant(name="a", recommender=recommender, share=1.0)
    with pytest.raises(RequestError, match="'a' stands there twice"):
        Deployment(variants=(variant,), shadows=(replace(variant, share=0.0),))
    with pytest.raises(RequestError, match=r"shadows: the share of 'b' is 1\.0"):
        Deployment(variants=(variant,), shadows=(replace(variant, name="b"),))


def test_three_thirds_are_a_whole(recommender: Recommender) -> None:
    assert len(deal(recommender, {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}).variants) == 3


def test_another_deployment_answers_and_the_one_before_comes_back_by_one_call(recommender: Recommender) -> None:
    live = Live()
    first, second, third = (deal(recommender, {name: 1.0}) for name in ("a", "b", "c"))
    live.replace(first)
    with pytest.raises(RequestError, match="nothing to go back to"):
        live.rollback()
    live.replace(second)
    live.replace(third)
    live.replace(deal(recommender, {"c": 1.0}))  # The same again changes nothing.
    assert (live.current, live.previous) == (third, second)
    assert live.rollback() is second
    assert live.rollback() is third  # The second call undoes the first.
    assert (live.current, live.previous) == (third, second)


def test_a_promoted_variant_or_shadow_answers_everybody(recommender: Recommender) -> None:
    live, before = Live(), deal(recommender, {"a": 0.9, "b": 0.1})
    shadows = tuple(Variant(name=name, recommender=recommender, share=0.0) for name in ("c", "d"))
    before = replace(before, shadows=shadows, salt="salt")
    live.replace(before)
    live.promote("b")
    assert [(each.name, each.share) for each in live.current.variants] == [("b", 1.0)]
    assert (live.current.shadows, live.current.salt) == (shadows, "salt")
    live.rollback()
    live.promote("c")
    assert [(each.name, each.share) for each in live.current.variants] == [("c", 1.0)]
    assert [each.name for each in live.current.shadows] == ["d"]
    assert live.rollback() is before
    with pytest.raises(RequestError, match=r"there is no 'e'\. There are a, b, c, d"):
        live.promote("e")
    assert live.current is before


def test_one_variants_bundle_is_swapped_and_the_experiment_goes_on(
    recommender: Recommender, bundle_directory: Path
) -> None:
    live = Live()
    live.replace(deal(recommender, {"a": 0.9, "b": 0.1}, "salt"))
    other = live.load(str(bundle_directory))
    live.swap("b", other)
    told = [(each.name, each.share, each.recommender) for each in live.current.variants]
    assert told == [("a", 0.9, recommender), ("b", 0.1, other)]
    assert live.current.salt == "salt"
    with pytest.raises(RequestError, match="there is no 'c'"):
        live.swap("c", other)


def test_a_bad_bundle_is_refused_and_changes_nothing(
    s3: Any, recommender: Recommender, bundle_directory: Path, tmp_path: Path
) -> None:
    assert s3.keys() == []
    live = Live(cache=tmp_path / "cache")
    live.replace(of(recommender))
    before = live.current
    bad = Path(shutil.copytree(bundle_directory, tmp_path / "bad"))
    array = np.load(bad / "candidates.npy")
    array[3, 1] += 1
    np.save(bad / "candidates.npy", array)
    storage.upload(bad, "s3://bucket/bad")
    for address in (str(bad), bad.as_uri(), "s3://bucket/bad"):
        with pytest.raises(ArtifactError, match=r"candidates\.npy: damaged"):
            live.load(address)
    for address in (str(tmp_path / "nothing"), (tmp_path / "nothing").as_uri()):
        with pytest.raises(ArtifactError, match="not a bundle directory"):
            live.load(address)
    with pytest.raises(StorageError, match="there is nothing"):
        live.load("s3://bucket/nothing")
    assert live.current is before
    assert live.recommenders() == []
    assert list((tmp_path / "cache").rglob("*.npy")) == []


@pytest.fixture
def frozen() -> Iterator[None]:
    """No garbage is looked for: a server freezes what it has loaded."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("frozen")
def test_what_was_before_the_one_before_is_let_go_with_its_files_and_memory(
    bundle_directory: Path, other_directory: Path
) -> None:
    live = Live()
    gone = []
    for number in range(6):
        recommender = live.load(str((bundle_directory, other_directory)[number % 2]))
        recommender.recommend("u1", k=3)
        mapped = recommender.bundle.candidates.base
        gone.append([weakref.ref(each) for each in (recommender, recommender.bundle.model, mapped)])
        live.replace(of(recommender))
        del recommender, mapped
        alive = [[each() is not None for each in made] for made in gone]
        assert alive == [[place >= number - 1] * 3 for place in range(number + 1)]
    assert len(live.recommenders()) == 2


def test_a_copy_from_afar_lasts_as_long_as_its_recommender(s3: Any, bundle_directory: Path, tmp_path: Path) -> None:
    assert s3.keys() == []
    storage.upload(bundle_directory, "s3://bucket/bundles/one")
    live = Live(cache=tmp_path)
    for _ in range(4):
        live.replace(of(live.load("s3://bucket/bundles/one")))
        gc.collect()
    assert len(list(tmp_path.rglob("manifest.json"))) == 2
    answers = live.rollback().choose(None, "any").recommender.recommend("u1", k=3)
    assert len(answers.items) == 3
    live.close()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_server_left_is_removed_from_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / f"{COPY}abc" / "bundle").mkdir(parents=True)
    (tmp_path / "mine").mkdir()
    Live(cache=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    (tmp_path / "file").touch()
    with pytest.raises(TwotowerError, match="cannot be written"):
        Live(cache=tmp_path / "file").load("s3://bucket/bundle")


def test_a_file_address_is_opened_where_it_lies(bundle_directory: Path, tmp_path: Path) -> None:
    live = Live(cache=tmp_path / "cache")
    assert live.load(bundle_directory.as_uri()).bundle.directory == bundle_directory
    assert not (tmp_path / "cache").exists()


def test_of_a_bundle_from_afar_nothing_is_copied_but_what_its_manifest_names(
    s3: Any, bundle_directory: Path, tmp_path: Path
) -> None:
    storage.upload(bundle_directory, "s3://bucket/bundle")
    s3.objects["bucket/bundle/beside.bin"] = b"much"
    s3.objects["bucket/other/secret.txt"] = b"none of ours"
    live = Live(cache=tmp_path)
    assert len(live.load("s3://bucket/bundle").recommend("u1", k=3).items) == 3
    with pytest.raises(StorageError, match=r"manifest\.json: there is nothing"):
        live.load("s3://bucket/other")
    assert list(tmp_path.rglob("beside.bin")) == list(tmp_path.rglob("secret.txt")) == []


def test_all_that_are_loaded_are_named_and_a_bundle_that_answers_is_found_by_its_id(
    recommender: Recommender, bundle_directory: Path, other_directory: Path
) -> None:
    live = Live()
    first, second = live.load(str(bundle_directory)), live.load(str(other_directory))
    live.replace(of(first))
    assert set(live.recommenders()) == {first, second}  # One that does not answer yet as well.
    assert live.loaded(second.bundle.id) is None
    live.replace(of(second))
    assert live.loaded(first.bundle.id) is first
    assert live.loaded(second.bundle.id) is second
    assert live.loaded("tiny-0") is None
    assert live.loaded(str(other_directory)) is live.loaded(other_directory.as_uri()) is second
    assert live.loaded(str(other_directory.parent)) is None


def test_readers_meet_whole_deployments_while_writers_change_them(recommender: Recommender) -> None:
    live = Live()
    live.replace(deal(recommender, {"a": 0.5, "b": 0.5}))
    torn, done = [], threading.Event()

    def read() -> None:
        while not done.is_set():
            deployment = live.current
            if deployment.choose("u1", "any") not in deployment.variants:
                torn.append(deployment)

    def write(name: str) -> None:
        for number in range(200):
            live.replace(deal(recommender, {name: 0.5, f"{name}{number}": 0.5}))
            live.rollback()

    readers = [threading.Thread(target=read) for _ in range(2)]
    writers = [threading.Thread(target=write, args=(name,)) for name in ("x", "y", "z")]
    for thread in (*readers, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    for thread in readers:
        thread.join()
    assert torn == []
