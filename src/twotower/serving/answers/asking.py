"""Who asks, in the model's terms: raw ids, a history and context -> the query tower's inputs and what must not come."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from twotower.bundle import Bundle
from twotower.data.feature_encoders import TimestampEncoder
from twotower.errors import DataError, RequestError
from twotower.serving.answers.catalogue import NO_ROWS, Catalogue

Id = str | int
"""A raw id; a whole number stands for its digits, as ids are strings throughout."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
SECOND = 1_000_000
"""Microseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Met:
    """Items of the catalogue that somebody met, in the order of time."""

    row: NDArray[np.int64]
    """`[h]` catalogue rows."""
    timestamp: NDArray[np.int64]
    """`[h]` microseconds since 1970."""
    holds: NDArray[np.bool_]
    """`[h]` whether a history may hold it; what may not was seen all the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Since:
    """An item that a user met since the bundle's log ended."""

    item_id: str
    timestamp: int
    """Microseconds since 1970."""
    holds: bool = True
    """Whether a history may hold it: whether it is a positive by the recipe's rule."""


NOTHING_MET = Met(row=NO_ROWS, timestamp=NO_ROWS, holds=np.empty(0, np.bool_))


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """`q` queries."""

    inputs: dict[str, NDArray[Any]]
    """Input of the query tower -> `[q, ...]`."""
    is_told: NDArray[np.bool_]
    """`[q]` whether the tower can read anything of who asks; the moment alone is nothing."""
    left_out: tuple[NDArray[np.int64], ...]
    """`q` arrays of distinct catalogue rows that must not come."""

    def take(self, chosen: NDArray[np.int64]) -> "Asked":
        """The queries at these places."""
        return Asked(
            inputs={key: values[chosen] for key, values in self.inputs.items()},
            is_told=self.is_told[chosen],
            left_out=tuple(self.left_out[place] for place in chosen),
        )


