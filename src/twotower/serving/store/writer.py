"""One thread that writes for an event loop: whatever waits goes to disk together, by one transaction."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from twotower.errors import BusyError, StorageError
from twotower.serving.store.contract import Event, ItemChange, Store, Transaction

MOST_WAITING = 50_000
"""Events and items that may wait: some hundred megabytes at the very most."""
MOST_AT_ONCE = 5_000
"""Events and items in one transaction, which bounds how long each of them waits for the others."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Waiting:
    """Work that somebody waits for."""

    work: Callable[[Transaction], Any]
    size: int
    future: "Future[Any]"


class Writer:
    """Takes writes without waiting; each one's future is done when it is on disk, or has failed.

    One flush of the disk serves all that came in during the last one, so that many small writes cost little more than
    one. A write that cannot be done fails alone; where the store itself cannot be written, all of its transaction fail.
    """

    def __init__(self, store: Store, *, most_waiting: int = MOST_WAITING) -> None:
        """Begin to write.

        Args:
            store: Nobody else of this process writes to it meanwhile.
            most_waiting: Events and items that may wait.
        """
        self._store = store
        self._most = most_waiting
        self._queue: deque[_Waiting] = deque()
        self._size = 0
        self._is_closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="twotower-writer", daemon=True)
        self._thread.start()

    def add_events(self, events: Sequence[Event]) -> "Future[int]":
        """Add events; the future gives how many were new.

        Raises:
            BusyError: too much waits already, or the writer is closing.
        """
        return self.submit(lambda transaction: transaction.add_events(events), size=len(events))

    def write_items(self, changes: Sequence[ItemChange]) -> "Future[int]":
        """Put and remove items; the future gives the sequence of the last write.

        Raises:
            BusyError: too much waits already, or the writer is closing.
        """
        return self.submit(lambda transaction: transaction.write_items(changes), size=len(changes))

    def submit(self, work: Callable[[Transaction], T], *, size: int) -> "Future[T]":
        """Do some work within a transaction; it may be done twice, of which one is undone.

        Args:
            work: What to do.
            size: How many events or items it writes.

        Raises:
            BusyError: too much waits already, or the writer is closing.
        """
        future: Future[T] = Future()
        with self._changed:
            if self._is_closing:
                raise BusyError(f"{self._store.name}: the server is closing. Send it again.")
            if self._queue and self._size + size > self._most:
                raise BusyError(f"{self._store.name}: {self._size} writes wait for the disk. Send it again later.")
            self._queue.append(_Waiting(work=work, size=size, future=future))
            self._size += size
            self._changed.notify()
        return future

    def close(self) -> None:
        """Write all that waits, then end; a second call does nothing. The store stays open."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while group := self._next():
            self._commit([each for each in group if each.future.set_running_or_notify_cancel()])

    def _next(self) -> list[_Waiting]:
        """What is to be written together, once there is something; nothing at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._is_closing)
            group: list[_Waiting] = []
            size = 0
            while self._queue and (not group or size + self._queue[0].size <= MOST_AT_ONCE):
                group.append(self._queue.popleft())
                size += group[-1].size
            self._size -= size
            return group

    def _commit(self, group: Sequence[_Waiting]) -> None:
        try:
            results = self._store.write(lambda transaction: [each.work(transaction) for each in group])
        except StorageError as fault:
            for each in group:
                each.future.set_exception(fault)
        except Exception as fault:  # noqa: BLE001 - whoever waits for the work gets it
            if len(group) == 1:
                group[0].future.set_exception(fault)
            else:  # One of them cannot be done; the others shall not suffer from it.
                for each in group:
                    self._commit([each])
        else:
            for each, result in zip(group, results, strict=True):
                each.future.set_result(result)
