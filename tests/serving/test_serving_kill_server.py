"""`kill -9` of a whole server while clients write to it: what was acknowledged is there, once, and is answered with."""

import random
import sqlite3
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from twotower.serving.load.child import serving
from twotower.serving.recommender import Recommender
from twotower.serving.store.contract import open_store

CLIENTS, OWN = 4, 6
"""Clients that write at once, and items that each of them puts and removes: two of the bundle's, and new ones."""
LATEST_S = 0.25
"""A kill comes so many seconds after the first acknowledgement, or sooner."""
NOON = 1_700_000_000_000_000
SENT_AGAIN = 1_000
"""Events that are sent again at each start, drawn from all that were acknowledged; the server takes no more at once."""
Titles = dict[str, str | None]
"""Item -> its title; None where the item is not there."""


class Client:
    """Sends one write after the other until the server is gone, and knows what it was told of them."""

    def __init__(self, number: int, bundle: Titles) -> None:
        own = [f"i{2 * number}", f"i{2 * number + 1}", *(f"new {number} {place}" for place in range(OWN - 2))]
        self.number, self.writes, self.generator = number, 0, random.Random(number)
        self.events: list[dict[str, Any]] = []
        """All that were acknowledged."""
        self.items: Titles = {item_id: bundle.get(item_id) for item_id in own}
        """By what was acknowledged."""
        self.titles = {item_id: title or "never put" for item_id, title in self.items.items()}
        """The last title that each item had, removed or not."""
        self.sent_events: list[dict[str, Any]] = []
        self.sent_items: Titles = {}
        """Either of these, while its acknowledgement has not come."""

    def write(self, url: str) -> None:
        with httpx.Client(base_url=url, timeout=60) as api, suppress(httpx.TransportError):
            while True:
                self.writes += 1
                if self.generator.random() < 0.5:
                    self.sent_events = self._new_events()
                else:
                    self.sent_items = self._new_items()
                self.send(api)

    def settle(self, stored: Mapping[str, Any], titles: Titles) -> list[bool]:
        """Compare what was acknowledged with what is there, and learn whether the write under way is."""
        assert [event for event in self.events if stored.get(event["event_id"]) != event] == []
        held = {event["event_id"] in stored for event in self.sent_events}
        held |= {titles.get(each) == title for each, title in self.sent_items.items() if title != self.items[each]}
        assert len(held) <= 1, f"a part of a write is there: {self.sent_events or self.sent_items}"
        if held == {True}:
            self._acknowledge()
        assert self.items == {item_id: titles.get(item_id) for item_id in self.items}
        return list(held)

    def send(self, api: httpx.Client) -> None:
        """Send what was not acknowledged, as a client does again that wants to be sure."""
        if self.sent_events:
            assert send_events(api, self.sent_events) == (len(self.sent_events), 0)
        elif self.sent_items:
            put = {item_id: {"title": title} for item_id, title in self.sent_items.items() if title}
            items = [{"item_id": item_id, "features": features} for item_id, features in put.items()]
            method, body = ("PUT", {"items": items}) if put else ("DELETE", {"item_ids": list(self.sent_items)})
            answer = api.request(method, "/v1/items", json=body)
            assert answer.status_code == 200, answer.text
            assert answer.json()["written"] == len(self.sent_items)
        self._acknowledge()

    def _new_events(self) -> list[dict[str, Any]]:
        return [
            {
                "event_id": f"{self.number} {self.writes} {place}",
                "user_id": f"u{self.number}",
                "item_id": f"i{self.generator.randrange(40)}",
                "timestamp": NOON + self.writes,
            }
            for place in range(self.generator.randint(1, 5))
        ]

    def _new_items(self) -> Titles:
        chosen = self.generator.sample(list(self.items), self.generator.randint(1, 3))
        is_put = self.generator.random() < 0.6
        return {item_id: f"{item_id}, version {self.writes}" if is_put else None for item_id in chosen}

    def _acknowledge(self) -> None:
        self.events += self.sent_events
        self.items |= self.sent_items
        self.titles |= {item_id: title for item_id, title in self.sent_items.items() if title}
        self.sent_events, self.sent_items = [], {}


