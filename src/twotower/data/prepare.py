"""Raw tables -> prepared tables: types, duplicates, minimum counts, positives, the catalogue.

Written in Ibis expressions, which the recipe's engine runs: DuckDB, or Spark.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir

from twotower.data import features, interactions
from twotower.data.config import PrepareConfig
from twotower.data.engine import Engine, open_engine
from twotower.data.interactions import RawData
from twotower.data.raw import read_raw, write_raw
from twotower.data.sources.files import read_files
from twotower.data.sources.movielens import read_movielens
from twotower.data.sources.simulated_log import read_simulated
from twotower.data.tables import GIVEN_PART, INPUT_ROW, INTERACTIONS, ITEMS, USERS, write_table
from twotower.errors import DataError, RecipeError


def fetch(config: PrepareConfig, *, seed: int, out: Path) -> dict[str, Any]:
    """Write the source's tables as they are, so that nothing after this needs the source.

    Args:
        seed: For the simulated world, where it has none of its own.
        out: An open directory for the tables, and `world.npz` where the world is simulated.

    Returns: what `read_raw` needs besides.

    Raises:
        DataError: the source cannot be read.
    """
    with open_engine(config) as engine:
        return write_raw(engine, read_source(engine, config, seed=seed, out=out), out=out)


def prepare(config: PrepareConfig, *, seed: int, out: Path, raw_from: Path | None = None) -> dict[str, Any]:
    """Write the tables that everything after this reads: interactions in order of time, users, items.

    Args:
        seed: For the simulated world, where it has none of its own.
        raw_from: What `fetch` wrote; without, the recipe's source is read.
        out: An open directory; gets `interactions.parquet`, `users.parquet`, `items.parquet`, and `world.npz` where
            the world is simulated.

    Returns: `source`, `positives`, `label_columns`, `context_columns`, `title_column`, `counts`.

    Raises:
        DataError: the tables do not hold what the recipe says, or nothing is left of them.
    """
    with open_engine(config) as engine:
        raw = open_raw(engine, config, seed=seed, out=out, raw_from=raw_from)
        for fault in find_faults(engine, raw, config):
            raise DataError(fault)
        dropped = select(engine, raw, config)
        labels = (*raw.labels, *config.labels)
        counts = _write(engine, raw, labels=labels, met_only=config.min_item_interactions > 0, out=out)
    return {
        "source": config.source,
        "positives": config.positives,
        "label_columns": list(labels),
        "context_columns": list(raw.context),
        "title_column": raw.title_column,
        "counts": {**counts, "dropped": dropped},
    }


def open_raw(engine: Engine, config: PrepareConfig, *, seed: int, out: Path, raw_from: Path | None) -> RawData:
    """The raw tables, from a directory of them or from the source."""
    if raw_from is None:
        return read_source(engine, config, seed=seed, out=out)
    return read_raw(engine, raw_from, out=out)


def read_source(engine: Engine, config: PrepareConfig, *, seed: int, out: Path) -> RawData:
    """The source's tables, with items named as the recipe asks."""
    if config.source == "simulated":
        raw = _handed_over(engine, read_simulated(engine.local, config.simulated, seed=seed, out=out))
    elif config.source == "files":
        raw = read_files(engine, config.files, data_dir=config.data_dir)
    else:
        raw = _handed_over(engine, read_movielens(engine.local, config.source, data_dir=config.data_dir))
    return raw if config.item_key == "item_id" else features.name_items_by(engine, raw, config.item_key)


def _handed_over(engine: Engine, raw: RawData) -> RawData:
    """Tables of this process's DuckDB as tables of the engine."""
    users, items = (None if table is None else engine.take(table.get_name()) for table in (raw.users, raw.items))
    return replace(raw, interactions=engine.take(raw.interactions.get_name()), users=users, items=items)


def find_faults(engine: Engine, raw: RawData, config: PrepareConfig) -> Iterator[str]:
    """Everything in the tables that `prepare` refuses, one line each; each is looked for only when asked for."""
    table = engine.create("typed", interactions.typed(engine, raw))
    yield from interactions.find_faults(engine, raw, table, missing_labels=config.missing_labels)
    yield from features.find_faults(engine, raw)
    if raw.items is not None and config.unknown_items == "error":
        yield from features.find_unknown_items(engine, raw, table)
    if config.duplicates == "error":
        yield from interactions.find_duplicates(engine, raw, table)


def select(engine: Engine, raw: RawData, config: PrepareConfig) -> dict[str, int]:
    """Turn the table `typed` into the table `interactions`: chosen rows, all labels, and `positive`.

    Returns: how many interactions each setting dropped.

    Raises:
        DataError: no interaction, or no positive one, is left.
    """
    left, dropped = engine.table("typed"), {}
    count = engine.count(left)
    for setting, step in _steps(engine, raw, config):
        left = step(left)
        before, count = count, engine.count(left)
        dropped[setting] = before - count
        if not count:
            raise DataError(f"{raw.name}: {setting} drops all of the {before} interactions. Ask for less.")
    _add_columns(engine, left, raw, config)
    return dropped


