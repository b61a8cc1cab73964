"""What a request passes before it is answered, on a real server over real sockets."""

import asyncio
import http.client
import json
import re
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send

from twotower.serving.door.connections import ConnectionLimits, connection_protocol, raise_open_files
from twotower.serving.door.door import PAGE_POLICY, Door
from twotower.serving.door.keys import KeyRing, add_key
from twotower.serving.door.routing import Methods, Routes

ROUTES: dict[str, Methods] = {
    "/livez": {"GET": None},
    "/ask": {"GET": "read", "POST": "read"},
    "/items": {"PUT": "write", "DELETE": "write"},
    "/promote": {"POST": "admin"},
    "/models/{name}": {"GET": "read"},
    "/models/{name}/infer": {"POST": "read"},
    "/page/{rest:path}": {"GET": None},
    "/html": {"GET": None},
    "/strict": {"GET": None},
    "/metrics": {"GET": None},
    "/bug": {"GET": None},
    "/half": {"GET": None},
    "/large": {"GET": None},
    "/slow": {"GET": None},
}
MAX_BODY = 1000
KINDS = {"/html": b"text/html; charset=utf-8", "/strict": b"text/html", "/metrics": b"text/plain"}


Answer = tuple[int, http.client.HTTPMessage, Any]
"""Status, headers, and the body, read where it is JSON."""


@dataclass
class Told:
    """What the application and the door's listener were told."""

    asked: list[tuple[str, str, bytes]] = field(default_factory=list)
    finished: list[tuple[dict[str, Any], int]] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)


@dataclass
class Site:
    """A server of a small application behind a door."""

    port: int
    told: Told
    door: Door
    server: uvicorn.Server

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            response = connection.getresponse()
            text = response.read()
            return response.status, response.headers, json.loads(text) if text[:1] == b"{" else text
        finally:
            connection.close()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)


class Application:
    """Tells what reached it."""

    def __init__(self, told: Told) -> None:
        self.told = told

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = (await receive())["body"]
        path = scope["path"]
        self.told.asked.append((scope["method"], path, body))
        if path == "/bug":
            raise KeyError("user 7")
        if path == "/slow":
            await asyncio.sleep(0.3)
        text = b"x" * 8_000_000 if path == "/large" else b'{"size": %d}' % len(body)
        headers = [(b"content-type", KINDS.get(path, b"application/json")), (b"content-length", b"%d" % len(text))]
        if path == "/strict":
            headers.append((b"content-security-policy", b"default-src 'none'"))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if path == "/half":
            raise KeyError("user 7")
        await send({"type": "http.response.body", "body": text})


@contextmanager
def serving(
    limits: ConnectionLimits | None = None, turns_away: Callable[[bytes], bool] = lambda _: False, **named: Any
) -> Iterator[Site]:
    told = Told()
    door = Door(
        Application(told),
        routes=ROUTES,
        max_body=MAX_BODY,
        finished=lambda state, status, seconds: told.finished.append((state, status)),
        **{"keys": None, **named},
    )
    protocol = connection_protocol(limits or ConnectionLimits(), ended=told.ended.append, turns_away=turns_away)
    config = uvicorn.Config(door, http=protocol, lifespan="off", log_config=None, ws="none", proxy_headers=False)
    server = uvicorn.Server(config)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield Site(bound.getsockname()[1], told, door, server)
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


@pytest.fixture(scope="module")
def open_site() -> Iterator[Site]:
    with serving() as site:
        yield site


@pytest.fixture(scope="module")
def hasty_site() -> Iterator[Site]:
    """A server that waits half a second for a request."""
    with serving(ConnectionLimits(request_s=0.5)) as site:
        yield site


@dataclass
class Keyed:
    site: Site
    keys: dict[str, str]

    def status(self, method: str, path: str, key: str) -> int:
        shown = {"Authorization": f"Bearer {self.keys[key]}"} if key else {}
        return self.site.call(method, path, **shown)[0]


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    made = {scope: add_key(file, f"a-{scope}", scopes=[scope]) for scope in ("read", "write", "admin")}
    with serving(keys=KeyRing(file=file)) as site:
        yield Keyed(site, {**made, "wrong": "tt_" + "0" * 43})


