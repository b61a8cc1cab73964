"""The language of filters: what it means, what it refuses, and that no text can do more than be refused."""

import math
import operator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twotower.errors import RequestError
from twotower.filter_language import (
    And,
    Comparison,
    Constant,
    Flag,
    Membership,
    Missing,
    Not,
    Or,
    Tree,
    tree_text,
)
from twotower.filter_parser import parse_tree
from twotower.serving.answers.filters import parse

FILMS = pa.table(
    {
        "item_id": ["a", "b", "c", "d"],
        "genre": ["Drama", "Comedy", None, "Drama"],
        "genres": [["Drama", "War"], [], None, ["Comedy", None, "Drama"]],
        "year": pa.array([1999, 2000, 2001, None], pa.int32()),
        "price": [0.5, None, math.nan, 9.0],
        "adult": [True, False, None, False],
        "released": pa.array([0, 86_400_000_000, None, -1], pa.timestamp("us")),
        "nobody knows": pa.nulls(4),
        "size (cm)": pa.array([1, 2, 3, 4], pa.uint8()),
        "half": pa.array([0.1, 0.2, 0.3, 0.4], pa.float32()),
        "place": pa.array([{"x": 1}, {"x": 2}, None, {"x": 4}]),
    }
)


def passing(text: str, table: pa.Table = FILMS) -> str:
    """The ids of the films that fulfil the filter, side by side."""
    return "".join(table["item_id"].filter(pa.array(parse(text, table.schema).mask(table))).to_pylist())


@pytest.mark.parametrize(
    ("text", "films"),
    [
        ('genre == "Drama"', "ad"),
        ("genre == 'Drama' and year >= 2000", ""),
        ("genre in ['Drama', 'Comedy'] and not adult", "bd"),
        ("genre != 'Drama'", "b"),
        ("not genre == 'Drama'", "bc"),
        ("genre not in ['Drama']", "b"),
        ("genre is missing", "c"),
        ("genre is not missing and adult", "a"),
        ("genre < 'Drama'", "b"),
        ("genres == 'Drama'", "ad"),
        ("genres in ['War', 'Western']", "a"),
        ("genres != 'War'", "bd"),
        ("genres not in ['Comedy', 'War']", "b"),
        ("genres is missing", "c"),
        ("genres >= 'E'", "a"),
        ("year == 2000", "b"),
        ("year > 1999.5", "bc"),
        ("year <= 1999.5", "a"),
        ("year in [1999, 2000.0, 2000.5]", "ab"),
        ("year == 2000.5", ""),
        ("year != 2000.5", "abc"),
        ("year < 9223372036854775807", "abc"),
        ("price is missing", "bc"),
        ("price != 0.5", "d"),
        ("price > -1e3 and price < 1e+3", "ad"),
        ("adult", "a"),
        ("adult == false", "bd"),
        ("adult != true", "bd"),
        ("not adult", "bcd"),
        ("released == '1970-01-01'", "a"),
        ("released > '1970-01-01T23:59:59.999999Z'", "b"),
        ("released <= '1970-01-01T02:00+02:00'", "ad"),
        ("released in ['1970-01-02', '1971-01-01']", "b"),
        ("`nobody knows`", ""),
        ("`nobody knows` == 3 or `nobody knows` != 'x' or `nobody knows` in [1]", ""),
        ("`nobody knows` is missing", "abcd"),
        ("`size (cm)` >= -1 and `size (cm)` < 300 and `size (cm)` != -1", "abcd"),
        ("`size (cm)` in [-1, 300, 2]", "b"),
        ("half in [0.1, 0.2]", "ab"),
        ("half < 1e300", "abcd"),
        ("place is not missing", "abd"),
        ("item_id in []", ""),
        ("item_id not in []", "abcd"),
        ("item_id in ['a', 'c']", "ac"),
        ("true", "abcd"),
        ("false or item_id == 'a'", "a"),
        ("adult or year == 2001 and genre is missing", "ac"),
        ("(adult or year == 2001) and genre is missing", "c"),
        ("not (adult or year == 2001)", "bd"),
        ("adult == TRUE AND NOT year IN (2000) OR year IS NULL", "ad"),
        ("genre = 'Drama' and year <> 2000", "a"),
    ],
)
def test_a_filter_lets_pass_what_it_says(text: str, films: str) -> None:
    assert passing(text) == films


