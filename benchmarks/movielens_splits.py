"""Splits of MovieLens drawn from a seed, as files, so that both sides of a comparison read the same.

The tables are read here with the standard library and NumPy alone: a fault in our own readers would otherwise be shared
by both sides and stay unseen.
"""

import csv
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TEST_SHARE = 0.2


def data_directory() -> Path:
    """The folder that holds `ml-100k/` and `ml-1m/`: `TWOTOWER_DATA`, else `../shared/data` beside the repository."""
    fallback = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    return Path(os.environ.get("TWOTOWER_DATA", fallback))


def is_test(rows: int, *, seed: int, share: float = TEST_SHARE) -> NDArray[np.bool_]:
    """`[rows]` whether an interaction falls into the test part: by chance, whatever the user or the time."""
    chosen = np.zeros(rows, bool)
    chosen[np.random.default_rng(seed).permutation(rows)[: round(rows * share)]] = True
    return chosen


def is_test_by_user(users: Sequence[str], *, seed: int, share: float) -> NDArray[np.bool_]:
    """`[rows]` the same share of every user's interactions, drawn by chance within the user.

    Each user keeps `round(n * (1 - share))` of `n` for train, a half rounded to even, as recommenders-team's
    `python_stratified_split` does.
    """
    generator = np.random.default_rng(seed)
    _, owner = np.unique(np.asarray(users), return_inverse=True)
    order = np.lexsort((generator.random(len(owner)), owner))
    sizes = np.bincount(owner)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    kept = np.array([round(size * (1 - share)) for size in sizes.tolist()])
    chosen = np.zeros(len(owner), bool)
    chosen[order] = place >= np.repeat(kept, sizes)
    return chosen


def write_parts(folder: Path, rows: Sequence[Sequence[str]], *, test: NDArray[np.bool_]) -> None:
    """`train.csv` and `test.csv` of interactions `(user_id, item_id, rating, timestamp)`, in the order of the rows."""
    for name, chosen in (("train", ~test), ("test", test)):
        _write(
            folder / f"{name}.csv",
            ("user_id", "item_id", "rating", "timestamp"),
            (row for row, is_chosen in zip(rows, chosen.tolist(), strict=True) if is_chosen),
        )


def interactions_100k(*, by_title: bool = False) -> list[list[str]]:
    """MovieLens-100K's rows `[user, item, rating, timestamp]`; with `by_title`, films of one title are one item."""
    rows = [line.split("\t") for line in _lines("ml-100k", "u.data")]
    if not by_title:
        return rows
    titles = {item: title for item, title, _, _ in films_100k()}
    return [[user, titles[item], rating, moment] for user, item, rating, moment in rows]


def interactions_1m() -> list[list[str]]:
    """MovieLens-1M's rows `[user, item, rating, timestamp]`, in the file's order."""
    return [line.split("::") for line in _lines("ml-1m", "ratings.dat")]


def films_100k() -> list[tuple[str, str, str, str]]:
    """MovieLens-100K's films: `(item_id, title, year, genres)`, several genres by `|`."""
    names = [line.split("|")[0] for line in _lines("ml-100k", "u.genre") if line]
    found = []
    for line in _lines("ml-100k", "u.item"):
        item, title, _released, _video, _link, *flags = line.split("|")
        genres = "|".join(name for name, flag in zip(names, flags, strict=True) if flag == "1")
        found.append((item, title, _year(title), genres))
    return found


def films_1m() -> list[tuple[str, str, str, str]]:
    """MovieLens-1M's films: `(item_id, title, year, genres)`, several genres by `|`."""
    rows = (line.split("::") for line in _lines("ml-1m", "movies.dat"))
    return [(item, title, _year(title), genres) for item, title, genres in rows]


def write_films(path: Path, films: Iterable[Sequence[str]]) -> None:
    """The items table as CSV: `item_id, title, year, genres`."""
    _write(path, ("item_id", "title", "year", "genres"), films)


def write_users_100k(path: Path) -> None:
    """MovieLens-100K's users table as CSV: `user_id, age, gender, occupation`."""
    _write(
        path, ("user_id", "age", "gender", "occupation"), (line.split("|")[:4] for line in _lines("ml-100k", "u.user"))
    )


def write_users_1m(path: Path) -> None:
    """MovieLens-1M's users table as CSV: `user_id, gender, age, occupation`."""
    _write(
        path,
        ("user_id", "gender", "age", "occupation"),
        (line.split("::")[:4] for line in _lines("ml-1m", "users.dat")),
    )


def write_100k(path: Path, *, seed: int) -> None:
    """MovieLens-100K as CSV: `user_id, title, rating, timestamp, part`. Films of one title are one, as in TFRS."""
    rows = interactions_100k(by_title=True)
    parts = np.where(is_test(len(rows), seed=seed), "test", "train").tolist()
    _write(
        path,
        ("user_id", "title", "rating", "timestamp", "part"),
        ((*row, part) for row, part in zip(rows, parts, strict=True)),
    )


def read_1m() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """MovieLens-1M's interactions as rows: users and items numbered in the order of their ids, both `[1,000,209]`."""
    pairs = np.array([row[:2] for row in interactions_1m()], np.int64)
    user, item = (np.unique(pairs[:, column], return_inverse=True)[1] for column in (0, 1))
    return user.astype(np.int64), item.astype(np.int64)


def _lines(folder: str, file: str) -> list[str]:
    return (data_directory() / folder / file).read_text(encoding="latin-1").splitlines()


def _year(title: str) -> str:
    found = re.search(r"\((\d{4})\)\s*$", title)
    return found[1] if found else ""


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
