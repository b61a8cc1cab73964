"""Whether a bundle serves: a real server is started on it and asked, over HTTP, what users will ask."""

import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from twotower.bundle import Bundle
from twotower.errors import ArtifactError

READY_WITHIN_S = 60.0
ANSWER_WITHIN_S = 30.0
ASKED_TWICE = 20
"""Known users asked for the time of a request."""
K = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One thing asked, and what was wrong with the answer."""

    asked: str
    fault: str
    """Empty where the answer was right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """All that was asked."""

    bundle: str
    questions: tuple[Question, ...]
    ready_seconds: float
    """From the start of the process to the first yes of `/readyz`."""
    ms_per_request: float
    """Median over known users, HTTP included."""

    @property
    def passed(self) -> bool:
        """Whether every answer was right."""
        return not self.first_fault

    @property
    def first_fault(self) -> str:
        """What went wrong first; empty where nothing did."""
        return next((f"{one.asked}: {one.fault}" for one in self.questions if one.fault), "")


def ask_server(bundle: Path) -> Asked:
    """Start `twotower serve` on a bundle, ask it, and stop it.

    Raises:
        ArtifactError: the bundle is damaged, or the server does not start.
    """
    opened = Bundle.load(bundle)
    started = time.perf_counter()
    with _server(bundle) as ask:
        ready = time.perf_counter() - started
        questions = tuple(Question(asked=name, fault=check(opened, ask)) for name, check in QUESTIONS.items())
        ms = _milliseconds(opened, ask)
    return Asked(bundle=opened.id, questions=questions, ready_seconds=ready, ms_per_request=ms)


def smoke_card(asked: Asked) -> str:
    """The answers as Markdown."""
    heading = "A server on this bundle answers" if asked.passed else "A server on this bundle fails"
    rows = [f"| {one.asked} | {one.fault or 'right'} |" for one in asked.questions]
    figures = f"Ready after {asked.ready_seconds:.1f} s; {asked.ms_per_request:.1f} ms a request, HTTP included."
    return "\n".join(
        [f"# {heading}", "", f"`{asked.bundle}`. {figures}", "", "| Asked | Answer |", "|---|---|", *rows, ""]
    )


Ask = Callable[[dict[str, Any]], dict[str, Any]]
"""A request's body -> the answer's; a refusal, or none, comes back as `{"status": ...}`."""


def _known_user(bundle: Bundle, ask: Ask) -> str:
    user, seen = _busy_user(bundle)
    answer = ask({"user_id": user, "k": K})
    return _items_fault(bundle, answer, barred=seen) or ("the popular fallback came" if answer["fallback"] else "")


def _history(bundle: Bundle, ask: Ask) -> str:
    met = [str(bundle.items["item_id"][int(row)]) for row in np.argsort(-bundle.popularity, kind="stable")[:2]]
    return _items_fault(bundle, ask({"history": met, "k": K}), barred=set(met))


def _nobody(bundle: Bundle, ask: Ask) -> str:
    answer = ask({"k": K})
    return _items_fault(bundle, answer, barred=set()) or ("" if answer["fallback"] else "no fallback was named")


def _nonsense(_: Bundle, ask: Ask) -> str:
    status = ask({"no_such_field": 1}).get("status")
    return "" if status == 422 else f"status {status} where 422 is right"


QUESTIONS: dict[str, Callable[[Bundle, Ask], str]] = {
    "a known user gets unseen items of the catalogue": _known_user,
    "a history alone gets items": _history,
    "nobody in particular gets popular items": _nobody,
    "a request that makes no sense is refused": _nonsense,
}


def _items_fault(bundle: Bundle, answer: dict[str, Any], *, barred: set[str]) -> str:
    """What is wrong with a list of items; empty where nothing is."""
    if "items" not in answer:
        return f"status {answer.get('status')} in place of items"
    if answer["bundle"] != bundle.id:
        return f"bundle {answer['bundle']} answered"
    ids = [item["item_id"] for item in answer["items"]]
    catalogue = {str(value) for value in bundle.items["item_id"].to_pylist()}
    expected = min(K, len(catalogue - barred))
    if len(set(ids)) != expected:
        return f"{len(set(ids))} distinct items, not {expected}"
    if strange := set(ids) - catalogue:
        return f"item {min(strange)} is not in the catalogue"
    if seen := set(ids) & barred:
        return f"item {min(seen)} had been met"
    if not all(np.isfinite(item["score"]) for item in answer["items"]):
        return "a score is no number"
    return ""


def _busy_user(bundle: Bundle) -> tuple[str, set[str]]:
    """The user with the longest history, and what it holds."""
    row = int(np.argmax(np.diff(bundle.log.start)))
    met = bundle.log.item[bundle.log.start[row] : bundle.log.start[row + 1]]
    ids = bundle.items["item_id"].take(np.unique(met)).to_pylist()
    return str(bundle.users["user_id"][row]), {str(value) for value in ids}


def _milliseconds(bundle: Bundle, ask: Ask) -> float:
    users = bundle.users["user_id"].slice(0, ASKED_TWICE).to_pylist()
    seconds = []
    for user in users:
        begin = time.perf_counter()
        ask({"user_id": str(user), "k": K})
        seconds.append(time.perf_counter() - begin)
    return 1e3 * float(np.median(seconds)) if seconds else float("nan")


@contextmanager
def _server(bundle: Path) -> Iterator[Ask]:
    """A server on a free port of this machine, in a process of its own."""
    command = [sys.executable, "-m", "twotower", "serve", str(bundle), "--host", "127.0.0.1", "--port", "0"]
    # A key in our own environment is for the real server; this one listens to nobody but us.
    environment = {name: value for name, value in os.environ.items() if name != "TWOTOWER_API_KEY"}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as told:
        process = subprocess.Popen(command, stdout=told, stderr=told, stdin=subprocess.DEVNULL, env=environment)
        try:
            yield _asker(_wait_until_ready(process, told, bundle=bundle))
        finally:
            process.terminate()
            try:
                process.wait(ANSWER_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_ready(process: "subprocess.Popen[bytes]", told: Any, *, bundle: Path) -> str:
    """The address that the server says it listens on, once it answers there."""
    end = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < end and process.poll() is None:
        told.seek(0)
        words: list[str] = told.read().split()
        address = next((word.rstrip(".") for word in words if word.startswith("http://127.0.0.1:")), None)
        if address is not None and _answers(f"{address}/readyz"):
            return address
        time.sleep(0.05)
    told.seek(0)
    lines = told.read().strip().splitlines() or ["it said nothing"]
    ended = f"ended with code {process.returncode}" if process.returncode else f"is not ready in {READY_WITHIN_S:.0f} s"
    raise ArtifactError(f"{bundle}: a server on it {ended}: {lines[-1]}")


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=ANSWER_WITHIN_S) as response:
            return bool(response.status == 200)
    except (OSError, http.client.HTTPException):
        return False


def _asker(address: str) -> Ask:
    def ask(body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{address}/v1/recommend", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_WITHIN_S) as response:
                found: dict[str, Any] = json.loads(response.read())
                return found
        except urllib.error.HTTPError as fault:
            return {"status": fault.code}
        except (OSError, ValueError, http.client.HTTPException) as fault:  # It went down, or talks nonsense.
            return {"status": f"none ({fault})"}

    return ask
