"""Histories -> windows: what a sequence model reads at once, and which examples are asked from which place of it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowPlan:
    """`s` steps of at most `W` windows and `B` examples each."""

    examples: NDArray[np.int32]
    """`[s, B]` rows of the examples; -1 fills up."""
    window: NDArray[np.int32]
    """`[s, B]` which of the step's windows the example is asked from."""
    start: NDArray[np.int32]
    """`[s, W]` first place of the log that the window reads."""
    size: NDArray[np.int32]
    """`[s, W]` places that it reads; 0 fills up."""


def plan_windows(
    user: NDArray[np.int32],
    first: NDArray[np.int32],
    end: NDArray[np.int32],
    *,
    length: int,
    batch_size: int,
    windows: int,
    generator: np.random.Generator,
) -> WindowPlan:
    """Cover `n` examples by windows, and put the windows into steps, in an order of chance.

    A history that fits one window is read whole. A longer one is cut at places drawn anew each time, so that over the
    epochs each example is asked with more and with less before it.

    Args:
        user: `[n]` whose example it is.
        first: `[n]` first place of that user in the log.
        end: `[n]` first place that the example may no longer see.
        length: Places that a window reads.
        batch_size: `B`.
        windows: `W`.
        generator: Draws cuts and order.
    """
    known = (end - first).astype(np.int64)
    longest = np.zeros(int(user.max()) + 1, np.int64)
    np.maximum.at(longest, user, known)
    cut = np.where(longest > length, generator.integers(1, length + 1, size=len(longest)), length)[user]
    number = np.where(known <= cut, 0, -(-(known - cut) // length))
    begin = np.where(number == 0, 0, cut + (number - 1) * length)
    order = np.lexsort((known, number, user))
    is_new = np.ones(len(order), bool)
    is_new[1:] = (np.diff(user[order]) != 0) | (np.diff(number[order]) != 0)
    # A window with more examples than a step holds is read once for each stepful of them.
    within = np.arange(len(order)) - np.maximum.accumulate(np.where(is_new, np.arange(len(order)), 0))
    is_new |= within % batch_size == 0
    group_first = np.flatnonzero(is_new)
    group_size = np.diff(np.append(group_first, len(order)))
    step, place = _pack(
        group_size, batch_size=batch_size, windows=windows, order=generator.permutation(len(group_size))
    )
    steps = int(step.max()) + 1
    plan = WindowPlan(
        examples=np.full((steps, batch_size), -1, np.int32),
        window=np.zeros((steps, batch_size), np.int32),
        start=np.zeros((steps, windows), np.int32),
        size=np.zeros((steps, windows), np.int32),
    )
    head, tail = order[group_first], order[group_first + group_size - 1]
    plan.start[step, place] = first[head] + begin[head]
    plan.size[step, place] = known[tail] - begin[tail]
    group = np.cumsum(is_new) - 1
    # Within a step by chance: whoever takes the first of a batch must not take the same users each time.
    by_step = np.lexsort((generator.random(len(order)), step[group]))
    row = step[group][by_step]
    column = np.arange(len(row)) - np.searchsorted(row, row)
    plan.examples[row, column] = order[by_step]
    plan.window[row, column] = place[group][by_step]
    return plan


def _pack(
    sizes: NDArray[np.int64], *, batch_size: int, windows: int, order: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The step of each group, and its place among the step's windows: steps are filled in the order given."""
    step, place = np.zeros(len(sizes), np.int64), np.zeros(len(sizes), np.int64)
    current, used, held = 0, 0, 0
    for group in order.tolist():
        size = int(sizes[group])
        if used == windows or held + size > batch_size:
            current, used, held = current + 1, 0, 0
        step[group], place[group] = current, used
        used, held = used + 1, held + size
    return step, place
