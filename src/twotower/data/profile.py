"""What `twotower validate` tells before anything is trained: how much there is, how it is spread, what is wrong."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import ibis.expr.types as ir
import numpy as np
from numpy.typing import NDArray

from twotower.data import prepare as preparation
from twotower.data.config import PrepareConfig
from twotower.data.engine import Engine, open_engine
from twotower.data.interactions import RawData
from twotower.data.tables import INPUT_ROW
from twotower.errors import TwotowerError

SPANS = 20
"""Parts of the log's span in which interactions are counted."""
FEW_VALUES = 20
"""A label with more distinct values is no scale whose values are counted one by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The figures of a data set after the recipe's preparation, and the faults that forbid it."""

    source: str
    figures: dict[str, float | int | str]
    """Name -> value, in the order to print; empty where a fault stands in the way."""
    missing: dict[str, float]
    """`table.column` -> share of rows without a value, of the columns that have gaps."""
    faults: tuple[str, ...]
    """One line each: where, what, what to do."""
    counts: dict[str, list[tuple[str, int]]]
    """What is counted -> value and number of interactions: over time, and of each label with few values."""

    def lines(self) -> Iterator[str]:
        """The profile as text."""
        yield f"source: {self.source}"
        width = max((len(name) for name in (*self.figures, *self.missing)), default=0)
        for name, value in self.figures.items():
            yield f"{name:<{width}}  {shown(value)}"
        if self.missing:
            yield "missing values:"
            yield from (f"{name:<{width}}  {share:.1%}" for name, share in self.missing.items())
        yield f"faults: {len(self.faults) or 'none'}"
        yield from self.faults


def profile(config: PrepareConfig, *, seed: int = 0, raw_from: Path | None = None) -> Profile:
    """Look through the recipe's source without writing anything; faults are told, not raised.

    Args:
        config: As `prepare` reads it.
        seed: For the simulated world, where it has none of its own.
        raw_from: What `fetch` wrote; without, the recipe's source is read.
    """
    with tempfile.TemporaryDirectory(prefix="twotower-") as scratch, open_engine(config) as engine:
        try:
            raw = preparation.open_raw(engine, config, seed=seed, out=Path(scratch), raw_from=raw_from)
        except TwotowerError as fault:
            return Profile(source=config.source, figures={}, missing={}, faults=(str(fault),), counts={})
        faults = list(preparation.find_faults(engine, raw, config))
        missing = dict(_missing(engine, raw))
        if not faults:
            try:
                preparation.select(engine, raw, config)
            except TwotowerError as fault:
                faults.append(str(fault))
        figures = {} if faults else _figures(engine, raw)
        counts = {} if faults else dict(_value_counts(engine, raw))
        return Profile(source=raw.name, figures=figures, missing=missing, faults=tuple(faults), counts=counts)


def _figures(engine: Engine, raw: RawData) -> dict[str, float | int | str]:
    table = engine.table("interactions")
    per_user, per_item = _counts(engine, table, "user_id"), _counts(engine, table, "item_id")
    catalogue = len(per_item) if raw.items is None else max(len(per_item), engine.count(raw.items))
    pairs = engine.count(table.select("user_id", "item_id").distinct())
    rows = engine.count(table)
    first, last = engine.rows(table.aggregate(first=table["timestamp"].min(), last=table["timestamp"].max()))[0]
    figures: dict[str, float | int | str] = {
        "interactions": rows,
        "positive interactions": engine.count(table.filter(table["positive"])),
        "users": len(per_user),
        "items met": len(per_item),
        "items in the catalogue": catalogue,
        "density": pairs / (len(per_user) * catalogue),
        "repeated pairs of user and item": rows - pairs,
        "first": first.isoformat(" "),
        "last": last.isoformat(" "),
        "days": (last - first).total_seconds() / 86_400,
    }
    for noun, counts in (("user", per_user), ("item", per_item)):
        figures |= {f"interactions per {noun}, {name}": value for name, value in _spread(counts).items()}
    figures["share of the most met 1 % of items"] = _share_of_top(per_item, 0.01)
    figures["share of the most met 10 % of items"] = _share_of_top(per_item, 0.1)
    figures["inequality of items (Gini)"] = gini(per_item)
    for name in raw.labels:
        for statistic, value in _label(engine, table, name).items():
            figures[f"{name}, {statistic}"] = value
    return figures