def read_all(connection: socket.socket) -> bytes:
    """What comes until the other side closes."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def until(condition: Any) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("method", "path", "read", "write", "admin", "none"),
    [
        ("GET", "/livez", 200, 200, 200, 200),
        ("HEAD", "/livez", 200, 200, 200, 200),
        ("POST", "/ask", 200, 403, 403, 401),
        ("PUT", "/items", 403, 200, 403, 401),
        ("POST", "/promote", 403, 403, 200, 401),
        ("GET", "/models/a%2Fb", 404, 404, 404, 401),
        ("GET", "/models/a%20b", 200, 403, 403, 401),
        ("GET", "/page/a/b.js", 200, 200, 200, 200),
        ("POST", "/items", 405, 405, 405, 401),
        ("POST", "/livez", 405, 405, 405, 401),
        ("GET", "/nothing", 404, 404, 404, 401),
        ("OPTIONS", "/ask", 405, 405, 405, 401),
    ],
)
def test_a_route_takes_the_scope_that_it_names(
    keyed: Keyed, method: str, path: str, read: int, write: int, admin: int, none: int
) -> None:
    shown = {"read": read, "write": write, "admin": admin, "": none}
    assert {key: keyed.status(method, path, key) for key in shown} == shown
    assert keyed.status(method, path, "wrong") == none


def test_a_refusal_tells_what_is_missing(keyed: Keyed) -> None:
    status, headers, body = keyed.site.call("PUT", "/items", Authorization=f"Bearer {keyed.keys['read']}")
    assert (status, body) == (403, {"error": "The key may not do this: it takes one with the scope 'write'."})
    status, headers, body = keyed.site.call("PUT", "/items")
    assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
    assert body == {"error": "No valid key. Send it in the header: Authorization: Bearer KEY."}


@pytest.mark.parametrize(
    "path", ["/promote%0A", "/promote/", "//promote", "/promote%00", "/PROMOTE", "/page/../promote"]
)
def test_a_path_that_only_looks_like_a_route_does_not_reach_the_application_as_one(keyed: Keyed, path: str) -> None:
    keyed.site.told.asked.clear()
    keyed.status("POST", path, "read")
    assert keyed.site.told.asked == []


def test_another_method_is_told_those_that_are_there(open_site: Site) -> None:
    status, headers, body = open_site.call("PATCH", "/items")
    assert (status, headers["Allow"], body) == (405, "PUT, DELETE", {"error": "Method Not Allowed"})
    assert open_site.call("GET", "/nothing")[2] == {"error": "Not Found"}


@pytest.mark.parametrize(
    ("path", "template"),
    [("/ask", "/ask"), ("/models/a", "/models/{name}"), ("/page/", "/page/{rest}"), ("/models/a/infer/b", "other")],
)
def test_a_path_is_counted_by_its_template(path: str, template: str) -> None:
    assert Routes(ROUTES).find(path).template == template


def test_a_request_keeps_a_sane_id_and_gets_one_of_its_own_otherwise(open_site: Site) -> None:
    assert open_site.call("GET", "/ask", X_Request_ID="mine")[1]["X-Request-ID"] == "mine"
    made = [open_site.call("GET", "/ask", X_Request_ID=strange)[1]["X-Request-ID"] for strange in ("", "x" * 129)]
    made += [open_site.call("GET", path)[1]["X-Request-ID"] for path in ("/ask", "/nothing", "/bug")]
    assert [each for each in made if not re.fullmatch("[0-9a-f]{32}", each)] == []
    assert len(set(made)) == 5


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_is_bounded(open_site: Site, is_chunked: bool) -> None:
    for size, expected in ((MAX_BODY, 200), (MAX_BODY + 1, 413), (3_000_000, 413)):
        body = b"x" * size
        status, _, told = open_site.call("POST", "/ask", iter([body[:500], body[500:]]) if is_chunked else body)
        assert status == expected
        assert told == ({"size": size} if status == 200 else {"error": told["error"]})
    assert told["error"].startswith("The body is larger than 1,000 bytes.")


def test_a_client_that_asks_before_it_sends_too_much_is_told_without_sending(open_site: Site) -> None:
    with open_site.connect() as connection:
        connection.sendall(b"POST /ask HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\nExpect: 100-continue\r\n\r\n")
        told = read_all(connection)
    assert told.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in told


@given(cuts=st.lists(st.integers(0, 900), max_size=8))
def test_a_body_reaches_the_application_whole_however_it_was_parted(cuts: list[int]) -> None:
    body = bytes(range(256)) * 3 + b"end"
    places = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    parts = [body[begin:end] for begin, end in pairwise(places)]
    told = Told()
    assert asyncio.run(answered(Door(Application(told), routes=ROUTES, keys=None, max_body=len(body)), parts)) == 200
    assert told.asked == [("POST", "/ask", body)]
    too_small = Door(Application(told), routes=ROUTES, keys=None, max_body=len(body) - 1)
    assert asyncio.run(answered(too_small, parts)) == 413


async def answered(door: Door, parts: Sequence[bytes]) -> int:
    """The status of a request whose body comes in these parts."""
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    messages[-1]["more_body"] = False
    sent: list[Message] = []

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    await door({"type": "http", "method": "POST", "path": "/ask", "headers": []}, receive, send)
    return int(sent[0]["status"])


@pytest.mark.parametrize(
    "begun",
    [
        b"POST /ask HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n12345",
        b"POST /ask HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n123",
        b"POST /ask HTTP/1.1\r\nHos",
        b"PO",
        b"\r\n",
        b"",
        b"GET /ask HTTP/1.1\r\nHost: a\r\n\r\nPOST /ask HTTP/1.1\r\nHost: a\r\n",
    ],
)
def test_a_request_that_is_not_whole_in_time_is_ended_with_408(hasty_site: Site, begun: bytes) -> None:
    hasty_site.told.ended.clear()
    with hasty_site.connect() as connection:
        connection.sendall(begun)
        *before, told = read_all(connection).split(b"HTTP/1.1 ")
        assert told.startswith(b"408 ")
        assert json.loads(told.partition(b"\r\n\r\n")[2])["error"].startswith("The request was not whole after 0.5 s.")
        assert len(before) == 1 + begun.count(b"GET")
    assert hasty_site.told.ended == ["late"]


def test_who_is_refused_and_goes_on_sending_gets_one_answer_and_is_ended(hasty_site: Site) -> None:
    with hasty_site.connect() as connection:
        connection.sendall(b"POST /ask HTTP/1.1\r\nHost: a\r\nContent-Length: 2000\r\n\r\n12345")
        told = read_all(connection)
    assert told.startswith(b"HTTP/1.1 413 ")
    assert told.count(b"HTTP/1.1 ") == 1


def test_a_line_s_end_now_and_then_does_not_keep_a_connection(hasty_site: Site) -> None:
    with hasty_site.connect() as connection:
        connection.sendall(b"GET /ask HTTP/1.1\r\nHost: a\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
        end = time.monotonic() + 10
        while not select.select([connection], [], [], 0.1)[0]:
            assert time.monotonic() < end
            connection.sendall(b"\r\n")
        assert read_all(connection) == b""


def test_an_answer_may_take_longer_than_a_request(hasty_site: Site) -> None:
    with hasty_site.connect() as connection:
        connection.settimeout(20)
        for _ in range(3):  # 0.9 s in all, on one connection
            connection.sendall(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
            assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")


def test_200_slow_clients_do_not_hurt_a_healthy_one_and_are_all_ended(hasty_site: Site) -> None:
    with ExitStack() as opened:
        slow = [opened.enter_context(hasty_site.connect()) for _ in range(200)]
        for place, connection in enumerate(slow):
            connection.sendall(b"P" if place % 2 else b"POST /ask HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n1")
        assert [hasty_site.call("POST", "/ask", b"{}")[0] for _ in range(50)] == [200] * 50
        for connection in slow:
            assert read_all(connection).startswith(b"HTTP/1.1 408 ")
    assert hasty_site.door.in_flight == 0


def test_where_too_many_are_connected_the_one_that_waits_longest_makes_room() -> None:
    with serving(ConnectionLimits(connections=3)) as site, ExitStack() as opened:
        first, second, third = (opened.enter_context(site.connect()) for _ in range(3))
        for connection in (first, second, third):
            connection.sendall(b"P")
        until(lambda: len(site.server.server_state.connections) == 3)
        assert site.call("GET", "/ask")[0] == 200
        assert read_all(first).startswith(b"HTTP/1.1 503 ")
        assert site.told.ended == ["crowded"]
        second.sendall(b"UT /items HTTP/1.1\r\nHost: a\r\n\r\n")
        assert second.recv(1000).startswith(b"HTTP/1.1 200 ")


def test_an_idle_connection_makes_room_where_nobody_is_at_a_request() -> None:
    with serving(ConnectionLimits(connections=1)) as site, site.connect() as idle:
        idle.sendall(b"GET /ask HTTP/1.1\r\nHost: a\r\n\r\n")
        assert idle.recv(1000).startswith(b"HTTP/1.1 200 ")
        assert site.call("GET", "/ask")[0] == 200
        assert read_all(idle) == b""


@pytest.mark.parametrize(
    ("begin", "endless"),
    [
        (b"GET /ask HTTP/1.1\r\n", b"X-Header: y\r\n"),
        (b"GET /ask HTTP/1.1\r\nX-Header: ", b"yyyyyyyy"),
        (b"GET /", b"aaaaaaaa"),
        (b"POST /ask HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"extended"),
        (b"POST /ask HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n", b"X-Header: y\r\n"),
    ],
)
def test_a_head_without_an_end_is_refused(open_site: Site, begin: bytes, endless: bytes) -> None:
    open_site.told.ended.clear()
    with open_site.connect() as connection:
        connection.sendall(begin + endless * (66_000 // len(endless)))
        assert read_all(connection).startswith(b"HTTP/1.1 431 ")
    assert open_site.told.ended == ["head"]


def test_a_body_in_the_smallest_parts_is_no_head() -> None:
    with serving(ConnectionLimits(head_bytes=500)) as site, site.connect() as connection:
        head = b"POST /ask HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head + b"1\r\na\r\n" * 900 + b"0\r\n\r\n")
        assert read_all(connection).endswith(b'{"size": 900}')


def test_all_bodies_together_are_bounded(open_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twotower.serving.door.door.MAX_HELD", 1000)
    begun = b"POST /ask HTTP/1.1\r\nHost: a\r\nContent-Length: 900\r\n\r\n" + b"x" * 600
    with open_site.connect() as first, open_site.connect() as second:
        first.sendall(begun)
        until(lambda: open_site.door.in_flight == 1)
        second.sendall(begun)
        told = second.recv(1000)
        assert told.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in told
        first.sendall(b"x" * 300)
        assert first.recv(1000).startswith(b"HTTP/1.1 200 ")


def test_headers_behind_a_body_are_not_added_to_those_before_it(open_site: Site) -> None:
    with open_site.connect() as connection:
        connection.sendall(
            b"POST /ask HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
            b"1\r\na\r\n0\r\nX-Request-ID: late\r\n\r\n"
        )
        assert read_all(connection).startswith(b"HTTP/1.1 200 ")
    assert open_site.told.finished[-1][0]["request_id"] != "late"


def test_what_is_no_http_is_refused_in_the_same_shape(open_site: Site) -> None:
    with open_site.connect() as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        told = read_all(connection)
    assert told.startswith(b"HTTP/1.1 400 ")
    assert json.loads(told.partition(b"\r\n\r\n")[2]) == {"error": "This is no HTTP request."}


def test_who_does_not_read_an_answer_is_ended(hasty_site: Site) -> None:
    hasty_site.told.ended.clear()
    with hasty_site.connect() as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        until(lambda: hasty_site.told.ended == ["unread"])


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.0.0.1:8000", "[::1]:80", "LOCALHOST:1"])
def test_without_a_key_this_machine_s_names_are_answered(host: str) -> None:
    assert asyncio.run(local_status([(b"host", host.encode())])) == 200
    assert asyncio.run(local_status([(b"host", host.encode()), (b"origin", f"http://{host}".encode())])) == 200


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("evil.example", None),
        ("localhost.evil.example:8000", None),
        ("127.0.0.1.evil.example", None),
        ("", None),
        ("localhost:8000", "http://evil.example"),
        ("localhost:8000", "http://localhost:3000"),
        ("localhost:8000", "null"),
    ],
)
def test_without_a_key_a_page_from_elsewhere_is_refused(host: str, origin: str | None) -> None:
    headers = [(b"host", host.encode())] + ([(b"origin", origin.encode())] if origin else [])
    assert asyncio.run(local_status(headers)) == 403


async def local_status(headers: list[tuple[bytes, bytes]]) -> int:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    door = Door(Application(Told()), routes=ROUTES, keys=None, is_local=True)
    await door({"type": "http", "method": "POST", "path": "/ask", "headers": headers}, receive, send)
    return int(sent[0]["status"])


@pytest.mark.parametrize(
    ("path", "policy"),
    [("/ask", None), ("/html", PAGE_POLICY), ("/metrics", PAGE_POLICY), ("/strict", "default-src 'none'")],
)
def test_a_browser_is_told_what_it_may_do_with_an_answer(open_site: Site, path: str, policy: str | None) -> None:
    headers = open_site.call("GET", path, Origin="http://evil.example")[1]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers.get_all("Content-Security-Policy") == (policy and [policy])
    assert headers["Referrer-Policy"] == (policy and "no-referrer")
    assert headers["Access-Control-Allow-Origin"] is None


def test_a_bug_is_told_to_the_log_alone_and_the_server_lives_on(
    open_site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    status, headers, body = open_site.call("GET", "/bug", X_Request_ID="mine")
    assert (status, headers["X-Request-ID"]) == (500, "mine")
    assert body == {"error": "A fault of the server's own; its log tells it."}
    (record,) = caplog.records
    assert record.fields == {"request_id": "mine", "method": "GET", "route": "/bug"}  # type: ignore[attr-defined]
    assert open_site.call("GET", "/livez")[0] == 200


def test_half_an_answer_does_not_look_like_one(open_site: Site) -> None:
    with pytest.raises(http.client.IncompleteRead):
        open_site.call("GET", "/half")


def test_each_request_is_told_of_once_with_its_template_and_the_key_s_name(keyed: Keyed) -> None:
    keyed.site.told.finished.clear()
    shown = {"Authorization": f"Bearer {keyed.keys['read']}", "Traceparent": "00-1"}
    for path in ("/models/a", "/nothing"):
        keyed.site.call("GET", path, **shown)
    keyed.site.call("GET", "/ask")
    with keyed.site.connect() as connection:
        connection.sendall(
            b"POST /ask HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n"
            b"Authorization: Bearer " + keyed.keys["read"].encode() + b"\r\n\r\n1"
        )
        until(lambda: keyed.site.door.in_flight == 1)
    until(lambda: len(keyed.site.told.finished) == 4)
    told = [(state["route"], status, state.get("key")) for state, status in keyed.site.told.finished]
    assert told[:2] == [("/models/{name}", 200, "a-read"), ("other", 404, "a-read")]
    assert told[2:] == [("/ask", 401, None), ("/ask", 499, "a-read")]
    assert keyed.site.told.finished[0][0]["traceparent"] == "00-1"


@pytest.mark.parametrize("is_chunked", [False, True])
def test_who_is_turned_away_is_told_when_to_come_again_and_may_ask_on_over_the_same_connection(
    is_chunked: bool,
) -> None:
    with serving(turns_away=lambda target: target == b"/ask?full") as site:
        connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=20)
        for target, status in (("/ask?full", 503), ("/ask?full", 503), ("/ask", 200), ("/ask?full", 503)):
            body = iter([b"a" * 40_000, b"b" * 40_000]) if is_chunked else b"a" * 900
            if is_chunked and status == 200:
                body = iter([b"a" * 100])
            connection.request("POST", target, body)
            if target == "/ask":
                own = connection.sock
            response = connection.getresponse()
            told = json.loads(response.read())
            assert response.status == status
            if status == 503:
                assert response.headers["Retry-After"] == "1"
                assert told == {"error": "Too much is asked just now. Ask again later."}
        assert connection.sock is own
        connection.close()
        assert [path for _, path, _ in site.told.asked] == ["/ask"]
        closing = site.call("POST", "/ask?full", b"a", Connection="close")
        assert (closing[0], closing[1]["Connection"]) == (503, "close")


def test_a_server_that_ends_answers_once_more_on_a_connection_that_was_idle() -> None:
    with serving(ConnectionLimits(linger_s=5)) as site, site.connect() as connection:
        connection.sendall(b"GET /ask HTTP/1.1\r\nHost: a\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
        site.server.should_exit = True
        until(lambda: not any(server.is_serving() for server in site.server.servers))
        connection.sendall(b"GET /ask HTTP/1.1\r\nHost: a\r\n\r\n")
        told = read_all(connection)
    assert told.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close" in told


def test_a_server_that_ends_lets_go_of_a_connection_that_stays_idle() -> None:
    with serving(ConnectionLimits(linger_s=0.1)) as site, site.connect() as connection:
        connection.sendall(b"GET /ask HTTP/1.1\r\nHost: a\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
        site.server.should_exit = True
        assert read_all(connection) == b""


def test_as_many_connections_are_allowed_as_the_process_may_have_files() -> None:
    assert raise_open_files(10) == 10
    assert 1 <= raise_open_files(1 << 40) <= 1 << 40
