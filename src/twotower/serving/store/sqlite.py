"""Events and item writes in one SQLite file: nothing to set up, for one server on one machine.

The write-ahead log lets reads go on while a transaction is flushed to disk. The file has to lie on a disk of the
machine's own: over a network file system, SQLite's locks do not hold.
"""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from twotower.errors import StorageError
from twotower.serving.store.contract import (
    EVENT_COLUMNS,
    FORMAT_VERSION,
    PAGE,
    Event,
    Interaction,
    ItemChange,
    ItemRow,
    ItemWrite,
    Met,
    Store,
    Transaction,
    event_row,
    item_row,
    item_writes,
    met,
    refuse_newer,
)

APPLICATION_ID = 0x74776F74
"""Says in the file's header that it is ours; "twot" in ASCII."""
PATIENCE_S = 5.0
"""Seconds to wait for another process that writes."""
PAUSE_S = 0.1
"""Seconds between two tries of a writer that waits for another, at the most: SQLite's own."""
WAL_LIMIT = 64 << 20
"""Bytes that the write-ahead log keeps after it has been longer."""

_TABLES = (
    """CREATE TABLE events (
        sequence INTEGER PRIMARY KEY,
        event_id TEXT NOT NULL UNIQUE,
        kind TEXT NOT NULL,
        user_id TEXT NOT NULL,
        item_id TEXT NOT NULL,
        timestamp INTEGER NOT NULL,
        labels TEXT,
        context TEXT,
        request_id TEXT,
        bundle TEXT,
        variant TEXT,
        rank INTEGER
    )""",
    "CREATE INDEX histories ON events (user_id, timestamp) WHERE kind = 'interaction'",
    # AUTOINCREMENT: a sequence that was given never comes again, even where its row is gone.
    """CREATE TABLE items (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        item_id TEXT NOT NULL UNIQUE,
        features TEXT,
        removed INTEGER NOT NULL
    )""",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {FORMAT_VERSION}",
)
# One statement, which sees one state of the file.
_HEADER = (
    "SELECT (SELECT application_id FROM pragma_application_id), (SELECT user_version FROM pragma_user_version), "
    "(SELECT count(*) FROM sqlite_master)"
)
_ADD_EVENT = f"INSERT INTO events ({EVENT_COLUMNS}) VALUES ({', '.join('?' * 11)}) ON CONFLICT (event_id) DO NOTHING"
# The row is made anew, so that it gets a new sequence; a removed item keeps its last features.
_WRITE_ITEM = (
    "INSERT OR REPLACE INTO items (item_id, features, removed) "
    "VALUES (?, coalesce(?, (SELECT features FROM items WHERE item_id = ?)), ?)"
)
_HISTORY = (
    "SELECT item_id, timestamp, labels FROM events WHERE kind = 'interaction' AND user_id = ? AND timestamp > ? "
    "ORDER BY timestamp DESC, sequence DESC LIMIT ?"
)

T = TypeVar("T")


