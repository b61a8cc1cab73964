"""Whom validation and evaluation ask, where a log outgrows the memory: some users with all that they did."""

import numpy as np

from twotower.data.pieces import count_rows, narrowed
from twotower.data.split import TEST, TRAIN, VALIDATION, SplitDataset

ENOUGH = 100_000
"""Interactions of a part that are enough to stop by, to order by and to calibrate by, and to draw queries from."""


def asked_of(dataset: SplitDataset, part: int, *, most: int, seed: int, enough: int = ENOUGH) -> SplitDataset:
    """The log, or where it is longer than `most`, that of users drawn by chance among those whom a part asks.

    Args:
        dataset: The whole log.
        part: The part that is asked for.
        most: Interactions that may be in memory.
        seed: Of the draw.
        enough: Interactions of the part with which the draw ends.
    """
    if len(dataset.user) <= most:
        return dataset
    asked = count_rows(dataset, part, by="user")
    rows = count_rows(dataset, TRAIN, VALIDATION, TEST, by="user")
    order = np.random.default_rng(seed).permutation(np.flatnonzero(asked))
    ends = (np.cumsum(rows[order]) > most) | (np.cumsum(asked[order]) - asked[order] >= enough)
    users = np.zeros(len(asked), bool)
    users[order[: max(1, int(np.argmax(ends)) if ends.any() else len(order))]] = True
    return narrowed(dataset, users)