class Asking:
    """Looks raw ids up in one bundle."""

    def __init__(self, bundle: Bundle) -> None:
        """Number the bundle's ids."""
        self.bundle = bundle
        self.user_row = {user_id: row for row, user_id in enumerate(bundle.users["user_id"].to_pylist())}
        self._features = bundle.model.features
        history = self._features.history
        self._length = history.config.length if history is not None else 0
        self._columns = {encoder.column for encoder in self._features.query}
        # In one piece, of which one row is taken in microseconds.
        self._users = {
            name: bundle.users[name].combine_chunks()
            for name in bundle.users.column_names
            if name in self._columns and name != "user_id"
        }
        self.readable = tuple(sorted(self._columns - {"user_id", "timestamp"}))
        """What `context` can tell."""
        self._moments = {encoder.column for encoder in self._features.query if isinstance(encoder, TimestampEncoder)}
        self._blank = self._features.query_inputs(columns={}, timestamp=np.zeros(1, np.int64), history=[([], [])])
        telling = [
            e.key for e in self._features.query if e.column != "timestamp" or e.column in self._features.user_columns
        ]
        self._telling = [*telling, "history_items"] if self._length else telling

    def moment(self, now: datetime | None) -> int:
        """`now` in microseconds since 1970, a naive one taken as UTC; by default a second after the log's end."""
        if now is None:
            return int(self.bundle.metadata["last_us"]) + SECOND
        return ((now if now.tzinfo else now.replace(tzinfo=UTC)) - EPOCH) // MICROSECOND

    def met(
        self,
        history: Iterable[Id | tuple[Id, datetime]],
        *,
        catalogue: Catalogue,
        moment: int,
        since: Sequence[Since] = (),
    ) -> tuple[Met, list[str]]:
        """What a told history and the time since the log hold, in the order of time, and told ids that no item has.

        Raises:
            RequestError: an item told to be met at `moment` or later.
        """
        rows, times, holds, unknown = [], [], [], []
        for entry in since:
            if (row := catalogue.row(entry.item_id)) is not None and entry.timestamp < moment:
                rows.append(row)
                times.append(entry.timestamp)
                holds.append(entry.holds)
        for told in history:
            item_id, when = told if isinstance(told, tuple) else (told, None)
            time = moment - 1 if when is None else self.moment(when)
            if time >= moment:
                raise RequestError(
                    f"history: item '{item_id}' was met at {when}, which is not before the moment of asking."
                )
            if (row := catalogue.row(str(item_id))) is None:
                unknown.append(str(item_id))
            else:
                rows.append(row)
                times.append(time)
                holds.append(True)
        if not rows:
            return NOTHING_MET, unknown
        order = np.argsort(np.array(times, np.int64), kind="stable")
        met = Met(
            row=np.array(rows, np.int64)[order],
            timestamp=np.array(times, np.int64)[order],
            holds=np.array(holds, np.bool_)[order],
        )
        return met, unknown

    def ask(
        self,
        user_ids: Sequence[str | None],
        *,
        catalogue: Catalogue,
        moment: int,
        exclude_seen: bool,
        exclude: NDArray[np.int64] = NO_ROWS,
        told: Met = NOTHING_MET,
        context: Mapping[str, Any] | None = None,
    ) -> Asked:
        """The queries of `q` users at one moment.

        Args:
            user_ids: Raw ids; None for somebody without one.
            catalogue: What can come.
            moment: Microseconds since 1970; what the bundle knows from then on is not used.
            exclude_seen: Leave out what each user met.
            exclude: Rows to leave out for all of them.
            told: What all of them met besides.
            context: Column -> value for all of them, in place of the bundle's.

        Raises:
            RequestError: a column that the model does not read, or a value that it cannot.
        """
        users = np.array([-1 if user_id is None else self.user_row.get(user_id, -1) for user_id in user_ids], np.int32)
        moments = np.full(len(users), moment, np.int64)
        columns = self._known_columns(user_ids, users) | self._told_columns(context or {}, queries=len(users))
        spans = self._spans(users, moments)
        history = [self._history(span, told, catalogue=catalogue) for span in spans]
        inputs = self._inputs(columns, moments, history=history)
        seen = [self.bundle.log.item[span] for span in spans] if exclude_seen else [NO_ROWS] * len(spans)
        besides = np.concatenate([exclude, told.row]) if exclude_seen else exclude
        left_out = tuple(_distinct(catalogue.current(np.concatenate([each, besides]))) for each in seen)
        return Asked(inputs=inputs, is_told=self._is_told(inputs), left_out=left_out)

    def without_each(
        self,
        user_id: str | None,
        *,
        catalogue: Catalogue,
        moment: int,
        most: int,
        told: Met = NOTHING_MET,
        context: Mapping[str, Any] | None = None,
    ) -> tuple[dict[str, NDArray[Any]], list[str]]:
        """What one item met makes of an answer: the query's inputs without each of its history in turn.

        Arguments as for `ask`, and `most`: how many items of the history are left out in turn, the latest.

        Returns:
            The tower's inputs for `h` queries, each without one item of the history, and the `h` ids.
        """
        users = np.array([-1 if user_id is None else self.user_row.get(user_id, -1)], np.int32)
        columns = self._known_columns([user_id], users) | self._told_columns(context or {}, queries=1)
        span = self._spans(users, np.array([moment], np.int64))[0]
        ids, times = self._history(span, told, catalogue=catalogue)
        first = max(0, len(ids) - most)
        count = len(ids) - first
        shorter = [(ids[:each] + ids[each + 1 :], times[:each] + times[each + 1 :]) for each in range(first, len(ids))]
        repeated = {name: [*values] * count for name, values in columns.items()}
        return self._inputs(repeated, np.full(count, moment, np.int64), history=shorter), ids[first:]

    def history(
        self, user_id: str | None, *, catalogue: Catalogue, moment: int, told: Met = NOTHING_MET, most: int
    ) -> tuple[NDArray[np.int64], list[int]]:
        """The rows of the last `most` items that a user met, whatever the model reads of them, and their moments."""
        users = np.array([-1 if user_id is None else self.user_row.get(user_id, -1)], np.int32)
        span = self._spans(users, np.array([moment], np.int64))[0]
        rows = np.concatenate([self.bundle.log.item[span], told.row])
        times = np.concatenate([self.bundle.log.timestamp[span], told.timestamp])
        last = np.argsort(times, kind="stable")[-most:]
        return catalogue.current(rows[last]), times[last].tolist()

    def _spans(self, users: NDArray[np.int32], moments: NDArray[np.int64]) -> list[slice]:
        """The places of the bundle's log that hold what each user met before a moment."""
        first, end = self.bundle.log.before(users, moments)
        return [slice(*span) for span in zip(first.tolist(), end.tolist(), strict=True)]

    def _inputs(
        self,
        columns: Mapping[str, Sequence[Any]],
        moments: NDArray[np.int64],
        *,
        history: Sequence[tuple[list[str], list[int]]],
    ) -> dict[str, NDArray[Any]]:
        try:
            return self._features.query_inputs(columns=columns, timestamp=moments, history=history)
        except (pa.ArrowException, OverflowError, DataError) as fault:
            reason = str(fault).splitlines()[0]
            raise RequestError(
                f"context: a value that the model cannot read ({reason}). Give it as in training."
            ) from fault

    def _known_columns(self, user_ids: Sequence[str | None], users: NDArray[np.int32]) -> dict[str, Sequence[Any]]:
        """The bundle's user features that the model reads, null for the unknown."""
        taken = pa.array(users, mask=users < 0)
        return {"user_id": user_ids} | {name: column.take(taken) for name, column in self._users.items()}

    def _told_columns(self, context: Mapping[str, Any], *, queries: int) -> dict[str, Sequence[Any]]:
        if strange := sorted(set(context) - set(self.readable)):
            there = ", ".join(self.readable) or "no column"
            raise RequestError(f"context: the model does not read '{strange[0]}'; it reads {there}. Leave it out.")
        return {name: [self._told(name, value)] * queries for name, value in context.items()}

    def _told(self, name: str, value: Any) -> Any:
        """A value as the model's features take it: a moment may come as text, as JSON has no other way."""
        if name not in self._moments or not isinstance(value, str):
            return value
        try:
            return self.moment(datetime.fromisoformat(value))
        except (ValueError, OverflowError) as fault:
            raise RequestError(f"context: '{name}' is a moment, {value!r:.60} is none. Send ISO 8601.") from fault

    def _history(self, span: slice, told: Met, *, catalogue: Catalogue) -> tuple[list[str], list[int]]:
        """The last items that a history may hold, of the log's span and of those told, in the order of time."""
        if not self._length:
            return [], []
        holds = self.bundle.positive[span]
        rows = np.concatenate([self.bundle.log.item[span][holds], told.row[told.holds]])
        times = np.concatenate([self.bundle.log.timestamp[span][holds], told.timestamp[told.holds]])
        last = np.argsort(times, kind="stable")[-self._length :]
        return [catalogue.id(row) for row in rows[last].tolist()], times[last].tolist()

    def _is_told(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.bool_]:
        """Where the inputs differ from those of nobody, the moment aside."""
        queries = len(next(iter(inputs.values())))
        differs = np.zeros(queries, np.bool_)
        for key in self._telling:
            differs |= (inputs[key] != self._blank[key]).reshape(queries, -1).any(axis=1)
        return differs


def _distinct(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each row once. `np.unique` takes three times as long on the few hundred rows of one user."""
    ascending = np.sort(rows)
    first = np.concatenate([[True], ascending[1:] != ascending[:-1]])[: len(ascending)]
    return np.asarray(ascending[first], np.int64)