def keep_core(engine: Engine, table: ir.Table, *, users: int, items: int) -> ir.Table:
    """The largest part of the log in which every user has `users` interactions and every item `items`.

    Dropping a user takes counts from items and the other way round, so both are dropped until nothing changes.
    """
    core = engine.create("core", table)
    before = -1
    while (count := engine.count(core)) != before:
        before = count
        busy_users = core.group_by("user_id").having(core.count() >= users).aggregate(met=core.count())
        busy_items = core.group_by("item_id").having(core.count() >= items).aggregate(met=core.count())
        core = engine.create("core", core.semi_join(busy_users, "user_id").semi_join(busy_items, "item_id"))
    return core


Step = Callable[[ir.Table], ir.Table]


def _steps(engine: Engine, raw: RawData, config: PrepareConfig) -> Iterator[tuple[str, Step]]:
    """The settings that drop interactions, each with what it does, in order."""
    if config.until or config.window_days:
        yield "prepare.until, window_days", partial(_within, engine, config=config)
    if config.filter != "true":
        yield "prepare.filter", partial(_filter, engine, condition=config.filter)
    if raw.items is not None and config.unknown_items == "drop":
        yield "prepare.unknown_items", partial(_with_known_item, items=raw.items)
    if config.duplicates in ("keep_first", "keep_last"):
        yield "prepare.duplicates", partial(_meet_once, last=config.duplicates == "keep_last")
    fewest = {"users": config.min_user_interactions, "items": config.min_item_interactions}
    if max(fewest.values()) > 1:
        yield "prepare.min_user_interactions, min_item_interactions", partial(keep_core, engine, **fewest)


def _within(engine: Engine, table: ir.Table, *, config: PrepareConfig) -> ir.Table:
    """The interactions of the window that the recipe names.

    Raises:
        RecipeError: `until` is no moment.
    """
    if config.until:
        try:
            end = datetime.fromisoformat(config.until)
            end = end.astimezone(UTC).replace(tzinfo=None) if end.tzinfo else end
        except (ValueError, OverflowError) as fault:
            raise RecipeError(f"prepare.until = {config.until!r}: no moment. Write it as 2026-11-01.") from fault
        table = table.filter(table["timestamp"] < ibis.timestamp(end))
    else:
        (end,) = engine.rows(table.aggregate(last=table["timestamp"].max()))[0]
    if not config.window_days or end is None:
        return table
    try:
        begin = end - timedelta(days=config.window_days)
    except OverflowError:  # The window begins before the year 1.
        return table
    return table.filter(table["timestamp"] >= ibis.timestamp(begin))


def _filter(engine: Engine, table: ir.Table, *, condition: str) -> ir.Table:
    engine.create("before_filter", table)
    with _expression_told(engine, "prepare.filter", condition, table):
        return engine.keep("filtered", condition, of="before_filter")


def _with_known_item(table: ir.Table, *, items: ir.Table) -> ir.Table:
    return table.semi_join(items, "item_id")


def _meet_once(table: ir.Table, *, last: bool) -> ir.Table:
    """The first, or the last, of each user's meetings with an item."""
    order = [table["timestamp"].desc(), table[INPUT_ROW].desc()] if last else [table["timestamp"], table[INPUT_ROW]]
    place = ibis.row_number().over(group_by=("user_id", "item_id"), order_by=order)
    return table.mutate(twotower_place=place).filter(lambda table: table["twotower_place"] == 0).drop("twotower_place")


def _add_columns(engine: Engine, table: ir.Table, raw: RawData, config: PrepareConfig) -> None:
    """Store the table `interactions` with the recipe's own labels and `positive`.

    Raises:
        RecipeError: a label has the name of a column.
        DataError: an expression cannot be computed, or no interaction is positive.
    """
    result = engine.create("interactions", table)
    for name, expression in config.labels.items():
        if name in result.columns:
            raise RecipeError(f"prepare.labels: {name!r} is a column of {raw.name} already. Choose another name.")
        with _expression_told(engine, f"prepare.labels.{name}", expression, result):
            result = engine.compute("interactions", name, f"CAST(({expression}) AS DOUBLE)")
    with _expression_told(engine, "prepare.positives", config.positives, result):
        positive = f"coalesce(CAST(({config.positives}) AS BOOLEAN), false)"
        result = engine.compute("interactions", "positive", positive)
    if not engine.count(result.filter(result["positive"]).limit(1)):
        raise DataError(f"{raw.name}: no interaction fulfils prepare.positives = {config.positives!r}. Ask for less.")


def _expression_told(engine: Engine, setting: str, expression: str, table: ir.Table) -> AbstractContextManager[None]:
    names = ", ".join(name for name in table.columns if name != INPUT_ROW)
    return engine.faults_told(f"{setting} = {expression!r}", f"Write a SQL expression over {names}.")


def _write(engine: Engine, raw: RawData, *, labels: Sequence[str], met_only: bool, out: Path) -> dict[str, int]:
    """Write the three tables; gives their numbers of rows."""
    table = engine.table("interactions")
    given = [GIVEN_PART] if GIVEN_PART in table.columns else []
    columns = ["user_id", "item_id", "timestamp", *labels, *raw.context, "positive", *given]
    items = raw.items.semi_join(table, "item_id") if raw.items is not None and met_only else raw.items
    return {
        "interactions": write_table(
            engine.batches(table.order_by("timestamp", INPUT_ROW).select(*columns)), out / INTERACTIONS
        ),
        "users": write_table(engine.batches(features.complete(raw.users, table, key="user_id")), out / USERS),
        "items": write_table(engine.batches(features.complete(items, table, key="item_id")), out / ITEMS),
        "positives": engine.count(table.filter(table["positive"])),
    }
