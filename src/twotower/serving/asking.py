"""Who asks, in the model's terms: raw ids, a history and context -> the query tower's inputs and what must not come."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from twotower.bundle import Bundle
from twotower.errors import DataError, RequestError

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


NO_ROWS = np.empty(0, np.int64)
NOTHING_MET = Met(row=NO_ROWS, timestamp=NO_ROWS)


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
        self.item_ids: list[str] = bundle.items["item_id"].to_pylist()
        self.item_row = {item_id: row for row, item_id in enumerate(self.item_ids)}
        self.user_row = {user_id: row for row, user_id in enumerate(bundle.users["user_id"].to_pylist())}
        self._features = bundle.model.features
        history = self._features.history
        self._length = history.config.length if history is not None else 0
        self._columns = {encoder.column for encoder in self._features.query}
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

    def rows(self, item_ids: Iterable[Id]) -> tuple[NDArray[np.int64], list[str]]:
        """The catalogue rows of the ids that have one, and the ids that have none."""
        texts = [str(item_id) for item_id in item_ids]
        known = [self.item_row[text] for text in texts if text in self.item_row]
        return np.array(known, np.int64), [text for text in texts if text not in self.item_row]

    def met(self, history: Iterable[Id | tuple[Id, datetime]], *, moment: int) -> tuple[Met, list[str]]:
        """What a told history holds, in the order of time, and its ids that are not in the catalogue.

        Raises:
            RequestError: an item met at `moment` or later.
        """
        rows, times, unknown = [], [], []
        for entry in history:
            item_id, when = entry if isinstance(entry, tuple) else (entry, None)
            time = moment - 1 if when is None else self.moment(when)
            if time >= moment:
                raise RequestError(
                    f"history: item '{item_id}' was met at {when}, which is not before the moment of asking."
                )
            if (row := self.item_row.get(str(item_id))) is None:
                unknown.append(str(item_id))
            else:
                rows.append(row)
                times.append(time)
        order = np.argsort(np.array(times, np.int64), kind="stable")
        return Met(row=np.array(rows, np.int64)[order], timestamp=np.array(times, np.int64)[order]), unknown

    def ask(
        self,
        user_ids: Sequence[str | None],
        *,
        moment: int,
        exclude_seen: bool,
        exclude: NDArray[np.int64] = NO_ROWS,
        told: Met = NOTHING_MET,
        context: Mapping[str, Any] | None = None,
    ) -> Asked:
        """The queries of `q` users at one moment.

        Args:
            user_ids: Raw ids; None for somebody without one.
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
        first, end = self.bundle.log.before(users, moments)
        spans = [slice(*span) for span in zip(first.tolist(), end.tolist(), strict=True)]
        history = [self._history(span, told) if self._length else ([], []) for span in spans]
        try:
            inputs = self._features.query_inputs(columns=columns, timestamp=moments, history=history)
        except (pa.ArrowException, OverflowError, DataError) as fault:
            reason = str(fault).splitlines()[0]
            raise RequestError(
                f"context: a value that the model cannot read ({reason}). Give it as in training."
            ) from fault
        seen = [self.bundle.log.item[span] for span in spans] if exclude_seen else [NO_ROWS] * len(spans)
        besides = np.concatenate([exclude, told.row]) if exclude_seen else exclude
        left_out = tuple(_distinct(np.concatenate([each, besides])) for each in seen)
        return Asked(inputs=inputs, is_told=self._is_told(inputs), left_out=left_out)

    def _known_columns(self, user_ids: Sequence[str | None], users: NDArray[np.int32]) -> dict[str, Sequence[Any]]:
        """The bundle's user features that the model reads, null for the unknown."""
        table = self.bundle.users
        taken = pa.array(users, mask=users < 0)
        names = [name for name in table.column_names if name in self._columns and name != "user_id"]
        return {"user_id": user_ids} | {name: table[name].take(taken) for name in names}

    def _told_columns(self, context: Mapping[str, Any], *, queries: int) -> dict[str, Sequence[Any]]:
        readable = sorted(self._columns - {"user_id", "timestamp"})
        if strange := sorted(set(context) - set(readable)):
            there = ", ".join(readable) or "no column"
            raise RequestError(f"context: the model does not read '{strange[0]}'; it reads {there}. Leave it out.")
        return {name: [value] * queries for name, value in context.items()}

    def _history(self, span: slice, told: Met) -> tuple[list[str], list[int]]:
        """The last items that a history may hold, of the log's span and of those told, in the order of time."""
        holds = self.bundle.positive[span]
        rows = np.concatenate([self.bundle.log.item[span][holds], told.row])
        times = np.concatenate([self.bundle.log.timestamp[span][holds], told.timestamp])
        last = np.argsort(times, kind="stable")[-self._length :]
        return [self.item_ids[row] for row in rows[last]], times[last].tolist()

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
