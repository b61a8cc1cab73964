"""Fetching a MovieLens set from GroupLens: its terms are shown first, its checksum is compared after."""

import hashlib
import http.client
import shutil
import tempfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from twotower.errors import DataError

BASE_URL = "https://files.grouplens.org/datasets/movielens"
MD5 = {
    "ml-100k": "0e33842e24a9c977be4e0107933c0723",
    "ml-1m": "c4d9eecfca2ab87c1945afe126590906",
    "ml-20m": "cd245b17a1ae2cc31bb14903e1204af3",
    "ml-32m": "d472be332d4daa821edc399621853b57",
}
"""Of the archives that never change. ml-latest-small may: its checksum is read from the file beside it."""

NOTICE = (
    "{folder} is a MovieLens data set by GroupLens, University of Minnesota. It may be used for research; it may not "
    "be passed on, nor used commercially, without permission. The terms are in its README. "
    "Cite: Harper and Konstan 2015, The MovieLens Datasets, ACM TiiS 5(4) 19."
)

_TIMEOUT_S = 60
_BLOCK = 1 << 18


def download(folder: str, home: Path, *, base_url: str = BASE_URL) -> None:
    """Fetch a set and unpack it as `home/folder`, which appears whole or not at all.

    Args:
        folder: "ml-100k", "ml-1m", "ml-latest-small", "ml-20m" or "ml-32m".
        home: Made where it does not exist.
        base_url: Where the archives lie.

    Raises:
        DataError: it cannot be fetched, or is damaged; the message says how to do it by hand.
    """
    console = Console(stderr=True)
    console.print(NOTICE.format(folder=folder), highlight=False)
    url = f"{base_url}/{folder}.zip"
    by_hand = (
        f"Fetch {url} yourself and unpack it in {home}; or name the folder that holds {folder} by --data-dir "
        "or TWOTOWER_DATA."
    )
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder}.", dir=home) as temporary:
            archive = Path(temporary) / "archive.zip"
            found = _fetch(url, archive, console=console)
            expected = MD5.get(folder) or _read_md5(f"{url}.md5")
            if found != expected:
                raise DataError(f"{url}: md5 {found}, not {expected}: damaged, or no longer the same. {by_hand}")
            _unpack(archive, folder, target=home / folder)
    except (OSError, http.client.HTTPException, zipfile.BadZipFile) as fault:
        raise DataError(f"{home / folder}: not there, and not to be had from {url} ({fault}). {by_hand}") from fault


def _fetch(url: str, target: Path, *, console: Console) -> str:
    """Download with a progress bar; gives the md5."""
    digest = hashlib.md5(usedforsecurity=False)
    name = TextColumn("{task.description}")
    columns = (name, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with (
        urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response,
        target.open("wb") as file,
        Progress(*columns, console=console) as progress,
    ):
        size = response.headers.get("Content-Length")
        task = progress.add_task(url.rsplit("/", 1)[-1], total=int(size) if size else None)
        while block := response.read(_BLOCK):
            file.write(block)
            digest.update(block)
            progress.update(task, advance=len(block))
    return digest.hexdigest()


def _read_md5(url: str) -> str:
    """The checksum in a file such as `MD5 (ml-20m.zip) = cd24...` or `cd24...  ml-20m.zip`."""
    with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response:
        words = response.read(1_000).decode("ascii", "replace").lower().split()
    return next((word for word in words if len(word) == 32 and set(word) <= set("0123456789abcdef")), "unknown")


def _unpack(archive: Path, folder: str, *, target: Path) -> None:
    """Unpack beside the target, then move it there in one go."""
    with zipfile.ZipFile(archive) as content:
        content.extractall(archive.parent)
    if not (archive.parent / folder).is_dir():
        raise DataError(f"{archive.name}: holds no folder {folder}. Fetch it by hand.")
    if target.exists():  # What was there lacked the ratings.
        shutil.rmtree(target)
    (archive.parent / folder).rename(target)
