"""What a source held when it was read: a run that was made from the same bytes is up to date."""

import glob
import re
from collections.abc import Iterator
from pathlib import Path

from twotower.artifact import sha256
from twotower.data.config import FilesConfig, PrepareConfig
from twotower.data.sources.movielens import FOLDERS, find_folder

_LITERAL = re.compile(r"'((?:[^']|'')+)'")
_SCHEME = re.compile(r"^(?:sqlite|duckdb):")
_JOURNALS = (".wal", "-wal")
"""Where DuckDB and SQLite keep what was written last."""


def fingerprint_source(config: PrepareConfig) -> dict[str, str]:
    """File -> sha256, for every local file that the source reads: tables, shards, databases, files named in a query.

    A simulated world follows from its settings and holds none. A remote address or server is read anew only when the
    recipe changes: what stands behind it cannot be hashed without fetching it.
    """
    return {str(path): sha256(path) for path in sorted(set(_files(config)))}


def _files(config: PrepareConfig) -> Iterator[Path]:
    if config.source == "files":
        yield from _own_files(config.files, base=Path(config.data_dir or "."))
    elif config.source in FOLDERS:
        folder = find_folder(FOLDERS[config.source], data_dir=config.data_dir)
        yield from (path for path in folder.iterdir() if path.is_file())


def _own_files(files: FilesConfig, *, base: Path) -> Iterator[Path]:
    """Whatever exists under a name that the recipe gives; a query or an address is the name of no file."""
    logs = (files.interactions, files.new_interactions, files.validation, files.test)
    for place in (*logs, files.users, files.items, files.new_items):
        if not place:
            continue
        for path in _matching(base / Path(place).expanduser()):
            yield from (path.rglob("*.parquet") if path.is_dir() else [path])
        for literal in _LITERAL.findall(place):  # A file that a query reads, relative to the working directory.
            yield from (path for path in _matching(Path(literal.replace("''", "'"))) if path.is_file())
    for place in files.attach.values():
        for path in (*_matching(base / Path(place).expanduser()), *_matching(Path(_SCHEME.sub("", place)))):
            journals = (path.with_name(path.name + ending) for ending in _JOURNALS)
            yield from (file for file in (path, *journals) if file.is_file())


def _matching(path: Path) -> list[Path]:
    """What exists under a name or a pattern with `*`, `?`, `[`."""
    # Not Path.glob: it refuses absolute patterns and names that are too long, as a query's text is.
    return [Path(name) for name in glob.glob(str(path), recursive=True)]  # noqa: PTH207
