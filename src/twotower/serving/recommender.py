"""A bundle answers: in comes who is asking, out go the best items with titles and both stages' ranks and scores.

No HTTP here. Nothing in a recommender changes once it is made, so any number of threads may call it.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from twotower.bundle import Bundle
from twotower.errors import RequestError
from twotower.index.exact import best
from twotower.serving.asking import Asked, Asking, Id
from twotower.serving.results import Recommendation, RecommendedItem, SimilarItem, SimilarItems
from twotower.serving.stages import Found, Ranked, popular, rank, retrieve

RANKED_AT_ONCE = 1 << 12
"""Candidates in one call of the ranking head. More take longer each, as what the head makes of them leaves the cache:
measured .36 ms a query at 32,000 candidates a call, .19 ms at 100 to 4,000."""
NAMED = 3
"""Unknown ids that a note names."""

BATCH_SCHEMA = pa.schema(
    [("user_id", pa.string()), ("item_id", pa.string()), ("score", pa.float32()), ("rank", pa.int32())]
)
"""One row an item: users in the order asked for, each with the best first."""


class Recommender:
    """Answers from one bundle."""

    def __init__(self, bundle: Bundle) -> None:
        """Take an open bundle."""
        self.bundle = bundle
        self._asking = Asking(bundle)
        self._popular = np.argsort(-bundle.popularity, kind="stable")

    @classmethod
    def load(cls, path: Path, *, verify: bool = True) -> "Recommender":
        """Open the bundle at `path`; see `Bundle.load`."""
        return cls(Bundle.load(path, verify=verify))

    def recommend(
        self,
        user_id: Id | None = None,
        *,
        history: Iterable[Id | tuple[Id, datetime]] = (),
        context: Mapping[str, Any] | None = None,
        k: int = 10,
        exclude: Iterable[Id] = (),
        exclude_seen: bool = True,
        now: datetime | None = None,
    ) -> Recommendation:
        """The best `k` items for one user, known or not.

        Features and history of a known user come from the bundle; somebody unknown can be told by a history, by
        `context`, or by both. Where the model can read nothing of who asks, what is popular comes and is labelled so.

        Args:
            user_id: Whom to recommend for.
            history: Items met, oldest first, plain or with their moments; they join what the bundle knows. One
                without a moment counts as met just before `now`.
            context: Query columns by name, user features and context alike; they replace the bundle's.
            k: How many items.
            exclude: Items that must not come.
            exclude_seen: Leave out what the user met, in the bundle or in `history`.
            now: The moment of asking, UTC unless it says otherwise; what the bundle knows from then on is not in the
                history. How popular and how old items are stays that of the log's end.
                By default a second after the end of the bundle's log, where the model's sense of time ends.

        Raises:
            RequestError: `k` below 1; a column that the model does not read, or a value that it cannot; a history item
                met at `now` or later; a history of unknown items only, for somebody unknown.
        """
        _refuse_small(k)
        user = None if user_id is None else str(user_id)
        is_known = user in self._asking.user_row
        moment = self._asking.moment(now)
        told, strange = self._asking.met(history, moment=moment)
        if strange and not len(told.row) and not is_known:
            raise RequestError(f"history: no item of it is in the catalogue ({_named(strange)}). Name known items.")
        excluded, not_there = self._asking.rows(exclude)
        asked = self._asking.ask(
            [user], moment=moment, exclude_seen=exclude_seen, exclude=excluded, told=told, context=context
        )
        found, ranked = self._answer(asked, k=k)
        notes = [*_passed_over("history", strange), *_passed_over("exclude", not_there)]
        if user is not None and not is_known:
            notes.append(f"user '{user}' is not in the bundle")
        if ranked is None:
            notes.append("the model can read nothing of who asks: these are the most popular items")
        if found.count[0] < k:
            notes.append(f"{found.count[0]} items are left of the {k} asked for")
        return Recommendation(
            user_id=user,
            items=self._items(found, ranked),
            fallback="popular" if ranked is None else None,
            notes=tuple(notes),
            bundle=self.bundle.id,
        )

    def recommend_batch(
        self,
        user_ids: Iterable[Id] | None = None,
        *,
        k: int = 10,
        exclude_seen: bool = True,
        now: datetime | None = None,
    ) -> pa.Table:
        """The best `k` items for many users, as `recommend` gives them one by one: columns of `BATCH_SCHEMA`.

        Args:
            user_ids: Whom to recommend for; by default every user of the bundle. Of whom nothing is known, the most
                popular items come.
            k: How many items each.
            exclude_seen: Leave out what each user met.
            now: As for `recommend`.

        Raises:
            RequestError: `k` below 1.
        """
        tables = self._batches(user_ids, k=k, exclude_seen=exclude_seen, now=now)
        return pa.concat_tables([BATCH_SCHEMA.empty_table(), *tables])

    def write_batch(
        self,
        path: str | os.PathLike[str],
        *,
        user_ids: Iterable[Id] | None = None,
        k: int = 10,
        exclude_seen: bool = True,
        now: datetime | None = None,
    ) -> int:
        """Write what `recommend_batch` answers as one Parquet file, block by block, and give its number of rows.

        The file appears when it is complete.
        """
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        rows = 0
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
            unfinished = Path(folder) / target.name
            with pq.ParquetWriter(unfinished, BATCH_SCHEMA) as writer:
                for table in self._batches(user_ids, k=k, exclude_seen=exclude_seen, now=now):
                    writer.write_table(table)
                    rows += table.num_rows
            unfinished.replace(target)
        return rows

    def similar(self, item_id: Id, *, k: int = 10) -> SimilarItems:
        """The `k` items whose candidate embeddings point where this item's does, by cosine.

        Raises:
            RequestError: the item is not in the catalogue, or `k` is below 1.
        """
        _refuse_small(k)
        row = self._asking.item_row.get(str(item_id))
        if row is None:
            raise RequestError(f"Item '{item_id}' is not in the catalogue of {len(self._directions)}. Name another.")
        cosine = self._directions @ self._directions[row]
        cosine[row] = -np.inf  # Itself comes last, and is cut off.
        rows, scores = best(cosine[None, :], min(k + 1, len(cosine)))
        chosen = rows[0, : min(k, len(cosine) - 1)]
        ids, titles = self._names(chosen)
        return SimilarItems(
            item_id=str(item_id),
            title=self._names(np.array([row]))[1][0],
            items=tuple(
                SimilarItem(item_id=ids[place], title=titles[place], rank=place + 1, score=float(scores[0, place]))
                for place in range(len(chosen))
            ),
            bundle=self.bundle.id,
        )

    @cached_property
    def _directions(self) -> NDArray[np.float32]:
        """`[I, D]` candidate embeddings of length 1, without the bias; made at the first call of `similar`."""
        embeddings = self.bundle.index.embeddings
        if self.bundle.model.item_bias:
            embeddings = embeddings[:, :-1]
        lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
        return np.asarray(embeddings / np.maximum(lengths, np.finfo(np.float32).tiny), np.float32)

    def _answer(self, asked: Asked, *, k: int) -> tuple[Found, Ranked | None]:
        """The answer to queries that are all told, by the model; or to queries that are all not, by popularity."""
        bundle = self.bundle
        if not asked.is_told.any():
            return popular(self._popular, bundle.popularity, places=k, left_out=asked.left_out), None
        vectors = bundle.model.embed_queries(asked.inputs)
        candidates = max(k, int(bundle.metadata["candidates"]))
        found = retrieve(bundle.index, vectors.embedding, candidates=candidates, left_out=asked.left_out)
        ranked = rank(bundle.model, vectors.ranking, bundle.candidates, trends=bundle.trends, found=found, places=k)
        return ranked.found, ranked

    def _batches(
        self, user_ids: Iterable[Id] | None, *, k: int, exclude_seen: bool, now: datetime | None
    ) -> Iterator[pa.Table]:
        """A table for each block of users, in their order."""
        _refuse_small(k)
        moment = self._asking.moment(now)
        everybody = iter(self._asking.user_row if user_ids is None else user_ids)
        size = max(1, RANKED_AT_ONCE // max(k, int(self.bundle.metadata["candidates"])))
        while users := [str(user_id) for user_id in islice(everybody, size)]:
            asked = self._asking.ask(users, moment=moment, exclude_seen=exclude_seen)
            yield self._table(users, asked, k=k)

    def _table(self, users: list[str], asked: Asked, *, k: int) -> pa.Table:
        """The answers to one block; those by the model and those by popularity fall into the users' order again."""
        parts: list[tuple[NDArray[Any], ...]] = []
        for is_told in (True, False):
            places = np.flatnonzero(asked.is_told == is_told)
            if not len(places):
                continue
            found, _ = self._answer(asked.take(places), k=k)
            holds = np.arange(found.row.shape[1]) < found.count[:, None]
            query, place = np.nonzero(holds)
            parts.append((places[query], found.row[holds], found.score[holds], place + 1))
        query, row, score, place = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.argsort(query, kind="stable")
        columns = [
            pa.array(users).take(pa.array(query[order])),
            self.bundle.items["item_id"].take(pa.array(row[order])),
            pa.array(score[order], pa.float32()),
            pa.array(place[order].astype(np.int32)),
        ]
        return pa.table(columns, schema=BATCH_SCHEMA)

    def _items(self, found: Found, ranked: Ranked | None) -> tuple[RecommendedItem, ...]:
        """The answer to the first query, in words."""
        count = int(found.count[0])
        ids, titles = self._names(found.row[0, :count])
        return tuple(
            RecommendedItem(
                item_id=ids[place],
                title=titles[place],
                rank=place + 1,
                score=float(found.score[0, place]),
                retrieval_rank=None if ranked is None else int(ranked.retrieval_rank[0, place]),
                retrieval_score=None if ranked is None else float(ranked.retrieval_score[0, place]),
                labels={} if ranked is None else {name: float(each[0, place]) for name, each in ranked.labels.items()},
            )
            for place in range(count)
        )

    def _names(self, rows: NDArray[np.int64]) -> tuple[list[str], list[str | None]]:
        """Ids and titles of catalogue rows."""
        title = self.bundle.metadata["title_column"]
        titles = self.bundle.items[title].take(pa.array(rows)).to_pylist() if title else [None] * len(rows)
        return [self._asking.item_ids[row] for row in rows], [None if text is None else str(text) for text in titles]


def _refuse_small(k: int) -> None:
    if k < 1:
        raise RequestError(f"k is {k}. Ask for at least one item.")


def _passed_over(where: str, unknown: list[str]) -> list[str]:
    """A note about ids that the catalogue does not hold, where there are any."""
    return [f"{where}: not in the catalogue, passed over: {_named(unknown)}"] if unknown else []


def _named(ids: list[str]) -> str:
    more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
    return ", ".join(f"'{each}'" for each in ids[:NAMED]) + more
