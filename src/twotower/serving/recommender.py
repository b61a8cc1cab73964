"""A bundle answers: in comes who is asking, out go the best items with titles and both stages' ranks and scores.

No HTTP here. All that changes is which catalogue stands, and that as a whole: any number of threads may ask.
"""

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa

from twotower.bundle import Bundle
from twotower.data.item_columns import readable_items
from twotower.errors import RequestError
from twotower.filter_language import ColumnType
from twotower.serving.answers import batches
from twotower.serving.answers.answering import Standing, answer, milliseconds, rank_given
from twotower.serving.answers.asking import SECOND, Asking, Id, Since
from twotower.serving.answers.catalogue import Catalogue
from twotower.serving.answers.explaining import MOST_ITEMS, MOST_MET
from twotower.serving.answers.filtering import Filtering, positives
from twotower.serving.answers.neighbours import neighbours
from twotower.serving.answers.put import Features
from twotower.serving.answers.results import Recommendation, SimilarItems
from twotower.serving.answers.rules import Rules
from twotower.serving.answers.wording import explained, in_words, named, passed_over, rows_of

EXAMPLES = 20
"""Users and items to begin with."""


class Recommender:
    """Answers from one bundle, and from what was put into its catalogue since."""

    def __init__(self, bundle: Bundle) -> None:
        """Take an open bundle."""
        self.bundle = bundle
        readable = readable_items(bundle.items, bundle.model.features)
        self._standing = Standing(
            catalogue=Catalogue.of(bundle),
            rules=Rules.compile(bundle.serve.rules, readable),
            put=readable.slice(0, 0),
        )
        self.sequence = 0
        """Of the last write that the catalogue knows of."""
        self._writing = Lock()
        self._asking = Asking(bundle)
        self._filtering = Filtering(readable)
        self._positives = positives(bundle)

    @classmethod
    def load(cls, path: Path, *, verify: bool = True) -> "Recommender":
        """Open the bundle at `path`; see `Bundle.load`."""
        return cls(Bundle.load(path, verify=verify))

    @property
    def catalogue(self) -> Catalogue:
        """What can come now; `write_items` replaces it."""
        return self._standing.catalogue

    def knows_user(self, user_id: str) -> bool:
        """Whether the bundle holds the user."""
        return user_id in self._asking.user_row

    def write_items(self, writes: Mapping[str, Features | None], *, sequence: int = 0) -> None:
        """Put items (id -> features) into what can come, or remove them (id -> None): the next answer knows of it.

        Values that do not fit count as missing, and of more than `catalogue.MAX_PUT` items the latest stay.

        Args:
            writes: What changes.
            sequence: Of the last of these writes, where a store numbers them; what is older than what was taken before
                changes nothing.
        """
        with self._writing:
            if sequence and sequence <= self.sequence:
                return
            self._standing = self._standing.with_catalogue(self.catalogue.with_writes(writes))
            self.sequence = max(self.sequence, sequence)

    def recommend(
        self,
        user_id: Id | None = None,
        *,
        history: Iterable[Id | tuple[Id, datetime]] = (),
        context: Mapping[str, Any] | None = None,
        k: int = 10,
        exclude: Iterable[Id] = (),
        exclude_seen: bool = True,
        filter: str | None = None,  # noqa: A002 - the word that everybody uses for it
        explain: bool = False,
        now: datetime | None = None,
        since: Sequence[Since] = (),
        rank_until: float | None = None,
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
            exclude_seen: Leave out what the user met, in the bundle, in `since` or in `history`.
            filter: A condition on item features (see `filters`) that every item of the answer fulfils.
            explain: Say of each item what brought it, and of the first `MOST_ITEMS` which of the latest `MOST_MET`
                items met pulled it up.
            now: The moment of asking, UTC unless it says otherwise; what the bundle knows from then on is not in the
                history. How popular and how old items are stays that of the log's end.
                By default a second after the end of the bundle's log, where the model's sense of time ends, or after
                the last of `since`.
            since: What the user met since the bundle's log ended, oldest first.
            rank_until: By `time.perf_counter`, when ranking has to begin; later, retrieval's order answers.

        Raises:
            RequestError: `k` below 1; a column that the model does not read, or a value that it cannot; a filter that
                does not fit the items; a history item met at `now` or later; a history of unknown items only, for
                somebody unknown.
        """
        _refuse_small(k)
        began = time.perf_counter()
        standing = self._standing
        catalogue = standing.catalogue
        user = None if user_id is None else str(user_id)
        is_known = user in self._asking.user_row or bool(since)
        moment = self._moment(now, since)
        told, strange = self._asking.met(history, catalogue=catalogue, moment=moment, since=since)
        if strange and not len(told.row) and not is_known:
            raise RequestError(f"history: no item of it is in the catalogue ({named(strange)}). Name known items.")
        allowed = None if filter is None else self._filtering.mask(filter, put=standing.put)
        excluded, not_there = rows_of(catalogue, exclude)
        asked = self._asking.ask(
            [user],
            catalogue=catalogue,
            moment=moment,
            exclude_seen=exclude_seen,
            exclude=excluded,
            told=told,
            context=context,
        )
        answered = answer(
            self.bundle, asked, k=k, standing=standing, allowed=allowed, began=began, rank_until=rank_until
        )
        items = in_words(answered, catalogue)
        timings_ms = dict(answered.timings_ms)
        if explain:
            explaining_since = time.perf_counter()
            without, met = self._asking.without_each(
                user, catalogue=catalogue, moment=moment, most=MOST_MET, told=told, context=context
            )
            items = explained(items, answered, model=self.bundle.model, without=without, met=met, catalogue=catalogue)
            timings_ms["explain"] = milliseconds(explaining_since)
        notes = [*passed_over("history", strange), *passed_over("exclude", not_there)]
        if user is not None and not is_known:
            notes.append(f"user '{user}' is not in the bundle")
        if answered.fallback == "popular":
            notes.append("the model can read nothing of who asks: these are the most popular items")
        if answered.fallback == "retrieval":
            notes.append("there was no time for ranking: these are in retrieval's order")
        if explain and len(items) > MOST_ITEMS:
            notes.append(f"explain: what was met is told of the first {MOST_ITEMS} items")
        if len(items) < k:
            count = f"{len(items)} items"
            left = f"the rules leave {count}" if answered.retrieved >= k else f"{count} are left"
            notes.append(f"{left} of the {k} asked for")
        return Recommendation(
            user_id=user,
            items=items,
            fallback=answered.fallback,
            notes=tuple(notes),
            bundle=self.bundle.id,
            timings_ms=timings_ms,
            retrieved=answered.retrieved,
        )

    def rank(
        self,
        item_ids: Iterable[Id],
        user_id: Id | None = None,
        *,
        history: Iterable[Id | tuple[Id, datetime]] = (),
        context: Mapping[str, Any] | None = None,
        now: datetime | None = None,
        since: Sequence[Since] = (),
    ) -> Recommendation:
        """A list of the caller's own in the order of the ranking head, which scores each item by itself.

        Items are ordered whether they were seen or not; one named twice counts once. Arguments as for `recommend`.

        Raises:
            RequestError: no item of the list is in the catalogue, or as for `recommend`.
        """
        catalogue = self.catalogue
        began = time.perf_counter()
        user = None if user_id is None else str(user_id)
        is_known = user in self._asking.user_row or bool(since)
        moment = self._moment(now, since)
        told, strange = self._asking.met(history, catalogue=catalogue, moment=moment, since=since)
        rows, not_there = rows_of(catalogue, item_ids)
        if not len(rows):
            raise RequestError(f"items: none is in the catalogue ({named(not_there)}). Name known items.")
        _, first = np.unique(rows, return_index=True)
        rows = rows[np.sort(first)]
        asked = self._asking.ask(
            [user], catalogue=catalogue, moment=moment, exclude_seen=False, told=told, context=context
        )
        answered = rank_given(self.bundle, asked, rows, catalogue=catalogue, began=began)
        notes = [*passed_over("history", strange), *passed_over("items", not_there)]
        if user is not None and not is_known:
            notes.append(f"user '{user}' is not in the bundle")
        return Recommendation(
            user_id=user,
            items=in_words(answered, catalogue),
            fallback=None,
            notes=tuple(notes),
            bundle=self.bundle.id,
            timings_ms=answered.timings_ms,
        )

    def history(self, user_id: Id, *, since: Sequence[Since] = (), most: int = 50) -> list[tuple[str, str | None, int]]:
        """What is known of a user, latest first: id, title and moment, in microseconds since 1970, of each item met."""
        catalogue = self.catalogue
        moment = self._moment(None, since)
        told, _ = self._asking.met((), catalogue=catalogue, moment=moment, since=since)
        rows, times = self._asking.history(str(user_id), catalogue=catalogue, moment=moment, told=told, most=most)
        ids = [catalogue.id(row) for row in rows.tolist()]
        return list(zip(ids, catalogue.titles(rows), times, strict=True))[::-1]

    def recommend_batch(
        self,
        user_ids: Iterable[Id] | None = None,
        *,
        k: int = 10,
        exclude_seen: bool = True,
        now: datetime | None = None,
    ) -> pa.Table:
        """The best `k` items for many users, as `recommend` gives them one by one, by `batches.BATCH_SCHEMA`.

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
        return pa.concat_tables([batches.BATCH_SCHEMA.empty_table(), *tables])

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
        return batches.write(path, self._batches(user_ids, k=k, exclude_seen=exclude_seen, now=now))

    def search(self, text: str, *, most: int) -> list[tuple[str, str | None]]:
        """Ids and titles of items that hold a text in one of the two, whatever its case, the popular first."""
        catalogue = self.catalogue
        rows = catalogue.holding(text, most=most)
        titles = catalogue.titles(np.array(rows, np.int64))
        return [(catalogue.id(row), title) for row, title in zip(rows, titles, strict=True)]

    @cached_property
    def example_users(self) -> tuple[str, ...]:
        """Ids of users that met something, from all over the bundle."""
        met = np.flatnonzero(np.diff(self.bundle.log.start))
        chosen = met[np.linspace(0, len(met) - 1, min(EXAMPLES, len(met)), dtype=np.int64)]
        return tuple(self.bundle.users["user_id"].take(pa.array(chosen)).to_pylist())

    @property
    def example_items(self) -> list[tuple[str, str | None]]:
        """Ids and titles of the most popular items that can come."""
        catalogue = self.catalogue
        rows = catalogue.order[:EXAMPLES]
        return [(catalogue.id(row), title) for row, title in zip(rows.tolist(), catalogue.titles(rows), strict=True)]

    @property
    def filter_columns(self) -> dict[str, ColumnType | None]:
        """What a filter can name; see `Filtering.columns`."""
        return self._filtering.columns

    @property
    def query_columns(self) -> tuple[str, ...]:
        """What `context` can tell."""
        return self._asking.readable

    def is_positive(self, labels: Mapping[str, float]) -> bool:
        """Whether an interaction with these labels may stand in a history, by the recipe's `prepare.positives`."""
        return self._positives is None or self._positives.holds(labels)

    def similar(
        self,
        item_id: Id,
        *,
        k: int = 10,
        exclude: Iterable[Id] = (),
        filter: str | None = None,  # noqa: A002 - the word that everybody uses for it
    ) -> SimilarItems:
        """The `k` items whose candidate embeddings point where this item's does, by cosine.

        None where the model can read nothing of the item.

        Args:
            item_id: Whose neighbours; itself never comes.
            k: How many.
            exclude: Items that must not come.
            filter: A condition that every item of the answer fulfils.

        Raises:
            RequestError: the item is not in the catalogue, `k` is below 1, or the filter does not fit the items.
        """
        _refuse_small(k)
        standing = self._standing
        excluded, _ = rows_of(standing.catalogue, exclude)
        allowed = None if filter is None else self._filtering.mask(filter, put=standing.put)
        return neighbours(standing.catalogue, str(item_id), k=k, excluded=excluded, allowed=allowed)

    def _moment(self, now: datetime | None, since: Sequence[Since]) -> int:
        """The moment of asking: by default after all that is known."""
        moment = self._asking.moment(now)
        return max(moment, since[-1].timestamp + SECOND) if now is None and since else moment

    def _batches(
        self, user_ids: Iterable[Id] | None, *, k: int, exclude_seen: bool, now: datetime | None
    ) -> Iterator[pa.Table]:
        """A table for each block of users, in their order."""
        _refuse_small(k)
        return batches.blocks(
            self.bundle,
            self._asking,
            standing=lambda: self._standing,
            user_ids=self._asking.user_row if user_ids is None else user_ids,
            k=k,
            exclude_seen=exclude_seen,
            moment=self._asking.moment(now),
        )


def _refuse_small(k: int) -> None:
    if k < 1:
        raise RequestError(f"k is {k}. Ask for at least one item.")
