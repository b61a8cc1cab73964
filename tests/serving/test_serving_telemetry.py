"""What the server tells of itself: figures, log lines, traces."""

import http.client
import json
import logging
import re
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import StringIO
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
import uvicorn
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import Receive, Scope, Send

from twotower.bundle import Bundle
from twotower.errors import MissingExtraError, RequestError
from twotower.serving.door import logs
from twotower.serving.door.door import Door, Finished
from twotower.serving.door.keys import KeyRing
from twotower.serving.door.logs import log_request, start_logs
from twotower.serving.door.telemetry import MOST_NAMES, Telemetry
from twotower.serving.door.tracing import Tracing

KEY, USER, BODY = "tt_a-key-that-is-secret", "user-4711", '{"user_id": "user-4711", "history": ["film-0815"]}'
TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
STATE = {"request_id": "r1", "method": "POST", "route": "/ask", "key": "web", "bundle": "b1", "variant": "main"}


def samples(telemetry: Telemetry) -> dict[str, float]:
    """`name{label=value}` -> value, of what Prometheus's own reader makes of it."""
    families = text_string_to_metric_families(telemetry.render().decode())
    return {
        sample.name + "".join(f"{{{name}={value}}}" for name, value in sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def recommend(telemetry: Telemetry, *, bundle: str = "b1", fallback: str | None = None, **timings_ms: float) -> None:
    telemetry.recommended(
        variant="main", bundle=bundle, fallback=fallback, timings_ms=timings_ms, candidates=300, items=20
    )


def test_an_answer_is_counted_by_stage_fallback_and_size() -> None:
    telemetry = Telemetry()
    recommend(telemetry, queue=0.5, retrieval=3.0, total=3.5)
    recommend(telemetry, fallback="retrieval", retrieval=5.0, total=6.0)
    told = samples(telemetry)
    assert told["twotower_stage_seconds_sum{stage=retrieval}"] == pytest.approx(0.008)
    assert told["twotower_stage_seconds_count{stage=queue}"] == 1
    assert told["twotower_stage_seconds_count{stage=ranking}"] == 0
    assert told["twotower_stage_seconds_bucket{le=0.004}{stage=retrieval}"] == 1
    assert told["twotower_stage_seconds_bucket{le=0.008}{stage=retrieval}"] == 2
    assert told["twotower_recommendations_total{bundle=b1}{fallback=none}{variant=main}"] == 1
    assert told["twotower_recommendations_total{bundle=b1}{fallback=retrieval}{variant=main}"] == 1
    assert told["twotower_recommendations_total{bundle=b1}{fallback=popular}{variant=main}"] == 0
    assert (told["twotower_candidates_bucket{le=100.0}"], told["twotower_candidates_bucket{le=300.0}"]) == (0, 2)
    assert told["twotower_items_sum"] == 40


def test_requests_are_counted_by_route_and_status() -> None:
    telemetry = Telemetry()
    for status, seconds in ((200, 0.002), (200, 0.5), (401, 0.0001)):
        telemetry.answered("/v1/recommend", status, seconds)
    told = samples(telemetry)
    assert told["twotower_requests_total{route=/v1/recommend}{status=200}"] == 2
    assert told["twotower_requests_total{route=/v1/recommend}{status=401}"] == 1
    assert told["twotower_request_seconds_bucket{le=0.004}{route=/v1/recommend}"] == 2


def test_what_else_happens_is_counted() -> None:
    telemetry = Telemetry()
    telemetry.watch(queue_depth=lambda: 7, in_flight=lambda: 3)
    telemetry.shed()
    telemetry.swap("taken")
    telemetry.swap("refused")
    telemetry.events(accepted=5, duplicates=2)
    telemetry.items(put=4, removed=0)
    telemetry.connection_ended("late")
    telemetry.shadowed(variant="new", seconds=0.01, overlap=0.75)
    telemetry.shadowed(variant="new", seconds=0.01, overlap=None)
    expected = {
        "twotower_queue_depth": 7,
        "twotower_in_flight": 3,
        "twotower_shed_total": 1,
        "twotower_swaps_total{outcome=taken}": 1,
        "twotower_swaps_total{outcome=refused}": 1,
        "twotower_events_total{outcome=accepted}": 5,
        "twotower_events_total{outcome=duplicate}": 2,
        "twotower_item_writes_total{kind=put}": 4,
        "twotower_connections_ended_total{reason=late}": 1,
        "twotower_shadow_seconds_count{variant=new}": 2,
        "twotower_shadow_overlap_sum{variant=new}": 0.75,
        "twotower_shadow_refused_total{variant=new}": 1,
    }
    told = samples(telemetry)
    assert {name: told[name] for name in expected} == expected


def test_a_bundle_s_age_is_that_of_its_making_and_its_log_s_that_of_the_last_interaction(
    bundle_directory: Path,
) -> None:
    bundle = Bundle.load(bundle_directory)
    telemetry = Telemetry()
    before = time.time()
    telemetry.deployed({"main": bundle})
    told = samples(telemetry)
    created = datetime.fromisoformat(str(bundle.metadata["created"])).timestamp()
    age = told[f"twotower_bundle_age_seconds{{bundle={bundle.id}}}{{variant=main}}"]
    assert before - created <= age <= time.time() - created
    # The log of the tiny world ends within its first 10,000 seconds after 1970.
    log_age = told[f"twotower_log_age_seconds{{bundle={bundle.id}}}{{variant=main}}"]
    assert time.time() - 10_000 <= log_age <= time.time()
    telemetry.deployed({})
    assert [name for name in samples(telemetry) if "_age_seconds" in name] == []


def test_bundles_that_come_and_go_do_not_gather() -> None:
    telemetry = Telemetry()
    for number in range(100):
        recommend(telemetry, bundle=f"b{number}", total=1.0)
        telemetry.shadowed(variant=f"v{number}", seconds=0.01, overlap=1.0)
    told = samples(telemetry)
    counted = [name for name in told if name.startswith("twotower_recommendations_total")]
    assert len(counted) == 3 * MOST_NAMES
    assert told["twotower_recommendations_total{bundle=b99}{fallback=none}{variant=main}"] == 1
    shadows = [name for name in told if name.startswith("twotower_shadow_overlap_count")]
    assert len(shadows) == MOST_NAMES + 1
    assert told["twotower_shadow_overlap_count{variant=other}"] == 100 - MOST_NAMES


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="read from /proc")
def test_the_process_s_memory_is_told_and_the_global_registry_is_left_alone() -> None:
    telemetry = Telemetry()
    recommend(telemetry, total=1.0)
    assert samples(telemetry)["process_resident_memory_bytes"] > 10_000_000
    assert b"twotower_" not in prometheus_client.generate_latest()


@pytest.fixture
def log() -> Iterator[StringIO]:
    """Where the log goes, for one test."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    out = StringIO()
    yield out
    for handler in (*root.handlers[:], *logs.ACCESS.handlers[:]):
        if handler not in before:
            handler.close()
    root.handlers[:], logs.ACCESS.handlers[:] = before, []
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    logging.getLogger("uvicorn.error").setLevel(logging.NOTSET)
    logging.getLogger("twotower").setLevel(logging.NOTSET)


def lines(log: StringIO) -> list[dict[str, Any]]:
    """The log's lines; those about requests are written by the time that it is ended."""
    for handler in logs.ACCESS.handlers:
        handler.close()
    return [json.loads(line) for line in log.getvalue().splitlines()]


def test_a_request_is_one_line_of_json_that_names_no_more_than_it_has_to(log: StringIO) -> None:
    start_logs("json", access=True, stream=log)
    log_request({**STATE, "fallback": None, "user_id": USER, "traceparent": "x"}, 200, 0.0021)
    (line,) = lines(log)
    moment = datetime.fromisoformat(line.pop("time"))
    assert abs(moment.timestamp() - time.time()) < 60
    assert line == {"level": "info", "event": "request", **STATE, "status": 200, "ms": 2.1}


def test_requests_are_silent_unless_asked_for_and_warnings_are_not(log: StringIO) -> None:
    start_logs("json", access=False, stream=log)
    log_request(STATE, 200, 0.0021)
    logging.getLogger("twotower.serving.live.deployment").warning("bundle refused", extra={"fields": {"bundle": "b2"}})
    logging.getLogger("twotower.serving.live.deployment").info("bundle taken", extra={"fields": {"bundle": "b3"}})
    logging.getLogger("elsewhere").info("chatter")
    warnings.warn("old ways", stacklevel=1)
    taken = [(line["level"], line["event"], line.get("bundle"), line.get("logger")) for line in lines(log)]
    assert taken[:2] == [("warning", "bundle refused", "b2", None), ("info", "bundle taken", "b3", None)]
    assert len(taken) == 3
    assert "old ways" in taken[2][1]
    assert taken[2][3] == "py.warnings"


def test_lines_for_people_hold_the_same_and_stay_one_line(log: StringIO) -> None:
    start_logs("text", access=False, stream=log)
    logging.getLogger("twotower.serving").error("a\x1b[2J\rfault\nbelow", extra={"fields": {"where": "x\ny"}})
    assert re.fullmatch(r"[\d-]+T[\d:.]+Z error: a \[2J fault where=x y\n", log.getvalue())


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (KeyError(USER), "KeyError"),
        (RequestError(f"user '{USER}' is strange"), "RequestError"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
        (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device"),
    ],
)
def test_an_exception_s_text_is_told_only_where_it_cannot_quote_a_request(
    log: StringIO, fault: Exception, told: str
) -> None:
    start_logs("json", access=False, stream=log)
    try:
        try:
            raise fault
        except Exception as first:
            raise ValueError(BODY) from first
    except ValueError:
        logging.getLogger("twotower").exception("a fault of the server's own")
    (line,) = lines(log)
    assert line["exception"].splitlines()[-1] == "ValueError"
    assert f"\n{told}\nwhich led to:\n" in line["exception"]
    assert 'test_serving_telemetry.py", line ' in line["exception"]
    assert USER not in log.getvalue()


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    body = (await receive())["body"]
    if scope["path"] == "/bug":
        raise KeyError(body.decode())
    scope["state"] |= {"bundle": "b1", "variant": "main", "timings_ms": {"queue": 1.0, "query": 2.0, "total": 9.0}}
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/half":
        raise KeyError(body.decode())
    await send({"type": "http.response.body", "body": b"{}"})


@contextmanager
def serving(finished: Finished) -> Iterator[int]:
    """The port of a server behind the door, with a key."""
    routes = {path: {"POST": "read"} for path in ("/ask", "/bug", "/half")}
    keys = KeyRing.of({"TWOTOWER_API_KEY": KEY})
    door = Door(application, routes=routes, keys=keys, finished=finished)  # type: ignore[arg-type]
    server = uvicorn.Server(uvicorn.Config(door, lifespan="off", log_config=None, ws="none"))
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield bound.getsockname()[1]
        server.should_exit = True
        thread.join(30)


def post(port: int, path: str, **headers: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("POST", path, BODY, {"Authorization": f"Bearer {KEY}", **headers})
        response = connection.getresponse()
        with suppress(http.client.IncompleteRead):
            response.read()
        return response.status
    finally:
        connection.close()


def test_no_key_no_body_and_no_user_is_ever_in_the_log(log: StringIO) -> None:
    start_logs("json", access=True, stream=log)
    with serving(log_request) as port:
        statuses = [post(port, path) for path in ("/ask", "/bug", "/half", f"/{USER}")]
        statuses.append(post(port, "/ask", Authorization=f"Bearer {KEY}x"))
        statuses.append(post(port, "/ask", **{"X-Request-ID": f"Bearer\t{KEY}"}))
    assert statuses == [200, 500, 200, 404, 401, 200]
    found = lines(log)
    asked = [(line["route"], line["status"], line.get("bundle")) for line in found if line["event"] == "request"]
    assert asked == [
        ("/ask", 200, "b1"),
        ("/bug", 500, None),
        ("/half", 200, "b1"),
        ("other", 404, None),
        ("/ask", 401, None),
        ("/ask", 200, "b1"),
    ]
    faults = [line for line in found if line["level"] == "error"]
    assert [line["event"] for line in faults[:2]] == ["a fault of the server's own"] * 2
    assert all(line["exception"].endswith("KeyError") for line in faults)
    assert {line["request_id"] for line in faults if "request_id" in line} <= {line.get("request_id") for line in found}
    assert [secret for secret in (KEY, USER, "film-0815", "Bearer") if secret in log.getvalue()] == []


class Collector(BaseHTTPRequestHandler):
    """What an OpenTelemetry collector is to its clients."""

    received: list[ExportTraceServiceRequest]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.path == "/v1/traces"
        self.received.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *told: Any) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """Its address, and what it has received."""
    kind = type("OneCollector", (Collector,), {"received": []})
    with HTTPServer(("127.0.0.1", 0), kind) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", kind.received  # type: ignore[attr-defined]
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("is_by_environment", [False, True])
def test_a_request_is_a_span_under_the_caller_s_with_one_below_it_for_each_stage(
    collector: tuple[str, list[ExportTraceServiceRequest]], is_by_environment: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, received = collector
    if is_by_environment:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        tracing = Tracing.open({"OTEL_EXPORTER_OTLP_ENDPOINT": address})
    else:
        tracing = Tracing.open({}, endpoint=address)
    assert tracing is not None
    with serving(tracing.request) as port:
        post(port, "/ask", traceparent=f"00-{TRACE}-{CALLER}-01")
        post(port, "/bug", traceparent="nonsense")
    tracing.close()
    resources = [each for request in received for each in request.resource_spans]
    named = {each.key: each.value.string_value for each in resources[0].resource.attributes}
    assert named["service.name"] == "twotower"
    spans = [span for each in resources for scope in each.scope_spans for span in scope.spans]
    by_name = {span.name: span for span in spans}
    assert by_name.keys() == {"POST /ask", "POST /bug", "queue", "query"}
    asked, queue, query = by_name["POST /ask"], by_name["queue"], by_name["query"]
    assert (asked.trace_id.hex(), asked.parent_span_id.hex()) == (TRACE, CALLER)
    assert queue.parent_span_id == query.parent_span_id == asked.span_id
    assert queue.start_time_unix_nano == asked.start_time_unix_nano
    assert queue.end_time_unix_nano - queue.start_time_unix_nano == 1_000_000
    assert query.end_time_unix_nano - queue.end_time_unix_nano == 2_000_000
    told = {each.key: each.value.string_value or each.value.int_value for each in asked.attributes}
    assert re.fullmatch("[0-9a-f]{32}", str(told.pop("twotower.request_id")))
    assert told == {
        "http.request.method": "POST",
        "http.route": "/ask",
        "http.response.status_code": 200,
        "twotower.bundle": "b1",
        "twotower.variant": "main",
    }
    assert (by_name["POST /bug"].parent_span_id, by_name["POST /bug"].status.code) == (b"", 2)
    text = b"".join(request.SerializeToString() for request in received)
    assert [secret for secret in (KEY, USER, "film-0815") if secret.encode() in text] == []


def test_an_unsampled_caller_is_followed(collector: tuple[str, list[ExportTraceServiceRequest]]) -> None:
    address, received = collector
    tracing = Tracing.open({}, endpoint=address)
    assert tracing is not None
    tracing.request({**STATE, "traceparent": f"00-{TRACE}-{CALLER}-00"}, 200, 0.1)
    tracing.close()
    assert received == []


def test_traces_that_nobody_asked_for_load_nothing() -> None:
    assert Tracing.open({}) is None
    code = (
        "from twotower.serving.door.tracing import Tracing; assert Tracing.open({}) is None; import sys;"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout == "[]\n"


def test_traces_without_opentelemetry_are_told_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in sys.modules if name.startswith("opentelemetry.exporter")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter", None)
    with pytest.raises(MissingExtraError) as fault:
        Tracing.open({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"})
    assert 'pip install "twotower[telemetry]"' in str(fault.value)
    assert "\n" not in str(fault.value)
