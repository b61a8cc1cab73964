"""Directories that appear whole or not at all.

A step writes into a temporary directory beside its target; when all is written, a manifest with the sha256 of each
file is added, everything is flushed to disk and the directory is renamed into place. A reader therefore never meets
half a directory, and a flipped byte is found by name.

Beside a target `NAME` stand `.NAME.new.*` while it is written and `.NAME.old.*` while it is replaced. What a killed
writer leaves of them is put back or removed by the next one. Two writers of one target at a time are not supported:
they would take each other's for leavings.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from twotower.errors import ArtifactError

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
OF_THE_WRITING = ("created", "made_from", "build_seconds", "ms_per_query")
"""Metadata that tell of the writing (when, from what, how fast the machine was), not of what was written."""

_GRACE = 1.0
"""Seconds that a living writer has between its two renames before it counts as killed."""


@contextmanager
def write_artifact(target: Path, *, kind: str, metadata: Mapping[str, Any] | None = None) -> Iterator[Path]:
    """Give a directory to write into, which becomes `target` when the block ends without an error.

    An existing `target` is replaced only after the new one is complete. What killed writers of the same target left
    is removed then too; nobody else may be writing it.

    Args:
        kind: What the directory is ("prepared", "split", "model", ...); `read_manifest` asks for it back.
        metadata: Anything JSON can hold, kept in the manifest.

    Raises:
        ArtifactError: `target` exists and is not a directory that we wrote.
    """
    if target.exists() and not (target / MANIFEST).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise ArtifactError(f"{target}: exists and was not written by twotower. Name another directory, or remove it.")
    target.parent.mkdir(parents=True, exist_ok=True)
    recover(target)
    leavings = _beside(target, "new") + _beside(target, "old")
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.new.", dir=target.parent))
    try:
        yield temporary
        _seal(temporary, kind=kind, metadata=dict(metadata or {}))
        _replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for path in leavings:
        shutil.rmtree(path, ignore_errors=True)


def recover(target: Path) -> None:
    """Put the old directory back where a writer was killed after it had stepped aside, before the new one was there.

    Does nothing where `target` exists, or where nothing complete stands aside.
    """
    if not target.exists():
        with suppress(FileNotFoundError):  # A living writer has put all in its place meanwhile.
            _put_back(target)


def remove(target: Path) -> None:
    """Take a directory away in one go: what is left of it by who is killed meanwhile, the next writer removes."""
    if not target.exists():
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.new.", dir=target.parent))
    with suppress(PermissionError):  # On Windows it stays as it is while a file in it is open.
        target.rename(aside / "removed")
    shutil.rmtree(aside, ignore_errors=True)


def read_manifest(directory: Path, *, kind: str) -> dict[str, Any]:
    """What the directory says of itself: `{"kind", "format", "metadata", "files": {path: sha256}}`.

    Raises:
        ArtifactError: no such directory, of another kind, of a format version that this release cannot read, or with
            a manifest that is none.
    """
    manifest = _parse_manifest(directory, kind=kind)
    if manifest.get("kind") != kind:
        raise ArtifactError(f"{directory}: holds a {manifest.get('kind')!r} directory, not a {kind!r} one.")
    if manifest.get("format") != FORMAT_VERSION:
        raise ArtifactError(
            f"{directory}: format version {manifest.get('format')}, this release reads {FORMAT_VERSION}. "
            "Run the steps again with this release."
        )
    return manifest


def verify(directory: Path, *, kind: str) -> dict[str, Any]:
    """The manifest, after every file in it was found and hashed to the same value.

    Raises:
        ArtifactError: names the first file that is missing, differs, lies elsewhere, or is in no manifest.
    """
    manifest = read_manifest(directory, kind=kind)
    files: dict[str, str] = manifest["files"]
    root = directory.resolve()
    for name, expected in files.items():
        path = directory / name
        if not path.is_file():
            raise ArtifactError(f"{path}: listed in the manifest, but missing. Build the {kind} again.")
        if not path.resolve().is_relative_to(root):
            raise ArtifactError(f"{path}: a link that leads out of {directory}. Put the file itself there.")
        if (found := sha256(path)) != expected:
            raise ArtifactError(
                f"{path}: damaged (sha256 {found[:12]}..., the manifest says {expected[:12]}...). "
                f"Build the {kind} again."
            )
    if surplus := sorted(set(_files(directory)) - set(files)):
        raise ArtifactError(f"{directory / surplus[0]}: in no manifest. Build the {kind} again.")
    return manifest


def fingerprint(directory: Path) -> str:
    """One hash over files and metadata, but `OF_THE_WRITING`: directories of equal content have equal fingerprints.

    Raises:
        ArtifactError: not a directory that we wrote.
    """
    manifest = _parse_manifest(directory, kind="twotower")
    metadata = {key: value for key, value in manifest["metadata"].items() if key not in OF_THE_WRITING}
    return hash_json({"files": manifest["files"], "kind": manifest["kind"], "metadata": metadata})


def hash_json(value: Any) -> str:
    """A sha256 of a JSON value that does not depend on the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def sha256(path: Path) -> str:
    """The file's sha256, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _parse_manifest(directory: Path, *, kind: str) -> dict[str, Any]:
    """The manifest, once it has the shape of one; `kind` only tells what was looked for."""
    recover(directory)
    path = directory / MANIFEST
    if not path.is_file():
        raise ArtifactError(f"{directory}: not a {kind} directory (no {MANIFEST}). Run the step that writes it.")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as fault:
        raise ArtifactError(f"{path}: not readable as JSON ({fault}). Run the step that writes it again.") from fault
    if not isinstance(manifest, dict):
        raise ArtifactError(f"{path}: damaged (holds no JSON object). Run the step that writes it again.")
    for key, expected in (("kind", str), ("metadata", dict), ("files", dict)):
        if not isinstance(manifest.get(key), expected):
            raise ArtifactError(f"{path}: damaged (no {key}). Run the step that writes it again.")
    if not all(isinstance(digest, str) for digest in manifest["files"].values()):
        raise ArtifactError(f"{path}: damaged (a file has no sha256). Run the step that writes it again.")
    for name in manifest["files"]:
        if Path(name).is_absolute() or Path(name).drive or ".." in Path(name).parts:
            raise ArtifactError(
                f"{path}: names '{name}', which is no file within it. Run the step that writes it again."
            )
    return manifest


def _files(directory: Path) -> list[str]:
    """Every file below the directory but the manifest itself, as sorted POSIX paths."""
    found = (path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    return sorted(name for name in found if name != MANIFEST)


def _beside(target: Path, state: str) -> list[Path]:
    """What writers of this very target have beside it; those of `model.old` are not those of `model`."""
    # tempfile ends a name with eight of these characters, none of which is a point.
    name = re.compile(rf"\.{re.escape(target.name)}\.{state}\.[a-z0-9_]{{8}}")
    parent = target.parent
    return [path for path in parent.iterdir() if name.fullmatch(path.name)] if parent.is_dir() else []


def _put_back(target: Path) -> None:
    """Move the latest complete directory that stands aside back to `target`."""
    for aside in sorted(_beside(target, "old"), key=lambda path: path.stat().st_mtime, reverse=True):
        time.sleep(min(max(aside.stat().st_mtime + _GRACE - time.time(), 0.0), _GRACE))
        if target.exists():
            return
        if _is_complete(aside / "old"):
            (aside / "old").rename(target)
            _flush_directory(target.parent)
            shutil.rmtree(aside, ignore_errors=True)
            return


def _is_complete(directory: Path) -> bool:
    """Whether all files that the manifest names are there: a removal that was cut short leaves fewer."""
    try:
        manifest = _parse_manifest(directory, kind="twotower")
    except ArtifactError:
        return False
    return set(manifest["files"]) <= set(_files(directory))


def _seal(directory: Path, *, kind: str, metadata: dict[str, Any]) -> None:
    """Add the manifest and bring every file, and every name of one, to the disk."""
    files = {name: sha256(directory / name) for name in _files(directory)}
    manifest = {"kind": kind, "format": FORMAT_VERSION, "metadata": metadata, "files": files}
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    directory.chmod(0o755)
    for name in [*files, MANIFEST]:
        with (directory / name).open("rb+") as file:
            os.fsync(file.fileno())
    for path in (*directory.rglob("*"), directory):
        if path.is_dir():
            _flush_directory(path)


def _replace(temporary: Path, target: Path) -> None:
    """Rename `temporary` to `target`; an old `target` steps aside first, and comes back if that fails."""
    if not target.exists():
        temporary.rename(target)
        _flush_directory(target.parent)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    try:
        target.rename(aside / "old")
        temporary.rename(target)
        _flush_directory(target.parent)
    finally:
        if not target.exists():
            (aside / "old").rename(target)
        shutil.rmtree(aside, ignore_errors=True)


def _flush_directory(directory: Path) -> None:
    """Make a rename durable. Windows cannot open directories; there a rename is durable by itself."""
    if os.name == "nt":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
