"""Directories that appear whole or not at all.

A step writes into a temporary directory beside its target; when all is written, a manifest with the sha256 of each
file is added, everything is flushed to disk and the directory is renamed into place. A reader therefore never meets
half a directory, and a flipped byte is found by name.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from twotower.errors import ArtifactError

MANIFEST = "manifest.json"
FORMAT_VERSION = 1


@contextmanager
def write_artifact(target: Path, *, kind: str, metadata: Mapping[str, Any] | None = None) -> Iterator[Path]:
    """Give a directory to write into, which becomes `target` when the block ends without an error.

    An existing `target` is replaced only after the new one is complete.

    Args:
        kind: What the directory is ("prepared", "split", "model", ...); `read_manifest` asks for it back.
        metadata: Anything JSON can hold, kept in the manifest.

    Raises:
        ArtifactError: `target` exists and is not a directory that we wrote.
    """
    if target.exists() and not (target / MANIFEST).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise ArtifactError(f"{target}: exists and was not written by twotower. Name another directory, or remove it.")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield temporary
        _seal(temporary, kind=kind, metadata=dict(metadata or {}))
        _replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_manifest(directory: Path, *, kind: str) -> dict[str, Any]:
    """What the directory says of itself: `{"kind", "format", "metadata", "files": {path: sha256}}`.

    Raises:
        ArtifactError: no such directory, of another kind, or of a format version that this release cannot read.
    """
    path = directory / MANIFEST
    if not path.is_file():
        raise ArtifactError(f"{directory}: not a {kind} directory (no {MANIFEST}). Run the step that writes it.")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as fault:
        raise ArtifactError(f"{path}: not readable as JSON ({fault}). Run the step that writes it again.") from fault
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
        ArtifactError: names the first file that is missing, differs, or is in no manifest.
    """
    manifest = read_manifest(directory, kind=kind)
    files: dict[str, str] = manifest["files"]
    for name, expected in files.items():
        path = directory / name
        if not path.is_file():
            raise ArtifactError(f"{path}: listed in the manifest, but missing. Build the {kind} again.")
        if (found := sha256(path)) != expected:
            raise ArtifactError(
                f"{path}: damaged (sha256 {found[:12]}..., the manifest says {expected[:12]}...). "
                f"Build the {kind} again."
            )
    if surplus := sorted(set(_files(directory)) - set(files)):
        raise ArtifactError(f"{directory / surplus[0]}: in no manifest. Build the {kind} again.")
    return manifest


def fingerprint(directory: Path) -> str:
    """One hash over the manifest's files: two directories with equal content have equal fingerprints."""
    manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    return hash_json({"files": manifest["files"], "kind": manifest["kind"]})


def hash_json(value: Any) -> str:
    """A sha256 of a JSON value that does not depend on the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def sha256(path: Path) -> str:
    """The file's sha256, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(directory: Path) -> list[str]:
    """Every file below the directory but the manifest itself, as sorted POSIX paths."""
    found = (path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    return sorted(name for name in found if name != MANIFEST)


def _seal(directory: Path, *, kind: str, metadata: dict[str, Any]) -> None:
    files = {name: sha256(directory / name) for name in _files(directory)}
    manifest = {"kind": kind, "format": FORMAT_VERSION, "metadata": metadata, "files": files}
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    for name in [*files, MANIFEST]:
        with (directory / name).open("rb+") as file:
            os.fsync(file.fileno())


def _replace(temporary: Path, target: Path) -> None:
    """Rename `temporary` to `target`; an old `target` steps aside first and is removed last."""
    retired = None
    if target.exists():
        retired = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent)) / "old"
        target.rename(retired)
    temporary.chmod(0o755)
    temporary.rename(target)
    _flush_directory(target.parent)
    if retired is not None:
        shutil.rmtree(retired.parent, ignore_errors=True)


def _flush_directory(directory: Path) -> None:
    """Make a rename durable. Windows cannot open directories; there a rename is durable by itself."""
    if os.name == "nt":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
