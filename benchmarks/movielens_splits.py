"""Random 80/20 splits of MovieLens, drawn from a seed, so that both sides of a comparison read the same.

The tables are read here with the standard library and NumPy alone: a fault in our own readers would otherwise be shared
by both sides and stay unseen.
"""

import csv
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TEST_SHARE = 0.2


def data_directory() -> Path:
    """The folder that holds `ml-100k/` and `ml-1m/`: `TWOTOWER_DATA`, else `../shared/data` beside the repository."""
    fallback = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    return Path(os.environ.get("TWOTOWER_DATA", fallback))


def is_test(rows: int, *, seed: int) -> NDArray[np.bool_]:
    """`[rows]` whether an interaction falls into the test part: a fifth of all, whatever the user or the time."""
    chosen = np.zeros(rows, bool)
    chosen[np.random.default_rng(seed).permutation(rows)[: round(rows * TEST_SHARE)]] = True
    return chosen


def write_100k(path: Path, *, seed: int) -> None:
    """MovieLens-100K as CSV: `user_id, title, rating, timestamp, part`. Films of one title are one, as in TFRS."""
    folder = data_directory() / "ml-100k"
    films = (line.split("|") for line in (folder / "u.item").read_text(encoding="latin-1").splitlines())
    titles = {film[0]: film[1] for film in films}
    rows = [line.split("\t") for line in (folder / "u.data").read_text(encoding="ascii").splitlines()]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("user_id", "title", "rating", "timestamp", "part"))
        for (user, item, rating, moment), test in zip(rows, is_test(len(rows), seed=seed), strict=True):
            writer.writerow((user, titles[item], rating, moment, "test" if test else "train"))


def read_1m() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """MovieLens-1M's interactions as rows: users and items numbered in the order of their ids, both `[1,000,209]`."""
    lines = (data_directory() / "ml-1m" / "ratings.dat").read_text(encoding="ascii").splitlines()
    pairs = np.array([line.split("::", 2)[:2] for line in lines], np.int64)
    user, item = (np.unique(pairs[:, column], return_inverse=True)[1] for column in (0, 1))
    return user.astype(np.int64), item.astype(np.int64)
