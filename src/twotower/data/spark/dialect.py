"""A recipe's SQL in Spark's words: what is written in DuckDB's means the same there, or is refused.

Translation alone is not enough. `date_diff('day', ...)`, `dayofweek`, `log`, `upper` and a cast to a whole number exist
on both and give other values on each, so that only what was found to agree passes.
"""

import re
from collections.abc import Collection, Iterator

import sqlglot
from sqlglot import expressions as sql

_AGREED: tuple[type[sql.Expr], ...] = (
    *(sql.Column, sql.Identifier, sql.Literal, sql.Boolean, sql.Null, sql.Paren, sql.DataType, sql.Var),
    *(sql.And, sql.Or, sql.Not, sql.EQ, sql.NEQ, sql.GT, sql.GTE, sql.LT, sql.LTE, sql.Is, sql.In, sql.Between),
    *(sql.NullSafeEQ, sql.NullSafeNEQ, sql.Like, sql.RegexpLike, sql.StartsWith, sql.EndsWith, sql.Contains),
    *(sql.Add, sql.Sub, sql.Mul, sql.Div, sql.Mod, sql.Neg, sql.Interval, sql.IntervalSpan),
    *(sql.Case, sql.If, sql.Coalesce, sql.Nullif, sql.Greatest, sql.Least, sql.ArrayContains),
    *(sql.Abs, sql.Floor, sql.Ceil, sql.Round, sql.Sqrt, sql.Ln, sql.Exp),
    *(sql.Length, sql.Year, sql.Month, sql.Day, sql.Hour, sql.TimestampTrunc),
    *(sql.Cast, sql.TryCast),
)
"""What gives the same values on both engines."""

_UNITS = ("YEAR", "QUARTER", "MONTH", "WEEK", "DAY", "HOUR", "MINUTE", "SECOND")
"""What both cut a moment to; of a unit that it does not know, Spark makes null."""
_MOMENTS = (sql.DataType.Type.TIMESTAMP, sql.DataType.Type.TIMESTAMPNTZ, sql.DataType.Type.DATE)
"""Types that a text may be cast to where it is written out."""
_PLAIN_MOMENT = re.compile(r"\d{4}-\d\d-\d\d([ T]\d\d:\d\d(:\d\d(\.\d{1,6})?)?)?")
_COMPARISONS = (sql.EQ, sql.NEQ, sql.GT, sql.GTE, sql.LT, sql.LTE, sql.In, sql.Between, sql.NullSafeEQ, sql.NullSafeNEQ)
_CHOICES = (sql.Paren, sql.Coalesce, sql.Nullif, sql.Greatest, sql.Least)
"""What gives one of the values that it is given."""


class NotAgreedError(ValueError):
    """A SQL expression that is none, or has no counterpart in Spark; told where the recipe's setting is known."""


def in_spark(expression: str, *, texts: Collection[str]) -> str:
    """The expression in Spark's SQL, with the functions that a `Session` defines.

    Args:
        expression: A SQL expression in DuckDB's words.
        texts: The columns that hold text.

    Raises:
        NotAgreedError: it is no SQL, or holds what does not mean the same on Spark.
    """
    try:
        tree = sqlglot.parse_one(expression, read="duckdb")
    except sqlglot.errors.SqlglotError as fault:
        raise NotAgreedError(f"no SQL expression ({str(fault).partition('.')[0]})") from fault
    texts = {name.lower() for name in texts}
    for node in tree.walk():
        for what in _not_agreed(node, texts):
            raise NotAgreedError(f"{what} does not mean the same on Spark")
    for node in reversed(list(tree.find_all(sql.Div))):  # DuckDB's quotient is a double, whatever is divided.
        for side in ("this", "expression"):
            node.set(side, sql.cast(node.args[side].copy(), "double"))
    for node in reversed(list(tree.find_all(sql.Cast))):
        if node.to.this == sql.DataType.Type.DOUBLE and _gives_text(node.this, texts):
            node.set("this", sql.func("twotower_spelled", node.this))
    return tree.sql(dialect="spark", unsupported_level=sqlglot.ErrorLevel.RAISE)


def _not_agreed(node: sql.Expr, texts: Collection[str]) -> Iterator[str]:
    shown = node.sql(dialect="duckdb")[:60]
    if (
        type(node) not in _AGREED
        or (isinstance(node, sql.Cast) and not _is_agreed_cast(node, texts))
        or (isinstance(node, sql.TimestampTrunc) and node.text("unit") not in _UNITS)
        or (isinstance(node, sql.Round) and node.args.get("decimals") is not None)
        or (isinstance(node, sql.Like) and "\\" in node.expression.name)
    ):
        yield shown
    elif isinstance(node, sql.Literal) and node.is_string and re.search(r"\d{4}-.*\d:\d\d.*[+-]\d", node.name):
        yield f"a moment with a zone ({shown})"
    elif isinstance(node, _COMPARISONS) and _mixes(node, texts):
        yield f"a text compared to a number ({shown})"


def _is_agreed_cast(node: sql.Cast, texts: Collection[str]) -> bool:
    kind = node.to.this
    if kind == sql.DataType.Type.BOOLEAN:
        return not _gives_text(node.this, texts)
    written = isinstance(node.this, sql.Literal) and _PLAIN_MOMENT.fullmatch(node.this.name) is not None
    return kind == sql.DataType.Type.DOUBLE or (kind in _MOMENTS and written)


def _gives_text(node: sql.Expr | None, texts: Collection[str]) -> bool:
    """Whether the value of an expression is a text, or may be one."""
    if isinstance(node, sql.Column):
        return node.name.lower() in texts
    if isinstance(node, sql.Literal):
        return node.is_string
    given: list[sql.Expr | None] = []
    if isinstance(node, sql.Case | sql.If):
        given = [*node.args.get("ifs", ()), *(node.args.get(name) for name in ("true", "false", "default"))]
    elif isinstance(node, _CHOICES):
        given = list(node.iter_expressions())
    return any(_gives_text(value, texts) for value in given)


def _mixes(node: sql.Expr, texts: Collection[str]) -> bool:
    """Whether a column of text meets a number: DuckDB then compares texts, Spark numbers."""
    sides = [side for side in node.iter_expressions() if not isinstance(side, sql.Paren)]
    text = any(isinstance(side, sql.Column) and side.name.lower() in texts for side in sides)
    number = any(
        (isinstance(side, sql.Literal) and not side.is_string)
        or (isinstance(side, sql.Column) and side.name.lower() not in texts)
        for side in sides
    )
    return text and number
