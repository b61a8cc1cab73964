"""Directories that appear whole or not at all."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from twotower.artifact import MANIFEST, _replace, fingerprint, read_manifest, recover, remove, verify, write_artifact
from twotower.errors import ArtifactError


def written(directory: Path, text: str = "hello") -> Path:
    with write_artifact(directory, kind="split", metadata={"rows": 3}) as out:
        (out / "deep").mkdir()
        (out / "deep" / "file.txt").write_text(text)
    return directory


def test_what_was_written_is_verified_and_described(tmp_path: Path) -> None:
    manifest = verify(written(tmp_path / "a"), kind="split")
    assert manifest["metadata"] == {"rows": 3}
    assert list(manifest["files"]) == ["deep/file.txt"]


def test_an_error_leaves_the_old_directory_and_nothing_else(tmp_path: Path) -> None:
    target = written(tmp_path / "a")

    def fail() -> None:
        with write_artifact(target, kind="split") as out:
            (out / "half").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (target / "deep" / "file.txt").read_text() == "hello"


def test_a_directory_that_is_not_ours_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_text("cat")
    with (
        pytest.raises(ArtifactError, match="not written by twotower"),
        write_artifact(tmp_path / "photos", kind="split"),
    ):
        pass
    assert (tmp_path / "photos" / "cat.png").read_text() == "cat"


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: path.write_text("hellp"), "file.txt: damaged"),
        (lambda path: path.unlink(), "file.txt: listed in the manifest, but missing"),
        (lambda path: path.with_name("more").write_text("?"), "more: in no manifest"),
    ],
)
def test_damage_is_told_by_the_files_name(tmp_path: Path, damage: object, told: str) -> None:
    directory = written(tmp_path / "a")
    damage(directory / "deep" / "file.txt")  # type: ignore[operator]
    with pytest.raises(ArtifactError, match=told):
        verify(directory, kind="split")


def test_a_directory_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds a 'split' directory, not a 'model' one"):
        read_manifest(written(tmp_path / "a"), kind="model")
    with pytest.raises(ArtifactError, match="not a model directory"):
        read_manifest(tmp_path, kind="model")


def test_equal_content_has_equal_fingerprints(tmp_path: Path) -> None:
    assert fingerprint(written(tmp_path / "a")) == fingerprint(written(tmp_path / "b"))
    assert fingerprint(written(tmp_path / "a")) != fingerprint(written(tmp_path / "c", "other"))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([1], "holds no JSON object"),
        ({"kind": "split", "format": 1, "files": {}}, "no metadata"),
        ({"kind": "split", "format": 1, "metadata": {}}, "no files"),
        ({"kind": "split", "format": 1, "metadata": {}, "files": {"a": 1}}, "no sha256"),
        ({"kind": "split", "metadata": {}, "files": {}}, "format version None"),
    ],
)
def test_a_manifest_of_another_shape_is_told(tmp_path: Path, content: Any, told: str) -> None:
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=told):
        verify(tmp_path, kind="split")


def test_a_directory_without_a_manifest_has_no_fingerprint(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not a twotower directory"):
        fingerprint(tmp_path)


def test_a_fingerprint_holds_what_later_steps_read_of_the_metadata(tmp_path: Path) -> None:
    def of(**metadata: object) -> str:
        with write_artifact(tmp_path / "a", kind="split", metadata=metadata):
            pass
        return fingerprint(tmp_path / "a")

    assert of(title_column="title") != of(title_column="name")
    assert of(cut_us=5, created="today", made_from="x") == of(cut_us=5, created="yesterday", made_from="y")
    assert of(kind="exact", build_seconds=1.0) == of(kind="exact", build_seconds=2.0)


def stepped_aside(target: Path, name: str) -> Path:
    """The state after a kill between the two renames, long ago: the old directory stands aside, `target` is missing."""
    aside = target.parent / f".{target.name}.old.{name}"
    aside.mkdir()
    target.rename(aside / "old")
    os.utime(aside, (1, 1))
    return aside


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_an_old_directory_comes_back_when_the_new_one_cannot_take_its_place(tmp_path: Path) -> None:
    target = written(tmp_path / "a")
    with pytest.raises(FileNotFoundError):
        _replace(tmp_path / "gone", target)
    assert names(tmp_path) == ["a"]
    verify(target, kind="split")


def test_a_directory_that_a_killed_writer_left_aside_is_put_back_by_whoever_reads_or_writes(tmp_path: Path) -> None:
    target = written(tmp_path / "a")
    before = fingerprint(target)
    stepped_aside(target, "abcd_123")
    assert fingerprint(target) == before
    assert names(tmp_path) == ["a"]
    stepped_aside(target, "abcd_123")
    verify(target, kind="split")
    stepped_aside(target, "abcd_123")
    with pytest.raises(RuntimeError), write_artifact(target, kind="split"):
        raise RuntimeError
    assert fingerprint(target) == before


def test_the_latest_of_the_complete_directories_left_aside_comes_back(tmp_path: Path) -> None:
    target = tmp_path / "a"
    for text, name, second in (("first", "aaaaaaa1", 10), ("second", "aaaaaaa3", 30), ("third", "aaaaaaa2", 20)):
        written(tmp_path / "made", text).rename(target)
        os.utime(stepped_aside(target, name), (second, second))
    halved = written(tmp_path / "made")
    (halved / "deep" / "file.txt").unlink()  # A removal that was cut short: the manifest is still there.
    halved.rename(target)
    os.utime(stepped_aside(target, "aaaaaaa4"), (40, 40))
    recover(target)
    assert (target / "deep" / "file.txt").read_text() == "second"


def test_nothing_is_put_back_over_a_directory_or_out_of_nothing(tmp_path: Path) -> None:
    target = written(tmp_path / "a", "old")
    stepped_aside(target, "abcd_123")
    written(tmp_path / "made", "new").rename(target)
    recover(target)
    assert (target / "deep" / "file.txt").read_text() == "new"
    recover(tmp_path / "nowhere" / "b")
    assert not (tmp_path / "nowhere").exists()


def test_a_write_that_succeeds_removes_what_killed_writers_of_its_target_left_and_nothing_else(tmp_path: Path) -> None:
    target = written(tmp_path / "a")
    shutil.copytree(target, tmp_path / ".a.new.abcdefgh")
    (tmp_path / ".a.old.abcdefgh").mkdir()
    others = [".a.b.new.abcdefgh", ".a.old.new.abcdefgh", ".a.new.notes", ".b.new.abcdefgh"]
    for name in others:
        (tmp_path / name).mkdir()
    written(target, "again")
    assert names(tmp_path) == sorted([*others, "a"])


def test_of_a_removal_that_was_cut_short_the_next_writer_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "model.checkpoint"
    with write_artifact(target, kind="checkpoint") as out:
        (out / "a.npz").touch()
    with monkeypatch.context() as cut:
        cut.setattr("twotower.artifact.shutil.rmtree", lambda *_, **__: None)
        remove(target)
    recover(target)
    assert not target.exists(), "half a directory is never met"
    with write_artifact(target, kind="checkpoint") as out:
        (out / "b.npz").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["model.checkpoint"]
    remove(target)
    assert not list(tmp_path.iterdir())
