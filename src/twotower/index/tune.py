"""How far a search has to go to find what the exact one does, and no further."""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from twotower.index.contract import Index
from twotower.index.reach import Codes, Reach

ROUNDING = 1e-5
"""Relative difference below which two inner products of the same vectors count as equal."""
RESCORED = (1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 12, 20)
"""Items scored by their embeddings that are tried, as multiples of the depth."""
STEP = 2**0.25
STEPS = 36
"""Numbers of lists that are tried, down from all of them; each is smaller than the last by `STEP`."""
NS_PER_NUMBER: dict[Codes, float] = {"bytes": 0.17, "nibbles": 0.05, "scann": 0.025}
"""Time in which a code is read, for each number that it stands for."""
NS_PER_RESCORED: dict[Codes, float] = {"bytes": 75, "nibbles": 75, "scann": 33}
"""Time in which one more item is kept and scored again. These were measured at a million items, 64 wide. The cheapest
reach is told by them, not by a clock: equal embeddings and queries give an equal index."""
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
        return float(NS_PER_NUMBER[index.codes] * numbers + NS_PER_RESCORED[index.codes] * index.reach.rescored)


def tuned(indexes: Iterable[L], exact: Index, *, queries: NDArray[np.float32], depth: int, recall: float) -> L | None:
    """The index, and its reach, that finds enough in the least time; None where nothing finds enough.

    Args:
        indexes: The lists to choose from.
        exact: The standard over the same embeddings.
        queries: As in `Goal`.
        depth: Likewise, but cut to the size of the catalogue.
        recall: Likewise.
    """
    depth = min(depth, len(exact.embeddings))
    goal = Goal(queries=queries, depth=depth, cut=kth_score(exact, queries, depth), recall=recall)
    found = (_cheapest(index, goal) for index in indexes)
    return min((each for each in found if each is not None), key=goal.nanoseconds, default=None)


def widest(index: Listed, *, depth: int) -> Reach:
    """All lists, and as many items scored again as make up for the coarsest codes."""
    return Reach(depth=depth, lists=index.lists, rescored=round(RESCORED[-1] * depth))


def _cheapest(index: L, goal: Goal) -> L | None:
    """Among the numbers of items scored again, each with the fewest lists that reach the goal."""
    most = widest(index, depth=goal.depth).lists
    ladder = sorted({max(1, round(most / STEP**step)) for step in range(STEPS)})
    found: list[L] = []
    for rescored in (round(goal.depth * times) for times in RESCORED):
        tried = [index.reaching(Reach(depth=goal.depth, lists=lists, rescored=rescored)) for lists in ladder]
        place = bisect_left(tried, True, key=goal.is_reached_by)
        if place == len(tried):
            continue
        if found and found[-1].reach.lists == ladder[place]:
            break  # More items scored again no longer save a list.
        found.append(tried[place])
    return min(found, key=goal.nanoseconds, default=None)
