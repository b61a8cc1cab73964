"""The recipe's rules in real answers: whatever the model says, and for whomever it says it."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from twotower.serve_config import BoostConfig, CapConfig, PinConfig, RulesConfig, ServeConfig
from twotower.serving.answers.answering import DEEPEST
from twotower.serving.recommender import Recommender

ASKED: list[dict[str, Any]] = [{"user_id": "u3"}, {"history": ["i1", "i2"]}, {}]
"""A known user, somebody told by a history, and nobody in particular."""


def genre(item_id: str) -> str:
    return f"g{int(item_id[1:]) % 4}"


@pytest.fixture
def ruled(world: Any, tmp_path: Path) -> Callable[[RulesConfig], Recommender]:
    items = world.dataset.items
    items = items.append_column("genre", pa.array([genre(each) for each in items["item_id"].to_pylist()]))
    with_genres = replace(world, dataset=replace(world.dataset, items=items))

    def make(rules: RulesConfig) -> Recommender:
        return Recommender.load(with_genres.write(tmp_path / "bundle", serve=ServeConfig(rules=rules)))

    return make


def ids(recommender: Recommender, **asked: Any) -> list[str]:
    return [item.item_id for item in recommender.recommend(**asked).items]


@pytest.mark.parametrize("asked", ASKED)
def test_a_cap_is_kept_and_the_answer_is_as_long_as_it_can_be(
    ruled: Callable[[RulesConfig], Recommender], asked: dict[str, Any]
) -> None:
    recommender = ruled(RulesConfig(caps=(CapConfig(column="genre", most=3),)))
    # Twelve candidates are retrieved, of which the caps may leave fewer than twelve: then more are looked at.
    found = Counter(genre(each) for each in ids(recommender, k=12, exclude_seen=False, **asked))
    assert found == {"g0": 3, "g1": 3, "g2": 3, "g3": 3}
    assert len(ids(recommender, k=20, exclude_seen=False, **asked)) == 12


@pytest.mark.parametrize("asked", ASKED)
def test_a_pinned_item_stands_in_its_place_though_nobody_met_it(
    ruled: Callable[[RulesConfig], Recommender], asked: dict[str, Any]
) -> None:
    recommender = ruled(RulesConfig(pinned=(PinConfig(item_id="i39", position=2),)))
    answer = recommender.recommend(k=5, explain=True, **asked)
    pinned = answer.items[1]
    assert pinned.item_id == "i39"
    assert pinned.explanation is not None
    assert (pinned.explanation.source, pinned.explanation.rules) == ("pinned", ("pinned at 2",))
    assert "i39" not in ids(recommender, k=1, **asked)


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("barred", [{"exclude": ["i39"]}, {"filter": 'item_id != "i39"'}, {"history": ["i39"]}])
def test_a_pinned_item_that_may_not_come_stays_away(
    ruled: Callable[[RulesConfig], Recommender], asked: dict[str, Any], barred: dict[str, Any]
) -> None:
    recommender = ruled(RulesConfig(pinned=(PinConfig(item_id="i39", position=1),)))
    assert "i39" not in ids(recommender, k=38, **(asked | barred))


def test_a_removed_item_is_not_pinned_and_one_put_anew_is(ruled: Callable[[RulesConfig], Recommender]) -> None:
    recommender = ruled(RulesConfig(pinned=(PinConfig(item_id="i39", position=1),)))
    recommender.write_items({"i39": None})
    assert "i39" not in ids(recommender, user_id="u3", k=40)
    recommender.write_items({"i39": {"title": "Again", "genre": "g0"}})
    assert ids(recommender, user_id="u3", k=5)[0] == "i39"


def test_a_boost_is_added_to_the_score_by_which_the_answer_is_ordered(
    ruled: Callable[[RulesConfig], Recommender], recommender: Recommender
) -> None:
    plain = {item.item_id: item.score for item in recommender.recommend("u3", k=12).items}
    boosted = ruled(RulesConfig(boosts=(BoostConfig(filter="genre == 'g1'", add=2.5),)))
    answer = boosted.recommend("u3", k=12, explain=True)
    expected = {item: score + 2.5 * (genre(item) == "g1") for item, score in plain.items()}
    assert {item.item_id: pytest.approx(item.score, abs=1e-5) for item in answer.items} == expected
    assert [item.item_id for item in answer.items] == sorted(expected, key=lambda each: -expected[each])
    for item in answer.items:
        assert item.explanation is not None
        assert item.explanation.rules == (('boost +2.5: genre == "g1"',) if genre(item.item_id) == "g1" else ())


def test_the_rules_hold_for_new_items_and_where_there_is_no_time_for_ranking(
    ruled: Callable[[RulesConfig], Recommender],
) -> None:
    recommender = ruled(RulesConfig(caps=(CapConfig(column="genre", most=1),)))
    recommender.write_items({f"new{number}": {"genre": "g0"} for number in range(5)})
    for late in (None, 0.0):
        answer = recommender.recommend("u3", k=10, rank_until=late, exclude_seen=False)
        assert answer.fallback == (None if late is None else "retrieval")
        kinds = [genre(item.item_id) if item.item_id[1:].isdigit() else "g0" for item in answer.items]
        assert Counter(kinds) == {"g0": 1, "g1": 1, "g2": 1, "g3": 1}


def test_a_batch_keeps_the_rules_too(ruled: Callable[[RulesConfig], Recommender]) -> None:
    recommender = ruled(
        RulesConfig(caps=(CapConfig(column="genre", most=2),), pinned=(PinConfig(item_id="i39", position=1),))
    )
    table = recommender.recommend_batch(["u3", "nobody", "u5"], k=6)
    for user in ("u3", "nobody", "u5"):
        rows = [row for row in table.to_pylist() if row["user_id"] == user]
        assert [row["item_id"] for row in rows] == ids(recommender, user_id=user, k=6)
        assert max(Counter(genre(row["item_id"]) for row in rows).values()) <= 2


def test_a_cap_that_cannot_be_filled_is_not_sought_through_the_whole_catalogue(
    ruled: Callable[[RulesConfig], Recommender],
) -> None:
    recommender = ruled(RulesConfig(caps=(CapConfig(column="genre", most=1),)))
    recommender.write_items({f"new{number}": {"genre": "g0"} for number in range(DEEPEST + 10)})
    answer = recommender.recommend("u3", k=10, exclude_seen=False)
    assert answer.retrieved == DEEPEST
    assert answer.notes == (f"the rules leave {len(answer.items)} items of the 10 asked for",)
