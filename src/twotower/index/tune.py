"""How far a search has to go to find what the exact one does, and no further."""

import math
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from twotower.index.contract import Index
from twotower.index.reach import Codes, Reach

ROUNDING = 1e-5
"""Relative difference below which two inner products of the same vectors count as equal."""
RESCORED = (1.25, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 10, 12, 16, 20)
"""Items scored by their embeddings that are tried, as multiples of the depth."""
STEP = 2**0.125
STEPS = 72
"""Numbers of lists that are tried, down from all of them; each is smaller than the last by `STEP`."""
NS_PER_NUMBER: dict[Codes, float] = {"bytes": 0.17, "nibbles": 0.05, "scann": 0.025}
"""Time in which a code is read, for each number that it stands for."""
NS_PER_RESCORED: dict[Codes, float] = {"bytes": 75, "nibbles": 75, "scann": 33}
"""Time in which one more item is kept and scored again. These were measured at a million items, 64 wide. The cheapest
reach is told by them, unless a clock is asked for: equal embeddings and queries give an equal index."""
NS_PER_CENTRE = 0.03
"""Time in which a list's centre is scored, for each number of it."""
WORTH = 1.5
"""Times the cheapest so far, by the figures above, up to which a reach is tried."""
FINALISTS = 8
"""Reaches that a clock chooses among: the cheapest by the figures above."""
TIMED, CHUNK = 1000, 25
"""Queries timed on each, and how many of them in a turn."""
SURE = 1.645
"""Standard errors below a mean that hold the true one with a chance of 95%."""


def shares_found(
    cut: NDArray[np.float32], other: Index, *, queries: NDArray[np.float32], k: int
) -> NDArray[np.float64]:
    """`[q]` the share of the best `k` items that `other` finds.

    An item counts when it scores as high as the exact `k`-th: among equals, either choice is right.

    Args:
        cut: `[q]` the exact `k`-th score; see `kth_score`.
        other: What is measured.
        queries: `[q, D]` query embeddings.
        k: The depth.
    """
    found = other.search(queries, k)[1]
    lowest = (cut - ROUNDING * np.maximum(1.0, np.abs(cut)))[:, None]
    return np.asarray((found >= lowest).mean(axis=1), np.float64)


def kth_score(exact: Index, queries: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """`[q]` the score of the `k`-th best item, or of the last where there are fewer."""
    return exact.search(queries, k)[1][:, -1]


class Listed(Index, Protocol):
    """An index of lists, whose search can be told how far to go."""

    reach: Reach

    @property
    def lists(self) -> int:
        """How many lists there are."""

    @property
    def codes(self) -> Codes:
        """What the lists hold."""

    def reaching(self, reach: Reach) -> Self:
        """The same lists, searched further or less far."""

    def codes_read(self, queries: NDArray[np.float32], lists: int) -> float:
        """How many items a search of so many lists reads the codes of, on average over `[q, D]` queries."""


L = TypeVar("L", bound=Listed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What a search has to find."""

    queries: NDArray[np.float32]
    """`[q, D]` at least one query embedding, alike those that will be asked."""
    depth: int
    """The `k` that will be asked."""
    cut: NDArray[np.float32]
    """`[q]` the exact `k`-th score."""
    recall: float
    """The least share of the exact best that is to be found."""

    def is_reached_by(self, index: Listed) -> bool:
        """Whether other queries, if they are like these, find enough: with a chance of 95%."""
        shares = shares_found(self.cut, index, queries=self.queries, k=self.depth)
        return bool(shares.mean() - SURE * shares.std() / np.sqrt(len(shares)) >= self.recall)

    def nanoseconds(self, index: Listed) -> float:
        """What a search takes, about."""
        numbers = index.codes_read(self.queries, index.reach.lists) * index.embeddings.shape[1]
        lists = NS_PER_CENTRE * index.lists * index.embeddings.shape[1]
        return float(lists + NS_PER_NUMBER[index.codes] * numbers + NS_PER_RESCORED[index.codes] * index.reach.rescored)


def tuned(
    indexes: Iterable[L],
    exact: Index,
    *,
    queries: NDArray[np.float32],
    depth: int,
    recall: float,
    by_clock: bool = False,
) -> L | None:
    """The index, and its reach, that finds enough in the least time; None where nothing finds enough.

    Args:
        indexes: The lists to choose from.
        exact: The standard over the same embeddings.
        queries: As in `Goal`.
        depth: Likewise, but cut to the size of the catalogue.
        recall: Likewise.
        by_clock: Time those that should be fastest and take the one that is.
    """
    depth = min(depth, len(exact.embeddings))
    goal = Goal(queries=queries, depth=depth, cut=kth_score(exact, queries, depth), recall=recall)
    found: list[L] = []
    for index in indexes:
        cheapest = min(map(goal.nanoseconds, found), default=math.inf)
        found += _reaching(index, goal, cheapest=cheapest)
    found.sort(key=goal.nanoseconds)
    return _fastest(found[:FINALISTS], goal) if by_clock and found else next(iter(found), None)


def widest(index: Listed, *, depth: int) -> Reach:
    """All lists, and as many items scored again as make up for the coarsest codes."""
    return Reach(depth=depth, lists=index.lists, rescored=round(RESCORED[-1] * depth))


def _reaching(index: L, goal: Goal, *, cheapest: float) -> list[L]:
    """For each number of items scored again the fewest lists that reach the goal, where they are not far too dear."""
    most = widest(index, depth=goal.depth).lists
    ladder = sorted({max(1, round(most / STEP**step)) for step in range(STEPS)})
    found: list[L] = []
    for rescored in (round(goal.depth * times) for times in reversed(RESCORED)):
        tried = [index.reaching(Reach(depth=goal.depth, lists=lists, rescored=rescored)) for lists in ladder]
        dear = bisect_right(tried, WORTH * cheapest, key=goal.nanoseconds)
        place = bisect_left(tried[:dear], True, key=goal.is_reached_by)
        if place == len(tried):
            break  # With fewer items scored again, all lists will not do either.
        if place < dear:
            found.append(tried[place])
            cheapest = min(cheapest, goal.nanoseconds(tried[place]))
            ladder = ladder[place:]  # Nor will fewer lists.
    return found


def _fastest(found: Sequence[L], goal: Goal) -> L:
    """By the median time of one query; they take turns, so that a slow moment hits all of them."""
    seconds: list[list[float]] = [[] for _ in found]
    for start in range(0, min(TIMED, len(goal.queries)), CHUNK):
        for index, taken in zip(found, seconds, strict=True):
            for row in range(start, min(start + CHUNK, len(goal.queries))):
                began = time.perf_counter()
                index.search(goal.queries[row : row + 1], goal.depth)
                taken.append(time.perf_counter() - began)
    return found[int(np.argmin([np.median(taken) for taken in seconds]))]
