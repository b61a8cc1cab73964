"""What can be recommended now: the bundle's items, less those removed, plus those put since.

A catalogue never changes: a write makes a new one, and an answer holds on to the one that it began with. The bundle's
items keep their rows; those put since follow them.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from twotower.bundle import Bundle
from twotower.errors import RequestError
from twotower.index.exact import best
from twotower.serving.answers.put import Features, Put
from twotower.serving.answers.stages import Found, first_kept

MAX_PUT = 100_000
"""Items put since the bundle was made: they are scored one and all, and a model that has seen so few of its items is
due to be trained again."""
NO_ROWS = np.empty(0, np.int64)
Number = TypeVar("Number", np.float32, np.float64)
_log = logging.getLogger(__name__)


class Catalogue:
    """Which items can come, and what each stage reads of them; see the module."""

    def __init__(self, bundle: Bundle, *, put: Put, gone: NDArray[np.int64], base: "Catalogue | None" = None) -> None:
        """Of a bundle, the items put, and the bundle's rows that must not come; `base` lends what stays the same."""
        self.bundle = bundle
        self.put = put
        self.gone = gone
        self._own: _Own = base._own if base else _Own(bundle)
        self.ids = self._own.ids
        """`I` ids of the bundle's items, by row."""
        self._row = self._own.row
        self._put_row = {item_id: len(self.ids) + place for place, item_id in enumerate(put.ids)}
        replaced = sorted((self._row[item_id], row) for item_id, row in self._put_row.items() if item_id in self._row)
        self._replaced = np.array(replaced, np.int64).reshape(-1, 2)
        self._stays = np.ones(len(self.ids), np.bool_) if len(gone) else None
        if self._stays is not None:
            self._stays[gone] = False

    @classmethod
    def of(cls, bundle: Bundle) -> "Catalogue":
        """The bundle's own items."""
        return cls(bundle, put=Put.encode(bundle, {}, {}), gone=NO_ROWS)

    def with_writes(self, writes: Mapping[str, Features | None]) -> "Catalogue":
        """The catalogue after items were put (id -> features) or removed (id -> None).

        Columns that the bundle's items do not have are left out, and so are values that do not fit: what a caller
        gives is checked by `checked_items` before, but a write may have been made beside another bundle. Of more than
        `MAX_PUT` items, the latest stay.
        """
        told = [(item_id, features) for item_id, features in writes.items() if features is not None]
        new = Put.encode(self.bundle, dict(told[-MAX_PUT:]), self._row)
        kept = [place for place, item_id in enumerate(self.put.ids) if item_id not in writes]
        excess = max(0, len(kept) + len(told) - MAX_PUT)
        if excess and len(self.put.ids) < MAX_PUT:  # Once, and not with every write from then on.
            _log.warning("more than %d items were put since the bundle was made: the earliest do not come", MAX_PUT)
        put = self.put.followed_by(new, kept=kept[excess:])
        touched = np.array([self._row[item_id] for item_id in writes if item_id in self._row], np.int64)
        return Catalogue(self.bundle, put=put, gone=np.union1d(self.gone, touched), base=self)

    def refuse_overfull(self, item_ids: Iterable[str]) -> None:
        """Refuse items that there is no room for.

        Raises:
            RequestError: with them there would be more than `MAX_PUT` besides the bundle's.
        """
        if len(self.put.ids) + sum(item_id not in self._put_row for item_id in item_ids) > MAX_PUT:
            raise RequestError(
                f"items: {MAX_PUT:,} items put since the bundle was made are the most. Train a new bundle."
            )

    def __len__(self) -> int:
        """How many items can come."""
        return len(self.ids) - len(self.gone) + len(self.put.ids)

    @property
    def rows(self) -> int:
        """How many rows there are, those of removed items among them."""
        return len(self.ids) + len(self.put.ids)

    def row(self, item_id: str) -> int | None:
        """The row of an item, removed or not; None for one that was never there."""
        found = self._put_row.get(item_id)
        return self._row.get(item_id) if found is None else found

    def id(self, row: int) -> str:
        """The item's id."""
        return self.ids[row] if row < len(self.ids) else self.put.ids[row - len(self.ids)]

    def can_come(self, row: int) -> bool:
        """Whether the item of a row was not removed."""
        return self._stays is None or row >= len(self.ids) or bool(self._stays[row])

    def is_new(self, row: int) -> bool:
        """Whether the bundle does not have the item of a row."""
        return row >= len(self.ids) and self.id(row) not in self._row

    def says_nothing(self, row: int) -> bool:
        """Whether the model can read nothing of an item: then no other is like it."""
        if row >= len(self.ids) and not self.put.is_told[row - len(self.ids)]:
            return True
        return not self.directions(np.array([row])).any()

    def current(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows under which items of the bundle stand now: one that was put anew has another."""
        if not len(self._replaced):
            return rows
        before, after = self._replaced.T
        place = np.minimum(np.searchsorted(before, rows), len(before) - 1)
        return np.where(before[place] == rows, after[place], rows)

    def title(self, row: int) -> str | None:
        """The item's title; None where there is none."""
        return self.titles(np.array([row]))[0]

    def titles(self, rows: NDArray[np.int64]) -> list[str | None]:
        """The items' titles; None where there is none."""
        if self._own.titles is None:
            return [None] * len(rows)
        is_put = rows >= len(self.ids)
        texts: list[Any] = self._own.titles.take(pa.array(np.where(is_put, 0, rows))).to_pylist()
        for place in np.flatnonzero(is_put).tolist():
            column = self.put.table[self.bundle.metadata["title_column"]]
            texts[place] = column[int(rows[place]) - len(self.ids)].as_py()
        return [None if text is None else str(text) for text in texts]

    def ranking(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """`[..., R]` what the ranking head reads of items."""
        return self._gather(rows, self.bundle.candidates, self.put.ranking)

    def trends(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """`[..., F]` how popular and how old items are."""
        return self._gather(rows, self.bundle.trends, self.put.trends)

    def embeddings(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """`[..., D]` what retrieval compares of items."""
        return self._gather(rows, self.bundle.index.embeddings, self.put.embedding)

    def popularity(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """How popular items were at the end of the log; those that the bundle does not have were not."""
        return self._gather(rows, self.bundle.popularity, self.put.popularity).astype(np.float32)

    def directions(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """`[n, D]` embeddings without the bias: what says which items are alike."""
        embeddings = self.embeddings(rows)
        return embeddings[:, :-1] if self.bundle.model.item_bias else embeddings

    def search(
        self,
        queries: NDArray[np.float32],
        *,
        candidates: int,
        left_out: Sequence[NDArray[np.int64]],
        allowed: NDArray[np.bool_] | None = None,
    ) -> Found:
        """The best candidates for `[q, D]` query embeddings, of the items allowed and not left out.

        The search goes deeper by as many items as may be left out, so that `candidates` remain where that many exist.

        Args:
            queries: The query embeddings.
            candidates: How many to bring.
            left_out: `q` arrays of distinct rows.
            allowed: By row; None allows all.
        """
        deepest = candidates + max((len(rows) for rows in left_out), default=0)
        here = len(self.ids)
        may_come = self._stays
        if allowed is not None:
            may_come = allowed[:here] if may_come is None else allowed[:here] & may_come
        rows, scores = self.bundle.index.search(queries, deepest, allowed=may_come)
        if self.put.ids:
            of_put = queries @ self.put.embedding.T
            place = np.arange(len(self.put.ids)) if allowed is None else np.flatnonzero(allowed[here:])
            rows = np.concatenate([rows, np.broadcast_to(place + here, (len(queries), len(place)))], axis=1)
            merged = np.concatenate([scores, of_put[:, place]], axis=1)
            order, scores = best(merged, min(deepest, merged.shape[1])) if merged.shape[1] else (rows, merged)
            rows = np.take_along_axis(rows, order, axis=1)
        return first_kept(rows, scores, left_out=left_out, places=candidates, items=self.rows)

    def popular(
        self, *, places: int, left_out: Sequence[NDArray[np.int64]], allowed: NDArray[np.bool_] | None = None
    ) -> Found:
        """The most popular items that are allowed and not left out, for `q` queries of which nothing else is known."""
        order = self.order
        if allowed is not None:
            order = order[allowed[order]]
        deepest = places + max((len(rows) for rows in left_out), default=0)
        rows = np.tile(order[:deepest], (len(left_out), 1))
        return first_kept(rows, self.popularity(rows), left_out=left_out, places=places, items=self.rows)

    def holding(self, text: str, *, most: int) -> list[int]:
        """The rows of items whose title or id holds a text, whatever its case, the popular first."""
        title = self.bundle.metadata["title_column"]
        columns = ["item_id", *([title] if title else [])]
        matches = [_holding(table, columns, text) for table in (self.bundle.items, self.put.table)]
        order = self.order
        rows: list[int] = order[np.concatenate(matches)[order]][:most].tolist()
        return rows

    def cosine(self, row: int) -> NDArray[np.float32]:
        """`[rows]` cosine of every item's embedding to one item's, the bias aside."""
        one = np.asarray(self.directions(np.array([row]))[0])
        one = one / max(float(np.linalg.norm(one)), float(np.finfo(np.float32).tiny))
        put = self.put.embedding[:, : len(one)]
        inner = [self.bundle.index.embeddings[:, : len(one)] @ one, put @ one]
        return np.asarray(np.concatenate(inner) / np.concatenate([self._own.lengths, self._put_lengths]), np.float32)

    @cached_property
    def _put_lengths(self) -> NDArray[np.float32]:
        return _lengths(self.put.embedding[:, : self.put.embedding.shape[1] - int(self.bundle.model.item_bias)])

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """The rows that can come, the most popular first; of equal ones those put since last."""
        order = self._own.popular if self._stays is None else self._own.popular[self._stays[self._own.popular]]
        if not self.put.ids:
            return order
        put = np.argsort(-self.put.popularity, kind="stable")
        places = np.searchsorted(-self.bundle.popularity[order], -self.put.popularity[put], side="right")
        return np.insert(order, places, put + len(self.ids))

    def _gather(self, rows: NDArray[np.int64], of_bundle: NDArray[Number], of_put: NDArray[Number]) -> NDArray[Number]:
        if not self.put.ids:
            return of_bundle[rows]
        here = len(self.ids)
        is_put = rows >= here
        taken = of_bundle[np.where(is_put, 0, rows)]
        taken[is_put] = of_put[rows[is_put] - here]
        return taken


class _Own:
    """What all catalogues of one bundle share."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self.ids: list[str] = bundle.items["item_id"].to_pylist()
        self.row = {item_id: row for row, item_id in enumerate(self.ids)}
        self.titles = _titles(bundle)
        self.popular: NDArray[np.int64] = np.argsort(-bundle.popularity, kind="stable")

    @cached_property
    def lengths(self) -> NDArray[np.float32]:
        """`[I]` lengths of the embeddings, the bias aside; made when they are first needed."""
        embeddings = self._bundle.index.embeddings
        return _lengths(embeddings[:, : embeddings.shape[1] - int(self._bundle.model.item_bias)])


def _lengths(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """`[n]` lengths, of which none is 0."""
    lengths = np.sqrt(np.einsum("id,id->i", vectors, vectors))
    return np.asarray(np.maximum(lengths, np.finfo(np.float32).tiny), np.float32)


def _titles(bundle: Bundle) -> pa.Array | None:
    """The titles in one piece: a few are taken from it in microseconds, from pieces in a millisecond."""
    column = bundle.metadata["title_column"]
    return bundle.items[column].combine_chunks() if column else None


def _holding(table: pa.Table, columns: Sequence[str], text: str) -> NDArray[np.bool_]:
    """`[n]` where one of the columns holds a text, whatever its case."""
    found = np.zeros(table.num_rows, np.bool_)
    for name in columns:
        matches = pc.match_substring(table[name].cast(pa.string()), text, ignore_case=True)
        found |= pc.fill_null(matches, fill_value=False).to_numpy()
    return found
