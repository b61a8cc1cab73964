r"""The language of filters: text -> a tree of conditions over columns, see `filter_parser.py`; nothing is run as code.

    genres in ["Comedy", "Drama"] and year >= 2000 and not adult

- `and`, `or`, `not` and parentheses join conditions; `not` binds before `and`, and that before `or`.
- A condition is `column == literal` (or `!= < <= > >=`), `column in [literal, ...]`, `column not in [...]`,
  `column is missing`, `column is not missing`, a column of truth values by itself, or `true` or `false`.
- A literal is a text in single or double quotes (`\\`, `\"`, `\'`, `\n`, `\r` and `\t` are escapes), a number, or
  `true` or `false`. Moments are compared with ISO 8601 texts, UTC where they name no zone.
- A column is a name of letters, digits and `_`; any other stands in backticks, a backtick in it twice.
- A condition on a column of lists holds where it holds for one of the values; `!=` and `not in` where for none.
- A missing value fulfils no condition but `is missing`, not even `!=`; NaN counts as missing. `not` turns true into
  false and false into true, so `not year == 2000` holds where the year is missing, and `year != 2000` does not.
- Words are read in either case, and SQL's `=`, `<>`, `is null` and `in (...)` are too: a condition of the recipe such
  as `rating >= 4 AND device = 'tv'` reads the same here.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

import pyarrow as pa

Kind = Literal["text", "number", "bool", "moment", "nothing"]
Value = str | int | float | bool
Operator = Literal["==", "!=", "<", "<=", ">", ">="]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
KEYWORDS = frozenset({"and", "or", "not", "in", "is", "true", "false"})
"""Names of columns only in backticks."""
_BARE = re.compile(r"[^\W\d]\w*")


@dataclass(frozen=True, slots=True)
class ColumnType:
    """What a column can be compared with."""

    kind: Kind
    is_list: bool


@dataclass(frozen=True, slots=True)
class Constant:
    """`true` or `false`."""

    value: bool


@dataclass(frozen=True, slots=True)
class Flag:
    """A column of truth values by itself."""

    column: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """A column against one literal."""

    column: str
    operator: Operator
    value: Value


@dataclass(frozen=True, slots=True)
class Membership:
    """A column against several literals."""

    column: str
    values: tuple[Value, ...]
    is_negated: bool


@dataclass(frozen=True, slots=True)
class Missing:
    """Whether a column holds nothing."""

    column: str
    is_negated: bool


@dataclass(frozen=True, slots=True)
class Not:
    """The opposite."""

    term: "Tree"


@dataclass(frozen=True, slots=True)
class And:
    """All of two terms or more, none of which is an `And`."""

    terms: "tuple[Tree, ...]"


@dataclass(frozen=True, slots=True)
class Or:
    """One of two terms or more, none of which is an `Or`."""

    terms: "tuple[Tree, ...]"


Condition = Flag | Comparison | Membership | Missing
Tree = Constant | Condition | Not | And | Or


def tree_text(tree: Tree) -> str:
    """A tree as text: trees of equal meaning to the parser have equal texts, and reading it gives the tree again."""
    match tree:
        case Constant(value):
            return _literal_text(value)
        case Flag(column):
            return _column_text(column)
        case Comparison(column, operator, value):
            return f"{_column_text(column)} {operator} {_literal_text(value)}"
        case Membership(column, values, is_negated):
            listed = ", ".join(map(_literal_text, values))
            return f"{_column_text(column)} {'not in' if is_negated else 'in'} [{listed}]"
        case Missing(column, is_negated):
            return f"{_column_text(column)} is {'not ' if is_negated else ''}missing"
        case Not(term):
            return f"not ({tree_text(term)})" if isinstance(term, And | Or) else f"not {tree_text(term)}"
        case And(terms):
            return " and ".join(f"({tree_text(term)})" if isinstance(term, Or) else tree_text(term) for term in terms)
        case Or(terms):
            return " or ".join(map(tree_text, terms))


def column_type(held: pa.DataType) -> ColumnType | None:
    """What a column of this Arrow type can be compared with; None where with nothing."""
    if pa.types.is_dictionary(held):
        return column_type(held.value_type)
    if pa.types.is_list(held) or pa.types.is_large_list(held):
        inner = column_type(held.value_type)
        return None if inner is None or inner.is_list or inner.kind == "bool" else ColumnType(inner.kind, is_list=True)
    kinds: tuple[tuple[Kind, bool], ...] = (
        ("text", pa.types.is_string(held) or pa.types.is_large_string(held)),
        ("number", pa.types.is_integer(held) or pa.types.is_floating(held)),
        ("bool", pa.types.is_boolean(held)),
        ("moment", pa.types.is_timestamp(held)),
        ("nothing", pa.types.is_null(held)),
    )
    return next((ColumnType(kind, is_list=False) for kind, fits in kinds if fits), None)


def moment_us(text: str) -> int:
    """An ISO 8601 moment in microseconds since 1970, UTC where it names no zone.

    Raises:
        ValueError: the text is none.
    """
    moment = datetime.fromisoformat(text)
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH) // timedelta(microseconds=1)


def _column_text(name: str) -> str:
    is_bare = _BARE.fullmatch(name) and name.lower() not in KEYWORDS
    return name if is_bare else "`" + name.replace("`", "``") + "`"


def _literal_text(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        return repr(value)
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + escaped.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t") + '"'
