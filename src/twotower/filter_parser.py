"""Reads a filter: text -> tokens -> a tree, with every column and literal checked, and a limit on all that can grow."""

import re
from dataclasses import dataclass

import pyarrow as pa

from twotower.errors import RequestError
from twotower.filter_language import (
    KEYWORDS,
    And,
    ColumnType,
    Comparison,
    Constant,
    Flag,
    Membership,
    Missing,
    Not,
    Operator,
    Or,
    Tree,
    Value,
    column_type,
    moment_us,
)

LENGTH, DEPTH, TERMS = 2_000, 20, 200
"""Characters of a filter; parentheses and `not`s within one another; conditions, each value of a list counted."""
NAMED = 20
"""Columns that a fault names."""
WIDEST = 2**63
"""Numbers from here on fit no column."""

_OPERATORS: dict[str, Operator] = {
    "==": "==", "!=": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">=", "=": "==", "<>": "!=",
}  # fmt: skip
_TOKEN = re.compile(
    r"""(?P<number>-?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)
    |(?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    |(?P<quoted>`(?:[^`]|``)+`)
    |(?P<word>[^\W\d]\w*)
    |(?P<sign>==|!=|<>|<=|>=|[<>=()\[\],])""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPES = {"\\": "\\", '"': '"', "'": "'", "n": "\n", "r": "\r", "t": "\t"}
_CLOSING = {"[": "]", "(": ")"}


def parse_tree(text: str, schema: pa.Schema) -> Tree:
    """The tree of a filter, once it is certain that every column is there and every literal fits its column.

    Raises:
        RequestError: too long, too deep, too many terms, no filter, an unknown column, or a literal of another type;
            the message names the character, from 1.
    """
    if len(text) > LENGTH:
        raise RequestError(f"filter: {len(text)} characters long, {LENGTH} are allowed. Ask for less at once.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as fault:
        raise _fault(fault.start, "half a character (a lone surrogate). Send whole ones") from fault
    return _Parser(text, schema).parse()


@dataclass(frozen=True, slots=True)
class _Token:
    """A piece of the text: its group in the pattern, or `keyword`, or `end`."""

    kind: str
    text: str
    place: int
    """Characters before it."""


def _tokens(text: str) -> list[_Token]:
    found, place = [], _blank_end(text, 0)
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            what = "a quote that is not closed" if text[place] in "\"'`" else f"{text[place]!r}, which has no meaning"
            raise _fault(place, f"{what}. Texts stand in quotes, unusual column names in backticks")
        word, kind = match[0], str(match.lastgroup)
        if kind == "word" and word.lower() in KEYWORDS:
            word, kind = word.lower(), "keyword"
        found.append(_Token(kind, word, place))
        place = _blank_end(text, match.end())
    return [*found, _Token("end", "", len(text))]


def _blank_end(text: str, place: int) -> int:
    while place < len(text) and text[place].isspace():
        place += 1
    return place


def _fault(place: int, problem: str) -> RequestError:
    return RequestError(f"filter, character {place + 1}: {problem}.")


class _Parser:
    """Reads from left to right, by one token of foresight; each method takes what it names."""

    def __init__(self, text: str, schema: pa.Schema) -> None:
        self._tokens = _tokens(text)
        self._place = 0
        self._schema = schema
        self._terms = 0

    @property
    def _next(self) -> _Token:
        return self._tokens[self._place]

    def parse(self) -> Tree:
        tree = self._or(0)
        if self._next.kind != "end":
            raise self._unexpected("'and', 'or' or the end")
        return tree

    def _or(self, depth: int) -> Tree:
        terms = [self._and(depth)]
        while self._met("or"):
            terms.append(self._and(depth))
        flat = [part for term in terms for part in (term.terms if isinstance(term, Or) else (term,))]
        return flat[0] if len(flat) == 1 else Or(tuple(flat))

    def _and(self, depth: int) -> Tree:
        terms = [self._not(depth)]
        while self._met("and"):
            terms.append(self._not(depth))
        flat = [part for term in terms for part in (term.terms if isinstance(term, And) else (term,))]
        return flat[0] if len(flat) == 1 else And(tuple(flat))

    def _not(self, depth: int) -> Tree:
        if depth > DEPTH:
            raise _fault(self._next.place, f"more than {DEPTH} parentheses and 'not's within one another")
        if self._met("not"):
            return Not(self._not(depth + 1))
        if self._met("("):
            tree = self._or(depth + 1)
            if not self._met(")"):
                raise self._unexpected("')'")
            return tree
        return self._condition()

    def _condition(self) -> Tree:
        self._count()
        for word in ("true", "false"):
            if self._met(word):
                return Constant(word == "true")
        start = self._next
        column = self._column()
        if self._met("is"):
            is_negated = self._met("not")
            if not (self._met("missing") or self._met("null")):
                raise self._unexpected("'missing'")
            return Missing(column, is_negated)
        held = self._schema.field(column).type
        fits = column_type(held)
        if fits is None:
            raise _fault(start.place, f"column '{column}' holds {held}, which can only be missing or not")
        if operator := _OPERATORS.get(self._next.text if self._next.kind == "sign" else ""):
            return self._comparison(column, fits, operator)
        is_negated = self._met("not")
        if self._met("in"):
            return Membership(column, self._values(column, fits), is_negated)
        if is_negated:
            raise self._unexpected("'in'")
        if fits.kind not in ("bool", "nothing"):
            raise _fault(start.place, f"column '{column}' holds {held}, no truth values. Compare it with something")
        return Flag(column)

    def _column(self) -> str:
        token = self._next
        if token.kind not in ("word", "quoted"):
            raise self._unexpected("a column, 'not', '(', 'true' or 'false'")
        name = token.text[1:-1].replace("``", "`") if token.kind == "quoted" else token.text
        if self._schema.get_field_index(name) < 0:
            names = self._schema.names
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            raise _fault(token.place, f"there is no column '{name}'. There are {', '.join(names[:NAMED])}{more}")
        self._place += 1
        return name

    def _comparison(self, column: str, fits: ColumnType, operator: Operator) -> Comparison:
        sign = self._next
        if fits.kind == "bool" and operator not in ("==", "!="):
            raise _fault(sign.place, f"column '{column}' holds truth values, which have no order. Use == or !=")
        self._place += 1
        return Comparison(column, operator, self._value(column, fits))

    def _values(self, column: str, fits: ColumnType) -> tuple[Value, ...]:
        closing = _CLOSING.get(self._next.text if self._next.kind == "sign" else "")
        if closing is None:
            raise self._unexpected("'['")
        self._place += 1
        values: list[Value] = []
        while not self._met(closing):
            if values and not self._met(","):
                raise self._unexpected(f"',' or '{closing}'")
            if values:
                self._count()
            values.append(self._value(column, fits))
        return tuple(values)

    def _value(self, column: str, fits: ColumnType) -> Value:
        token = self._next
        value = self._literal(token)
        allowed = {"text": str, "moment": str, "number": int | float, "bool": bool, "nothing": Value}[fits.kind]
        if not isinstance(value, allowed) or (fits.kind == "number" and isinstance(value, bool)):
            held = {"text": "text", "moment": "moments", "number": "numbers", "bool": "truth values"}[fits.kind]
            raise _fault(token.place, f"column '{column}' holds {held}, found {token.text}")
        if fits.kind == "moment":
            try:
                moment_us(str(value))
            except (ValueError, OverflowError) as fault:
                raise _fault(token.place, f"{token.text} is no moment. Write one as '2026-11-30T18:00'") from fault
        self._place += 1
        return value

    def _literal(self, token: _Token) -> Value:
        if token.kind == "string":
            return self._unescaped(token)
        if token.kind == "keyword" and token.text in ("true", "false"):
            return token.text == "true"
        if token.kind != "number":
            raise self._unexpected("a text in quotes, a number, 'true' or 'false'")
        value = float(token.text) if set(token.text) & set(".eE") else int(token.text)
        if not (-WIDEST <= value < WIDEST or (isinstance(value, float) and abs(value) < float("inf"))):
            raise _fault(token.place, f"the number {token.text[:20]} is too large for any column")
        return value

    def _unescaped(self, token: _Token) -> str:
        def plain(escape: re.Match[str]) -> str:
            if escape[1] not in _ESCAPES:
                raise _fault(token.place + 1 + escape.start(), f"{escape[0]!r} is no escape. For a backslash write two")
            return _ESCAPES[escape[1]]

        return re.sub(r"\\(.)", plain, token.text[1:-1], flags=re.DOTALL)

    def _met(self, text: str) -> bool:
        """Whether this comes next; it is taken then."""
        token = self._next
        if token.kind not in ("keyword", "sign", "word") or token.text.lower() != text:
            return False
        self._place += 1
        return True

    def _count(self) -> None:
        self._terms += 1
        if self._terms > TERMS:
            raise _fault(self._next.place, f"more than {TERMS} conditions and values. Ask for less at once")

    def _unexpected(self, wanted: str) -> RequestError:
        token = self._next
        found = "the end" if token.kind == "end" else repr(token.text)
        return _fault(token.place, f"found {found} where {wanted} should stand")
