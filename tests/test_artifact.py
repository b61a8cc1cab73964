"""Directories that appear whole or not at all."""

from pathlib import Path

import pytest

from twotower.artifact import fingerprint, read_manifest, verify, write_artifact
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
