"""What only PostgreSQL does: connections that are lost, several servers at once, rights and secrets.

That it fulfils the contract of a store is shown in `test_serving_store.py`.
"""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from twotower.errors import StorageError
from twotower.serving.store import postgres as postgres_store
from twotower.serving.store.contract import Event, ItemChange, Store, Transaction, open_store
from twotower.serving.store.writer import Writer

NOON = 1_700_000_000_000_000


@pytest.fixture
def uri(new_database: Callable[[], str]) -> str:
    return new_database()


@pytest.fixture
def store(uri: str) -> Iterator[Store]:
    opened = open_store(uri)
    yield opened
    opened.close()


def event(number: int) -> Event:
    return Event(event_id=f"e{number}", kind="interaction", user_id="7", item_id=f"i{number}", timestamp=NOON + number)


def items_of(store: Store) -> list[str]:
    return [met.item_id for met in store.history("7", after=0, limit=100)]


def end_connections(uri: str) -> None:
    """Let the database hang up on all the others."""
    with psycopg.connect(uri, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


def test_a_connection_that_was_lost_is_made_anew(store: Store, uri: str) -> None:
    store.add_events([event(1)])
    assert items_of(store) == ["i1"]
    end_connections(uri)
    assert items_of(store) == ["i1"]
    assert store.add_events([event(1), event(2)]) == 1


def test_a_connection_that_is_lost_within_a_transaction_does_the_work_again(store: Store, uri: str) -> None:
    tries = []

    def work(transaction: Transaction) -> int:
        tries.append(transaction)
        count = transaction.add_events([event(1)])
        if len(tries) == 1:
            end_connections(uri)
        return count

    assert store.write(work) == 1
    assert (len(tries), items_of(store)) == (2, ["i1"])


def test_a_server_that_falls_over_loses_nothing_acknowledged_and_is_found_again(
    postgres: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Writer(store)
    assert writer.add_events([event(1)]).result() == 1
    postgres.stop()
    try:
        lost = writer.add_events([event(2)]).exception()
        with pytest.raises(StorageError, match=r"connection failed|connection to server"):
            store.history("7", after=0, limit=9)
        with pytest.raises(StorageError, match="could not be reached a moment ago") as again:
            store.history("7", after=0, limit=9)
    finally:
        postgres.start()
    assert isinstance(lost, StorageError)
    assert "s3cret" not in f"{lost} {again.value}"
    monkeypatch.setattr(postgres_store, "PAUSE_S", 0.0)
    assert writer.add_events([event(1), event(2)]).result() == 1
    assert items_of(store) == ["i1", "i2"]
    writer.close()


def test_servers_that_start_at_once_share_one_store(uri: str) -> None:
    together = threading.Barrier(4)

    def start(number: int) -> int:
        together.wait()
        store = open_store(uri)
        count = store.add_events([event(number % 2)])
        store.close()
        return count

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(start, range(4))) == 2


def test_servers_that_take_the_same_events_in_another_order_do_not_stop_each_other(store: Store, uri: str) -> None:
    other = open_store(uri)
    met = threading.Barrier(2)
    tries: list[int] = []

    def crosswise(first: int, second: int) -> Callable[[Transaction], int]:
        def work(transaction: Transaction) -> int:
            tries.append(first)
            count = transaction.add_events([event(first)])
            if len(tries) <= 2:
                met.wait()
            return count + transaction.add_events([event(second)])

        return work

    with ThreadPoolExecutor(2) as pool:
        one, two = pool.submit(store.write, crosswise(1, 2)), pool.submit(other.write, crosswise(2, 1))
        assert sorted([one.result(), two.result()]) == [0, 2]
    assert len(tries) == 3  # PostgreSQL broke the knot by one of them, which came again.
    assert items_of(store) == ["i1", "i2"]
    other.close()


def test_who_reads_item_writes_on_from_the_last_one_misses_none(store: Store, uri: str) -> None:
    other = open_store(uri)
    is_written, go_on = threading.Event(), threading.Event()

    def slow(transaction: Transaction) -> int:
        sequence = transaction.write_items([ItemChange(item_id="a", features={})])
        is_written.set()
        go_on.wait()
        return sequence

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(store.write, slow)
        is_written.wait()
        second = pool.submit(other.write_items, [ItemChange(item_id="b", features={})])
        seen = other.items_after(0)  # Not "b", as long as "a" may still come before it.
        go_on.set()
        assert (seen, first.result() < second.result()) == ([], True)
    assert [write.item_id for write in other.items_after(0)] == ["a", "b"]
    other.close()


def test_what_is_acknowledged_is_on_disk_whatever_the_habit_of_the_database(postgres: Any, uri: str) -> None:
    name = uri.rpartition("/")[2].partition("?")[0]
    postgres.sql(f"ALTER DATABASE {name} SET synchronous_commit TO off")
    with psycopg.connect(uri) as plain:
        assert plain.execute("SHOW synchronous_commit").fetchone() == ("off",)
    store = open_store(uri)
    assert store.write(lambda transaction: transaction._connection.execute("SHOW synchronous_commit").fetchone()) == (
        "on",
    )
    store.close()


def test_one_who_may_not_make_tables_uses_those_that_are_there(store: Store, postgres: Any, uri: str) -> None:
    name = uri.rpartition("/")[2].partition("?")[0]
    postgres.sql(
        f"CREATE ROLE of_{name} LOGIN; GRANT SELECT, INSERT ON twotower_store, twotower_events TO of_{name}",
        database=name,
    )
    plain = open_store(uri.replace("tester", f"of_{name}"))
    assert plain.add_events([event(1)]) == 1
    with pytest.raises(StorageError, match=r"postgresql://.*permission denied for table twotower_items"):
        plain.write_items([ItemChange(item_id="a", features=None)])
    assert plain.add_events([event(2)]) == 1
    plain.close()


def test_a_store_that_is_opened_for_reading_is_read_and_not_written(store: Store, uri: str) -> None:
    store.add_events([event(1)])
    reading = open_store(uri, read_only=True)
    assert [len(page) for page in reading.interactions(since=0)] == [1]
    with pytest.raises(StorageError, match="read-only"):
        reading.add_events([event(2)])
    reading.close()


def test_what_is_no_store_or_a_newer_one_is_refused(uri: str) -> None:
    with pytest.raises(StorageError, match=r"holds no store\. Name the address that"):
        open_store(uri, must_exist=True)
    open_store(uri).close()
    open_store(uri, must_exist=True).close()
    with psycopg.connect(uri) as connection:
        connection.execute("UPDATE twotower_store SET format = 2")
    with pytest.raises(StorageError, match="format version 2, this release reads 1"):
        open_store(uri)


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://me:s3cret@127.0.0.1:1/films",
        "postgres://me:s3?cret@127.0.0.1:1/films",
        "postgresql://me:s3%cret@127.0.0.1/films",
        "postgresql://me:s3cret@127.0.0.1:port/films",
        "postgresql:///films?host=127.0.0.1&port=1&password=s3cret&user=me@s3cret",
        "postgresql://127.0.0.1/films?s3cret=1",
        "postgresql://me:s3cret@[::1/films",
    ],
)
def test_no_message_shows_a_secret_and_each_is_one_line(address: str) -> None:
    with pytest.raises(StorageError) as refused:
        open_store(address)
    told = str(refused.value)
    assert told.startswith("postgresql://")
    assert ("s3" in told, "cret" in told, "\n" in told) == (False, False, False)


def test_without_the_client_the_command_that_installs_it_is_told() -> None:
    code = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from twotower.errors import MissingExtraError\n"
        "from twotower.serving.store.contract import open_store\n"
        "try:\n    open_store('postgresql://me:s3cret@host/films')\n"
        "except MissingExtraError as fault:\n    print(fault)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert 'pip install "twotower[postgres]"' in told
    assert "s3cret" not in told
