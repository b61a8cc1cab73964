"""The contract of both kinds of store, and what SQLite's own file has to say."""

import json
import resource
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twotower.errors import BusyError, RequestError, StorageError
from twotower.serving.store.contract import Event, ItemChange, ItemWrite, Met, Store, Transaction, open_store
from twotower.serving.store.writer import Writer

NOON = 1_700_000_000_000_000


def event(number: int, **changed: Any) -> Event:
    """The interaction of user 7 with item `i<number>`, so many microseconds after noon."""
    made = Event(event_id=f"e{number}", kind="interaction", user_id="7", item_id=f"i{number}", timestamp=NOON + number)
    return replace(made, **changed)


def put(item_id: str, **features: Any) -> ItemChange:
    return ItemChange(item_id=item_id, features=features)


def remove(item_id: str) -> ItemChange:
    return ItemChange(item_id=item_id, features=None)


def items_of(store: Store, *, after: int = 0) -> list[str]:
    return [each.item_id for each in store.history("7", after=after, limit=100)]


def event_ids(store: Store, *, since: int = 0) -> list[str]:
    return [row[0] for page in store.interactions(since=since) for row in page]


@pytest.fixture(params=["sqlite", "postgres"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a new store is to be."""
    if request.param == "sqlite":
        return str(tmp_path / "events.sqlite")
    new_database: Callable[[], str] = request.getfixturevalue("new_database")
    return new_database()


@pytest.fixture
def store(uri: str) -> Iterator[Store]:
    opened = open_store(uri)
    yield opened
    opened.close()


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(str(tmp_path / "events.sqlite"))
    yield opened
    opened.close()


def test_an_event_counts_once_however_often_it_is_sent(store: Store) -> None:
    assert store.add_events([event(1), event(2), event(1)]) == 2
    assert store.add_events([event(2), event(3, event_id="e1"), event(4)]) == 1
    assert items_of(store) == ["i1", "i2", "i4"]  # The first to come under an id stays.


def test_a_history_holds_the_latest_interactions_oldest_first(store: Store) -> None:
    store.add_events([event(3), event(1, labels={"rating": 4.5}), event(2), event(9, user_id="8")])
    store.add_events([event(4, kind="impression"), event(5, timestamp=NOON + 3)])
    assert store.history("7", after=NOON, limit=10) == [
        Met(item_id="i1", timestamp=NOON + 1, labels={"rating": 4.5}),
        Met(item_id="i2", timestamp=NOON + 2, labels={}),
        Met(item_id="i3", timestamp=NOON + 3, labels={}),
        Met(item_id="i5", timestamp=NOON + 3, labels={}),  # Of one moment, in the order in which they came.
    ]
    assert [met.item_id for met in store.history("7", after=NOON, limit=2)] == ["i3", "i5"]
    assert items_of(store, after=NOON + 2) == ["i3", "i5"]
    assert store.history("nobody", after=0, limit=10) == []


def test_what_was_written_is_there_after_opening_again(uri: str) -> None:
    first = open_store(uri)
    first.add_events([event(1)])
    first.write_items([put("a", year=1999)])
    first.close()
    again = open_store(uri, must_exist=True)
    assert items_of(again) == ["i1"]
    assert again.add_events([event(1)]) == 0
    assert again.items_after(0) == [ItemWrite(sequence=1, item_id="a", features={"year": 1999})]
    again.close()


def test_of_an_item_the_latest_write_is_kept_and_sequences_only_grow(store: Store) -> None:
    assert store.items_after(0) == []
    first = store.write_items([put("a", year=1999, genres=["x", "y"]), put("b"), remove("c")])
    a, b, c = store.items_after(0)
    assert [a.features, b.features, c.features] == [{"year": 1999, "genres": ["x", "y"]}, {}, None]
    assert 0 < a.sequence < b.sequence < c.sequence == first
    last = store.write_items([remove("a"), put("a", year=2000), remove("b")])
    assert [(each.item_id, each.features) for each in store.items_after(first)] == [("a", {"year": 2000}), ("b", None)]
    assert store.items_after(last) == []
    assert last > first


def test_the_last_features_of_a_removed_item_are_still_told(store: Store) -> None:
    store.write_items([put("a", year=1999), remove("a"), remove("b"), put("c")])
    last, pages = store.items()
    rows = {item_id: json.loads(features) for page in pages for item_id, features in page}
    assert rows == {"a": {"year": 1999}, "c": {}}
    assert last == store.items_after(0)[-1].sequence


def test_items_put_up_to_a_write_can_be_forgotten_and_no_sequence_comes_again(store: Store) -> None:
    store.write_items([put("a"), remove("b")])
    last = store.write_items([put("c")])
    assert store.prune_items(until=last) == 2
    assert [(each.item_id, each.features) for each in store.items_after(0)] == [("b", None)]
    assert store.write_items([put("d")]) > last


def test_all_interactions_are_told_in_pages_in_the_order_of_their_coming(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("sqlite", "postgres"):
        monkeypatch.setattr(f"twotower.serving.store.{module}.PAGE", 2)
    store.add_events([event(number) for number in (5, 3, 4)])
    store.add_events([event(9, kind="impression"), event(1, labels={"a": 1}, context={"device": "tv", "days": [1, 2]})])
    pages = list(store.interactions(since=0))
    assert [[row[0] for row in page] for page in pages] == [["e5", "e3"], ["e4", "e1"]]
    assert pages[1][1] == ("e1", "7", "i1", NOON + 1, '{"a":1}', '{"device":"tv","days":[1,2]}')
    assert event_ids(store, since=NOON + 4) == ["e5", "e4"]


def test_events_of_before_a_moment_can_be_removed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("sqlite", "postgres"):
        monkeypatch.setattr(f"twotower.serving.store.{module}.PAGE", 2)
    store.add_events([event(number) for number in (5, 3, 4, 1)] + [event(2, kind="impression")])
    assert store.prune_events(before=NOON + 4) == 3
    assert event_ids(store) == ["e5", "e4"]
    assert store.prune_events(before=NOON + 4) == 0
    assert store.prune_events(before=NOON + 9) == 2
    assert store.prune_events(before=NOON + 9) == 0
    assert store.add_events([event(6)]) == 1


def test_any_text_comes_back_as_it_went_in(store: Store) -> None:
    odd = "ä'\"; DROP TABLE events --  %s ? \t\n \U0001f3ac " + "x" * 1000
    store.add_events([event(1, event_id=odd, user_id=odd, item_id=odd, labels={odd: 0.1}, context={odd: odd})])
    assert store.history(odd, after=0, limit=5) == [Met(item_id=odd, timestamp=NOON + 1, labels={odd: 0.1})]
    store.write_items([put(odd, **{odd: odd})])
    assert store.items_after(0)[0].features == {odd: odd}
    ((row,),) = store.interactions(since=0)
    assert json.loads(row[5] or "") == {odd: odd}


def test_work_that_fails_leaves_nothing_and_the_store_goes_on(store: Store) -> None:
    def half(transaction: Transaction) -> None:
        transaction.add_events([event(1)])
        transaction.write_items([put("a")])
        raise RequestError("no")

    with pytest.raises(RequestError, match="no"):
        store.write(half)
    assert (items_of(store), store.items_after(0)) == ([], [])
    assert store.add_events([event(1)]) == 1


@settings(max_examples=25)
@given(sent=st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), max_size=6), max_size=6))
def test_acknowledged_counts_add_up_to_the_distinct_ids(sent: list[list[tuple[int, int]]]) -> None:
    known: set[int] = set()
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(f"{folder}/events.sqlite")
        for each in sent:
            before = len(known)
            known |= {number for number, _ in each}
            count = store.add_events([event(number, timestamp=NOON + when) for number, when in each])
            assert count == len(known) - before
        assert sorted(items_of(store)) == sorted(f"i{number}" for number in known)
        assert items_of(store, after=NOON + 3) == []
        store.close()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"event_id": ""}, "event_id: empty"),
        ({"user_id": "a\0b"}, "user_id: holds a NUL"),
        ({"item_id": "\ud83d"}, "item_id: holds a NUL or half a surrogate pair"),
        ({"request_id": "\udc00"}, "request_id: holds"),
        ({"timestamp": 1_700_000_000}, None),
        ({"timestamp": 1 << 53}, "timestamp: .* outside of the years 1900 to 2200"),
        ({"labels": {"rating": float("nan")}}, "labels.rating: nan is no number"),
        ({"labels": {"positive": 1}}, "labels.positive: the name is one of ours"),
        ({"context": {"event_id": 1}}, "context.event_id: the name is one of ours"),
        ({"context": {"": 1}}, "context: empty"),
        ({"context": {"a": [1, float("inf")]}}, "context.a: inf is no number"),
        ({"context": {"a": {"b": 1}}}, "context.a: neither text nor number"),
        ({"context": {"a": [None, True, 1.5, "x"]}}, None),
    ],
)
def test_an_event_that_the_next_training_could_not_read_is_refused(changed: dict[str, Any], told: str | None) -> None:
    if told is None:
        assert event(1, **changed).user_id == "7"
        return
    with pytest.raises(RequestError, match=told):
        event(1, **changed)


def test_an_item_that_no_table_could_hold_is_refused() -> None:
    for features, told in (({"item_id": 1}, "stands beside"), ({"a": "\0"}, "NUL"), ({"a": float("nan")}, "no number")):
        with pytest.raises(RequestError, match=told):
            ItemChange(item_id="a", features=features)
    with pytest.raises(RequestError, match="item_id: empty"):
        remove("")


def test_a_read_does_not_wait_for_a_transaction_and_sees_none_of_it(sqlite: Store) -> None:
    def look(transaction: Transaction) -> list[str]:
        transaction.add_events([event(1)])
        return items_of(sqlite)

    assert sqlite.write(look) == []
    assert items_of(sqlite) == ["i1"]


def test_a_history_is_up_to_date_in_the_midst_of_a_longer_read(store: Store) -> None:
    store.add_events([event(1)])
    pages = store.interactions(since=0)
    assert [row[0] for row in next(pages)] == ["e1"]
    store.add_events([event(2)])
    assert items_of(store) == ["i1", "i2"]
    assert list(pages) == []


ADD = """
import sys
from twotower.serving.store.contract import Event, open_store

for address, number in zip(sys.argv[1::2], map(int, sys.argv[2::2])):
    store = open_store(address)
    store.add_events([Event(event_id=f"e{number}", kind="interaction", user_id="7", item_id="1", timestamp=number)])
    store.close()
"""


def begin(program: str, *arguments: object) -> "subprocess.Popen[str]":
    """Run a program in another process: one with no thread of ours, and none of their locks."""
    return subprocess.Popen([sys.executable, "-c", program, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


def test_two_processes_may_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    writers = [begin(ADD, *(told for number in range(part, 200, 2) for told in (path, number))) for part in (0, 1)]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert sorted(event_ids(open_store(str(path)))) == sorted(f"e{number}" for number in range(200))


def test_an_acknowledged_write_was_flushed_to_the_disk(sqlite: Store) -> None:
    # Nothing short of cutting the power shows it; this is the setting that SQLite promises it for.
    (full,) = sqlite.write(lambda transaction: transaction._connection.execute("PRAGMA synchronous").fetchone())
    assert full == 2


def test_processes_that_make_one_store_at_once_share_it(tmp_path: Path) -> None:
    stores = [tmp_path / f"{place}.sqlite" for place in range(5)]
    makers = [begin(ADD, *(told for store in stores for told in (store, number))) for number in range(4)]
    assert [maker.wait() for maker in makers] == [0] * 4
    assert [len(event_ids(open_store(str(store)))) for store in stores] == [4] * 5


def test_a_writer_that_holds_the_file_for_long_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twotower.serving.store.sqlite.PATIENCE_S", 0.05)
    store = open_store(str(tmp_path / "events.sqlite"))
    other = sqlite3.connect(tmp_path / "events.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageError, match=r"events.sqlite: database is locked. Another process has been writing"):
        store.add_events([event(1)])
    other.execute("ROLLBACK")
    assert store.add_events([event(1)]) == 1


@contextmanager
def no_room(size: int) -> Iterator[None]:
    """Nothing of this process may write a file beyond so many bytes: the disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_where_the_disk_is_full_nothing_is_acknowledged_and_room_mends_it(sqlite: Store) -> None:
    large = [event(number, context={"text": "x" * 1000}) for number in range(1000)]
    sqlite.add_events([event(5000)])
    with no_room(200_000), pytest.raises(StorageError, match=r"events.sqlite: .*disk"):
        sqlite.add_events(large)
    assert event_ids(sqlite) == ["e5000"]
    assert sqlite.add_events(large) == 1000


def test_what_is_no_store_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("This is no database, and long enough to be looked at. " * 9)
    with sqlite3.connect(tmp_path / "other.sqlite") as other:
        other.execute("CREATE TABLE theirs (x)")
    open_store(str(tmp_path / "newer.sqlite")).close()
    with sqlite3.connect(tmp_path / "newer.sqlite") as newer:
        newer.execute("PRAGMA user_version = 2")
    for name, told in {
        "text": "file is not a database. Name a store, or a new file.",
        "other.sqlite": "a SQLite database of something else. Name another file.",
        "newer.sqlite": "format version 2, this release reads 1. Use the release that made the store.",
        "no/folder.sqlite": "unable to open database file. Name a file in a folder that is there",
        ".": "unable to open database file. Name a file",
    }.items():
        with pytest.raises(StorageError) as refused:
            open_store(str(tmp_path / name))
        assert str(refused.value).startswith(f"{tmp_path / name}: {told}")
        assert "\n" not in str(refused.value)
    assert (tmp_path / "text").read_text().startswith("This is no database")


OPEN = """
import os
import sys
from twotower.errors import StorageError
from twotower.serving.store import sqlite  # All that is imported: nobody else may read this Python, maybe.
from twotower.serving.store.contract import open_store

if os.getuid() == 0:  # Root may write whatever the rights say.
    os.setuid(65534)
for path in sys.argv[1:]:
    try:
        open_store(path)
    except StorageError as refused:
        print(refused)
"""


def test_a_file_or_folder_that_may_not_be_written_is_refused() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.sqlite"
        open_store(str(path)).close()
        path.chmod(0o444)
        Path(folder).chmod(0o555)
        old, new = begin(OPEN, path, f"{folder}/new.sqlite").communicate()[0].splitlines()
        Path(folder).chmod(0o755)
    assert old.startswith(f"{path}: attempt to write a readonly database. Name a file that you may write")
    assert new.startswith(f"{folder}/new.sqlite: unable to open database file. Name a file in a folder")


def test_a_store_can_be_named_by_path_or_address_and_no_other_is_known(tmp_path: Path) -> None:
    open_store(f"sqlite:///{tmp_path}/events.sqlite").add_events([event(1)])
    assert items_of(open_store(str(tmp_path / "events.sqlite"), must_exist=True)) == ["i1"]
    with pytest.raises(StorageError, match=r"^mysql://\.\.\.: no kind of store") as refused:
        open_store("mysql://me:s3cret@host/films")
    assert "s3cret" not in str(refused.value)
    with pytest.raises(StorageError, match=r"absent.sqlite: no such store"):
        open_store(str(tmp_path / "absent.sqlite"), must_exist=True)
    assert not (tmp_path / "absent.sqlite").exists()


class Gate:
    """Holds a writer's thread within a transaction until it is opened."""

    def __init__(self, writer: Writer) -> None:
        self._open, is_held = threading.Event(), threading.Event()

        def hold(transaction: Transaction) -> None:
            is_held.set()
            self._open.wait()

        writer.submit(hold, size=0)
        is_held.wait()

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def writer(store: Store) -> Iterator[Writer]:
    made = Writer(store)
    yield made
    made.close()


def test_all_that_waits_is_written_by_one_transaction(store: Store, writer: Writer) -> None:
    gate = Gate(writer)
    counts = [writer.add_events([event(number), event(number + 1)]) for number in range(50)]
    seen = writer.submit(lambda transaction: items_of(store), size=0)
    gate.open()
    assert [count.result() for count in counts] == [2, *[1] * 49]
    assert seen.result() == []  # The last of them could not yet see the first.
    assert len(items_of(store)) == 51


def test_a_write_that_cannot_be_done_fails_alone(store: Store, writer: Writer) -> None:
    def faulty(transaction: Transaction) -> int:
        transaction.add_events([event(99)])
        raise RequestError("no such thing")

    gate = Gate(writer)
    before, fault, after = (
        writer.add_events([event(1)]),
        writer.submit(faulty, size=1),
        writer.write_items([put("a"), remove("b")]),
    )
    gate.open()
    assert before.result() == 1
    with pytest.raises(RequestError, match="no such thing"):
        fault.result()
    last = after.result()
    assert store.items_after(0)[-1].sequence == last
    assert items_of(store) == ["i1"]


def test_a_full_disk_fails_those_under_way_and_no_later_one(sqlite: Store) -> None:
    writer = Writer(sqlite)
    large = [event(number, context={"text": "x" * 1000}) for number in range(1000)]
    gate = Gate(writer)
    failing = [writer.add_events([event(5000)]), writer.add_events(large)]
    with no_room(200_000):
        gate.open()
        wait(failing)
    assert [type(future.exception()) for future in failing] == [StorageError, StorageError]
    assert event_ids(sqlite) == []
    assert writer.add_events([event(5000)]).result() == 1
    writer.close()


def test_a_queue_that_is_full_takes_no_more_until_it_is_written(sqlite: Store) -> None:
    writer = Writer(sqlite, most_waiting=3)
    gate = Gate(writer)
    taken = writer.add_events([event(number) for number in range(3)])
    with pytest.raises(BusyError, match=r"events.sqlite: 3 writes wait for the disk. Send it again later."):
        writer.add_events([event(3)])
    gate.open()
    assert taken.result() == 3
    assert (
        writer.add_events([event(number) for number in range(10)]).result() == 7
    )  # However large, the first one goes.
    writer.close()


def test_closing_writes_what_waits_and_takes_no_more(sqlite: Store) -> None:
    writer = Writer(sqlite)
    gate = Gate(writer)
    waiting = [writer.add_events([event(number)]) for number in range(20)]
    gate.open()
    writer.close()
    assert [future.result(timeout=0) for future in waiting] == [1] * 20
    with pytest.raises(BusyError, match="closing"):
        writer.add_events([event(21)])
    writer.close()


def test_what_nobody_waits_for_any_more_is_not_written(sqlite: Store) -> None:
    writer = Writer(sqlite)
    gate = Gate(writer)
    given_up, other = writer.add_events([event(1)]), writer.add_events([event(2)])
    assert given_up.cancel()
    gate.open()
    assert other.result() == 1
    assert event_ids(sqlite) == ["e2"]
    writer.close()
