"""The server as a process of its own, asked over HTTP."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from twotower.cli.main import main
from twotower.errors import RequestError
from twotower.serving.door.door import MAX_BODY
from twotower.serving.recommender import Recommender

KEY = "a key that nobody guesses: \u00fc"
JSON = {"Content-Type": "application/json"}
HEALTH = ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready")


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: http.client.HTTPMessage
    body: Any


@dataclass(frozen=True)
class Server:
    """A running `twotower serve`."""

    process: "subprocess.Popen[str]"
    port: int
    bundle_id: str

    def call(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        return call(self.port, method, path, body, headers)

    def recommend(self, **asked: Any) -> Answer:
        return self.call("POST", "/v1/recommend", json.dumps(asked).encode(), JSON)


def call(port: int, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return Answer(response.status, response.headers, json.loads(response.read()))
    finally:
        connection.close()


@contextmanager
def serving(bundle: str, *options: str, key: str | None = None) -> Iterator[Server]:
    """The real command, until it says that it is ready; what is still running at the end is killed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TWOTOWER_")}
    if key is not None:
        environment["TWOTOWER_API_KEY"] = key
    command = [sys.executable, "-m", "twotower", "serve", bundle, "--port", "0", "--store", "none", *options]
    process = subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stderr is not None
        first = process.stderr.readline()
        ready = re.fullmatch(r"Serving (\S+) on http://127\.0\.0\.1:(\d+)\n", first)
        assert ready, first + process.communicate(timeout=60)[1]
        yield Server(process, int(ready[2]), ready[1])
    finally:
        process.kill()
        process.communicate(timeout=60)


