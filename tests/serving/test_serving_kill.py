"""`kill -9` at any moment: what was acknowledged is there, once.

Run as a program, this file is the writer that is killed.
"""

import itertools
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from twotower.serving.store.contract import Event, ItemChange, open_store
from twotower.serving.store.writer import Writer

KILLS = 50
LATEST_S = 0.04
"""A kill comes so many seconds after the first acknowledgement, or sooner; one in five while the store is opened."""
UNDER_WAY = 16
"""Writes that wait at once."""
NOON = 1_700_000_000_000_000


def event(number: int) -> Event:
    return Event(event_id=f"e{number}", kind="interaction", user_id="7", item_id=f"i{number}", timestamp=NOON + number)


def item(number: int) -> ItemChange:
    """Of three items one is put, one put with features, one removed."""
    features: tuple[Any, ...] = ({}, {"number": number}, None)
    return ItemChange(item_id=f"i{number}", features=features[number % 3])


def write_until_killed(path: str, log: str) -> None:
    """Add events and items from the number on that comes on stdin, each told in the log once it is acknowledged."""
    told = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def tell(line: str, future: "Future[int]") -> None:
        future.result()
        os.write(told, f"{line}\n".encode())

    first = int(sys.stdin.readline())
    writer = Writer(open_store(path))
    waiting: set[Future[int]] = set()
    for number in itertools.count(first):
        for name, future in (
            ("event", writer.add_events([event(number)])),
            ("item", writer.write_items([item(number)])),
        ):
            future.add_done_callback(partial(tell, f"{name} {number}"))
            waiting.add(future)
        while len(waiting) > UNDER_WAY:
            waiting = wait(waiting, return_when=FIRST_COMPLETED).not_done


def begin(path: Path, log: Path) -> "subprocess.Popen[str]":
    """A writer that waits for its first number."""
    return subprocess.Popen([sys.executable, __file__, str(path), str(log)], stdin=subprocess.PIPE, text=True)


def acknowledged(log: Path) -> dict[str, list[int]]:
    """The numbers that were told of events and of items."""
    lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    return {kind: [int(number) for name, number in lines if name == kind] for kind in ("event", "item")}


def wait_for_growth(log: Path) -> None:
    """Return once something more was acknowledged, or half a minute has passed."""
    size = log.stat().st_size if log.exists() else 0
    end = time.monotonic() + 30
    while time.monotonic() < end and (log.stat().st_size if log.exists() else 0) <= size:
        time.sleep(0.001)


def check(path: Path, *, events: Sequence[int], items: Sequence[int]) -> None:
    """Refuse a store that lacks something acknowledged, or has it twice."""
    with closing(sqlite3.connect(path)) as plain:
        assert plain.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    store = open_store(str(path))
    times = Counter(row[0] for page in store.interactions(since=0) for row in page)
    assert [number for number in events if times[f"e{number}"] != 1] == []
    found = {write.item_id: write.features for write in store.items_after(0)}
    wrong = [number for number in items if found.get(f"i{number}", "absent") != item(number).features]
    assert wrong == []
    assert store.add_events([event(number) for number in events]) == 0  # Sent again, they count as sent again.
    store.close()


def test_fifty_kills_at_random_moments_lose_and_double_nothing_acknowledged(tmp_path: Path) -> None:
    generator = random.Random(0)
    path, log = tmp_path / "events.sqlite", tmp_path / "acknowledged"
    counts = []
    following = begin(path, log)
    for number in range(KILLS):
        told = acknowledged(log)
        first = max([0, *told["event"], *told["item"]]) + 1000  # Beyond what was under way when the last one ended.
        child, following = following, begin(path, log)  # The next one starts Python meanwhile.
        with child:
            assert child.stdin is not None
            child.stdin.write(f"{first}\n")
            child.stdin.flush()
            if number % 5:
                wait_for_growth(log)
            time.sleep(generator.uniform(0, LATEST_S))
            child.kill()
        assert child.returncode == -signal.SIGKILL
        told = acknowledged(log)
        counts.append(len(told["event"]))
        if path.exists():
            check(path, events=told["event"], items=told["item"])
    following.kill()
    following.communicate()
    assert len(set(counts)) >= KILLS * 4 / 5, "most kills fell between acknowledgements"


if __name__ == "__main__":
    write_until_killed(*sys.argv[1:])
