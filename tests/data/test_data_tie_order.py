"""Leave last out on MovieLens: among equal timestamps the order of the raw file decides which film was the last."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from twotower.data.config import PrepareConfig, SplitConfig
from twotower.data.split import TEST, VALIDATION, load_split

USERS, FILMS, ROWS = 50, 400, 150_000
"""More rows than one of the engine's row groups, so that several threads share them."""


def write_movielens_1m(folder: Path, rows: list[tuple[int, int, int]]) -> None:
    """`ml-1m` with these (user, film, timestamp) rows."""
    folder.mkdir()
    (folder / "ratings.dat").write_text("".join(f"{user}::{film}::3::{at}\n" for user, film, at in rows), "ascii")
    (folder / "movies.dat").write_text("".join(f"{film}::Film {film} (1990)::Drama\n" for film in range(1, FILMS + 1)))
    (folder / "users.dat").write_text("".join(f"{user}::F::25::1::00000\n" for user in range(1, USERS + 1)))


def test_last_out_takes_the_last_row_of_the_file_among_equal_timestamps(
    tmp_path: Path, prepare_into: Callable[..., Path], split_into: Callable[..., Path]
) -> None:
    generator = np.random.default_rng(0)
    # Three moments in all, and the file is in no order of time: nearly every choice is between equals.
    columns = [generator.integers(1, end + 1, ROWS).tolist() for end in (USERS, FILMS)]
    moments = generator.integers(978_000_000, 978_000_003, ROWS).tolist()
    rows = list(zip(*columns, moments, strict=True))
    write_movielens_1m(tmp_path / "ml-1m", rows)
    config = PrepareConfig(source="movielens-1m", data_dir=str(tmp_path))
    prepared = prepare_into(tmp_path / "prepared", config)
    dataset = load_split(split_into(tmp_path / "split", SplitConfig(protocol="last_out"), prepared=prepared))
    in_time = sorted(rows, key=lambda row: row[2])  # Stable: equals stay in the file's order.
    films = {user: [row[1] for row in in_time if row[0] == user] for user in range(1, USERS + 1)}
    for part, place in ((TEST, -1), (VALIDATION, -2)):
        held = np.flatnonzero(dataset.part == part)
        found = dict(zip(dataset.user_ids[dataset.user[held]], dataset.item_ids[dataset.item[held]], strict=True))
        assert {int(user): int(film) for user, film in found.items()} == {
            user: met[place] for user, met in films.items()
        }
