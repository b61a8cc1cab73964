"""What a server must not forget: events and item writes, behind one contract that SQLite and PostgreSQL fulfil.

What `write` has returned from is on disk. An event counts once, by its id, however often it is sent. `writer.py`
gathers the writes of many requests; `event_tables.py` hands the events to the next training.
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol, TypeVar

from twotower.data.tables import EVENT_ID, RESERVED
from twotower.errors import MissingExtraError, RequestError, StorageError

FORMAT_VERSION = 1
"""Of the tables, in either kind of store."""
EARLIEST_US, LATEST_US = -2_208_988_800_000_000, 7_258_118_400_000_000
"""The years 1900 and 2200: `prepare` reads no moment outside of them."""
PAGE = 10_000
"""Rows read, or looked at for removal, at once: nothing waits long for them, and memory is bounded."""
BIGGEST = 1 << 63
"""No column of whole numbers holds one from here on."""
POSTGRES = ("postgresql://", "postgres://")
SQLITE = "sqlite:///"

Scalar = str | int | float | bool | None
Value = Scalar | list[Scalar] | tuple[Scalar, ...]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened between a user and an item; only what the next training can read can be one.

    Raises:
        RequestError: an empty id, text that is no Unicode or holds a NUL, a moment outside of 1900 to 2200, a number
            that is none or of more than 64 bits, or a label or context column under a name of ours.
    """

    event_id: str
    """The sender's own; a second event under it counts as sent again, and changes nothing."""
    kind: Literal["interaction", "impression"]
    """An interaction joins the user's history and the next training; an impression tells that the item was shown."""
    user_id: str
    item_id: str
    timestamp: int
    """Microseconds since 1970."""
    labels: Mapping[str, float] = field(default_factory=dict)
    context: Mapping[str, Value] = field(default_factory=dict)
    request_id: str | None = None
    """The answer that it goes back to, with the bundle and the variant that gave it."""
    bundle: str | None = None
    variant: str | None = None
    rank: int | None = None
    """The item's place in that answer, from 1."""

    def __post_init__(self) -> None:
        for name in ("event_id", "user_id", "item_id"):
            _check_text(name, getattr(self, name), may_be_empty=False)
        for name in ("request_id", "bundle", "variant"):
            if getattr(self, name) is not None:
                _check_text(name, getattr(self, name))
        if not EARLIEST_US <= self.timestamp <= LATEST_US:
            raise RequestError(
                f"timestamp: {self.timestamp} lies outside of the years 1900 to 2200. Send microseconds since 1970."
            )
        for where, columns in (("labels", self.labels), ("context", self.context)):
            for name, value in columns.items():
                if name in RESERVED or name == EVENT_ID:
                    raise RequestError(f"{where}.{name}: the name is one of ours. Choose another.")
                _check_text(where, name, may_be_empty=False)
                _check_value(f"{where}.{name}", value)


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemChange:
    """An item to put, or to remove.

    Raises:
        RequestError: an empty id, text that is no Unicode, or a number that is none or of more than 64 bits.
    """

    item_id: str
    features: Mapping[str, Value] | None
    """Column -> value; None removes the item."""

    def __post_init__(self) -> None:
        _check_text("item_id", self.item_id, may_be_empty=False)
        for name, value in (self.features or {}).items():
            if name == "item_id":
                raise RequestError("features.item_id: the id stands beside the features. Leave it out of them.")
            _check_text("features", name, may_be_empty=False)
            _check_value(f"features.{name}", value)


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemWrite:
    """The latest that is known of an item which was written."""

    sequence: int
    """Grows with every write to any item."""
    item_id: str
    features: dict[str, Any] | None
    """None: removed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Met:
    """An interaction of a user's history."""

    item_id: str
    timestamp: int
    """Microseconds since 1970."""
    labels: Mapping[str, float]


Interaction = tuple[str, str, str, int, str | None, str | None]
"""`event_id`, `user_id`, `item_id`, `timestamp`, labels and context as JSON."""
ItemRow = tuple[str, str]
"""`item_id`, features as JSON."""


class Transaction(Protocol):
    """What can be written together, whole or not at all."""

    def add_events(self, events: Sequence[Event]) -> int:
        """Add the events whose ids are new; gives how many were."""

    def write_items(self, changes: Sequence[ItemChange]) -> int:
        """Put and remove items in this order; gives the sequence of the last write."""


class Store(ABC):
    """Events and item writes. One thread may write while another reads."""

    name: str
    """For messages; holds no secret."""
    is_quick: bool
    """Whether `history` answers within microseconds, so that an event loop may wait for it."""

    @abstractmethod
    def write(self, work: Callable[[Transaction], T]) -> T:
        """Do the work within one transaction, which is on disk when this returns; the work may be done twice.

        Raises:
            StorageError: the store cannot be written now; nothing of the work is kept, or all of it where a connection
                was lost while it was being kept.
        """

    @abstractmethod
    def history(self, user_id: str, *, after: int, limit: int) -> list[Met]:
        """The latest interactions of a user that are later than a moment, oldest first.

        Raises:
            StorageError: the store cannot be read now.
        """

    @abstractmethod
    def items_after(self, sequence: int) -> list[ItemWrite]:
        """The latest state of every item written after a sequence, in the order of writing; 0 gives all."""

    @abstractmethod
    def interactions(self, *, since: int) -> Iterator[list[Interaction]]:
        """All interactions from a moment on, page by page, in the order of arrival."""

    @abstractmethod
    def items(self) -> tuple[int, Iterator[list[ItemRow]]]:
        """The last sequence, and the last features of every item ever put, page by page.

        Items removed since are among them: what was met of them teaches still.
        """

    @abstractmethod
    def prune_events(self, *, before: int) -> int:
        """Remove the events of before a moment; gives how many."""

    @abstractmethod
    def prune_items(self, *, until: int) -> int:
        """Forget the items put up to a sequence, once a bundle has them; gives how many. Removals stay."""

    @abstractmethod
    def close(self) -> None:
        """Let go of files and connections."""

    def add_events(self, events: Sequence[Event]) -> int:
        """Add the events whose ids are new, in a transaction of their own; gives how many were."""
        return self.write(lambda transaction: transaction.add_events(events))

    def write_items(self, changes: Sequence[ItemChange]) -> int:
        """Put and remove items, in a transaction of their own; gives the sequence of the last write."""
        return self.write(lambda transaction: transaction.write_items(changes))


