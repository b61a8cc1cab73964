"""The MovieLens sets: read from a folder.

Citation: Harper and Konstan, "The MovieLens Datasets: History and Context", ACM TiiS 5(4) 19, 2015,
https://doi.org/10.1145/2827872
"""

import csv
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from twotower.data.database import Database, faults_told, literal
from twotower.data.interactions import RawData
from twotower.data.sources.movielens_download import download
from twotower.data.tables import INPUT_ROW

FOLDERS = {
    "movielens-100k": "ml-100k",
    "movielens-1m": "ml-1m",
    "movielens-latest-small": "ml-latest-small",
    "movielens-20m": "ml-20m",
    "movielens-32m": "ml-32m",
}
DATA_VARIABLE = "TWOTOWER_DATA"

_RATINGS = {"ml-100k": ("u.data", "\t"), "ml-1m": ("ratings.dat", "::")}
_USER_COLUMNS = {
    "ml-100k": ("u.user", "|", ("user_id", "age", "gender", "occupation", "zip")),
    "ml-1m": ("users.dat", "::", ("user_id", "gender", "age", "occupation", "zip")),
}
_YEAR = re.compile(r"\((\d{4})(?:[-\u2013]\d{0,4})?\)\s*$")


def read_movielens(database: Database, name: str, *, data_dir: str | None) -> RawData:
    """One of the sets in `FOLDERS`, from `<data_dir>/<folder>`, downloaded there where it is missing.

    Args:
        data_dir: The folder that holds the set's folder; by default `TWOTOWER_DATA`, else a cache in the home folder.
    """
    folder = find_folder(FOLDERS[name], data_dir=data_dir)
    file, separator = _RATINGS.get(folder.name, ("ratings.csv", ","))
    columns = "{'user_id': 'VARCHAR', 'item_id': 'VARCHAR', 'rating': 'VARCHAR', 'timestamp': 'VARCHAR'}"
    ratings = (
        f"SELECT *, row_number() OVER () AS {INPUT_ROW} FROM read_csv({literal(str(folder / file))}, "
        f"delim = {literal(separator)}, header = {file.endswith('.csv')}, auto_detect = false, quote = '', "
        f"columns = {columns})"
    )
    with faults_told(str(folder / file), "Fetch the file again."):
        interactions = database.create("raw_interactions", ratings)
    users = _read_users(folder)
    return RawData(
        name=name,
        interactions=interactions,
        users=None if users is None else database.create("raw_users", users),
        items=database.create("raw_items", _items(folder)),
        labels=("rating",),
        title_column="title",
        timestamp_format="s",
    )


def find_folder(folder: str, *, data_dir: str | None) -> Path:
    """Where the set lies; it is downloaded first where it does not."""
    home = data_dir or os.environ.get(DATA_VARIABLE) or str(Path.home() / ".cache" / "twotower")
    found = Path(home) / folder
    file, _ = _RATINGS.get(folder, ("ratings.csv", ","))
    if not (found / file).is_file():
        download(folder, Path(home))
    return found


def _items(folder: Path) -> pa.Table:
    rows = {"ml-100k": _items_100k, "ml-1m": _items_1m}.get(folder.name, _items_csv)(folder)
    ids, titles, genres = zip(*rows, strict=True)
    years = [int(match[1]) if (match := _YEAR.search(title)) else None for title in titles]
    return pa.table(
        {
            "item_id": pa.array(ids, pa.string()),
            "title": pa.array(titles, pa.string()),
            "year": pa.array(years, pa.int64()),
            "genres": pa.array([genre or None for genre in genres], pa.string()),
            INPUT_ROW: pa.array(range(1, len(ids) + 1), pa.int64()),
        }
    )


def _items_100k(folder: Path) -> Iterator[tuple[str, str, str]]:
    genres = [line.split("|")[0] for line in _lines(folder / "u.genre")]
    for line in _lines(folder / "u.item"):
        item_id, title, _released, _video, _link, *flags = line.split("|")
        yield item_id, title, "|".join(genre for genre, flag in zip(genres, flags, strict=True) if flag == "1")


def _items_1m(folder: Path) -> Iterator[tuple[str, str, str]]:
    for line in _lines(folder / "movies.dat"):
        item_id, title, genres = line.split("::")
        yield item_id, title, genres


def _items_csv(folder: Path) -> Iterator[tuple[str, str, str]]:
    with (folder / "movies.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            genres = row["genres"]
            yield row["movieId"], row["title"], "" if genres == "(no genres listed)" else genres


def _read_users(folder: Path) -> pa.Table | None:
    """The users table; the later sets have none."""
    if folder.name not in _USER_COLUMNS:
        return None
    file, separator, names = _USER_COLUMNS[folder.name]
    columns: Sequence[Sequence[str]] = list(
        zip(*(line.split(separator) for line in _lines(folder / file)), strict=True)
    )
    table = dict(zip(names, columns, strict=True))
    return pa.table(
        {
            "user_id": pa.array(table["user_id"], pa.string()),
            "gender": pa.array(table["gender"], pa.string()),
            "age": pa.array([int(age) for age in table["age"]], pa.int64()),
            "occupation": pa.array(table["occupation"], pa.string()),
            "zip": pa.array(table["zip"], pa.string()),
            INPUT_ROW: pa.array(range(1, len(columns[0]) + 1), pa.int64()),
        }
    )


def _lines(path: Path) -> list[str]:
    """The lines of a file of the two older sets, which are in Latin-1."""
    return [line for line in path.read_text(encoding="latin-1").split("\n") if line]