class Silent(SimpleHTTPRequestHandler):
    """Hands out files, and says nothing of it."""

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def afar(folder: Path) -> Iterator[str]:
    """The address of a folder behind a server of its own."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@pytest.fixture(scope="module")
def bundle(tiny_run: Path) -> Path:
    return tiny_run / "bundle"


@pytest.fixture(scope="module")
def tiny(bundle: Path) -> Recommender:
    return Recommender.load(bundle)


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[Server]:
    with serving(str(bundle)) as started:
        yield started


@pytest.fixture(scope="module")
def keyed(bundle: Path) -> Iterator[Server]:
    with serving(str(bundle), key=f"{KEY}\n") as started:
        yield started


@pytest.mark.parametrize(
    "asked",
    [
        {"user_id": "3"},
        {"user_id": 3, "k": 4, "exclude": ["1", 2]},
        {"user_id": "3", "exclude_seen": False},
        {"user_id": "nobody knows/me?\u00e9"},
        {"history": ["1", 2, "not there"], "k": 5},
        {"context": {"age": 30, "region": "north"}},
        {"user_id": None},
        {},
    ],
)
def test_an_answer_is_the_recommender_s_own(server: Server, tiny: Recommender, asked: dict[str, Any]) -> None:
    expected = json.loads(json.dumps(tiny.recommend(**asked).to_dict()))
    del expected["user_id"], expected["retrieved"]
    stages = expected.pop("timings_ms")
    answer = server.recommend(**asked)
    assert answer.status == 200
    assert answer.body["timings_ms"].keys() == stages.keys() | {"queue", "total"}
    assert {name: answer.body[name] for name in expected} == expected
    assert answer.body.keys() - expected.keys() == {"request_id", "timings_ms", "variant"}


def test_a_known_user_and_a_history_are_answered_by_the_model_and_nobody_by_popularity(server: Server) -> None:
    for asked in ({"user_id": "3"}, {"history": ["1", "2"]}):
        body = server.recommend(**asked).body
        assert (body["fallback"], [item["rank"] for item in body["items"]]) == (None, list(range(1, 11)))
        assert {item["item_id"] for item in body["items"]}.isdisjoint(asked.get("history", ()))
    assert server.recommend().body["fallback"] == "popular"


def test_an_excluded_item_does_not_come(server: Server) -> None:
    first, *others = [item["item_id"] for item in server.recommend(user_id="3").body["items"]]
    without = [item["item_id"] for item in server.recommend(user_id="3", exclude=[first]).body["items"]]
    assert without[:9] == others


@pytest.mark.parametrize("k", [1, 1000])
def test_the_smallest_and_the_largest_k_are_answered(server: Server, k: int) -> None:
    body = server.recommend(user_id="3", k=k, exclude_seen=False).body
    assert len(body["items"]) == min(k, 200)  # The tiny world has 200 items.


@pytest.mark.parametrize("k", [0, 1001, -1, "10", 2.5, True, None])
def test_another_k_is_refused(server: Server, k: Any) -> None:
    answer = server.recommend(user_id="3", k=k)
    assert answer.status == 422
    assert answer.body["error"].startswith("k: ")


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b'{"user": "3"}', "user: no such field."),
        (b'{"user_id": true}', "user_id: An id is a text or a whole number"),
        (b'{"user_id": 1.5}', "user_id: An id is"),
        (b'{"user_id": "\\ud800"}', "body: no JSON ("),
        (b'{"a\\nb": 1}', "a b: no such field. There are user_id, history, k, exclude, exclude_seen, filter, context,"),
        (b'{"\\ud800": 1}', "body: no JSON ("),
        (b'{"history": "1,2"}', "history: "),
        (b'{"history": [[1]]}', "history.0: An id is"),
        (b'{"exclude_seen": 1}', "exclude_seen: "),
        (b'{"context": {"age": NaN}}', "context.age: A value is"),
        (b'{"context": {"age": ["\\ud800"]}}', "body: no JSON ("),
        (b'{"context": {"age": {"a": 1}}}', "context.age: A value is"),
        (b"[]", "body: no JSON object."),
        (b"", "body: no JSON (EOF while parsing a value at line 1 column 0). Send one JSON object."),
        (b'{"user_id": "3"', "body: no JSON (EOF while parsing an object at line 1 column 15)."),
        (json.dumps({"history": ["1"] * 10_001}).encode(), "history: "),
        (json.dumps({"exclude": ["1"] * 10_001}).encode(), "exclude: "),
        (json.dumps({"user_id": "x" * 1025}).encode(), "user_id: An id is"),
    ],
)
def test_a_body_of_another_shape_is_refused_in_one_line(server: Server, body: bytes, told: str) -> None:
    answer = server.call("POST", "/v1/recommend", body, JSON)
    assert answer.status == 422
    assert answer.body.keys() == {"error"}
    assert answer.body["error"].startswith(told)
    assert "\n" not in answer.body["error"]


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"user_id": ' + b"1" * 5000 + b"}", b"\xff"])
def test_a_body_that_no_reader_takes_is_refused(server: Server, body: bytes) -> None:
    answer = server.call("POST", "/v1/recommend", body, JSON)
    assert answer.status in (400, 422)
    assert answer.body.keys() == {"error"}


def test_a_body_that_does_not_say_that_it_is_json_is_refused_with_the_header_to_send(server: Server) -> None:
    answer = server.call("POST", "/v1/recommend", b"{}", {"Content-Type": "text/plain"})
    assert answer.status == 422
    assert answer.body["error"].endswith("with the header Content-Type: application/json.")


def test_as_many_ids_as_are_allowed_are_read(server: Server) -> None:
    assert server.recommend(history=["1"] * 10_000, exclude=["2"] * 10_000).status == 200


@pytest.mark.parametrize(
    "asked",
    [{"history": ["none", "neither"]}, {"user_id": "3", "context": {"shoe": 4}}, {"context": {"age": "old"}}],
)
def test_what_the_recommender_refuses_is_told_in_its_own_words(
    server: Server, tiny: Recommender, asked: dict[str, Any]
) -> None:
    with pytest.raises(RequestError) as refused:
        tiny.recommend(**asked)
    answer = server.recommend(**asked)
    assert (answer.status, answer.body) == (400, {"error": str(refused.value)})


@pytest.mark.parametrize(("age", "status"), [(1e308, 200), (-1e308, 200), (10**400, 400)])
def test_numbers_beyond_what_a_model_can_hold_are_no_fault_of_the_server(
    server: Server, age: float, status: int
) -> None:
    answer = server.recommend(context={"age": age})
    assert answer.status == status
    assert None not in [item["score"] for item in answer.body.get("items", ())]


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_of_more_than_a_mebibyte_is_refused_and_the_next_is_answered(server: Server, is_chunked: bool) -> None:
    padded = b'{"user_id": "3"' + b" " * 3 * MAX_BODY + b"}"
    body = iter([padded[place : place + 65536] for place in range(0, len(padded), 65536)]) if is_chunked else padded
    answer = server.call("POST", "/v1/recommend", body, JSON)
    assert answer.status == 413
    assert answer.body["error"].startswith("The body is larger than 1,048,576 bytes.")
    exact = b'{"user_id": "3"' + b" " * (MAX_BODY - 16) + b"}"
    assert (len(exact), server.call("POST", "/v1/recommend", exact, JSON).status) == (MAX_BODY, 200)


def test_a_request_keeps_its_id_and_gets_one_where_it_has_none_or_a_strange_one(server: Server) -> None:
    for sane in ("abc-1", "x" * 128):
        answer = server.call("POST", "/v1/recommend", b"{}", {**JSON, "X-Request-ID": sane})
        assert answer.body["request_id"] == answer.headers["X-Request-ID"] == sane
    for strange in ("", "x" * 129, "caf\u00e9"):
        answer = server.call("POST", "/v1/recommend", b"{}", {**JSON, "X-Request-ID": strange})
        assert re.fullmatch("[0-9a-f]{32}", answer.body["request_id"])
        assert answer.body["request_id"] == answer.headers["X-Request-ID"]
    refused = server.call("POST", "/v1/recommend", b"?", {**JSON, "X-Request-ID": "mine"})
    assert (refused.status, refused.headers["X-Request-ID"]) == (422, "mine")


def test_health_is_told_plainly_and_as_the_open_inference_protocol_has_it(server: Server, tiny: Recommender) -> None:
    told = [server.call("GET", path) for path in HEALTH]
    assert [answer.status for answer in told] == [200] * 4
    assert [answer.body for answer in told] == [
        {"status": "live", "bundle": tiny.bundle.id},
        {"status": "ready", "bundle": tiny.bundle.id},
        {"live": True},
        {"ready": True},
    ]


def test_the_model_is_described_by_its_name_and_no_other_is_known(server: Server, tiny: Recommender) -> None:
    answer = server.call("GET", "/v2/models/tiny")
    assert (answer.body["name"], answer.body["versions"]) == ("tiny", [tiny.bundle.id])
    assert [each["name"] for each in answer.body["inputs"]] == ["user_id", "history", "k"]
    unknown = server.call("GET", "/v2/models/other")
    assert unknown.status == 404
    assert unknown.body == {"error": "There is no model of that name here. The one served is 'tiny'."}


def test_another_path_and_another_method_are_refused_in_the_same_shape(server: Server) -> None:
    assert server.call("GET", "/v1/nothing").body == {"error": "Not Found"}
    answer = server.call("GET", "/v1/recommend")
    assert (answer.status, answer.headers["Allow"], answer.body) == (405, "POST", {"error": "Method Not Allowed"})


def test_threads_get_the_answers_that_one_would(server: Server) -> None:
    users = [str(user) for user in range(1, 17)]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda user: server.recommend(user_id=user).body["items"], users))
    assert together == [server.recommend(user_id=user).body["items"] for user in users]


@pytest.mark.parametrize("shown", [None, "", KEY, "Bearer", "Bearer wrong", f"Basic {KEY}", f"Bearer {KEY}x"])
def test_without_the_key_nothing_is_answered_and_the_key_is_not_told(keyed: Server, shown: str | None) -> None:
    header = {} if shown is None else {"Authorization": shown.encode().decode("latin-1")}
    for method, path in (("POST", "/v1/recommend"), ("GET", "/v2/models/tiny"), ("GET", "/openapi.json")):
        answer = keyed.call(method, path, b"{}", {**JSON, **header})
        assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert answer.body == {"error": "No valid key. Send it in the header: Authorization: Bearer KEY."}


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_with_the_key_a_request_is_answered(keyed: Server, scheme: str) -> None:
    header = {**JSON, "Authorization": f"{scheme} {KEY}".encode().decode("latin-1")}
    assert keyed.call("POST", "/v1/recommend", b"{}", header).status == 200


def test_health_needs_no_key(keyed: Server) -> None:
    assert [keyed.call("GET", path).status for path in HEALTH] == [200] * 4


def refused(*arguments: str, key: str | None = None) -> Result:
    result = CliRunner(env={"TWOTOWER_API_KEY": key}).invoke(main, ["serve", *arguments], catch_exceptions=False)
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    return result


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
@pytest.mark.parametrize("key", [None, "", " \n"])
def test_without_a_key_only_loopback_is_listened_on(bundle: Path, host: str, key: str | None) -> None:
    assert refused(str(bundle), "--host", host, key=key).stderr == (
        f"Error: --host {host}: not this machine's loopback, and there is no key. "
        "Set TWOTOWER_API_KEY, name a file by --keys, or listen on 127.0.0.1.\n"
    )


def test_a_port_that_is_taken_is_told(bundle: Path, server: Server) -> None:
    told = refused(str(bundle), "--port", str(server.port)).stderr
    assert told == f"Error: 127.0.0.1:{server.port}: the port is taken. Choose another by --port.\n"


def test_a_host_that_is_none_of_this_machine_s_is_told(bundle: Path) -> None:
    assert "192.0.2.1:8000: cannot listen there" in refused(str(bundle), "--host", "192.0.2.1", key=KEY).stderr
    assert "--host a b: no such host" in refused(str(bundle), "--host", "a b").stderr


def test_what_is_no_bundle_is_told(tmp_path: Path) -> None:
    there, missing, file = tmp_path / "there", tmp_path / "missing", tmp_path / "file"
    there.mkdir()
    file.write_text("no bundle", encoding="utf-8")
    for place in (there, missing, file):
        assert str(place) in refused(str(place), "--port", "0").stderr
        assert str(place) in refused(place.as_uri(), "--port", "0").stderr
        with afar(tmp_path) as address:
            told = refused(f"{address}/{place.name}", "--port", "0", "--cache", str(tmp_path / "cache")).stderr
        assert told.startswith(f"Error: {address}/{place.name}/manifest.json: the server answers 404")
    assert "cannot be written" in refused(f"{address}/there", "--port", "0", "--cache", str(file / "below")).stderr
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM that a program could answer")
def test_an_address_is_served_from_a_copy_until_sigterm_ends_it_with_code_0(bundle: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with afar(bundle) as address, serving(address, "--cache", str(cache), key=KEY) as started:
        assert len(list(cache.glob("*/*/bundle/manifest.json"))) == 1
        assert started.call("GET", "/readyz").body["bundle"] == started.bundle_id
        started.call("POST", "/v1/recommend", b"{}", {"Authorization": "Bearer wrong"})
        started.process.send_signal(signal.SIGTERM)
        out, err = started.process.communicate(timeout=60)
        assert (started.process.returncode, out, err) == (0, "", "")
    assert list(cache.iterdir()) == []
