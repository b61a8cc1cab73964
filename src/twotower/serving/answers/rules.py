"""The rules of the business over one ranked answer: boosts, then diversity under the caps, with pins in their places.

Boosts change scores. Then places are filled from the first to the last, each with the item that is best for it: by its
score, less what it loses for being like one chosen before it, among those that no cap holds back. Pinned items count as
chosen from the start. A pin stands exactly at its position; where too few others come to reach it, after those.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from twotower.serve_config import RulesConfig
from twotower.serving.answers.filters import Filter, parse
from twotower.serving.answers.ruled_rows import RuledRows, value_type
from twotower.serving.answers.selection import Caps, Likeness, exchange, fill

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arranged:
    """An answer of `m` places by the rules, best first: `m` is less than asked for where the candidates run out."""

    place: NDArray[np.int64]
    """`[m]` which of the candidates stand there."""
    score: NDArray[np.float32]
    """`[m]` their scores with the boosts. They need not fall: pins and diversity move items past better ones."""
    position: NDArray[np.int64]
    """`[m]` where an item is pinned, from 1; 0 for one that is not."""
    is_diverse: NDArray[np.bool_]
    """`[m]` whether it came before a better one because it is less like those before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidates:
    """`n` of one query, the best score with its boosts first."""

    is_free: NDArray[np.bool_]
    """`[n]` whether it is not pinned."""
    worth: NDArray[np.float64]
    """`[n]` the share of the score that diversity leaves."""
    category: NDArray[np.int64]
    """`[n, W]` as `RuledRows.lookup` gives it."""
    embedding: NDArray[np.float32] | None
    """`[n, D]`; None where no rule reads it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """A recipe's rules, worked out for every item of a catalogue. Nothing in it changes."""

    config: RulesConfig
    _boosts: tuple[Filter, ...]
    _known: tuple[pa.Array, ...]
    """By cap, the distinct values of its column: the place is the value's number."""
    _items: RuledRows
    """The rows that the rules were compiled for."""
    _added: RuledRows
    """Those appended since."""
    _pinned: dict[str, int]
    """Pinned item -> its row, the last where there are several."""

    @classmethod
    def compile(cls, config: RulesConfig, items: pa.Table) -> Self:
        """The rules for a catalogue.

        Args:
            config: The bundle's rules, which `refuse_bad_rules` let pass.
            items: `item_id` and features by row, as `readable_items` gives them.

        Raises:
            RequestError: a boost's filter does not fit the columns.
        """
        boosts = tuple(parse(boost.filter, items.schema) for boost in config.boosts)
        nothing = tuple(pa.array([], value_type(items[cap.column].type)) for cap in config.caps)
        rows, known = RuledRows.of(items, boosts=boosts, caps=config.caps, known=nothing)
        none, _ = RuledRows.of(items.slice(0, 0), boosts=boosts, caps=config.caps, known=known)
        pinned = _pinned_rows(config, items, first=0)
        return cls(config=config, _boosts=boosts, _known=known, _items=rows, _added=none, _pinned=pinned)

    def extended(self, items: pa.Table) -> Self:
        """The same rules with these rows after those compiled, in place of any that were appended before.

        Costs what the new rows cost. An item that was put again is pinned at its new row.
        """
        added, _ = RuledRows.of(items, boosts=self._boosts, caps=self.config.caps, known=self._known)
        first = self._items.count
        pinned = {item_id: row for item_id, row in self._pinned.items() if row < first}
        return type(self)(
            config=self.config,
            _boosts=self._boosts,
            _known=self._known,
            _items=self._items,
            _added=added,
            _pinned=pinned | _pinned_rows(self.config, items, first=first),
        )

    @property
    def is_empty(self) -> bool:
        """Whether there is no rule: the order is then the model's, and `arrange` need not be called."""
        return self.config == RulesConfig()

    @property
    def reads_embeddings(self) -> bool:
        """Whether `arrange` needs the candidates' embeddings."""
        return self.config.diversity > 0

    def pinned_within(self, k: int) -> Rows:
        """Rows of the items that are pinned to the first `k` places.

        Those that may come belong among the candidates, whether retrieval found them or not: `arrange` places what it
        is handed, and brings nothing of its own.
        """
        pins = [pin.item_id for pin in self.config.pinned if pin.position <= k]
        return np.array([self._pinned[item_id] for item_id in pins if item_id in self._pinned], np.int64)

    def arrange(
        self, row: Rows, score: NDArray[np.float32], *, k: int, embedding: NDArray[np.float32] | None = None
    ) -> Arranged:
        """The best `k` of one query's `n` candidates by the rules.

        No cap is exceeded, but by pins that exceed it among themselves. Where fewer than `k` come, the candidates that
        the caps allow have run out: hand over more of them.

        Args:
            row: `[n]` distinct catalogue rows, every one of which may come.
            score: `[n]` what they are ordered by, higher first; NaN counts as the lowest.
            k: Places to fill, at least 1.
            embedding: `[n, D]` candidate embeddings, without a bias; read where `reads_embeddings`.
        """
        is_boosted, category = self._lookup(row)
        raised = score + np.array([boost.add for boost in self.config.boosts], np.float64) @ is_boosted
        order = np.argsort(-raised, kind="stable")  # NaN comes last.
        pins = self._pins(row[order])
        here = {position: place for position, place in pins.items() if position <= k}
        is_free = np.ones(len(row), np.bool_)
        is_free[list(pins.values())] = False
        candidates = _Candidates(
            is_free=is_free,
            worth=(1 - self.config.diversity) * _scaled(raised[order], among=is_free),
            category=category[order],
            embedding=None if embedding is None else embedding[order],
        )
        chosen, is_ahead = self._chosen(candidates, pinned=list(here.values()), places=k - len(here))
        ranked = _merged(dict(zip(chosen, is_ahead, strict=True)), here, k=k)
        place = order[np.array([place for place, _, _ in ranked], np.int64)]
        return Arranged(
            place=place,
            score=raised[place].astype(np.float32),
            position=np.array([position for _, position, _ in ranked], np.int64),
            is_diverse=np.array([is_diverse for _, _, is_diverse in ranked], np.bool_),
        )

    def told(self, row: Rows, arranged: Arranged) -> tuple[tuple[str, ...], ...]:
        """For each place of an answer, the rules that moved its item. A cap only keeps items away, so it tells nothing.

        Args:
            row: `[n]` the candidates that `arrange` was given.
            arranged: What it gave.
        """
        is_boosted, _ = self._lookup(row[arranged.place])
        texts = [
            f"boost {boost.add:+g}: {each.text}" for boost, each in zip(self.config.boosts, self._boosts, strict=True)
        ]
        pinned = arranged.position.tolist()
        return tuple(
            (
                *([f"pinned at {pinned[place]}"] if pinned[place] else []),
                *(text for text, holds in zip(texts, is_boosted[:, place], strict=True) if holds),
                *(["diversity"] if arranged.is_diverse[place] else []),
            )
            for place in range(len(pinned))
        )

    def _pins(self, row: Rows) -> dict[int, int]:
        """Position -> which of the candidates is pinned there, in the order of the positions."""
        pins = sorted((pin.position, self._pinned.get(pin.item_id, -1)) for pin in self.config.pinned)
        found = ((position, np.flatnonzero(row == pinned)) for position, pinned in pins)
        return {position: int(places[0]) for position, places in found if len(places)}

    def _chosen(self, candidates: _Candidates, *, pinned: list[int], places: int) -> tuple[list[int], list[bool]]:
        """The candidates for the places that no pin takes, and whether likeness brought each before a better one."""
        if not (self.config.diversity or self.config.caps):
            chosen = np.flatnonzero(candidates.is_free)[:places].tolist()
            return chosen, [False] * len(chosen)
        caps = Caps(candidates.category, most=np.array([cap.most for cap in self.config.caps], np.int64))
        for place in pinned:
            caps.take(place)
        is_free, worth = candidates.is_free, candidates.worth
        likeness = self._likeness(candidates, chosen=pinned)
        chosen, is_ahead = fill(is_free, places=places, worth=worth, caps=caps, likeness=likeness)
        if len(chosen) < places and caps.may_clash:
            kept = exchange(chosen, is_free, places=places, worth=worth, caps=caps)
            if len(kept) == len(chosen):
                return chosen, is_ahead
            is_kept = np.zeros(len(is_free), np.bool_)
            is_kept[kept] = True
            likeness = self._likeness(candidates, chosen=pinned)
            chosen, is_ahead = fill(is_kept, places=places, worth=worth, likeness=likeness)
        return chosen, is_ahead

    def _likeness(self, candidates: _Candidates, *, chosen: list[int]) -> Likeness | None:
        if not self.config.diversity:
            return None
        assert candidates.embedding is not None
        likeness = Likeness(candidates.embedding, weight=self.config.diversity)
        for place in chosen:
            likeness.choose(place)
        return likeness

    def _lookup(self, row: Rows) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """What `RuledRows.lookup` gives, of rows compiled and appended."""
        count = self._items.count
        is_added = row >= count
        if not is_added.any():
            return self._items.lookup(row)
        is_boosted = np.empty((len(self._boosts), len(row)), np.bool_)
        categories = []
        for part, chosen, first in ((self._items, ~is_added, 0), (self._added, is_added, count)):
            is_boosted[:, chosen], category = part.lookup(row[chosen] - first)
            categories.append((chosen, category))
        category = np.full((len(row), max(each.shape[1] for _, each in categories)), -1)
        for chosen, each in categories:
            category[chosen, : each.shape[1]] = each
        return is_boosted, category


