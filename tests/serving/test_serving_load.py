"""The load generator against servers whose faults are known, and `twotower bench serve` against the real one."""

import asyncio
import json
import os
import socket
import struct
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from twotower.bundle import Bundle
from twotower.cli.main import main
from twotower.errors import ArtifactError, RequestError
from twotower.serving.load.child import on_cores, resident_mb, serving
from twotower.serving.load.generator import LoadPlan, LoadResult, Saturation, find_saturation, run, run_loop
from twotower.serving.load.measuring import IndexFigures, better_of, choose_index, draw_users, request_bodies
from twotower.serving.load.pool import CLOSED, RESET

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter
Behaviour = Callable[[bytes, Writer], Awaitable[None]]
"""What a server does with a request's body."""
FINE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


class Toy:
    """A server that does one thing with every request, and keeps what it was asked."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.open = self.most = 0

    async def __call__(self, reader: Reader, writer: Writer) -> None:
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                body = await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split()[0]))
                self.heads.append(head)
                self.bodies.append(body)
                await self.behaviour(body, writer)
                if writer.is_closing():
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open -= 1
            writer.close()


def ask(behaviour: Behaviour, *, bodies: tuple[bytes, ...] = (b"{}",), **told: Any) -> tuple[LoadResult, Toy]:
    """A quick load on a toy server."""
    toy = Toy(behaviour)

    async def whole() -> LoadResult:
        server = await asyncio.start_server(toy, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            settings = {"rate": 100.0, "seconds": 0.2, "warmup": 0.0, "timeout": 5.0} | told
            answered = settings.pop("answered", None)
            return await run(LoadPlan(url=url, bodies=bodies, **settings), answered=answered)
        finally:
            server.close()

    return run_loop(whole()), toy


async def fine(body: bytes, writer: Writer) -> None:
    writer.write(FINE)


def result(status: list[int], latency_ms: list[float], *, rate: float = 10.0, first: int = 0) -> LoadResult:
    return LoadResult(
        rate=rate,
        seconds=(len(status) - first) / rate,
        first=first,
        latency_ms=np.array(latency_ms, float),
        status=np.array(status, np.int16),
        late_ms=np.zeros(len(status), np.float32),
        unhinted=0,
    )


def test_everyone_who_comes_during_a_stall_is_charged_for_it() -> None:
    first = True

    async def stall_once(body: bytes, writer: Writer) -> None:
        nonlocal first
        if first:
            first = False
            await asyncio.sleep(0.3)
        writer.write(FINE)

    # One connection, a request each 20 ms: the first is answered after 300 ms, so the i-th waits 300 - 20 i at least.
    found, _ = ask(stall_once, rate=50.0, seconds=0.3, connections=1)
    assert len(found.latency_ms) == 15
    assert all(found.latency_ms >= 300 - 20 * np.arange(15) - 1)


def test_answers_are_counted_by_status_and_those_turned_away_without_a_hint_are_told() -> None:
    number = -1
    lines = [
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\n",
        b"HTTP/1.1 503 Service Unavailable\r\n",
        b"HTTP/1.1 500 Internal Server Error\r\n",
    ]

    async def by_turns(body: bytes, writer: Writer) -> None:
        nonlocal number
        number += 1
        writer.write(lines[number % 4] + b"Content-Length: 2\r\n\r\n{}")

    found, _ = ask(by_turns, rate=200.0, seconds=0.2)
    assert found.counts == {200: 10, 429: 10, 500: 10, 503: 10}
    assert (found.errors, found.shed, found.failed, found.unhinted) == ({}, 0.5, 10, 10)


@pytest.mark.parametrize("kind", ["closed", "reset", "garbled", "timeout", "cut"])
def test_a_request_without_a_whole_answer_is_told_by_its_fault(kind: str) -> None:
    async def fail(body: bytes, writer: Writer) -> None:
        if kind == "timeout":
            await asyncio.sleep(60)
        if kind == "garbled":
            writer.write(b"no HTTP at all\r\n\r\n")
        if kind == "cut":
            writer.write(FINE[:-1])
        if kind == "reset":
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
        writer.close()

    found, _ = ask(fail, timeout=0.3 if kind == "timeout" else 5.0)
    assert found.errors == {"closed" if kind == "cut" else kind: 20}
    assert found.failed == found.sent == 20


def test_where_nobody_listens_every_request_is_refused() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    plan = LoadPlan(url=f"http://127.0.0.1:{port}", rate=100, seconds=0.2, bodies=[b"{}"], warmup=0.0)
    found = run_loop(run(plan))
    assert (found.errors, found.counts, found.achieved) == ({"refused": 20}, {}, 0.0)


@pytest.mark.parametrize("how", ["in pieces", "in chunks", "on a connection that ends"])
def test_an_answer_is_read_whole_however_it_comes(how: str) -> None:
    async def answer(body: bytes, writer: Writer) -> None:
        if how == "in pieces":
            for place in range(len(FINE)):
                writer.write(FINE[place : place + 1])
                await asyncio.sleep(0)
        elif how == "in chunks":
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n")
        else:
            writer.write(FINE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            writer.close()

    bodies: list[bytes] = []
    found, _ = ask(answer, answered=lambda number, status, body: bodies.append(body))
    assert found.counts == {200: 20}
    assert bodies == [b"{}"] * 20


def test_bodies_go_round_in_order_and_those_of_the_warm_up_are_not_counted() -> None:
    told: list[tuple[int, int]] = []
    found, toy = ask(
        fine,
        bodies=(b"a", b"bb", b"ccc"),
        rate=100.0,
        seconds=0.05,
        warmup=0.02,
        connections=1,
        headers={"Authorization": "Bearer x"},
        answered=lambda number, status, body: told.append((number, status)),
    )
    assert toy.bodies == [b"a", b"bb", b"ccc", b"a", b"bb", b"ccc", b"a"]
    assert (found.sent, found.counts) == (5, {200: 5})
    assert told == [(number, 200) for number in range(7)]
    assert toy.heads[0].startswith(b"POST /v1/recommend HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"\r\nAuthorization: Bearer x\r\n" in toy.heads[0]


def test_no_more_connections_are_opened_than_allowed() -> None:
    async def slow(body: bytes, writer: Writer) -> None:
        await asyncio.sleep(0.05)
        writer.write(FINE)

    # 40 requests in 0.1 s, each taking 0.05 s, would need 20 connections.
    found, toy = ask(slow, rate=400.0, seconds=0.1, connections=3)
    assert (toy.most, found.counts) == (3, {200: 40})


def test_a_load_can_be_ended_before_its_time() -> None:
    async def whole() -> LoadResult:
        server = await asyncio.start_server(Toy(fine), "127.0.0.1", 0)
        over = asyncio.Event()
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        load = asyncio.create_task(run(LoadPlan(url=url, rate=100, seconds=3600, bodies=[b"{}"]), until=over))
        await asyncio.sleep(1.2)
        over.set()
        found = await load
        server.close()
        return found

    found = run_loop(whole())
    assert 0 < found.sent < 3600
    assert found.counts == {200: found.sent}


def test_figures_are_those_worked_by_hand() -> None:
    # Ten a second from -0.1 s on. The one that was to warm up comes at 0.05 s, the last comes after the end at 0.5 s.
    found = result([200, 200, 200, 429, RESET, 200], [150, 10, 20, 1, 5, 200], first=1)
    assert found.moment.tolist() == pytest.approx([-0.1, 0.0, 0.1, 0.2, 0.3, 0.4])
    assert (found.sent, found.counts, found.errors) == (5, {200: 3, 429: 1}, {"reset": 1})
    assert (found.percentile_ms(50), found.percentile_ms(100)) == (20.0, 200.0)
    assert found.percentile_ms(50, status=429) == 1.0
    assert (found.shed, found.failed) == (0.2, 1)
    assert found.achieved == 3 / 0.5
    assert json.loads(json.dumps(found.summary()))["p50_ms"] == 20.0


@given(st.lists(st.sampled_from([200, 404, 429, 503, RESET, CLOSED]), min_size=1, max_size=50))
def test_every_request_is_counted_once(status: list[int]) -> None:
    found = result(status, [1.0] * len(status))
    assert sum(found.counts.values()) + sum(found.errors.values()) == found.sent
    good = found.counts.get(200, 0)
    assert good + round(found.shed * found.sent) + found.failed == found.sent


def saturate(behaviour: Behaviour, *, rate: float) -> Saturation:
    async def whole() -> Saturation:
        server = await asyncio.start_server(Toy(behaviour), "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        plan = LoadPlan(url=url, rate=rate, seconds=0.3, bodies=[b"{}"], warmup=0.05)
        found = await find_saturation(plan)
        server.close()
        return found

    return run_loop(whole())


def test_saturation_is_never_above_what_the_server_can_do() -> None:
    turn = asyncio.Lock()

    async def one_at_a_time(body: bytes, writer: Writer) -> None:
        async with turn:
            await asyncio.sleep(0.01)
        writer.write(FINE)

    found = saturate(one_at_a_time, rate=20.0)
    # At most 100 a second; what came in the warm-up may be answered in the time measured.
    assert found.max_rps <= 125
    assert {step["borne"] for step in found.steps} == {True, False}
    assert found.max_rps == max(step["achieved"] for step in found.steps if step["borne"])


def test_a_server_that_turns_everybody_away_bears_nothing() -> None:
    async def away(body: bytes, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n")

    assert saturate(away, rate=20.0).max_rps == 0


@pytest.mark.parametrize(
    ("told", "fault"),
    [
        ({"bodies": []}, "nothing to ask"),
        ({"url": "https://127.0.0.1"}, "not http://HOST:PORT"),
        ({"url": "127.0.0.1:80"}, "not http://HOST:PORT"),
    ],
)
def test_a_load_that_cannot_be_is_refused(told: dict[str, Any], fault: str) -> None:
    plan = LoadPlan(**({"url": "http://127.0.0.1:1", "rate": 1, "seconds": 1, "bodies": [b"{}"]} | told))
    with pytest.raises(RequestError, match=fault):
        run_loop(run(plan))


def test_a_server_that_does_not_start_is_told_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"ended with code 2: Error: "), serving(tmp_path):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_memory_and_cores_of_a_process_are_what_linux_says() -> None:
    assert 1 < resident_mb(os.getpid(), line="RssAnon") <= resident_mb(os.getpid())
    before = os.sched_getaffinity(0)
    with on_cores({min(before)}):
        assert os.sched_getaffinity(0) == {min(before)}
    assert os.sched_getaffinity(0) == before


def test_requests_are_for_known_users_and_drawn_from_the_seed_alone(bundle_directory: Path) -> None:
    bundle = Bundle.load(bundle_directory)
    drawn = request_bodies(bundle, k=3, count=50, users="uniform", seed=1)
    assert drawn == request_bodies(bundle, k=3, count=50, users="uniform", seed=1)
    asked = [json.loads(body) for body in drawn]
    assert {body["k"] for body in asked} == {3}
    assert {body["user_id"] for body in asked} <= {f"u{row}" for row in range(25)}


def test_zipf_asks_the_busiest_user_most(bundle_directory: Path) -> None:
    bundle = Bundle.load(bundle_directory)
    busiest = f"u{int(np.argmax(np.diff(bundle.log.start)))}"
    drawn = draw_users(bundle, count=2000, users="zipf", generator=np.random.default_rng(0))
    # The first of 25 is drawn with chance 1 / (1 + 1/2 + ... + 1/25) = 0.262.
    assert 0.22 < drawn.count(busiest) / 2000 < 0.31
    assert max(set(drawn), key=drawn.count) == busiest


def figures(kind: str, ms: float, recall: float) -> IndexFigures:
    return IndexFigures(kind=kind, ms_per_query=ms, recall=recall, build_seconds=None)


@pytest.mark.parametrize(
    ("approximate", "chosen", "why"),
    [
        ((1.0, 0.99), "hnsw", "saves 4.00 ms"),
        ((4.95, 1.00), "exact", "saves 0.05 ms"),
        ((1.0, 0.90), "exact", "97% have to be found"),
        ((6.0, 1.00), "exact", "takes 1.00 ms more"),
    ],
)
def test_an_approximate_index_is_taken_where_it_finds_enough_and_saves_enough(
    approximate: tuple[float, float], chosen: str, why: str
) -> None:
    kind, reason = better_of(figures("exact", 5.0, 1.0), figures("hnsw", *approximate))
    assert kind == chosen
    assert why in reason


def test_both_indexes_are_measured_whichever_the_bundle_has(bundle_directory: Path, world: Any, tmp_path: Path) -> None:
    other = world.write(tmp_path / "hnsw", index=world.directory / "hnsw")
    for directory, own, against in ((bundle_directory, "exact", "ivf"), (other, "hnsw", "hnsw")):
        choice = choose_index(Bundle.load(directory), users="uniform", seed=0)
        exact, approximate = choice.figures
        assert (choice.own, choice.depth, exact.kind, approximate.kind) == (own, 12, "exact", against)
        assert (approximate.build_seconds is not None) == (own == "exact")
        assert (exact.recall, choice.better) == (1.0, "exact")


def test_bench_serve_measures_a_real_server_and_names_the_index(bundle_directory: Path) -> None:
    command = ["bench", "serve", str(bundle_directory), "--rate", "50", "--seconds", "1", "-k", "3", "--json"]
    told = CliRunner().invoke(main, command)
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)
    assert found["bundle"] == Bundle.load(bundle_directory).id
    assert found["load"]["counts"] == {"200": 50}
    assert found["load"]["errors"] == {}
    assert found["timings_ms"]
    assert all(each["p50"] <= each["p99"] for each in found["timings_ms"].values())
    assert found["index"]["better"] == "exact"
    assert found["saturation"] is None


def test_bench_serve_prints_tables(bundle_directory: Path) -> None:
    told = CliRunner().invoke(main, ["bench", "serve", str(bundle_directory), "--rate", "50", "--seconds", "1"])
    assert told.exit_code == 0, told.output
    for text in ("p99", "turned away", "MB resident", "recall@12", 'index.kind = "exact" (which the bundle has)'):
        assert text in told.stdout
