"""How much each item is taken, and since when, as known at a moment: what the ranking head reads of an item's fortune.

The log is cut into blocks of equally many interactions. A query reads the counts at the end of the last block that was
complete strictly before it, so that nothing of its own moment or of later ones can be in them. `lookup` runs on NumPy
and on JAX alike.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from twotower.data.feature_encoders import DAY

WINDOWS = (1, 4, 16, 64)
"""Blocks looked back at; the fifth window is the whole log up to the snapshot."""
TREND_FEATURES = len(WINDOWS) + 3
"""Numbers per item: one a window, then the whole log's, the age, and whether the item is still to be met."""
SNAPSHOTS = 256
CELLS = 50_000_000
"""Counts held at most: 200 MB. Above it, blocks grow."""
_AGE_SCALE = 8.0
"""Brings the logarithm of an age in days to about one: ten years give 1.03."""
_BEFORE_ALL = np.iinfo(np.int64).min
_NEVER = np.iinfo(np.int64).max


class TrendArrays(NamedTuple):
    """What `lookup` reads: `S` snapshots of `I` items, `R` >= `S` rows of counts. A tuple, so that JAX can take it."""

    counts: Any
    """`[R, I]` int32: interactions of each item among the first `place` of the log."""
    place: Any
    """`[R]` float32: how many interactions the row has counted."""
    row: Any
    """`[S]` int32: the row of counts that is the snapshot."""
    start: Any
    """`[S, W]` int32: the row of counts at which each window of the snapshot starts."""
    day: Any
    """`[S]` float32: days from the log's first interaction to the snapshot."""
    first_day: Any
    """`[I]` float32: days from the log's first interaction to the item's; 0 where it has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trends:
    """The fortunes of all items over one log."""

    arrays: TrendArrays
    moment: NDArray[np.int64]
    """`[S]` second of the last interaction that a snapshot counts; ascending, the first before all time."""
    first_second: NDArray[np.int64]
    """`[I]` second of the item's first interaction; the largest number where it has none."""
    block: int
    """Interactions per block: what makes features of two logs mean the same."""

    @classmethod
    def build(
        cls,
        item: NDArray[np.int32],
        second: NDArray[np.int64],
        *,
        items: int,
        snapshots: int = SNAPSHOTS,
        block: int | None = None,
    ) -> "Trends":
        """Count a log of `n` interactions at the end of each block.

        What is left after the last whole block makes a snapshot of its own, whose windows are counted back from the
        log's end. Only queries later than the whole log read it: a server's, or an evaluation's by a log that stands.

        Args:
            item: `[n]` item rows.
            second: `[n]` whole seconds since 1970, ascending.
            items: Size of the catalogue.
            snapshots: Blocks at most.
            block: The block of an earlier log, for a longer one whose features have to mean the same.
        """
        return cls.of_pieces([(item, second)], length=len(item), items=items, snapshots=snapshots, block=block)

    @classmethod
    def of_pieces(
        cls,
        pieces: Iterable[tuple[NDArray[np.int32], NDArray[np.int64]]],
        *,
        length: int,
        items: int,
        snapshots: int = SNAPSHOTS,
        block: int | None = None,
    ) -> "Trends":
        """The same of a log that comes piece by piece, for one that does not fit the memory.

        Args:
            pieces: Items and seconds, as in `build`, one piece after the other.
            length: `n`.
            items: Size of the catalogue.
            snapshots: Blocks at most.
            block: The block of an earlier log.
        """
        most = max(1, min(snapshots, CELLS // max(items, 1)))
        size = block or max(1, -(-length // most))
        places, row, start = _edges(length, block=size)
        counted = _count(pieces, places, items=items)
        moment = np.where(places[row] > 0, counted.second[row], _BEFORE_ALL)
        met = counted.first_second < _NEVER
        arrays = TrendArrays(
            counts=counted.counts,
            place=places.astype(np.float32),
            row=row,
            start=start,
            day=((np.maximum(moment, counted.origin) - counted.origin) / DAY).astype(np.float32),
            first_day=(np.where(met, counted.first_second - counted.origin, 0) / DAY).astype(np.float32),
        )
        return cls(arrays=arrays, moment=moment, first_second=counted.first_second, block=size)

    def snapshot_at(self, second: NDArray[np.int64]) -> NDArray[np.int32]:
        """`[q]` the last snapshot complete strictly before each moment, for `lookup`."""
        return (np.searchsorted(self.moment, second, side="left") - 1).clip(min=0).astype(np.int32)

    def latest(self) -> NDArray[np.float32]:
        """`[I, F]` every item's features at the end of the log."""
        end = np.array([len(self.moment) - 1], np.int32)
        items = np.arange(len(self.first_second), dtype=np.int32)[None, :]
        return np.asarray(lookup(np, self.arrays, end, items)[0])


def lookup(xp: ModuleType, arrays: TrendArrays, snapshot: Any, item: Any) -> Any:
    """`[q, C, F]` float32 features of each query's candidates, `F` being `TREND_FEATURES`.

    A window's feature is the logarithm of the item's count in it over that of the mean item, one added to both: 0 is
    average, and what comes before the first block is all 0. An item not yet met counts 0 in each window, has age 0, and
    is marked by the last feature.

    Args:
        xp: `numpy` or `jax.numpy`, whichever the arrays are of.
        arrays: Of the log.
        snapshot: `[q]` as `Trends.snapshot_at` gives it.
        item: `[q, C]` item rows, or `[1, C]` where all queries share their candidates. None may be below 0.
    """
    row = arrays.row[snapshot]
    total, items = arrays.counts[row[:, None], item], arrays.counts.shape[1]
    features = []
    for window in range(len(WINDOWS)):
        start = arrays.start[snapshot, window]
        count = total - arrays.counts[start[:, None], item]
        features.append(_lift(xp, count, mean=(arrays.place[row] - arrays.place[start]) / items))
    features.append(_lift(xp, total, mean=arrays.place[row] / items))
    met = total > 0
    age = xp.where(met, arrays.day[snapshot][:, None] - arrays.first_day[item], 0.0)
    features += [xp.log1p(xp.maximum(age, 0.0)) / _AGE_SCALE, xp.where(met, 0.0, 1.0)]
    return xp.stack(features, axis=-1).astype(np.float32)


def unmet(interactions: int, *, items: int, block: int) -> NDArray[np.float32]:
    """`[F]` the features that an item not yet met has at the end of a log.

    Args:
        interactions: Length of the log.
        items: Size of its catalogue.
        block: Interactions in a block.
    """
    means = [min(window * block, interactions) / items for window in WINDOWS]
    return np.array([*(-np.log1p(mean) for mean in (*means, interactions / items)), 0, 1], np.float32)


def _lift(xp: ModuleType, count: Any, *, mean: Any) -> Any:
    return xp.log1p(count.astype(np.float32)) - xp.log1p(mean)[:, None]


def _edges(n: int, *, block: int) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]:
    """Where in the log to count (`places` `[R]`), the snapshots among these (`[S]`) and their windows' starts."""
    whole = n // block
    row = np.arange(whole + 1, dtype=np.int32)
    start = np.maximum(row[:, None] - np.array(WINDOWS, np.int32), 0)
    places = np.arange(whole + 1, dtype=np.int64) * block
    if n % block:
        begins = np.maximum(n - np.array(WINDOWS, np.int64) * block, 0)
        places = np.concatenate([places, begins, [n]])
        row = np.append(row, np.int32(len(places) - 1))
        start = np.vstack([start, whole + 1 + np.arange(len(WINDOWS), dtype=np.int32)])
    return places, row, start


class _Counted(NamedTuple):
    counts: NDArray[np.int32]
    """`[R, I]` interactions of each item before each place of the log."""
    second: NDArray[np.int64]
    """`[R]` of the last interaction before each place."""
    first_second: NDArray[np.int64]
    """`[I]`"""
    origin: int
    """The log's first second."""


def _count(
    pieces: Iterable[tuple[NDArray[np.int32], NDArray[np.int64]]], places: NDArray[np.int64], *, items: int
) -> _Counted:
    """Go through the log once and note what was counted by each place."""
    counts, moments = np.zeros((len(places), items), np.int32), np.zeros(len(places), np.int64)
    first_second, running = np.full(items, _NEVER, np.int64), np.zeros(items, np.int64)
    order, reached, done, origin = np.argsort(places, kind="stable"), 0, 0, 0
    for item, second in pieces:
        if not done and len(second):
            origin = int(second[0])
        np.minimum.at(first_second, item, second)
        counted = 0
        while reached < len(order) and places[order[reached]] <= done + len(item):
            row = order[reached]
            stop = int(places[row]) - done
            running += np.bincount(item[counted:stop], minlength=items)
            counts[row], counted, reached = running, stop, reached + 1
            if stop:
                moments[row] = second[stop - 1]
        running += np.bincount(item[counted:], minlength=items)
        done += len(item)
    return _Counted(counts, moments, first_second, origin)
