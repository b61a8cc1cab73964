"""`twotower.client` against a real server, and against one that plays a busy or a broken one."""

import dataclasses
import json
import math
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from twotower import client as client_module
from twotower.client import Client, ClientError, Event, Query
from twotower.serving.recommender import Recommender

KEY = "tt_caf\u00e9"
DOCUMENT = json.loads((Path(__file__).parents[2] / "docs" / "openapi.json").read_text(encoding="utf-8"))
SCHEMAS = DOCUMENT["components"]["schemas"]


@pytest.fixture(scope="module")
def server(bundle_directory: Path, start_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    store = tmp_path_factory.mktemp("client") / "events.db"
    with start_server(bundle_directory, "--store", str(store), keys={"TWOTOWER_API_KEY": KEY}) as started:
        yield started


@pytest.fixture
def client(server: Any) -> Iterator[Client]:
    with Client(server.url, f"{KEY}\n", timeout=60) as opened:
        yield opened


def test_an_answer_is_the_recommender_s_own(client: Client, recommender: Recommender) -> None:
    answer = client.recommend("u3", k=4, exclude=["i1"], explain=True)
    expected = recommender.recommend("u3", k=4, exclude=["i1"], explain=True)
    assert [dataclasses.asdict(item) for item in answer.items] == [dataclasses.asdict(item) for item in expected.items]
    assert answer.items[0].explanation is not None
    assert answer.items[0].explanation.because
    assert (answer.bundle, answer.variant, answer.fallback) == (recommender.bundle.id, "main", None)
    assert answer.timings_ms["total"] > 0


def test_every_argument_reaches_the_server(client: Client) -> None:
    assert client.recommend().fallback == "popular"
    some = client.recommend(history=["i1", "i2"], k=3, filter='title != "Film 3"', context={"age": 30.0})
    assert len(some.items) == 3
    assert {"i1", "i2", "i3"}.isdisjoint(item.item_id for item in some.items)
    everything = client.recommend(history=["i1"], exclude_seen=False, k=1000, filter='title in ["Film 1", "Film 2"]')
    assert {item.item_id for item in everything.items} == {"i1", "i2"}
    late = client.recommend("u3", deadline_ms=1e-6)
    assert (late.fallback, late.items[0].rank, late.items[0].retrieval_rank) == ("retrieval", 1, 1)


def test_a_batch_is_answered_in_order_as_if_each_had_come_alone(client: Client) -> None:
    queries = [Query(user_id="u3", k=2), Query(history=("i1",), k=3), Query()]
    answers = client.recommend_batch(iter(queries))
    assert [len(answer.items) for answer in answers] == [2, 3, 10]
    assert answers[0].items == client.recommend("u3", k=2).items
    assert answers[1].items == client.recommend(history=["i1"], k=3).items


def test_a_list_is_ranked_and_neighbours_are_found(client: Client, recommender: Recommender) -> None:
    ranking = client.rank(["i1", "i2", "nothing"], "u3", history=["i5"], context={"age": 20})
    assert {item.item_id for item in ranking.items} == {"i1", "i2"}
    assert ranking.items[0].score >= ranking.items[1].score
    assert "nothing" in ranking.notes[0]
    near = client.similar("i7", k=3, exclude=["i1"], filter='title != "Film 2"')
    expected = recommender.similar("i7", k=3, exclude=["i1"], filter='title != "Film 2"')
    assert [dataclasses.asdict(item) for item in near.items] == [dataclasses.asdict(item) for item in expected.items]


def test_events_count_once_and_the_next_answer_knows_of_them(client: Client) -> None:
    before = client.recommend("somebody new")
    assert before.fallback == "popular"
    met = Event(
        user_id="somebody new",
        item_id=before.items[0].item_id,
        labels={"rating": 5.0},
        request_id=before.request_id,
        bundle=before.bundle,
        variant=before.variant,
        rank=1,
    )
    shown = [
        Event(user_id="somebody new", item_id=item.item_id, kind="impression", rank=item.rank) for item in before.items
    ]
    assert dataclasses.astuple(client.add_events([met, *shown])) == (11, 0)
    assert dataclasses.astuple(client.add_events([met])) == (0, 1)
    after = client.recommend("somebody new")
    assert after.fallback is None
    assert met.item_id not in [item.item_id for item in after.items]


def test_more_events_than_a_server_takes_at_once_go_out_in_parts(client: Client) -> None:
    events = [Event(user_id="u9", item_id="i1", kind="impression", event_id=f"many-{n}") for n in range(2_001)]
    assert dataclasses.astuple(client.add_events(events)) == (2_001, 0)
    assert dataclasses.astuple(client.add_events([])) == (0, 0)


def test_items_can_come_once_they_are_put_and_no_more_once_they_are_deleted(client: Client) -> None:
    before = client.info().counts["items"]
    put = client.put_items({"new 1": {"title": "A New Film"}, "new 2": {}})
    assert (put.written, put.items) == (2, before + 2)
    only = client.recommend("u3", filter='title == "A New Film"')
    assert [(item.item_id, item.title) for item in only.items] == [("new 1", "A New Film")]
    gone = client.delete_items(["new 1", "new 2", "never there"])
    assert (gone.written, gone.items) == (3, before)
    assert client.recommend("u3", filter='title == "A New Film"').items == ()


def test_what_is_served_is_told(client: Client, recommender: Recommender) -> None:
    info = client.info()
    assert (info.name, info.bundle, info.title_column) == ("tiny", recommender.bundle.id, "title")
    assert [(column.name, column.type, column.is_list) for column in info.item_columns] == [
        ("item_id", "text", False),
        ("title", "text", False),
    ]
    assert [(variant.name, variant.share) for variant in info.variants] == [("main", 1.0)]
    assert info.limits["k"] == 1000


def test_what_numpy_and_other_mappings_hold_is_sent_as_plain_values(client: Client) -> None:
    history = np.array(["i1", "i2"])
    plain = client.recommend(history=["i1", "i2"], context={"age": 30.0}, k=3)
    context = MappingProxyType({"age": np.float32(30)})
    assert client.recommend(history=history, context=context, k=np.int64(3)).items == plain.items  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="object cannot be sent"):
        client.recommend(context={"age": object()})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="not JSON compliant"):
        client.recommend(context={"age": math.nan})


