"""Whose turn it is: one at a time, in order, and nobody waits for what cannot be had."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

import pytest

from twotower.serving.door.admission import SMALL, Gate, OverloadedError


def busy(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 30))


def test_turns_are_taken_one_at_a_time_in_the_order_of_asking() -> None:
    async def work() -> list[str]:
        gate = Gate(shed=lambda: None, patience_s=10, burst_s=10)
        order: list[str] = []

        async def one(name: str) -> None:
            async with gate.turn():
                order.append(f"{name} begins")
                await asyncio.sleep(0)
                order.append(f"{name} ends")

        await asyncio.gather(*(one(name) for name in "abc"))
        return order

    assert run(work()) == [f"{name} {what}" for name in "abc" for what in ("begins", "ends")]


def test_between_two_turns_the_loop_looks_at_what_came_in() -> None:
    # Computing does not wait for anything, so only the gate itself lets others have a look.
    async def work() -> list[str]:
        gate = Gate(shed=lambda: None, patience_s=10, burst_s=10)
        order: list[str] = []

        async def one(name: str) -> None:
            async with gate.turn():
                order.append(name)
                asyncio.get_running_loop().call_soon(order.append, "a look")

        await asyncio.gather(one("a"), one("b"))
        return order

    assert run(work())[:3] == ["a", "a look", "b"]


def test_who_would_wait_too_long_is_sent_away_at_once_and_the_others_are_served() -> None:
    async def work() -> tuple[list[Any], int]:
        sent_away = 0

        def shed() -> None:
            nonlocal sent_away
            sent_away += 1

        gate = Gate(shed=shed, patience_s=0.02, burst_s=0.05)

        async def one() -> str:
            async with gate.turn():
                busy(0.01)
                return "served"

        outcomes = await asyncio.gather(*(one() for _ in range(40)), return_exceptions=True)
        return outcomes, sent_away

    outcomes, sent_away = run(work())
    served = outcomes.count("served")
    assert served + sent_away == 40
    assert {type(each) for each in outcomes} == {str, OverloadedError}
    assert 2 <= served <= 10  # The first, and who waits at most 50 ms behind it, at 10 ms each.


def test_a_handful_is_no_rush_however_long_each_takes() -> None:
    async def work() -> bool:
        gate = Gate(shed=lambda: None, patience_s=0, burst_s=0)
        async with gate.turn():
            places = [asyncio.create_task(gate.turn().__aenter__()) for _ in range(SMALL - 1)]
            await asyncio.sleep(0)
            is_full = gate.is_full
            for place in places:
                place.cancel()
        return is_full

    assert not run(work())


def test_the_rest_of_what_has_begun_is_not_sent_away_while_others_are() -> None:
    async def work() -> list[Any]:
        gate = Gate(shed=lambda: None, patience_s=0, burst_s=0)

        async def one(*, is_admitted: bool) -> str:
            async with gate.turn(is_admitted=is_admitted):
                busy(0.005)
                return "served"

        admitted = [False, False, False, False, False, False, True]
        return await asyncio.gather(*(one(is_admitted=each) for each in admitted), return_exceptions=True)

    outcomes = run(work())
    assert (outcomes[0], outcomes[-1]) == ("served", "served")
    assert {type(each) for each in outcomes[1:-1]} == {OverloadedError}


def test_while_too_much_is_asked_those_admitted_wait_for_little_though_a_burst_may_wait_long() -> None:
    # A queue that was emptied by sending away is no sign that all could be answered.
    async def work() -> tuple[list[float], int]:
        gate = Gate(shed=lambda: None, patience_s=0.005, burst_s=0.1)
        waits: list[float] = []

        async def one() -> None:
            came = time.perf_counter()
            async with gate.turn():
                waits.append(time.perf_counter() - came)
                busy(0.001)

        asked = []
        end = time.perf_counter() + 0.8
        while time.perf_counter() < end:  # Each look of the loop brings three, and one is answered.
            asked += [asyncio.create_task(one()) for _ in range(3)]
            await asyncio.sleep(0)
        await asyncio.gather(*asked, return_exceptions=True)
        return waits, len(asked)

    waits, asked = run(work())
    assert len(waits) < asked / 2
    late = waits[len(waits) // 2 :]
    assert sorted(late)[len(late) // 2] < 0.05


def test_after_the_rush_everybody_is_served_again() -> None:
    async def work() -> str:
        gate = Gate(shed=lambda: None, patience_s=0.001, burst_s=0.002)

        async def one() -> str:
            async with gate.turn():
                busy(0.005)
                return "served"

        await asyncio.gather(*(one() for _ in range(20)), return_exceptions=True)
        await asyncio.sleep(0.01)
        assert gate.depth == 0
        assert not gate.is_full
        return await one()

    assert run(work()) == "served"


def test_who_gives_up_while_waiting_takes_no_turn() -> None:
    async def work() -> str:
        gate = Gate(shed=lambda: None, patience_s=10, burst_s=10)
        held = asyncio.Event()

        async def hold() -> None:
            async with gate.turn():
                await held.wait()

        async def one() -> str:
            async with gate.turn():
                return "served"

        first = asyncio.create_task(hold())
        await asyncio.sleep(0)
        gone, last = asyncio.create_task(one()), asyncio.create_task(one())
        await asyncio.sleep(0)
        gone.cancel()
        held.set()
        await first
        with pytest.raises(asyncio.CancelledError):
            await gone
        return await last

    assert run(work()) == "served"


def test_a_fault_gives_the_turn_back() -> None:
    async def work() -> str:
        gate = Gate(shed=lambda: None)
        with pytest.raises(ZeroDivisionError):
            async with gate.turn():
                raise ZeroDivisionError
        async with gate.turn():
            return "served"

    assert run(work()) == "served"