def test_escapes_stand_for_what_they_say_in_both_kinds_of_quotes() -> None:
    table = pa.table({"item_id": ["a", "b", "c"], "text": ['it\'s "x"\\', "line\none\t\r", "ü€"]})
    assert passing(r"""text == "it's \"x\"\\" """, table) == "a"
    assert passing(r"""text == 'it\'s "x"\\'""", table) == "a"
    assert passing(r"text == 'line\none\t\r' or text == 'ü€'", table) == "bc"


def test_a_column_of_any_name_can_be_written_in_backticks() -> None:
    names = ["item_id", "not", "True", "a`b", "two words", "größe", "9lives", "missing", "null"]
    table = pa.table({name: [name] for name in names})
    for name in names:
        text = "`" + name.replace("`", "``") + "` != 'other'"
        assert passing(text, table) == "item_id"
        assert parse(parse(text, table.schema).text, table.schema) == parse(text, table.schema)
    assert parse("größe == 'größe' and missing is not missing", table.schema).text == (
        'größe == "größe" and missing is not missing'
    )


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("year  ==2000", "year == 2000"),
        ("((year=2000))", "year == 2000"),
        ("`year` <> 20", "year != 20"),
        ("genre IN ('a',\n'b')", 'genre in ["a", "b"]'),
        (
            "adult and (not adult and (adult or adult or (adult or true)))",
            "adult and not adult and (adult or adult or adult or true)",
        ),
        ("not (adult and true)", "not (adult and true)"),
        ("not not adult", "not not adult"),
        ("(adult and true) or false", "adult and true or false"),
        (
            "price == .5 or price == 5. or price == 1e3 or price==-2",
            "price == 0.5 or price == 5.0 or price == 1000.0 or price == -2",
        ),
        ("genre is NOT null", "genre is not missing"),
    ],
)
def test_filters_that_differ_only_in_how_they_are_written_are_equal(written: str, canonical: str) -> None:
    found = parse(written, FILMS.schema)
    assert found.text == canonical
    assert found == parse(canonical, FILMS.schema)
    assert hash(found) == hash(parse(canonical, FILMS.schema))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "character 1: found the end where a column"),
        ("yeer == 2000", "character 1: there is no column 'yeer'. There are item_id, genre, genres, year"),
        ("adult and yeer == 2000", "character 11: there is no column 'yeer'"),
        ("year == '2000'", "character 9: column 'year' holds numbers, found '2000'"),
        ("year == true", "column 'year' holds numbers, found true"),
        ("genre == 3", "column 'genre' holds text, found 3"),
        ("genres in ['a', 3]", "character 17: column 'genres' holds text"),
        ("adult == 1", "column 'adult' holds truth values"),
        ("adult < true", "character 7: .* no order"),
        ("released > 2000", "column 'released' holds moments"),
        ("released > 'soon'", "character 12: 'soon' is no moment"),
        ("released > '0001-01-01T00:00+99:00'", "is no moment"),
        ("year", "character 1: column 'year' holds int32, no truth values"),
        ("place == 3", "column 'place' holds struct"),
        ("year ==", "found the end where a text"),
        ("year == 2000 2001", "character 14: found '2001' where 'and', 'or' or the end"),
        ("2000 < year", "character 1: found '2000' where a column"),
        ("(year == 2000", r"found the end where '\)'"),
        ("year in [2000 2001]", "character 15: found '2001' where ',' or ']'"),
        ("year in [2000,", "found the end"),
        ("year in 2000", r"where '\['"),
        ("year not 2000", "where 'in'"),
        ("year is 2000", "where 'missing'"),
        ("genre == 'Dra", "character 10: a quote that is not closed"),
        (r"genre == 'a\d'", r"character 12: .* is no escape"),
        ("genre == 'a' & adult", "character 14: '&', which has no meaning"),
        ("year == 1e999", "too large"),
        ("year == 9223372036854775808", "too large"),
        ("genre == '\ud800'", "character 11: half a character"),
        ("exec('true')", "there is no column 'exec'"),
        ("__import__('os').system('true')", r"character 17: '\.', which has no meaning"),
        ("true" + " or true" * 200, "character 1601: more than 200 conditions"),
        ("year in [" + "1," * 201 + "1]", "more than 200 conditions and values"),
        ("(" * 21 + "adult" + ")" * 21, "character 22: more than 20 parentheses"),
        ("not " * 21 + "adult", "more than 20 parentheses and 'not's"),
        ("adult or " * 222 + "adult  ", "2005 characters long, 2000 are allowed"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_place(text: str, told: str) -> None:
    with pytest.raises(RequestError, match=told) as fault:
        parse(text, FILMS.schema)
    assert "\n" not in str(fault.value)
    assert str(fault.value).startswith("filter")


def test_as_much_as_the_limits_allow_is_read() -> None:
    assert passing("(" * 20 + "adult" + ")" * 20) == "a"
    assert passing("not " * 20 + "adult") == "a"
    assert passing("year in [" + "1," * 198 + "1, 2000]") == "b"
    assert passing("adult" + " or adult" * 199) == "a"


def test_the_columns_of_a_wide_table_are_not_all_named() -> None:
    schema = pa.schema([(f"c{number}", pa.int64()) for number in range(25)])
    with pytest.raises(RequestError, match=r"c18, c19 and 5 more\.$"):
        parse("x == 1", schema)


# Hypothesis: trees, rows, and an evaluator that shares no line with ours.

TEXTS = st.sampled_from(["", "a", "b", "B", "q\"'\\", "line\nbreak", "ü"])
INTS = st.integers(-3, 3) | st.sampled_from([2**53 + 1, -(2**63), 2**63 - 1])
FLOATS = st.sampled_from([-1.5, -0.0, 0.0, 0.1, 1.0, 2.5, 1e300])
MOMENTS = st.sampled_from(["1970-01-01", "1970-01-01T00:00:00.000001", "1969-12-31T23:00-01:00", "2026-11-30T10:00Z"])
TYPES = {
    "text": pa.string(),
    "big text": pa.large_string(),
    "whole": pa.int64(),
    "small": pa.int8(),
    "real": pa.float64(),
    "moment": pa.timestamp("us"),
    "is": pa.bool_(),
    "texts": pa.list_(pa.string()),
    "wholes": pa.list_(pa.int64()),
    "reals": pa.large_list(pa.float64()),
    "coded": pa.dictionary(pa.int32(), pa.string()),
    "codeds": pa.list_(pa.dictionary(pa.int32(), pa.string())),
}
SCHEMA = pa.schema(list(TYPES.items()))
HELD: dict[str, st.SearchStrategy[Any]] = {
    "text": TEXTS,
    "big text": TEXTS,
    "whole": INTS,
    "small": st.integers(-3, 3),
    "real": FLOATS | st.just(math.nan),
    "moment": st.sampled_from([-3_600_000_000, -1, 0, 1, 1_795_953_600_000_000]),
    "is": st.booleans(),
}
HELD["texts"] = st.lists(st.none() | TEXTS, max_size=3)
HELD["wholes"] = st.lists(st.none() | INTS, max_size=3)
HELD["reals"] = st.lists(st.none() | HELD["real"], max_size=3)
HELD["coded"], HELD["codeds"] = HELD["text"], HELD["texts"]
LITERALS: dict[str, st.SearchStrategy[Any]] = {
    "text": TEXTS,
    "whole": INTS | FLOATS,
    "small": INTS | FLOATS,
    "real": FLOATS | st.integers(-3, 3),
    "moment": MOMENTS,
    "is": st.booleans(),
    "wholes": INTS | FLOATS,
    "reals": FLOATS,
}
for name in ("big text", "texts", "coded", "codeds"):
    LITERALS[name] = TEXTS
OPERATORS = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@st.composite
def conditions(draw: st.DrawFn) -> Tree:
    column = draw(st.sampled_from(list(TYPES)))
    kind = draw(st.sampled_from(["constant", "flag", "comparison", "membership", "missing"]))
    if kind == "constant":
        return Constant(draw(st.booleans()))
    if kind == "flag":
        return Flag("is")
    if kind == "missing":
        return Missing(column, draw(st.booleans()))
    if kind == "membership":
        values = draw(st.lists(LITERALS[column], max_size=4))
        return Membership(column, tuple(values), draw(st.booleans()))
    signs = ["==", "!="] if column == "is" else list(OPERATORS)
    return Comparison(column, draw(st.sampled_from(signs)), draw(LITERALS[column]))  # type: ignore[arg-type]


def joined(kind: type[And] | type[Or], terms: list[Tree]) -> Tree:
    flat = [part for term in terms for part in (term.terms if isinstance(term, kind) else (term,))]
    return kind(tuple(flat))


def larger(terms: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
    several = st.lists(terms, min_size=2, max_size=3)
    return st.builds(Not, terms) | several.map(lambda t: joined(And, t)) | several.map(lambda t: joined(Or, t))


TREES = st.recursive(conditions(), larger, max_leaves=8)
ROWS = st.lists(
    st.fixed_dictionaries({name: st.none() | values for name, values in HELD.items()}), min_size=0, max_size=6
)


def microseconds(text: str) -> int:
    moment = datetime.fromisoformat(text)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return round((moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1e6)


def fulfils(tree: Tree, row: dict[str, Any]) -> bool:
    """The meaning of a tree, told plainly."""
    if isinstance(tree, Constant):
        return tree.value
    if isinstance(tree, Not):
        return not fulfils(tree.term, row)
    if isinstance(tree, And):
        return all(fulfils(term, row) for term in tree.terms)
    if isinstance(tree, Or):
        return any(fulfils(term, row) for term in tree.terms)
    held = row[tree.column]
    is_missing = held is None or held is math.nan or (isinstance(held, float) and math.isnan(held))
    if isinstance(tree, Missing):
        return not is_missing if tree.is_negated else is_missing
    if is_missing:
        return False
    if isinstance(tree, Flag):
        return bool(held)
    values = [value for value in (held if isinstance(held, list) else [held]) if value is not None]
    literal = microseconds if tree.column == "moment" else lambda value: value
    if isinstance(tree, Membership):
        wanted = [literal(value) for value in tree.values]
        return not any(v in wanted for v in values) if tree.is_negated else any(v in wanted for v in values)
    if tree.operator == "!=":
        return all(value != literal(tree.value) for value in values)
    return any(OPERATORS[tree.operator](value, literal(tree.value)) for value in values)


@given(TREES)
def test_a_tree_written_as_text_is_read_as_itself(tree: Tree) -> None:
    assert parse_tree(tree_text(tree), SCHEMA) == tree


@given(tree=TREES, rows=ROWS, cut=st.integers(0, 6))
def test_a_mask_is_what_a_plain_evaluation_of_each_row_gives(tree: Tree, rows: list[dict[str, Any]], cut: int) -> None:
    whole = pa.Table.from_pylist(rows, schema=SCHEMA)
    # In two pieces, the second of which begins in the middle of its buffers.
    table = pa.concat_tables([pa.Table.from_pylist(rows[:cut], schema=SCHEMA), whole.slice(cut)])
    found = parse(tree_text(tree), SCHEMA).mask(table)
    assert found.dtype == np.bool_
    assert found.tolist() == [fulfils(tree, row) for row in rows]


@given(tree=TREES, rows=ROWS)
def test_one_row_of_plain_values_is_judged_as_in_a_table(tree: Tree, rows: list[dict[str, Any]]) -> None:
    filter_ = parse(tree_text(tree), SCHEMA)
    for row in rows:
        moment = None if row["moment"] is None else datetime(1970, 1, 1) + timedelta(microseconds=row["moment"])
        there = {name: value for name, value in (row | {"moment": moment}).items() if value is not None}
        assert filter_.holds(there) == fulfils(tree, row)


WORDS = st.sampled_from(
    [
        *"()[],=<>-.`'\"\\ ",
        "and",
        "or",
        "not ",
        "in",
        "is",
        "missing",
        "true",
        "year",
        "genre",
        "adult",
        "genres",
        "'a'",
        "3",
        "==",
    ]
)


@given(st.text() | st.lists(WORDS, max_size=20).map("".join) | st.lists(WORDS, max_size=12).map(" ".join))
def test_whatever_the_text_nothing_but_a_refusal_comes_of_it(text: str) -> None:
    try:
        found = parse(text, FILMS.schema)
    except RequestError:
        return
    assert len(found.mask(FILMS)) == FILMS.num_rows
    assert isinstance(found.holds({"year": 3, "genre": "a"}), bool)


def test_what_a_recipe_says_of_positives_can_be_asked_of_one_interaction() -> None:
    labels = pa.schema({"rating": pa.float64(), "device": pa.string()})
    rule = parse("rating >= 4 AND device = 'tv'", labels)
    assert rule.holds({"rating": 4.0, "device": "tv"})
    assert not rule.holds({"rating": 3.5, "device": "tv"})
    assert not rule.holds({"device": "tv"})
    assert parse("true", labels).holds({})


def test_a_value_of_another_type_than_the_literal_fulfils_nothing() -> None:
    rule = parse("rating >= 4", pa.schema({"rating": pa.float64()}))
    assert not rule.holds({"rating": "5"})
    assert not parse("device < 'z'", pa.schema({"device": pa.string()})).holds({"device": 3})