@pytest.mark.parametrize(
    ("ask", "status", "line"),
    [
        (lambda client: client.recommend(k=1001), 422, "k: Input should be less than or equal to 1000."),
        (lambda client: client.recommend("u3", filter="shoe == 4"), 400, "shoe"),
        (lambda client: client.put_items({}), 422, "items: "),
        (lambda client: client.delete_items([]), 422, "item_ids: "),
        (lambda client: client.recommend_batch([]), 422, "requests: "),
    ],
)
def test_a_refusal_is_one_exception_with_the_server_s_own_line(
    client: Client, ask: Callable[[Client], object], status: int, line: str
) -> None:
    with pytest.raises(ClientError, match=line) as refused:
        ask(client)
    assert refused.value.status == status
    assert refused.value.request_id
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("key", [None, "tt_another"])
def test_without_the_key_there_is_no_answer(server: Any, key: str | None) -> None:
    with Client(server.url, key) as stranger, pytest.raises(ClientError, match="No valid key") as refused:
        stranger.info()
    assert refused.value.status == 401


@contextmanager
def playing(*answers: tuple[int, dict[str, str], bytes] | None) -> Iterator[tuple[str, list[str]]]:
    """A server that gives these answers one after the other, and the last for ever; None hangs up without one."""
    asked: list[str] = []

    class Player(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer = answers[min(len(asked), len(answers) - 1)]
            asked.append(body.decode())
            if answer is None:
                self.close_connection = True
                return
            status, headers, content = answer
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Player) as player:
        thread = threading.Thread(target=player.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{player.server_port}", asked
        finally:
            player.shutdown()
            thread.join()


BUSY = b'{"error": "Too much is asked just now. Ask again later."}'
WRITTEN = (200, {}, b'{"request_id": "r", "accepted": 1, "duplicates": 0}')


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("headers", [{}, {"Retry-After": "0"}, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}])
def test_a_busy_server_is_asked_again_with_the_same_event(status: int, headers: dict[str, str]) -> None:
    with playing((status, headers, BUSY), (status, headers, BUSY), WRITTEN) as (url, asked), Client(url) as opened:
        assert opened.add_events([Event(user_id="u1", item_id="i1")]).accepted == 1
    first, second, third = asked
    assert first == second == third
    assert uuid.UUID(json.loads(first)["events"][0]["event_id"])


