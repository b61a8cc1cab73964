"""What a source held when it was read: a run that was made from the same bytes is up to date."""

from pathlib import Path

from twotower.artifact import sha256
from twotower.data.prepare import PrepareConfig
from twotower.data.sources.movielens import FOLDERS, find_folder


def fingerprint_source(config: PrepareConfig) -> dict[str, str]:
    """File -> sha256, for every local file that the source reads.

    A simulated world follows from its settings and holds none. A remote address or a query is read anew only when
    the recipe changes: what stands behind it cannot be hashed without fetching it.
    """
    return {str(path): sha256(path) for path in _files(config)}


def _files(config: PrepareConfig) -> list[Path]:
    if config.source == "simulated":
        return []
    if config.source in FOLDERS:
        folder = find_folder(FOLDERS[config.source], data_dir=config.data_dir)
        return sorted(path for path in folder.iterdir() if path.is_file())
    base = Path(config.data_dir or ".")
    named = (config.files.interactions, config.files.users, config.files.items)
    return [base / name for name in named if name and (base / name).is_file()]
