"""Rules of the business: each one worked by hand, and what holds whatever they are."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from twotower.artifact import write_artifact
from twotower.bundle import Bundle, BundleConfig, write_bundle
from twotower.errors import ArtifactError, RecipeError
from twotower.recipe import load_recipe, recipe_toml
from twotower.serve_config import BoostConfig, CapConfig, PinConfig, RulesConfig, ServeConfig
from twotower.serve_refusals import refuse_bad_rules
from twotower.serving.answers.rules import Arranged, Rules

FILMS = pa.table(
    {
        "item_id": ["a", "b", "c", "d", "e", "f"],
        "genre": ["Drama", "Drama", "Drama", "Comedy", None, "War"],
        "genres": [["x", "y"], ["x"], ["y", "y"], ["z"], [], None],
        "year": [1990, 2000, 2010, 1995, 2005, 2020],
    }
)
SCORES = np.array([1.0, 0.9, 0.8, 0.7, 0.6, 0.5], np.float32)


def config(**rules: Any) -> RulesConfig:
    return RulesConfig(
        caps=tuple(CapConfig(column=column, most=most) for column, most in rules.get("caps", {}).items()),
        pinned=tuple(PinConfig(item_id=item, position=place) for item, place in rules.get("pinned", {}).items()),
        boosts=tuple(BoostConfig(filter=text, add=add) for text, add in rules.get("boosts", {}).items()),
        diversity=rules.get("diversity", 0.0),
    )


def arranged(
    rules: RulesConfig, *, k: int = 6, candidates: str = "abcdef", embedding: Sequence[Sequence[float]] | None = None
) -> tuple[str, Rules, Arranged]:
    """The ids in the order of the answer, the rules, and all of the answer; candidates come with falling scores."""
    compiled = Rules.compile(rules, FILMS)
    row = np.array(["abcdef".index(each) for each in candidates], np.int64)
    vectors = None if embedding is None else np.array(embedding, np.float32)
    answer = compiled.arrange(row, SCORES[: len(row)], k=k, embedding=vectors)
    return "".join(candidates[place] for place in answer.place), compiled, answer


def test_without_rules_the_order_is_the_models() -> None:
    order, rules, answer = arranged(RulesConfig(), k=4)
    assert order == "abcd"
    assert rules.is_empty
    assert not rules.reads_embeddings
    np.testing.assert_array_equal(answer.score, SCORES[:4])
    assert rules.told(np.arange(6), answer) == ((), (), (), ())


def test_a_boost_is_added_to_the_scores_of_what_fulfils_its_condition() -> None:
    # d and f gain .35: d 1.05, f .85; c and e lose .5 each: .3 and .1.
    order, rules, answer = arranged(config(boosts={"genre in ['Comedy', 'War']": 0.35, "year in [2010, 2005]": -0.5}))
    assert order == "dabfce"
    np.testing.assert_allclose(answer.score, [1.05, 1.0, 0.9, 0.85, 0.3, 0.1], atol=1e-6)
    assert rules.told(np.arange(6), answer)[0] == ('boost +0.35: genre in ["Comedy", "War"]',)
    assert rules.told(np.arange(6), answer)[4] == ("boost -0.5: year in [2010, 2005]",)


def test_several_boosts_of_one_item_add_up() -> None:
    _, rules, answer = arranged(config(boosts={"year == 1990": 1.0, "genre == 'Drama'": 2.0}), k=1)
    assert answer.score[0] == 4.0
    assert rules.told(np.arange(6), answer) == (("boost +1: year == 1990", 'boost +2: genre == "Drama"'),)


def test_a_cap_keeps_away_what_is_more_of_a_kind_and_counts_nothing_for_no_kind() -> None:
    assert arranged(config(caps={"genre": 1}))[0] == "adef"
    assert arranged(config(caps={"genre": 2}))[0] == "abdef"
    assert arranged(config(caps={"genre": 2}), k=3)[0] == "abd"


def test_a_cap_on_lists_counts_an_item_for_each_of_its_values_once() -> None:
    # a takes the one x and the one y, so b and c stay away; but b and c together are one more than a alone.
    assert arranged(config(caps={"genres": 1}), k=4)[0] == "adef"
    assert arranged(config(caps={"genres": 1}), k=5)[0] == "bcdef"
    # c holds y twice and counts once.
    assert arranged(config(caps={"genres": 2}))[0] == "abcdef"


def test_several_caps_hold_at_once() -> None:
    assert arranged(config(caps={"genre": 2, "genres": 1}), k=4)[0] == "adef"
    assert arranged(config(caps={"genre": 1, "year": 1}))[0] == "adef"


def test_a_pinned_item_stands_at_its_position_and_the_others_close_up() -> None:
    order, rules, answer = arranged(config(pinned={"e": 1, "a": 3}))
    assert order == "ebacdf"
    assert answer.position.tolist() == [1, 0, 3, 0, 0, 0]
    assert rules.told(np.arange(6), answer)[:3] == (("pinned at 1",), (), ("pinned at 3",))


def test_an_item_pinned_beyond_the_answer_is_in_none_of_its_places() -> None:
    assert arranged(config(pinned={"a": 5}), k=3)[0] == "bcd"


def test_an_answer_too_short_for_a_position_ends_with_the_pinned_item() -> None:
    assert arranged(config(pinned={"b": 9, "a": 5}), k=9, candidates="abc")[0] == "cab"


def test_a_pinned_item_that_was_not_handed_over_does_not_come() -> None:
    rules = config(pinned={"f": 1})
    assert arranged(rules, candidates="abc")[0] == "abc"
    assert Rules.compile(rules, FILMS).pinned_within(1).tolist() == [5]
    assert Rules.compile(config(pinned={"f": 2}), FILMS).pinned_within(1).tolist() == []


def test_pinned_items_count_for_the_caps() -> None:
    assert arranged(config(caps={"genre": 2}, pinned={"c": 3}))[0] == "adcef"
    # Two pins that exceed the cap come both, and nothing else of their kind.
    assert arranged(config(caps={"genre": 1}, pinned={"c": 1, "b": 2}))[0] == "cbdef"


ALIKE = [[1, 0], [2, 0], [0, 3], [0, 1], [-1, 0], [0, 0]]
"""Of a to f: b points where a does, c and d elsewhere, e the other way, f nowhere."""


def test_diversity_brings_forward_what_is_unlike_the_items_before_it() -> None:
    # Scores scaled to a 1, b .5, c 0. After a, at weight .5: b .5*.5 - .5*1 = -.25, c .5*0 - .5*0 = 0.
    rules = config(diversity=0.5)
    order, compiled, answer = arranged(rules, candidates="abc", embedding=ALIKE[:3])
    assert order == "acb"
    assert compiled.reads_embeddings
    assert answer.is_diverse.tolist() == [False, True, False]
    assert compiled.told(np.arange(3), answer) == ((), ("diversity",), ())
    # At weight .2: b .8*.5 - .2*1 = .2, c 0.
    assert arranged(config(diversity=0.2), candidates="abc", embedding=ALIKE[:3])[0] == "abc"


def test_diversity_looks_at_the_nearest_of_those_chosen_and_the_other_way_is_a_gain() -> None:
    # Scaled 1, .8, .6, .4, .2, 0, at weight .5. After a: b -.1, c .3, d .2, e .1+.5 = .6, f 0 -> e.
    # After e: b -.1, c .3, d .2, f 0 -> c. Then d .2-.5 = -.3, b -.1, f 0 -> f. Then b -.1, d -.3.
    assert arranged(config(diversity=0.5), embedding=ALIKE)[0] == "aecfbd"


def test_what_is_pinned_counts_as_chosen_before() -> None:
    # Scaled without the pinned a: b 1, c 0. b is like a: .5 - .5 = 0; c: 0 - 0 = 0, and b is the better one.
    # At weight .6: b .4 - .6, c 0.
    vectors = ALIKE[:3]
    assert arranged(config(diversity=0.5, pinned={"a": 3}), candidates="abc", embedding=vectors)[0] == "bca"
    assert arranged(config(diversity=0.6, pinned={"a": 3}), candidates="abc", embedding=vectors)[0] == "cba"


def test_diversity_stays_within_the_caps() -> None:
    order, _, _ = arranged(config(diversity=0.5, caps={"genre": 1}), embedding=ALIKE)
    assert order == "aedf"  # d is worth .2 and unlike a and e, f is worth 0.


def test_scores_that_are_no_numbers_come_last_and_equal_ones_keep_their_order() -> None:
    rules = Rules.compile(config(caps={"genre": 3}, diversity=0.1), FILMS)
    score = np.array([np.nan, 0.5, 0.5, np.nan], np.float32)
    answer = rules.arrange(np.arange(4), score, k=4, embedding=np.zeros((4, 2), np.float32))
    assert answer.place.tolist() == [1, 2, 0, 3]


def test_no_candidates_give_no_answer() -> None:
    rules = Rules.compile(config(caps={"genre": 1}, pinned={"a": 1}, boosts={"true": 1.0}, diversity=0.5), FILMS)
    answer = rules.arrange(np.empty(0, np.int64), np.empty(0, np.float32), k=3, embedding=np.empty((0, 2), np.float32))
    assert len(answer.place) == 0


def test_rows_that_are_appended_follow_the_same_rules() -> None:
    rules = Rules.compile(config(caps={"genre": 1, "genres": 2}, pinned={"b": 1}, boosts={"year == 2000": 1.0}), FILMS)
    put = pa.table(
        {"item_id": ["g", "b"], "genre": ["Opera", "Opera"], "genres": [["x", "q", "z"], None], "year": [2000, 1]}
    )
    both = rules.extended(pa.concat_tables([put, put])).extended(put)
    row = np.array([0, 1, 3, 6, 7])
    answer = both.arrange(row, SCORES[:5], k=5)
    assert both.pinned_within(1).tolist() == [7]
    # b stands at its new row, an opera, which keeps the opera g away; the old row 1 is a drama and boosted.
    assert row[answer.place].tolist() == [7, 1, 3]
    assert rules.pinned_within(1).tolist() == [1]


# Laws.

VALUES = st.sampled_from(["x", "y", "z", "w"])
Drawn = tuple[pa.Table, RulesConfig, NDArray[np.int64], NDArray[np.float32], NDArray[np.float32], int]
"""Items, rules, and one query: rows, scores, embeddings, k."""


@st.composite
def worlds(
    draw: st.DrawFn,
) -> Drawn:
    count = draw(st.integers(1, 14))
    items = pa.table(
        {
            "item_id": [f"i{row}" for row in range(count)],
            "one": pa.array(draw(st.lists(st.none() | VALUES, min_size=count, max_size=count)), pa.string()),
            "many": pa.array(
                draw(st.lists(st.none() | st.lists(VALUES, max_size=3), min_size=count, max_size=count)),
                pa.list_(pa.string()),
            ),
        }
    )
    pins = draw(st.lists(st.tuples(st.integers(0, count - 1), st.integers(1, 8)), max_size=3))
    by_item = dict(pins)
    rules = config(
        caps=draw(st.dictionaries(st.sampled_from(["one", "many"]), st.integers(1, 3), max_size=2)),
        pinned={f"i{row}": place for row, place in by_item.items() if list(by_item.values()).count(place) == 1},
        boosts=draw(st.sampled_from([{}, {"one == 'x'": 0.5, "many in ['y']": -0.25}])),
        diversity=draw(st.sampled_from([0.0, 0.3, 0.8])),
    )
    generator = np.random.default_rng(draw(st.integers(0, 10_000)))
    row = generator.permutation(count)[: draw(st.integers(1, count))].astype(np.int64)
    score = -np.sort(-generator.normal(size=len(row))).astype(np.float32)
    embedding = generator.normal(size=(len(row), 3)).astype(np.float32)
    return items, rules, row, score, embedding, draw(st.integers(1, 10))


def kinds(items: pa.Table, rules: RulesConfig, rows: Iterable[int]) -> Counter[tuple[str, str]]:
    """How often each value of each capped column stands in the rows."""
    counted: Counter[tuple[str, str]] = Counter()
    for row in rows:
        for cap in rules.caps:
            held = items[cap.column][row].as_py()
            for value in set(held if isinstance(held, list) else [held]) if held is not None else ():
                counted[cap.column, value] += 1
    return counted


def is_within(items: pa.Table, rules: RulesConfig, rows: Iterable[int]) -> bool:
    most = {cap.column: cap.most for cap in rules.caps}
    return all(count <= most[column] for (column, _), count in kinds(items, rules, rows).items())


@given(worlds())
def test_whatever_the_rules_they_are_kept(world: Drawn) -> None:
    items, rules, row, score, embedding, k = world
    answer = Rules.compile(rules, items).arrange(row, score, k=k, embedding=embedding)
    rows = row[answer.place].tolist()
    handed = set(row.tolist())
    pins = {int(pin.item_id[1:]): pin.position for pin in rules.pinned if int(pin.item_id[1:]) in handed}

    assert len(rows) <= k
    assert len(set(rows)) == len(rows)
    # Put into the others one after the other, each pinned item stands at its position, or at the end of what there is.
    expected = [each for each in rows if each not in pins]
    for pinned, position in sorted(pins.items(), key=lambda pin: pin[1]):
        if position <= k:
            expected.insert(position - 1, pinned)
    assert rows == expected
    here = [pinned for pinned, position in pins.items() if position <= k]
    if is_within(items, rules, here):
        assert is_within(items, rules, rows)
    if len(rows) < k:  # Nothing that is left would fit.
        left = handed - set(rows) - set(pins)
        assert not [each for each in left if is_within(items, rules, [*rows, each])]


@given(worlds())
def test_an_answer_is_as_long_as_a_greedy_one_and_as_any_where_each_item_is_of_one_kind(world: Drawn) -> None:
    items, rules, row, score, embedding, k = world
    rules = RulesConfig(caps=rules.caps, diversity=rules.diversity)
    found = len(Rules.compile(rules, items).arrange(row, score, k=k, embedding=embedding).place)
    greedy: list[int] = []
    for each in row.tolist():
        if len(greedy) < k and is_within(items, rules, [*greedy, each]):
            greedy.append(each)
    if not rules.diversity:
        assert found >= len(greedy)
    if [cap.column for cap in rules.caps] == ["one"]:
        held = Counter(items["one"].take(row).to_pylist())
        most = sum(count if value is None else min(count, rules.caps[0].most) for value, count in held.items())
        assert found == min(k, most)
    if not rules.caps:
        assert found == min(k, len(row))


@given(worlds())
def test_diversity_chooses_as_the_formula_does(world: Drawn) -> None:
    items, _, row, score, embedding, k = world
    weight = 0.4
    answer = Rules.compile(config(diversity=weight), items).arrange(row, score, k=k, embedding=embedding)
    span = float(score.max() - score.min()) or 1.0
    relevance = [(float(each) - float(score.min())) / span for each in score]
    chosen: list[int] = []
    while len(chosen) < min(k, len(row)):
        rest = [place for place in range(len(row)) if place not in chosen]

        def gain(place: int) -> float:
            cosines = [
                float(embedding[place] @ embedding[each])
                / float(np.linalg.norm(embedding[place]) * np.linalg.norm(embedding[each]))
                for each in chosen
            ]
            return (1 - weight) * relevance[place] - weight * max(cosines, default=-1.0)

        chosen.append(max(rest, key=gain))
    assert answer.place.tolist() == chosen


@given(worlds(), st.integers(0, 14))
def test_rules_extended_are_those_compiled_on_the_whole(world: Drawn, cut: int) -> None:
    items, rules, row, score, embedding, k = world
    whole = Rules.compile(rules, items)
    grown = Rules.compile(rules, items.slice(0, cut)).extended(items.slice(cut))
    first, second = (each.arrange(row, score, k=k, embedding=embedding) for each in (whole, grown))
    np.testing.assert_array_equal(first.place, second.place)
    np.testing.assert_array_equal(first.score, second.score)
    assert whole.told(row, first) == grown.told(row, second)
    assert set(whole.pinned_within(k)) == set(grown.pinned_within(k))


# The recipe, and the bundle.

TOML = """
[serve.rules]
diversity = 0.25
[[serve.rules.caps]]
column = "title"
most = 3
[[serve.rules.pinned]]
item_id = "i7"
position = 1
[[serve.rules.boosts]]
filter = "title != 'Film 3'"
add = -0.5
"""
RULES = config(caps={"title": 3}, pinned={"i7": 1}, boosts={"title != 'Film 3'": -0.5}, diversity=0.25)


def test_a_recipe_tells_the_rules_and_survives_being_written() -> None:
    recipe = load_recipe(TOML)
    assert recipe.serve == ServeConfig(rules=RULES)
    assert load_recipe(recipe_toml(recipe)) == recipe


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[serve.rules]\ndiversity = 1.0", "serve.rules.diversity: Input should be less than 1"),
        (
            "[[serve.rules.caps]]\ncolumn = 'genre'\nmost = 0",
            r"serve.rules.caps.0.most: Input should be greater than 0",
        ),
        ("[[serve.rules.boosts]]\nfilter = 'true'\nadd = nan", "serve.rules.boosts.0.add"),
        ("[serve]\nrulez = 1", "unknown key 'serve.rulez'"),
    ],
)
def test_a_recipe_with_rules_that_cannot_be_is_refused(text: str, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        load_recipe(text)


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        ({"caps": {"gender": 1}}, "no item column 'gender'. There are item_id, genre, genres, year"),
        (
            {"boosts": {"genre = 3": 1.0}},
            "serve.rules.boosts: 'genre = 3': filter, character 9: column 'genre' holds text",
        ),
        ({"pinned": {"nobody": 1}}, "item 'nobody' is not in the catalogue"),
        ({"pinned": {"a": 1, "b": 1}}, "position 1 stands there more than once"),
        ({"pinned": {"a": 1, "b": 2, "c": 3}, "caps": {"genre": 2}}, "3 of the items have genre 'Drama', .* allows 2"),
        ({"pinned": {"a": 1, "c": 3}, "caps": {"genres": 1}}, "2 of the items have genres 'y', .* allows 1"),
    ],
)
def test_rules_that_do_not_fit_the_catalogue_are_refused(rules: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        refuse_bad_rules(config(**rules), FILMS)


def test_one_item_pinned_twice_and_a_cap_on_what_cannot_be_counted_are_refused() -> None:
    twice = RulesConfig(pinned=(PinConfig(item_id="a", position=1), PinConfig(item_id="a", position=2)))
    with pytest.raises(RecipeError, match="item 'a' stands there more than once"):
        refuse_bad_rules(twice, FILMS)
    items = pa.table({"item_id": ["a"], "place": [{"x": 1}]})
    with pytest.raises(RecipeError, match=r"column 'place' holds struct.* cannot be counted"):
        refuse_bad_rules(config(caps={"place": 1}), items)


def test_rules_that_fit_are_let_pass() -> None:
    refuse_bad_rules(config(caps={"genres": 2}, pinned={"a": 1, "b": 2}, boosts={"year > 1999": 1.0}), FILMS)
    refuse_bad_rules(RulesConfig(), FILMS)


def write(world: Any, target: Path, rules: RulesConfig) -> Path:
    metadata: dict[str, object] = {}
    with write_artifact(target, kind="bundle", metadata=metadata) as out:
        metadata |= write_bundle(
            BundleConfig(),
            serve=ServeConfig(rules=rules),
            name="tiny",
            dataset=world.dataset,
            model=world.directory / "model",
            index=world.directory / "index",
            recipe="",
            candidates=12,
            out=out,
        )
    return target


def test_a_bundle_carries_the_rules(world: Any, tmp_path: Path) -> None:
    bundle = Bundle.load(write(world, tmp_path / "bundle", RULES))
    assert bundle.serve == ServeConfig(rules=RULES)
    assert Rules.compile(bundle.serve.rules, bundle.items).pinned_within(1).tolist() == [7]


def test_a_bundle_from_before_there_were_rules_has_none(world: Any, tmp_path: Path) -> None:
    directory = write(world, tmp_path / "bundle", RULES)
    (directory / "serve.json").unlink()
    with pytest.raises(ArtifactError, match=r"serve\.json: not readable"):
        Bundle.load(directory, verify=False)
    for name, key in (("bundle.json", None), ("manifest.json", "metadata")):
        content = json.loads((directory / name).read_text())
        del (content[key] if key else content)["serve"]
        (directory / name).write_text(json.dumps(content))
    assert Bundle.load(directory, verify=False).serve == ServeConfig()


def test_a_bundle_whose_rules_cannot_be_read_is_refused_by_name(world: Any, tmp_path: Path) -> None:
    directory = write(world, tmp_path / "bundle", RULES)
    for text in ("{", json.dumps({"rules": {"shuffle": True}})):
        (directory / "serve.json").write_text(text)
        with pytest.raises(ArtifactError, match=r"serve\.json: not readable"):
            Bundle.load(directory, verify=False)


def test_no_bundle_is_made_with_a_rule_that_does_not_fit(world: Any, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no item column 'genre'"):
        write(world, tmp_path / "bundle", config(caps={"genre": 1}))
    assert not (tmp_path / "bundle").exists()