def test_a_connection_that_breaks_is_opened_anew() -> None:
    with playing(None, WRITTEN) as (url, asked), Client(url) as opened:
        assert opened.add_events([Event(user_id="u1", item_id="i1")]).accepted == 1
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("answer", "attempts", "status", "line"),
    [
        ((503, {"Retry-After": "0"}, BUSY), 3, 503, "Too much is asked just now"),
        (None, 3, None, "no answer"),
        # It wants to be left alone for longer than anybody waits here.
        ((503, {"Retry-After": "3600"}, BUSY), 1, 503, "Too much is asked just now"),
        ((500, {}, b'{"error": "A fault of the server\'s own; its log tells it."}'), 1, 500, "its log tells it"),
        ((502, {}, b"<html>Bad Gateway</html>"), 1, 502, "answered 502 Bad Gateway"),
        ((302, {"Location": "/login"}, b""), 1, 302, "answered 302 Found"),
        ((200, {}, b"<html>Hello</html>"), 1, 200, "no JSON"),
        ((200, {}, b'{"accepted": 1}'), 1, None, "no EventsWritten .'duplicates'."),
        ((200, {}, b"[]"), 1, None, "no EventsWritten"),
    ],
)
def test_attempts_have_an_end_and_what_is_no_answer_is_told(
    answer: tuple[int, dict[str, str], bytes] | None, attempts: int, status: int | None, line: str
) -> None:
    with playing(answer) as (url, asked), Client(url, retries=2) as opened:
        with pytest.raises(ClientError, match=line) as told:
            opened.add_events([Event(user_id="u1", item_id="i1")])
        assert (told.value.status, len(asked)) == (status, attempts)


def test_a_server_that_says_nothing_is_waited_for_once() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        Client(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.05) as opened,
    ):
        with pytest.raises(ClientError, match=r"no answer .ReadTimeout"):
            opened.info()
        silent.settimeout(60)
        silent.accept()[0].close()
        silent.settimeout(0.2)
        with pytest.raises(TimeoutError):
            silent.accept()


@pytest.mark.parametrize("url", ["http://[", "localhost:8000", "ftp://localhost", "http://127.0.0.1:1"])
def test_what_is_no_server_is_told_in_one_line(url: str) -> None:
    with pytest.raises(ClientError) as told, Client(url, retries=0) as opened:
        opened.info()
    assert url.partition("[")[0] in str(told.value)
    assert "\n" not in str(told.value)


def test_the_client_is_light_and_stands_by_itself() -> None:
    code = "import twotower.client, sys; print(*sys.modules)"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(finished.stdout.split())
    ours = {name for name in loaded if name.startswith("twotower")}
    assert ours == {"twotower", "twotower.client", "twotower.client_messages", "twotower.errors"}
    assert loaded.isdisjoint({"httpx", "numpy", "pydantic", "pyarrow", "fastapi", "onnxruntime"})


def test_without_httpx_the_command_that_installs_it_is_told() -> None:
    code = (
        "import sys; sys.modules['httpx'] = None\n"
        "from twotower.client import Client\n"
        "try: Client('http://localhost')\n"
        "except Exception as fault: print(type(fault).__name__, fault)"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout == 'MissingExtraError httpx is not installed: pip install "twotower[client]"\n'


MESSAGES = {
    "Because": "Because",
    "Column": "ColumnInfo",
    "Event": "EventMessage",
    "EventsWritten": "EventsResponse",
    "Explanation": "Explanation",
    "Info": "Info",
    "Item": "RecommendedItem",
    "ItemsWritten": "ItemsResponse",
    "Neighbour": "SimilarItem",
    "Neighbours": "SimilarResponse",
    "Query": "RecommendRequest",
    "Ranking": "RankResponse",
    "Recommendations": "RecommendResponse",
    "Variant": "VariantInfo",
}


def test_every_message_is_held_against_the_document() -> None:
    assert {*MESSAGES, "Client", "ClientError"} == set(client_module.__all__)


@pytest.mark.parametrize(("ours", "theirs"), MESSAGES.items())
def test_a_message_has_the_fields_of_the_document(ours: str, theirs: str) -> None:
    fields = {field.name: field for field in dataclasses.fields(getattr(client_module, ours))}
    documented = SCHEMAS[theirs]["properties"]
    left_out = {"EventsWritten": {"request_id"}, "ItemsWritten": {"request_id"}}.get(ours, set())
    if ours == "Info":
        left_out = {"example_users", "example_items"}  # For the page.
    assert set(fields) == set(documented) - left_out
    if ours in ("Query", "Event"):
        for name, field in fields.items():
            if field.default not in (dataclasses.MISSING, None) and "default" in documented[name]:
                assert json.loads(json.dumps(field.default)) == documented[name]["default"]
