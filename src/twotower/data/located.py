"""Data by address: the recipe's source read from wherever the caller says it lies, and which version lies there."""

import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from twotower import storage
from twotower.artifact import hash_json
from twotower.data.config import PrepareConfig
from twotower.data.fingerprint import fingerprint_source
from twotower.data.sources.files import TABLES, is_unseen, local_files
from twotower.data.sources.movielens import FOLDERS
from twotower.errors import DataError, RecipeError


@contextmanager
def at_address(config: PrepareConfig, address: str) -> Iterator[PrepareConfig]:
    """The same settings, reading from an address; what had to be copied from afar is gone when the block ends.

    Args:
        config: Says which files the source has.
        address: A folder, a .zip of one, or the one file of interactions: a path, `s3://`, `gs://`, `http(s)://`. A
            web address that ends in `/` is a folder from which the recipe's files are fetched by name. Nothing leaves
            the recipe's own places.

    Raises:
        RecipeError: the recipe makes its data itself.
        DataError: the address does not hold what the recipe's source reads.
        StorageError: there is nothing at the address, or it cannot be read.
    """
    if not address:
        yield config
        return
    if config.source == "simulated":
        raise RecipeError(
            f"data {address!r}: the recipe's data is simulated, so no data is read. Set prepare.source, as in "
            "--set prepare.source=files, or leave the address out."
        )
    with tempfile.TemporaryDirectory(prefix="twotower-") as scratch:
        yield _reading(config, _here(config, address, scratch=Path(scratch)), address=address)


def source_version(config: PrepareConfig, address: str, *, seed: int) -> str:
    """A hash that changes when what the source would read does.

    Local files count by content. What lies afar counts by the names, sizes and times that its server tells; what a
    query reads from afar cannot be told, and counts as changed each time. A simulated world counts by its settings and
    seed.

    Raises:
        StorageError, DataError: as for `at_address`.
    """
    found: list[object] = [asdict(config), seed]
    if config.source == "files" and is_unseen(config.files):
        found.append(datetime.now(UTC).isoformat())
    if storage.is_address(address) and not address.startswith("file://"):
        names = _web_files(config, address) if _is_web_folder(address) else [address]
        found.append({name: storage.fingerprint(name) for name in names})
        if not _is_folder(address):  # The other tables are still the recipe's.
            found.append(_own_tables(replace(config, files=replace(config.files, interactions=""))))
    else:
        with at_address(config, address) as local:
            found.append(_own_tables(local))
    return hash_json(found)[:16]


def _own_tables(config: PrepareConfig) -> list[object]:
    """What the recipe's own places hold; by name and not by path, as what was unpacked lies elsewhere each time."""
    found: list[object] = [(Path(path).name, digest) for path, digest in fingerprint_source(config).items()]
    if config.source == "files":
        local_files(config.files, data_dir=config.data_dir)
        places = (getattr(config.files, table) for table in TABLES)
        found += [(place, storage.fingerprint(place)) for place in places if storage.is_address(place)]
    return found


def _here(config: PrepareConfig, address: str, *, scratch: Path) -> Path:
    """The folder or file on this machine."""
    if not storage.is_address(address) or address.startswith("file://"):
        path = storage.local_path(address)
        if not path.exists():
            raise DataError(f"{address}: no such file or folder. Check the address of the data.")
    elif _is_web_folder(address):
        path = scratch / "folder"
        for name in _web_files(config, address):
            storage.download(name, path / name.removeprefix(address))
    else:
        path = storage.download(address, scratch / _last_part(address))
    return _unpacked(path, scratch / "unpacked") if path.suffix.lower() == ".zip" else path


def _reading(config: PrepareConfig, path: Path, *, address: str) -> PrepareConfig:
    """The settings with their files at `path`."""
    if config.source == "files":
        if path.is_dir():
            _refuse_outside(config, address=address)
            return replace(config, data_dir=str(path))
        return replace(config, files=replace(config.files, interactions=str(path.resolve())))
    folder = FOLDERS[config.source]
    for home in (path, path.parent):
        if (home / folder).is_dir() and path in (home, home / folder):
            return replace(config, data_dir=str(home))
    raise DataError(f"{address}: holds no folder {folder}, which {config.source} is read from. Check the address.")


def _refuse_outside(config: PrepareConfig, *, address: str) -> None:
    """A folder of data holds every table that the recipe names: none may lead out of it, or past it.

    Raises:
        RecipeError: a table is named by an absolute path, through `..`, by an address or by a query.
    """
    for table in TABLES:
        place = getattr(config.files, table)
        parts = PurePosixPath(place.replace("\\", "/"))
        outside = parts.is_absolute() or ".." in parts.parts or ":" in place or len(place.split()) > 1
        if place and outside:
            raise RecipeError(
                f"data {address!r} is a folder, but prepare.files.{table} = {place!r} is no file within one. Name it "
                "relative to the folder, or leave the address out."
            )


def _is_folder(address: str) -> bool:
    """Whether an address afar is one of all tables, and not of the interactions alone."""
    name = _last_part(address)
    return address.endswith("/") or name.lower().endswith(".zip") or not PurePosixPath(name).suffix


def _is_web_folder(address: str) -> bool:
    return address.startswith(storage.WEB) and address.endswith("/")


def _web_files(config: PrepareConfig, address: str) -> list[str]:
    """A web server cannot be asked what a folder holds; the recipe says which files it must."""
    if config.source != "files":
        raise DataError(f"{address}: the files of a web folder cannot be listed. Name a .zip of {config.source}.")
    _refuse_outside(config, address=address)
    return [address + place for table in TABLES if (place := getattr(config.files, table))]


def _unpacked(archive: Path, to: Path) -> Path:
    try:
        with zipfile.ZipFile(archive) as content:
            content.extractall(to)
    except zipfile.BadZipFile as fault:
        raise DataError(f"{archive.name}: no zip archive, or a damaged one ({fault}). Fetch it again.") from fault
    return to


def _last_part(address: str) -> str:
    return address.partition("?")[0].rstrip("/").rpartition("/")[2] or "data"