def _pinned_rows(config: RulesConfig, items: pa.Table, *, first: int) -> dict[str, int]:
    """Pinned item -> its row, of those in the table; `first` is the table's first row."""
    wanted = pa.array([pin.item_id for pin in config.pinned], pa.string())
    rows = pc.indices_nonzero(pc.is_in(items["item_id"], value_set=wanted))
    return {
        item_id: first + row
        for item_id, row in zip(items["item_id"].take(rows).to_pylist(), rows.to_pylist(), strict=True)
    }


def _scaled(score: NDArray[np.float64], *, among: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The scores as 0 to 1 among some of them; NaN as 0."""
    known = score[among & ~np.isnan(score)]
    if not len(known):
        return np.zeros(len(score))
    low, high = known.min(), known.max()
    return np.asarray((np.where(np.isnan(score), low, score) - low) / (high - low or 1.0), np.float64)


def _merged(chosen: dict[int, bool], pins: dict[int, int], *, k: int) -> list[tuple[int, int, bool]]:
    """For each rank: the place among the candidates, the position of its pin or 0, and whether it was brought forward.

    Args:
        chosen: Place -> whether it was brought forward, in the order of the free ranks.
        pins: Position -> place, in order.
        k: Ranks.
    """
    rest, merged = list(chosen.items())[::-1], []
    for rank in range(1, k + 1):
        if rank in pins:
            merged.append((pins[rank], rank, False))
        elif rest:
            place, is_ahead = rest.pop()
            merged.append((place, 0, is_ahead))
    return merged
