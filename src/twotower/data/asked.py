"""Whom validation and evaluation ask, where a log outgrows the memory: some users with all that they did."""

import numpy as np
from numpy.typing import NDArray

from twotower.data.pieces import count_rows, narrowed
from twotower.data.split import TEST, TRAIN, VALIDATION, SplitDataset

ENOUGH = 100_000
"""Interactions of a part that are enough to stop by, to order by and to calibrate by, and to draw queries from."""


def asked_of(dataset: SplitDataset, part: int, *, most: int, seed: int, enough: int = ENOUGH) -> SplitDataset:
    """The log, or where it is longer than `most`, that of users drawn by chance among those whom a part asks.

    Of every part up to this one it holds positives, if the whole does: others are drawn for a part that these lack.

    Args:
        dataset: The whole log.
        part: The part that is asked for.
        most: Interactions that may be in memory.
        seed: Of the draw.
        enough: Interactions of the part with which the draw ends.
    """
    if len(dataset.user) <= most:
        return dataset
    rows, generator = count_rows(dataset, TRAIN, VALIDATION, TEST, by="user"), np.random.default_rng(seed)
    users = _draw(count_rows(dataset, part, by="user"), rows, most=most, enough=enough, generator=generator)
    found = narrowed(dataset, users)
    for needed in range(part + 1):  # Where files give the parts, those who are asked may have done nothing before.
        if (found.positive & (found.part == needed)).any():
            continue
        held = count_rows(dataset, needed, by="user", positives_only=True)
        if held.any():
            room = most - int(rows[users].sum())
            users |= _draw(held, rows, most=room, enough=enough, generator=generator)
            found = narrowed(dataset, users)
    return found


def _draw(
    held: NDArray[np.int64], rows: NDArray[np.int64], *, most: int, enough: int, generator: np.random.Generator
) -> NDArray[np.bool_]:
    """`[U]` users drawn by chance among those that hold something: one at least, if there is one.

    Args:
        held: `[U]` interactions that the draw is for.
        rows: `[U]` all interactions.
        most: All interactions of the users drawn, but for the first of these.
        enough: Interactions of `held` with which the draw ends.
        generator: What draws.
    """
    order = generator.permutation(np.flatnonzero(held))
    ends = (np.cumsum(rows[order]) > most) | (np.cumsum(held[order]) - held[order] >= enough)
    users = np.zeros(len(held), bool)
    users[order[: max(1, int(np.argmax(ends)) if ends.any() else len(order))]] = True
    return users