def send_events(api: httpx.Client, events: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """How many were accepted, and how many were there already."""
    answer = api.post("/v1/events", json={"events": events})
    assert answer.status_code == 200, answer.text
    return answer.json()["accepted"], answer.json()["duplicates"]


def check_store(path: Path, clients: Sequence[Client], bundle: Titles) -> list[bool]:
    """Refuse a store that lacks something acknowledged, has it twice, or has what nobody sent.

    Returns: For each write that was under way when the server was killed, whether the store has it.
    """
    with closing(sqlite3.connect(path)) as plain:
        assert plain.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    with closing(open_store(str(path))) as store:
        rows = [row for page in store.interactions(since=0) for row in page]
        titles = bundle | {each.item_id: (each.features or {}).get("title") for each in store.items_after(0)}
    assert [event_id for event_id, times in Counter(row[0] for row in rows).items() if times > 1] == []
    names = ("event_id", "user_id", "item_id", "timestamp")
    stored = {row[0]: dict(zip(names, row[:4], strict=True)) for row in rows}
    outcomes = [outcome for client in clients for outcome in client.settle(stored, titles)]
    assert len(stored) == sum(len(client.events) for client in clients)
    return outcomes


def check_answers(api: httpx.Client, clients: Sequence[Client], bundle: Titles) -> None:
    """Refuse a server that answers with other items than were acknowledged, or with another state of them."""
    listed = api.post("/v1/recommend", json={"k": 1000, "exclude_seen": False}).json()["items"]
    wanted = dict(bundle)
    for client in clients:
        wanted |= client.items
    assert {item["item_id"]: item["title"] for item in listed} == {
        each: title for each, title in wanted.items() if title
    }
    own = [(item_id, client.titles[item_id], title) for client in clients for item_id, title in client.items.items()]
    requests = [{"user_id": "u3", "exclude_seen": False, "filter": f'title == "{last}"'} for _, last, _ in own]
    answers = api.post("/v1/recommend:batch", json={"requests": requests}).json()["responses"]
    for (item_id, _, title), answer in zip(own, answers, strict=True):
        assert [item["item_id"] for item in answer["items"]] == ([item_id] if title else [])


def kill_again_and_again(bundle: Path, path: Path, *, kills: int) -> list[bool]:
    """Kill a server so often, look at each start what is there, and tell of each write under way whether it was."""
    generator = random.Random(0)
    titles: Titles = {item.item_id: item.title for item in Recommender.load(bundle).recommend(k=1000).items}
    clients = [Client(number, titles) for number in range(CLIENTS)]
    outcomes = []
    for number in range(kills + 1):
        with serving(bundle, "--store", str(path)) as child, httpx.Client(base_url=child.url, timeout=60) as api:
            outcomes += check_store(path, clients, titles)
            check_answers(api, clients, titles)
            sent = [event for client in clients for event in client.events]
            for again in [generator.sample(sent, min(len(sent), SENT_AGAIN))] if number < kills else blocks(sent):
                assert not again or send_events(api, again) == (0, len(again))
            for client in clients:
                client.send(api)
            if number == kills:
                break
            with ThreadPoolExecutor(CLIENTS) as pool:
                try:
                    running = [pool.submit(client.write, child.url) for client in clients]
                    wait_for_acknowledgement(clients)
                    time.sleep(generator.uniform(0, LATEST_S))
                finally:
                    child.process.kill()
            assert [each.result() for each in running] == [None] * CLIENTS
    return outcomes


def blocks(events: Sequence[dict[str, Any]]) -> list[Sequence[dict[str, Any]]]:
    return [events[start : start + SENT_AGAIN] for start in range(0, len(events), SENT_AGAIN)]


def wait_for_acknowledgement(clients: Sequence[Client]) -> None:
    """Return once something more was acknowledged, or half a minute has passed."""
    before, end = sum(client.writes for client in clients), time.monotonic() + 30
    while time.monotonic() < end and sum(client.writes for client in clients) <= before + CLIENTS:
        time.sleep(0.001)


def test_a_server_killed_while_it_writes_has_all_that_it_acknowledged_once(
    bundle_directory: Path, tmp_path: Path
) -> None:
    outcomes = kill_again_and_again(bundle_directory, tmp_path / "serving.db", kills=4)
    assert outcomes, "no write was under way when the server was killed"


@pytest.mark.slow
def test_fifty_kills_of_a_server_lose_and_double_nothing(bundle_directory: Path, tmp_path: Path) -> None:
    outcomes = kill_again_and_again(bundle_directory, tmp_path / "serving.db", kills=50)
    assert len(outcomes) >= 50, "most kills met no write under way"
