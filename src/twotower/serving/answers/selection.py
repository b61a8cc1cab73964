"""Filling places one by one: the best candidate for each, unlike those before it and within the caps. Rows and ids are
the rules'.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

TRIES = 200
"""Candidates that may be taken out in the search for a fuller answer, which bounds its time."""
UNBOUNDED = np.iinfo(np.int64).max


class Caps:
    """How much of each category is taken, as places are filled."""

    def __init__(self, category: NDArray[np.int64], *, most: NDArray[np.int64]) -> None:
        """Begin with nothing taken.

        Args:
            category: `[n, W]` of each candidate, none twice and -1 for none; category `c` belongs to cap
                `c % len(most)`.
            most: `[caps]` how many candidates of each category may be taken.
        """
        distinct, number = np.unique(category, return_inverse=True)
        self._category: NDArray[np.intp] = np.ascontiguousarray(number.reshape(category.shape).T)
        """`[W, n]`: to look along the short axis takes several times as long."""
        self._most = np.where(distinct < 0, UNBOUNDED, most[distinct % max(1, len(most))])
        self._taken = np.zeros(len(distinct), np.int64)

    @property
    def may_clash(self) -> bool:
        """Whether a candidate may count for several categories: the best for each place then may hold back two others,
        and fewer places are filled than could be.
        """
        return len(self._category) > 1

    def allowed(self) -> NDArray[np.bool_]:
        """`[n]` which candidates could be taken now."""
        is_full = self._taken >= self._most
        return np.logical_not(is_full[self._category].any(axis=0))

    def take(self, place: int) -> bool:
        """Count a candidate; whether one of its categories is full now."""
        mine = self._category[:, place]
        self._taken[mine] += 1
        return bool((self._taken[mine] >= self._most[mine]).any())

    def give_back(self, place: int) -> None:
        """Count a candidate no more."""
        self._taken[self._category[:, place]] -= 1


class Likeness:
    """How much each candidate is like those chosen, by cosine."""

    def __init__(self, embedding: NDArray[np.float32], *, weight: float) -> None:
        """Begin with nothing chosen.

        Args:
            embedding: `[n, D]` of the candidates; one of length 0 is like nothing.
            weight: What a cosine of 1 costs.
        """
        length = np.linalg.norm(embedding, axis=1, keepdims=True)
        self._direction = embedding / np.maximum(length, np.finfo(np.float32).tiny)
        self._weight = weight
        self._nearest = np.full(len(embedding), -1.0, np.float32)  # No cosine is less, so the first choice pays alike.

    def choose(self, place: int) -> None:
        """Count a candidate as chosen."""
        np.maximum(self._nearest, self._direction @ self._direction[place], out=self._nearest)

    def best(self, worth: NDArray[np.float64], is_open: NDArray[np.bool_]) -> int:
        """The open candidate that is worth most after the loss for being like one chosen; the first of equal ones."""
        return int(np.argmax(np.where(is_open, worth - self._weight * self._nearest, -np.inf)))


def fill(
    is_open: NDArray[np.bool_],
    *,
    places: int,
    worth: NDArray[np.float64],
    caps: Caps | None = None,
    likeness: Likeness | None = None,
) -> tuple[list[int], list[bool]]:
    """The candidates that fill the places, in order; and whether likeness brought each before a better one.

    Fewer come where no open candidate is left that the caps allow.

    Args:
        is_open: `[n]` which candidates may be chosen.
        places: How many to choose.
        worth: `[n]` falling, of the same scale as the likeness's weight.
        caps: What is taken before, and counts on.
        likeness: To what is chosen before, and from now on.
    """
    is_open = is_open & caps.allowed() if caps else is_open.copy()
    chosen: list[int] = []
    is_ahead: list[bool] = []
    while len(chosen) < places and is_open.any():
        first = int(np.argmax(is_open))
        place = likeness.best(worth, is_open) if likeness else first
        chosen.append(place)
        is_ahead.append(place != first)
        is_open[place] = False
        if likeness:
            likeness.choose(place)
        if caps and caps.take(place):
            is_open &= caps.allowed()
    return chosen, is_ahead


def exchange(
    chosen: Sequence[int], is_open: NDArray[np.bool_], *, places: int, worth: NDArray[np.float64], caps: Caps
) -> list[int]:
    """More candidates within the caps than those chosen, where taking one out, the worst first, lets in several.

    To find the most there can be is a set packing problem, which no quick search solves for sure; exchanges of one for
    several find nearly all of it.

    Args:
        chosen: What `fill` gave with these caps.
        is_open: `[n]` which candidates may be chosen.
        places: How many to choose.
        worth: `[n]` falling.
        caps: With those chosen counted.
    """
    kept, tries = list(chosen), 0
    untried = kept[::-1]
    while untried and len(kept) < places and tries < TRIES:
        out, tries = untried.pop(0), tries + 1
        caps.give_back(out)
        others = is_open.copy()
        others[kept] = False
        incoming, _ = fill(others, places=places - len(kept) + 1, worth=worth, caps=caps)
        if len(incoming) > 1:
            kept = sorted([*(each for each in kept if each != out), *incoming])
            untried = kept[::-1]
            continue
        for each in incoming:
            caps.give_back(each)
        caps.take(out)
    return kept