class SqliteStore(Store):
    """A store in a file, with a connection that writes and two that read."""

    is_quick = True

    def __init__(self, path: Path, *, must_exist: bool = False, read_only: bool = False) -> None:
        """Open the file, or make it.

        Args:
            path: Where it is.
            must_exist: Refuse to make one.
            read_only: Refuse to make one, and to write: neither the file nor what lies beside it changes.

        Raises:
            StorageError: it cannot be opened, is no store, or is of a newer format.
        """
        self.name = str(path)
        must_exist = must_exist or read_only
        if must_exist and not path.is_file():
            raise StorageError(f"{path}: no such store. Name the file that `twotower serve` was given.")
        self._path = path
        # Without a log beside it, nobody has the file open.
        self._left = _state(path) if read_only and not _log(path).exists() else None
        opening = "" if not read_only else "?mode=ro" if self._left is None else "?immutable=1"
        self._writing = threading.Lock()
        with self._told():
            self._writer = _connect(path, opening)
            try:
                self._set_up(self._writer, must_exist=must_exist, read_only=read_only)
                # Histories have a connection of their own: a longer read beside them would hold them to its moment.
                self._histories, self._reader = (_connect(path, opening) for _ in range(2))
            except BaseException:
                self._writer.close()
                raise
        self._transaction: Transaction = _SqliteTransaction(self._writer)

    def write(self, work: Callable[[Transaction], T]) -> T:
        with self._writing, self._told(), _transaction(self._writer):
            return work(self._transaction)

    def history(self, user_id: str, *, after: int, limit: int) -> list[Met]:
        with self._told():
            return met(self._histories.execute(_HISTORY, (user_id, after, limit)).fetchall())

    def items_after(self, sequence: int) -> list[ItemWrite]:
        query = "SELECT sequence, item_id, features, removed FROM items WHERE sequence > ? ORDER BY sequence"
        return item_writes(self._rows(query, (sequence,)))

    def interactions(self, *, since: int) -> Iterator[list[Interaction]]:
        query = (
            "SELECT sequence, event_id, user_id, item_id, timestamp, labels, context FROM events "
            "WHERE sequence > ? AND sequence <= ? AND kind = 'interaction' AND timestamp >= ? ORDER BY sequence LIMIT ?"
        )
        place, (_, last) = 0, self._ends("events")
        while rows := self._rows(query, (place, last, since, PAGE)):
            place = rows[-1][0]
            yield [row[1:] for row in rows]

    def items(self) -> tuple[int, Iterator[list[ItemRow]]]:
        _, last = self._ends("items")
        return last, self._items(last)

    def prune_events(self, *, before: int) -> int:
        query = "DELETE FROM events WHERE sequence > ? AND sequence <= ? AND timestamp < ?"
        removed, (first, last) = 0, self._ends("events")
        # Bit by bit, each in a transaction of its own and with a pause: a server that writes meanwhile gets its turn.
        for place in range(first - 1, last, PAGE):
            with self._writing, self._told():
                count = self._writer.execute(query, (place, place + PAGE, before)).rowcount
            removed += count
            if count and place + PAGE < last:
                time.sleep(PAUSE_S)
        return removed

    def prune_items(self, *, until: int) -> int:
        with self._writing, self._told():
            return self._writer.execute("DELETE FROM items WHERE sequence <= ? AND NOT removed", (until,)).rowcount

    def close(self) -> None:
        for connection in (self._histories, self._reader, self._writer):
            connection.close()

    def _set_up(self, connection: sqlite3.Connection, *, must_exist: bool, read_only: bool) -> None:
        """Make the tables where there are none yet; a file that is no store of ours stays as it is."""
        if self._is_new(connection) and must_exist:
            raise StorageError(
                f"{self.name}: no store, as it holds no tables. Name the one that `twotower serve` was given; "
                f"of one in use, copy {_log(self._path).name} too."
            )
        if read_only:
            return
        if _keep_log(connection) != "wal":
            raise StorageError(f"{self.name}: no write-ahead log can be kept there. Name a file on a disk of its own.")
        with _transaction(connection):
            if self._is_new(connection):  # Nobody else has made them meanwhile.
                for statement in _TABLES:
                    connection.execute(statement)

    def _is_new(self, connection: sqlite3.Connection) -> bool:
        """Whether the database is empty.

        Raises:
            StorageError: it is neither empty nor a store of ours.
        """
        application, version, tables = connection.execute(_HEADER).fetchone()
        if not application and not tables:
            return True
        if application != APPLICATION_ID:
            raise StorageError(f"{self.name}: a SQLite database of something else. Name another file.")
        refuse_newer(self.name, version)
        return False

    def _items(self, last: int) -> Iterator[list[ItemRow]]:
        query = (
            "SELECT sequence, item_id, features FROM items "
            "WHERE sequence > ? AND sequence <= ? AND features IS NOT NULL ORDER BY sequence LIMIT ?"
        )
        place = 0
        while rows := self._rows(query, (place, last, PAGE)):
            place = rows[-1][0]
            yield [row[1:] for row in rows]

    def _rows(self, query: str, parameters: tuple[Any, ...] = ()) -> list[Any]:
        with self._told():
            rows = self._reader.execute(query, parameters).fetchall()
        if self._left is not None and _state(self._path) != self._left:  # It was read without a lock.
            raise StorageError(f"{self.name}: a server has opened it meanwhile. Try again.")
        return rows

    def _ends(self, table: str) -> tuple[int, int]:
        """The first and the last sequence; 1 and 0 where there is none."""
        ((first, last),) = self._rows(f"SELECT coalesce(min(sequence), 1), coalesce(max(sequence), 0) FROM {table}")
        return first, last

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn what SQLite complains about into one line."""
        try:
            yield
        except sqlite3.Error as fault:
            code = str(getattr(fault, "sqlite_errorname", ""))
            advice = next((text for name, text in _ADVICE.items() if code.startswith(name)), "See to the file.")
            raise StorageError(f"{self.name}: {fault}. {advice}") from fault


_ADVICE = {
    "SQLITE_BUSY": "Another process has been writing for long; try again.",
    "SQLITE_CANTOPEN": "Name a file in a folder that is there and that you may write.",
    "SQLITE_CORRUPT": "The file is damaged; put a backup in its place.",
    "SQLITE_FULL": "Make room on the disk.",
    "SQLITE_IOERR": "The disk fails or is full; see to it.",
    "SQLITE_NOTADB": "Name a store, or a new file.",
    "SQLITE_READONLY": "Name a file that you may write, in a folder that you may write.",
}
"""Beginning of SQLite's name for a fault -> what to do."""


class _SqliteTransaction:
    """What is written within the open transaction of a connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def add_events(self, events: Sequence[Event]) -> int:
        # Rows are made one by one, between SQLite's steps, in which other threads run.
        return self._connection.executemany(_ADD_EVENT, map(event_row, events)).rowcount if events else 0

    def write_items(self, changes: Sequence[ItemChange]) -> int:
        rows = ((item_id, features, item_id, removed) for item_id, features, removed in map(item_row, changes))
        self._connection.executemany(_WRITE_ITEM, rows)
        (last,) = self._connection.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence").fetchone()
        return int(last)


def _log(path: Path) -> Path:
    """The write-ahead log, which lies beside the file for as long as a process has it open, or where one was killed."""
    return path.with_name(f"{path.name}-wal")


def _state(path: Path) -> tuple[int, int, bool]:
    """What changes when a process opens the file or writes to it."""
    file = path.stat()
    return file.st_mtime_ns, file.st_size, _log(path).exists()


def _connect(path: Path, opening: str) -> sqlite3.Connection:
    """A connection that any thread may use, without Python's own transactions; `opening` is SQLite's way to say how."""
    place = f"{path.absolute().as_uri()}{opening}"
    connection = sqlite3.connect(place, uri=True, timeout=PATIENCE_S, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA fullfsync = ON")  # On macOS a flush is none without.
    connection.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT}")
    return connection


def _keep_log(connection: sqlite3.Connection) -> str:
    """Switch to the write-ahead log; gives what is kept then. Alone of all statements, it does not wait for a lock."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return str(connection.execute("PRAGMA journal_mode = WAL").fetchone()[0])
        except sqlite3.OperationalError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # After some faults SQLite has gone back already.
            connection.execute("ROLLBACK")
        raise
