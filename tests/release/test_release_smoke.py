"""A real server on a bundle, asked over HTTP; and each wrong answer, played."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twotower import steps
from twotower.artifact import read_manifest
from twotower.bundle import Bundle
from twotower.errors import ArtifactError
from twotower.release.smoke import QUESTIONS, K, ask_server

KNOWN, HISTORY, NOBODY, NONSENSE = QUESTIONS


@pytest.fixture(scope="module")
def opened(tiny_run: Path) -> Bundle:
    return Bundle.load(tiny_run / "bundle")


def test_a_good_bundle_answers_every_question(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A key of the real server's does not keep the smoke test out.
    monkeypatch.setenv("TWOTOWER_API_KEY", "secret")
    steps.smoke_test(tiny_run / "bundle", out=tmp_path / "smoke")
    metadata = read_manifest(tmp_path / "smoke", kind="smoke")["metadata"]
    assert metadata["passed"] is True
    assert 0 < metadata["ms_per_request"] < 5_000
    asked = json.loads((tmp_path / "smoke" / "smoke.json").read_text(encoding="utf-8"))
    assert [one["asked"] for one in asked["questions"]] == list(QUESTIONS)
    assert {one["fault"] for one in asked["questions"]} == {""}
    card = (tmp_path / "smoke" / "card.md").read_text(encoding="utf-8")
    assert f"| {KNOWN} | right |" in card


def test_a_bundle_whose_server_cannot_start_is_refused_by_name(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "uvicorn.py").write_text("raise SystemExit('this one serves nobody')\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    bundle = tiny_run / "bundle"
    with pytest.raises(ArtifactError) as fault:
        steps.smoke_test(bundle, out=tmp_path / "smoke")
    assert str(fault.value) == f"{bundle}: a server on it ended with code 1: this one serves nobody"
    assert not (tmp_path / "smoke").exists()


def test_a_damaged_bundle_is_refused_before_a_server_starts(tiny_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(tiny_run / "bundle", copy)
    (copy / "popularity.npy").write_bytes((copy / "popularity.npy").read_bytes()[:-1] + b"?")
    with pytest.raises(ArtifactError, match=r"popularity\.npy: damaged"):
        ask_server(copy)


def answer(bundle: Bundle, *, barred: frozenset[str] = frozenset(), **changes: Any) -> dict[str, Any]:
    """A right answer, but for the changes."""
    ids = [str(value) for value in bundle.items["item_id"].to_pylist() if str(value) not in barred][:K]
    found: dict[str, Any] = {
        "bundle": bundle.id,
        "fallback": None,
        "items": [{"item_id": i, "score": 1.0} for i in ids],
    }
    return found | changes


def seen_by_busiest(bundle: Bundle) -> frozenset[str]:
    lengths = np.diff(bundle.log.start)
    row = int(np.argmax(lengths))
    met = bundle.log.item[bundle.log.start[row] : bundle.log.start[row + 1]]
    return frozenset(str(bundle.items["item_id"][int(item)]) for item in met)


Change = Callable[[dict[str, Any]], dict[str, Any]]

WRONG: dict[str, tuple[Change, str]] = {
    "nothing": (lambda right: right, ""),
    "a refusal": (lambda _: {"status": 500}, "status 500 in place of items"),
    "no server": (lambda _: {"status": "none (Connection refused)"}, "status none (Connection refused) in place"),
    "another bundle": (lambda right: right | {"bundle": "films-0"}, "bundle films-0 answered"),
    "too few": (lambda right: right | {"items": right["items"][:9]}, "9 distinct items, not 10"),
    "one twice": (lambda right: right | {"items": [*right["items"][:9], right["items"][0]]}, "9 distinct items"),
    "a stranger": (
        lambda right: right | {"items": [*right["items"][:9], {"item_id": "zzz", "score": 1.0}]},
        "item zzz is not in the catalogue",
    ),
    "no number": (
        lambda right: right | {"items": [one | {"score": float("nan")} for one in right["items"]]},
        "a score is no number",
    ),
    "the fallback": (lambda right: right | {"fallback": "popular"}, "the popular fallback came"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_answer_to_a_known_user_is_told(opened: Bundle, case: str) -> None:
    change, told = WRONG[case]
    right = answer(opened, barred=seen_by_busiest(opened))
    fault = QUESTIONS[KNOWN](opened, lambda _: change(right))
    assert fault.startswith(told) if told else fault == ""


def test_an_item_that_the_user_had_met_is_told(opened: Bundle) -> None:
    seen = seen_by_busiest(opened)
    first = next(str(one) for one in opened.items["item_id"].to_pylist() if str(one) in seen)
    right = answer(opened, barred=seen)
    with_seen = right | {"items": [*right["items"][:9], {"item_id": first, "score": 1.0}]}
    assert QUESTIONS[KNOWN](opened, lambda _: with_seen) == f"item {first} had been met"


def test_nobody_in_particular_has_to_get_a_fallback_that_says_so(opened: Bundle) -> None:
    assert QUESTIONS[NOBODY](opened, lambda _: answer(opened, fallback="popular")) == ""
    assert QUESTIONS[NOBODY](opened, lambda _: answer(opened)) == "no fallback was named"


def test_what_a_history_holds_must_not_come_back(opened: Bundle) -> None:
    asked: list[dict[str, Any]] = []

    def echo(body: dict[str, Any]) -> dict[str, Any]:
        asked.append(body)
        rest = answer(opened, barred=frozenset(body["history"]))["items"]
        return answer(opened, items=[{"item_id": body["history"][0], "score": 1.0}, *rest[:9]])

    assert QUESTIONS[HISTORY](opened, echo) == f"item {asked[0]['history'][0]} had been met"
    assert len(set(asked[0]["history"])) == 2


def test_nonsense_has_to_be_refused_as_such(opened: Bundle) -> None:
    assert QUESTIONS[NONSENSE](opened, lambda _: {"status": 422}) == ""
    assert QUESTIONS[NONSENSE](opened, lambda _: answer(opened)) == "status None where 422 is right"
