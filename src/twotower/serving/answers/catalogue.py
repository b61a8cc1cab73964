"""What can be recommended now: the bundle's items, less those removed, plus those put since.

A catalogue never changes: a write makes a new one, and an answer holds on to the one that it began with. The bundle's
items keep their rows; those put since follow them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from twotower.bundle import Bundle
from twotower.data.trends import unmet
from twotower.errors import RequestError
from twotower.index.exact import best
from twotower.serving.answers.stages import Found, first_kept

MAX_PUT = 100_000
"""Items put since the bundle was made: they are scored one and all, and a model that has seen so few of its items is
due to be trained again."""
NO_ROWS = np.empty(0, np.int64)

Features = Mapping[str, Any]
"""Column -> value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Put:
    """`N` items put since the bundle was made, encoded by the candidate tower."""

    ids: tuple[str, ...]
    table: pa.Table
    """`N` rows: `item_id` and features, as the bundle's items have them."""
    embedding: NDArray[np.float32]
    """`[N, D]` what retrieval compares."""
    ranking: NDArray[np.float32]
    """`[N, R]` what the ranking head reads."""
    trends: NDArray[np.float32]
    """`[N, F]` of an item of the bundle what it had there, else of one that nobody met."""


class Catalogue:
    """Which items can come, and what each stage reads of them; see the module."""

    def __init__(self, bundle: Bundle, *, put: Put, gone: NDArray[np.int64], base: "Catalogue | None" = None) -> None:
        """Of a bundle, the items put, and the bundle's rows that must not come; `base` lends what stays the same."""
        self.bundle = bundle
        self.put = put
        self.gone = gone
        self.ids: list[str] = base.ids if base else bundle.items["item_id"].to_pylist()
        """`I` ids of the bundle's items, by row."""
        self._row: dict[str, int] = base._row if base else {item_id: row for row, item_id in enumerate(self.ids)}
        self._titles: pa.Array | None = base._titles if base else _titles(bundle)
        self._popular: NDArray[np.int64] = base._popular if base else np.argsort(-bundle.popularity, kind="stable")
        self._put_row = {item_id: len(self.ids) + place for place, item_id in enumerate(put.ids)}
        replaced = sorted((self._row[item_id], row) for item_id, row in self._put_row.items() if item_id in self._row)
        self._replaced = np.array(replaced, np.int64).reshape(-1, 2)
        self._stays = np.ones(len(self.ids), np.bool_) if len(gone) else None
        if self._stays is not None:
            self._stays[gone] = False

    @classmethod
    def of(cls, bundle: Bundle) -> "Catalogue":
        """The bundle's own items."""
        return cls(bundle, put=_encode(bundle, {}, {}), gone=NO_ROWS)

    def with_writes(self, writes: Mapping[str, Features | None]) -> "Catalogue":
        """The catalogue after items were put (id -> features) or removed (id -> None).

        Columns that the bundle's items do not have are left out, and so are values that do not fit: what a caller
        gives is checked by `checked_items` before, but a write may have been made beside another bundle.

        Raises:
            RequestError: there would be more than `MAX_PUT` items besides the bundle's.
        """
        kept = [place for place, item_id in enumerate(self.put.ids) if item_id not in writes]
        new = _encode(self.bundle, {item_id: told for item_id, told in writes.items() if told is not None}, self._row)
        if len(kept) + len(new.ids) > MAX_PUT:
            raise RequestError(
                f"items: {MAX_PUT:,} items were put since the bundle was made, which is the most. Train a new bundle."
            )
        put = Put(
            ids=(*(self.put.ids[place] for place in kept), *new.ids),
            table=pa.concat_tables([self.put.table.take(pa.array(kept, pa.int64())), new.table]),
            embedding=np.concatenate([self.put.embedding[kept], new.embedding]),
            ranking=np.concatenate([self.put.ranking[kept], new.ranking]),
            trends=np.concatenate([self.put.trends[kept], new.trends]),
        )
        touched = np.array([self._row[item_id] for item_id in writes if item_id in self._row], np.int64)
        return Catalogue(self.bundle, put=put, gone=np.union1d(self.gone, touched), base=self)

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

    def is_put(self, row: int) -> bool:
        """Whether the item was put since the bundle was made."""
        return row >= len(self.ids)

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
        if self._titles is None:
            return [None] * len(rows)
        is_put = rows >= len(self.ids)
        texts: list[Any] = self._titles.take(pa.array(np.where(is_put, 0, rows))).to_pylist()
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
        """How popular items were at the end of the log; those put since were not."""
        is_put = rows >= len(self.ids)
        return np.where(is_put, 0, self.bundle.popularity[np.where(is_put, 0, rows)]).astype(np.float32)

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
        order = self._order()
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
        order = self._order()
        rows: list[int] = order[np.concatenate(matches)[order]][:most].tolist()
        return rows

    def cosine(self, row: int) -> NDArray[np.float32]:
        """`[rows]` cosine of every item's embedding to one item's, the bias aside."""
        width = self.bundle.index.embeddings.shape[1] - int(self.bundle.model.item_bias)
        one = np.asarray(self.embeddings(np.array([row]))[0, :width])
        one = one / max(float(np.linalg.norm(one)), float(np.finfo(np.float32).tiny))
        inner = [self.bundle.index.embeddings[:, :width] @ one, self.put.embedding[:, :width] @ one]
        return np.asarray(np.concatenate(inner) / self._lengths, np.float32)

    def _order(self) -> NDArray[np.int64]:
        """The rows that can come, the most popular first, those put since last."""
        order = self._popular if self._stays is None else self._popular[self._stays[self._popular]]
        return np.concatenate([order, np.arange(len(self.ids), self.rows)]) if self.put.ids else order

    @cached_property
    def _lengths(self) -> NDArray[np.float32]:
        """`[rows]` lengths of the embeddings, the bias aside; made when they are first needed."""
        width = self.bundle.index.embeddings.shape[1] - int(self.bundle.model.item_bias)
        parts = (self.bundle.index.embeddings[:, :width], self.put.embedding[:, :width])
        lengths = np.concatenate([np.sqrt(np.einsum("id,id->i", part, part)) for part in parts])
        return np.asarray(np.maximum(lengths, np.finfo(np.float32).tiny), np.float32)

    def _gather(
        self, rows: NDArray[np.int64], of_bundle: NDArray[np.float32], of_put: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        if not self.put.ids:
            return of_bundle[rows]
        here = len(self.ids)
        is_put = rows >= here
        taken = of_bundle[np.where(is_put, 0, rows)]
        taken[is_put] = of_put[rows[is_put] - here]
        return taken


def checked_items(bundle: Bundle, items: Mapping[str, Features]) -> None:
    """Refuse items that the bundle's items table cannot hold.

    Raises:
        RequestError: a column that the table does not have, or a value of another type.
    """
    columns = [name for name in bundle.items.column_names if name != "item_id"]
    for item_id, features in items.items():
        if strange := sorted(set(features) - set(columns)):
            raise RequestError(
                f"item '{item_id}': the catalogue has no column '{strange[0]}', it has {', '.join(columns)}."
            )
        for name, value in features.items():
            if _column([value], bundle.items.schema.field(name).type) is None:
                kind = bundle.items.schema.field(name).type
                raise RequestError(f"item '{item_id}': column '{name}' holds {kind}, {value!r:.60} does not fit.")


def _encode(bundle: Bundle, items: Mapping[str, Features], row: Mapping[str, int]) -> Put:
    """Items as the bundle's model reads them; `row` is the bundle's row of an id."""
    columns: dict[str, pa.Array] = {}
    for field in bundle.items.schema:
        if field.name == "item_id":
            columns[field.name] = pa.array(list(items), field.type)
            continue
        values = [told.get(field.name) for told in items.values()]
        whole = _column(values, field.type)
        if whole is None:
            fitting = [value if _column([value], field.type) is not None else None for value in values]
            whole = _column(fitting, field.type)
        columns[field.name] = whole
    table = pa.table(columns, schema=bundle.items.schema)
    if not items:
        width, features = bundle.candidates.shape[1], bundle.trends.shape[1]
        dim = bundle.index.embeddings.shape[1]
        empty = [np.empty((0, size), np.float32) for size in (dim, width, features)]
        return Put(ids=(), table=table, embedding=empty[0], ranking=empty[1], trends=empty[2])
    vectors = bundle.model.embed_candidates(bundle.model.features.candidate_inputs(table))
    return Put(
        ids=tuple(items),
        table=table,
        embedding=np.ascontiguousarray(vectors.embedding),
        ranking=vectors.ranking,
        trends=_trends(bundle, tuple(items), row),
    )


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


def _column(values: list[Any], kind: pa.DataType) -> pa.Array | None:
    """The values as a column of a type, a moment as text among them; None where one does not fit."""
    try:
        return pa.array(values, kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        pass
    try:
        return pa.array(values).cast(kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return None


def _trends(bundle: Bundle, ids: tuple[str, ...], row: Mapping[str, int]) -> NDArray[np.float32]:
    """`[n, F]` how popular and how old items are: as in the bundle, or as an item that nobody met."""
    counts = bundle.metadata["counts"]
    block = bundle.model.trend_block or 1
    blank = unmet(int(counts["positives"]), items=int(counts["items"]), block=block)
    known = [bundle.trends[row[item_id]] if item_id in row else blank for item_id in ids]
    return np.asarray(known, np.float32)
