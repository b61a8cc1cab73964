"""Filters at work: which rows of a table, or whether one row of plain values, fulfil a condition.

`filter_language.py` tells what can be written and what it means.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from twotower.filter_language import (
    And,
    Comparison,
    Condition,
    Constant,
    Flag,
    Membership,
    Missing,
    Not,
    Or,
    Tree,
    Value,
    moment_us,
    tree_text,
)
from twotower.filter_parser import parse_tree

Scalar = str | int | float | bool | date | None
Mask = NDArray[np.bool_]

_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_COMPARE_TEXT = {
    "==": pc.equal, "<": pc.less, "<=": pc.less_equal, ">": pc.greater, ">=": pc.greater_equal,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """A condition over columns; filters that differ only in how they were written are equal."""

    tree: Tree
    text: str
    """The canonical way to write it, by which masks may be kept."""

    def mask(self, table: pa.Table) -> Mask:
        """`[n]` which rows of a table fulfil it; one with the columns and types that it was parsed against."""
        return _mask(self.tree, table)

    def holds(self, values: Mapping[str, Scalar | Sequence[Scalar]]) -> bool:
        """Whether one row of plain values fulfils it; a column that is not there is missing.

        A value of another type than the literal it is compared with fulfils nothing.
        """
        return _holds(self.tree, values)


def parse(text: str, schema: pa.Schema) -> Filter:
    """Read a filter over the columns of a schema.

    Raises:
        RequestError: see `filter_language.parse_tree`.
    """
    tree = parse_tree(text, schema)
    return Filter(tree=tree, text=tree_text(tree))


def _mask(tree: Tree, table: pa.Table) -> Mask:
    match tree:
        case Constant(value):
            return np.full(table.num_rows, value)
        case Not(term):
            return np.logical_not(_mask(term, table))
        case And(terms):
            return reduce(np.logical_and, (_mask(term, table) for term in terms))
        case Or(terms):
            return reduce(np.logical_or, (_mask(term, table) for term in terms))
        case _:
            chunks = table[tree.column].chunks
            return np.concatenate([np.empty(0, np.bool_), *(_condition_mask(tree, chunk) for chunk in chunks)])


def _condition_mask(condition: Condition, values: pa.Array) -> Mask:
    match condition:
        case Missing(is_negated=is_negated):
            return np.not_equal(_is_missing(values), is_negated)
        case Flag():
            return _among(values, (True,))
        case Comparison(operator="!=", value=value):
            return ~(_is_missing(values) | _any(values, lambda plain: _among(plain, (value,))))
        case Comparison(operator="==", value=value):
            return _any(values, lambda plain: _among(plain, (value,)))
        case Comparison(operator=sign, value=value):
            return _any(values, lambda plain: _ordered(plain, sign, value))
        case Membership(values=wanted, is_negated=is_negated):
            found = _any(values, lambda plain: _among(plain, wanted))
            return ~(_is_missing(values) | found) if is_negated else found


def _is_missing(values: pa.Array) -> Mask:
    return _truths(pc.is_null(values, nan_is_null=True))


def _any(values: pa.Array, test: Callable[[pa.Array], Mask]) -> Mask:
    """Where the test holds; of lists, where it holds for one of the values."""
    if not (pa.types.is_list(values.type) or pa.types.is_large_list(values.type)):
        return _of_distinct(values, test)
    offsets = values.offsets.to_numpy()
    found = _of_distinct(values.values[offsets[0] : offsets[-1]], test)
    found_before = np.zeros(len(found) + 1, np.int32)
    np.cumsum(found, dtype=np.int32, out=found_before[1:])
    at_bounds = found_before.take(offsets - offsets[0])
    return np.asarray((at_bounds[1:] != at_bounds[:-1]) & _truths(values.is_valid()), np.bool_)


def _of_distinct(values: pa.Array, test: Callable[[pa.Array], Mask]) -> Mask:
    """Where the test holds; of values held as codes, each distinct one is tested once."""
    if not pa.types.is_dictionary(values.type):
        return test(values)
    holds = np.append(test(values.dictionary), False)
    return np.asarray(holds.take(pc.fill_null(values.indices, len(values.dictionary)).to_numpy()), np.bool_)


def _among(values: pa.Array, wanted: tuple[Value, ...]) -> Mask:
    """Which of plain values are one of those wanted."""
    if pa.types.is_null(values.type):
        return np.zeros(len(values), np.bool_)
    if _is_text(values):
        if len(wanted) == 1:
            return _truths(pc.equal(values, pa.scalar(wanted[0], values.type)))
        return _truths(pc.is_in(values, value_set=pa.array(wanted, values.type)))
    plain, is_there = _as_numbers(values)
    fitting = _fitting(wanted, plain.dtype)
    return np.asarray((plain == fitting[0] if len(fitting) == 1 else np.isin(plain, fitting)) & is_there, np.bool_)


def _ordered(values: pa.Array, sign: str, bound: Value) -> Mask:
    """Which of plain values stand on that side of the bound."""
    if pa.types.is_null(values.type):
        return np.zeros(len(values), np.bool_)
    if _is_text(values):
        return _truths(_COMPARE_TEXT[sign](values, pa.scalar(bound, values.type)))
    plain, is_there = _as_numbers(values)
    limit = _number(bound)
    if plain.dtype.kind == "f":
        limit = _rounded(limit, plain.dtype)
    elif isinstance(limit, float):  # Whole numbers are compared as such: as floats, those over 2**53 are rounded.
        limit = int(np.floor(limit) if sign in ("<=", ">") else np.ceil(limit))
    return np.asarray(_COMPARE[sign](plain, limit), np.bool_) & is_there


def _fitting(wanted: tuple[Value, ...], held: np.dtype[Any]) -> NDArray[Any]:
    """The values that the type can hold: no other is equal to one of it."""
    numbers = [_number(value) for value in wanted]
    if held.kind == "f":
        return np.array([_rounded(number, held) for number in numbers], held)
    if held.kind == "b":
        return np.array(numbers, held)
    bounds = np.iinfo(held)
    return np.array([int(each) for each in numbers if each == int(each) and bounds.min <= each <= bounds.max], held)


def _rounded(number: float, held: np.dtype[Any]) -> float:
    """The number as a column of the type holds it, so that one of 32 bits holds 0.1."""
    with np.errstate(over="ignore"):
        return float(held.type(number))


def _number(value: Value) -> int | float | bool:
    return moment_us(value) if isinstance(value, str) else value


def _as_numbers(values: pa.Array) -> tuple[NDArray[Any], Mask | bool]:
    """Numbers, truth values, or moments in microseconds, with 0 for what is not there; and what is."""
    if pa.types.is_timestamp(values.type):
        values = values.cast(pa.int64())
    is_there = _truths(values.is_valid()) if values.null_count else True
    blank = pa.scalar(False if pa.types.is_boolean(values.type) else 0, values.type)
    return pc.fill_null(values, blank).to_numpy(zero_copy_only=False), is_there


def _is_text(values: pa.Array) -> bool:
    return bool(pa.types.is_string(values.type) or pa.types.is_large_string(values.type))


def _truths(values: pa.BooleanArray) -> Mask:
    return np.asarray(pc.fill_null(values, False).to_numpy(zero_copy_only=False), np.bool_)


def _holds(tree: Tree, values: Mapping[str, Any]) -> bool:
    match tree:
        case Constant(value):
            return value
        case Not(term):
            return not _holds(term, values)
        case And(terms):
            return all(_holds(term, values) for term in terms)
        case Or(terms):
            return any(_holds(term, values) for term in terms)
        case _:
            return _condition_holds(tree, values.get(tree.column))


def _condition_holds(condition: Condition, value: Any) -> bool:
    is_missing = value is None or value != value  # NaN differs from itself.
    if isinstance(condition, Missing):
        return is_missing != condition.is_negated
    if is_missing:
        return False
    held = value if isinstance(value, list | tuple) else [value]
    match condition:
        case Flag():
            return bool(held == [True])
        case Comparison(operator="!=", value=literal):
            return not any(_compares("==", each, literal) for each in held)
        case Comparison(operator=sign, value=literal):
            return any(_compares(sign, each, literal) for each in held)
        case Membership(values=wanted, is_negated=is_negated):
            return any(_compares("==", each, literal) for each in held for literal in wanted) != is_negated


def _compares(sign: str, value: Any, literal: Value) -> bool:
    if isinstance(value, date) and isinstance(literal, str):
        value, literal = moment_us(value.isoformat()), moment_us(literal)
    if isinstance(value, str) != isinstance(literal, str) or value is None:
        return False
    return bool(_COMPARE[sign](value, literal))