def gini(counts: NDArray[np.int64]) -> float:
    """How unevenly interactions fall on items: 0 where all have as many, near 1 where one has all.

    Args:
        counts: `[I]` interactions of each item, ascending.
    """
    place = np.arange(1, len(counts) + 1)
    return float(((2 * place - len(counts) - 1) * counts).sum() / (len(counts) * counts.sum()))


def _counts(engine: Engine, table: ir.Table, key: str) -> NDArray[np.int64]:
    """Interactions of each user or item, ascending."""
    counted = table.group_by(key).aggregate(met=table.count()).select("met").order_by("met")
    return np.asarray(engine.batches(counted).read_all()["met"].to_numpy(), np.int64)


def _spread(counts: NDArray[np.int64]) -> dict[str, float | int]:
    return {
        "least": int(counts[0]),
        "median": float(np.median(counts)),
        "mean": float(counts.mean()),
        "most": int(counts[-1]),
    }


def _share_of_top(counts: NDArray[np.int64], share: float) -> float:
    top = max(1, round(len(counts) * share))
    return float(counts[-top:].sum() / counts.sum())


def _label(engine: Engine, table: ir.Table, name: str) -> dict[str, float]:
    column = table[name]
    summary = table.aggregate(least=column.min(), mean=column.mean(), most=column.max())
    return dict(zip(("least", "mean", "most"), engine.rows(summary)[0], strict=True))


def _value_counts(engine: Engine, raw: RawData) -> Iterator[tuple[str, list[tuple[str, int]]]]:
    """Interactions over the log's span in equal parts, and by value of each label that has few values."""
    table = engine.table("interactions")
    first, last = engine.rows(table.aggregate(first=table["timestamp"].min(), last=table["timestamp"].max()))[0]
    width = max((last - first) / SPANS, timedelta(microseconds=1))
    seconds = engine.batches(table.select("timestamp")).read_all()["timestamp"].to_numpy()
    edges = np.array([first + width * place for place in range(SPANS)], "datetime64[us]")
    found = np.searchsorted(edges, seconds.astype("datetime64[us]"), side="right") - 1
    counts = np.bincount(found, minlength=SPANS)
    days = [f"{first + width * place:%Y-%m-%d}" for place in range(SPANS)]
    yield "Interactions over time", list(zip(days, counts.tolist(), strict=True))
    for name in raw.labels:
        grouped = table.group_by(name).aggregate(met=table.count()).order_by(name)
        rows = engine.rows(grouped.limit(FEW_VALUES + 1))
        if len(rows) <= FEW_VALUES:
            yield f"Interactions by {name}", [("missing" if value is None else f"{value:g}", n) for value, n in rows]


def _missing(engine: Engine, raw: RawData) -> Iterator[tuple[str, float]]:
    """The columns with gaps."""
    for name, table in (("interactions", raw.interactions), ("users", raw.users), ("items", raw.items)):
        if table is None:
            continue
        columns = [column for column in table.columns if column != INPUT_ROW]
        gaps = table.aggregate(
            rows=table.count(),
            **{f"gap_{column}": (table[column].cast("string").nullif("")).isnull().sum() for column in columns},
        )
        rows, *counts = engine.rows(gaps)[0]
        yield from ((f"{name}.{column}", count / rows) for column, count in zip(columns, counts, strict=True) if count)


def shown(value: float | int | str) -> str:
    """A figure as a reader takes it in."""
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1_000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else value
