"""What each step's directory was made from, as one hash: by it a run knows what is up to date.

By content, not by date: the recipe's sections that a step reads, the directories that it reads, and the package's own
code.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from twotower import artifact
from twotower.errors import ArtifactError
from twotower.recipe import Recipe

KIND_OF = {
    "fetch": "raw",
    "validate": "profile",
    "prepare": "prepared",
    "split": "split",
    "train": "model",
    "evaluate": "report",
    "index": "index",
    "gate": "gate",
    "bundle": "bundle",
    "smoke_test": "smoke",
}
"""Step -> the kind of the directory that it writes."""

LIBRARIES = (
    *("duckdb", "faiss-cpu", "ibis-framework", "jax", "jaxlib", "jax2onnx", "keras", "keras-rs", "numpy"),
    *("onnxruntime", "pyarrow", "scipy"),
)
"""What computes our results: another version may give others."""


@contextmanager
def writing(out: Path, *, step: str, made_from: dict[str, Any]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """An open directory and its metadata; sealed with the hash of what it was made from."""
    metadata: dict[str, Any] = {}
    with artifact.write_artifact(out, kind=KIND_OF[step], metadata=metadata) as to:
        yield to, metadata
        metadata["made_from"] = _hash(made_from)


def is_up_to_date(directory: Path, *, step: str, made_from: dict[str, Any]) -> bool:
    """Whether the directory is whole, and the same inputs would be read again."""
    if not (directory / artifact.MANIFEST).is_file():
        return False
    try:
        manifest = artifact.verify(directory, kind=KIND_OF[step])
    except ArtifactError:
        return False
    return bool(manifest["metadata"].get("made_from") == _hash(made_from))


@cache
def code_version() -> str:
    """A hash of the package's own files, templates and all, and of the libraries that its results come from.

    What other code wrote is not up to date.
    """
    package = Path(__file__).parent
    files = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    hashes: dict[str, str] = {path.relative_to(package).as_posix(): artifact.sha256(path) for path in files}
    for library in LIBRARIES:
        with suppress(PackageNotFoundError):
            hashes[library] = version(library)
    return artifact.hash_json(hashes)


def source(recipe: Recipe) -> dict[str, Any]:
    """What the recipe's source holds now."""
    from twotower.data.fingerprint import fingerprint_source

    return {"prepare": asdict(recipe.prepare), "seed": recipe.seed, "source": fingerprint_source(recipe.prepare)}


def raw_tables(recipe: Recipe, raw: Path | None) -> dict[str, Any]:
    """Raw tables, fetched before or read from the source."""
    if raw is None:
        return source(recipe)
    return {"prepare": asdict(recipe.prepare), "seed": recipe.seed, "raw": artifact.fingerprint(raw)}


def split(recipe: Recipe, prepared: Path) -> dict[str, Any]:
    """What `split` reads."""
    return {"split": asdict(recipe.split), "seed": recipe.seed, "prepared": artifact.fingerprint(prepared)}


def train(recipe: Recipe, split: Path, warm_start: Path | None = None) -> dict[str, Any]:
    """What `train` reads."""
    settings = {"train": asdict(recipe.train), "model": asdict(recipe.model), "seed": recipe.seed}
    start = {} if warm_start is None else {"warm_start": artifact.fingerprint(warm_start)}
    return settings | start | {"split": artifact.fingerprint(split)}


def evaluate(recipe: Recipe, split: Path, model: Path, champion: Path | None = None) -> dict[str, Any]:
    """What `evaluate` reads."""
    settings = {"evaluate": asdict(recipe.evaluate), "seed": recipe.seed, "name": recipe.name}
    rival = {} if champion is None else {"champion": artifact.fingerprint(champion)}
    return settings | rival | {"split": artifact.fingerprint(split), "model": artifact.fingerprint(model)}


def index(recipe: Recipe, split: Path, model: Path) -> dict[str, Any]:
    """What `index` reads; `auto` looks as well whether ScaNN is there."""
    settings = {"index": asdict(recipe.index), "candidates": recipe.evaluate.candidates, "seed": recipe.seed}
    with suppress(PackageNotFoundError):
        settings["scann"] = version("scann")
    return settings | {"split": artifact.fingerprint(split), "model": artifact.fingerprint(model)}


def directories(recipe: Recipe, **read: Path) -> dict[str, Any]:
    """The whole recipe, and the directories read."""
    return {"recipe": asdict(recipe)} | {name: artifact.fingerprint(path) for name, path in read.items()}


def _hash(made_from: dict[str, Any]) -> str:
    return artifact.hash_json(made_from | {"version": version("twotower"), "code": code_version()})