def open_store(uri: str, *, must_exist: bool = False, read_only: bool = False) -> Store:
    """The store at a path, at `sqlite:///PATH` or at `postgresql://...`; a new one is made where there is none.

    Args:
        uri: Where it is.
        must_exist: Refuse to make one.
        read_only: Refuse to make one, and to write.

    Raises:
        StorageError: it cannot be opened, is none, or is of a newer format.
        MissingExtraError: PostgreSQL's client is not installed.
    """
    if uri.startswith(POSTGRES):
        try:
            from twotower.serving.store.postgres import PostgresStore
        except ImportError as fault:
            raise MissingExtraError(
                f"A store in PostgreSQL needs psycopg, which cannot be imported ({fault}): "
                'pip install "twotower[postgres]"'
            ) from fault
        return PostgresStore(uri, must_exist=must_exist, read_only=read_only)
    if "://" in uri and not uri.startswith(SQLITE):
        scheme = uri.partition("://")[0]  # What follows may hold a password.
        raise StorageError(f"{scheme}://...: no kind of store. Name a path, sqlite:///PATH or postgresql://...")
    from twotower.serving.store.sqlite import SqliteStore

    return SqliteStore(Path(uri.removeprefix(SQLITE)).expanduser(), must_exist=must_exist, read_only=read_only)


def refuse_newer(name: str, found: int) -> None:
    """Leave a store alone that a later release has made.

    Raises:
        StorageError: its format version is not ours.
    """
    if found != FORMAT_VERSION:
        raise StorageError(
            f"{name}: format version {found}, this release reads {FORMAT_VERSION}. Use the release that made the store."
        )


def event_row(event: Event) -> tuple[Any, ...]:
    """The event as both stores' tables hold it, in the order of `EVENT_COLUMNS`."""
    return (
        event.event_id,
        event.kind,
        event.user_id,
        event.item_id,
        event.timestamp,
        as_json(event.labels),
        as_json(event.context),
        event.request_id,
        event.bundle,
        event.variant,
        event.rank,
    )


EVENT_COLUMNS = "event_id, kind, user_id, item_id, timestamp, labels, context, request_id, bundle, variant, rank"


def as_json(columns: Mapping[str, Value]) -> str | None:
    """Named values as text; nothing where there are none."""
    return json.dumps(dict(columns), ensure_ascii=False, separators=(",", ":")) if columns else None


def item_row(change: ItemChange) -> tuple[str, str | None, bool]:
    """Id, features and whether the item is removed, as both stores' statements take them."""
    if change.features is None:
        return change.item_id, None, True
    return change.item_id, as_json(change.features) or "{}", False


def item_writes(rows: Sequence[tuple[int, str, str, bool]]) -> list[ItemWrite]:
    """Item writes from a store's rows."""
    return [
        ItemWrite(sequence=sequence, item_id=item_id, features=None if removed else json.loads(features))
        for sequence, item_id, features, removed in rows
    ]


def met(rows: Sequence[tuple[str, int, str | None]]) -> list[Met]:
    """A history from a store's rows, which come newest first."""
    return [
        Met(item_id=item_id, timestamp=timestamp, labels=_read_labels(labels) if labels else _NONE)
        for item_id, timestamp, labels in reversed(rows)
    ]


@lru_cache(maxsize=1024)  # Most histories hold the same few ratings, and are read for every request.
def _read_labels(text: str) -> Mapping[str, float]:
    return MappingProxyType(json.loads(text))


_NONE: Mapping[str, float] = MappingProxyType({})


def _check_text(where: str, text: str, *, may_be_empty: bool = True) -> None:
    """Refuse what a store or the next training could not hold."""
    if not text and not may_be_empty:
        raise RequestError(f"{where}: empty. Give it a text.")
    if "\0" in text or not (text.isascii() or _is_unicode(text)):
        raise RequestError(f"{where}: holds a NUL or half a surrogate pair. Send Unicode text without them.")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_value(where: str, value: Value) -> None:
    for each in value if isinstance(value, list | tuple) else (value,):
        if isinstance(each, str):
            _check_text(where, each)
        elif isinstance(each, float) and not math.isfinite(each):
            raise RequestError(f"{where}: {each} is no number. Leave it out where it is missing.")
        elif isinstance(each, int) and not -BIGGEST <= each < BIGGEST:
            raise RequestError(f"{where}: a whole number of more than 64 bits. Send it as a text.")
        elif not (each is None or isinstance(each, int | float)):
            raise RequestError(f"{where}: neither text nor number nor a list of these. Send it as one.")
