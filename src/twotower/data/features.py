"""The user and item tables: one row per id, whatever columns the user has."""

from collections.abc import Iterator
from dataclasses import replace

import ibis
import ibis.expr.types as ir

from twotower.data.engine import Engine
from twotower.data.interactions import RawData, string_id
from twotower.data.tables import INPUT_ROW
from twotower.errors import DataError, RecipeError

# Columns that live within one expression have names that no table of a user's has.
_FIRST_MET, _PLACE = "twotower_first_met", "twotower_place"


def find_faults(engine: Engine, raw: RawData) -> Iterator[str]:
    """Tell what in the users and items tables cannot be used, one line each."""
    for table, key, noun in ((raw.users, "user_id", "users"), (raw.items, "item_id", "items")):
        if table is not None:
            yield from _table_faults(engine, table, key=key, where=f"{raw.name} ({noun} table)")


def _table_faults(engine: Engine, table: ir.Table, *, key: str, where: str) -> Iterator[str]:
    missing = table.filter(table[key].isnull())
    if count := engine.count(missing):
        row = engine.rows(missing.aggregate(row=missing[INPUT_ROW].min()))[0][0]
        yield f"{where}: {count} rows have no {key} (first is row {row}). Fill it in, or remove them."
    counted = (
        table.filter(table[key].notnull())
        .group_by(key)
        .aggregate(count=lambda t: t.count(), row=lambda t: t[INPUT_ROW].min())
    )
    repeated = counted.filter(counted["count"] > 1)
    if total := engine.count(repeated):
        first = ", ".join(str(row[0]) for row in engine.rows(repeated.order_by("row").limit(3)))
        yield f"{where}: {total} ids stand in more than one row (first: {first}). Keep one row per {key}."


def find_unknown_items(engine: Engine, raw: RawData, table: ir.Table) -> Iterator[str]:
    """Tell of interactions whose item is not in the items table."""
    unknown = table.anti_join(raw.items, "item_id").group_by("item_id").aggregate(row=lambda t: t[INPUT_ROW].min())
    if count := engine.count(unknown):
        first = ", ".join(str(row[0]) for row in engine.rows(unknown.order_by("row").limit(3)))
        yield (
            f"{raw.name}: {count} item ids are not in the items table (first: {first}). "
            "Add them, or set prepare.unknown_items = 'drop' or 'keep'."
        )


def name_items_by(engine: Engine, raw: RawData, column: str) -> RawData:
    """The same data with items named by another column: of the items that share a value the first stands for all.

    Raises:
        RecipeError: there is no items table, or it has no such column.
        DataError: an item has no id, or stands in more than one row: each would make a row of every interaction.
    """
    if raw.items is None or column not in raw.items.columns:
        there = "no items table" if raw.items is None else f"columns {', '.join(raw.items.columns)}"
        raise RecipeError(f"prepare.item_key = {column!r}: {raw.name} has {there}. Name a column of the items table.")
    for fault in find_faults(engine, replace(raw, users=None)):
        raise DataError(fault)
    names = raw.items.select(twotower_id=raw.items["item_id"], twotower_name=raw.items[column].cast("string"))
    interactions = raw.interactions.mutate(item_id=string_id(raw.interactions["item_id"]))
    renamed = interactions.left_join(names, interactions["item_id"] == names["twotower_id"])
    renamed = renamed.mutate(item_id=ibis.coalesce(renamed["twotower_name"], renamed["item_id"]))
    renamed = renamed.drop("twotower_id", "twotower_name")
    place = ibis.row_number().over(group_by=column, order_by=INPUT_ROW)
    first = raw.items.mutate(**{_PLACE: place}).filter(lambda table: table[_PLACE] == 0).drop(_PLACE)
    return replace(
        raw,
        interactions=engine.create("named_interactions", renamed),
        items=engine.create("named_items", first.mutate(item_id=first[column].cast("string"))),
    )


def complete(table: ir.Table | None, interactions: ir.Table, *, key: str) -> ir.Table:
    """Every id of the table and of the interactions: the table's in its order, the others in order of first meeting."""
    met = interactions.group_by(key).aggregate(**{_FIRST_MET: interactions[INPUT_ROW].min()})
    if table is None:
        return met.order_by(_FIRST_MET).select(key)
    features = [name for name in table.columns if name not in (key, INPUT_ROW)]
    joined = table.outer_join(met, key, rname="twotower_{name}")
    joined = joined.mutate(**{key: ibis.coalesce(joined[key], joined[f"twotower_{key}"])})
    return joined.order_by(joined[INPUT_ROW].asc(nulls_first=False), _FIRST_MET).select(key, *features)
