"""What a server recorded, laid below the tables that it adds to: `twotower events export` wrote it.

The files hold canonical types: ids are texts, moments are moments, labels are numbers. What joins a table takes the
form that the table has, so that the whole is read as the table alone would be.
"""

import ibis.expr.types as ir

from twotower.data.database import Database, faults_told, quote
from twotower.data.interactions import RawData, require_columns, string_id, timestamp_format
from twotower.data.tables import EVENT_ID, INPUT_ROW, KEYS
from twotower.errors import DataError

_WRITE = "Write it by `twotower events export`."
_SEPARATOR = "|"
"""Joins a list's values where the other table has text; what a `multi_category` feature parts by default."""


def conform_interactions(database: Database, raw: RawData, new: str, *, where: str) -> ir.Table:
    """The stored table `new` with the columns of `raw` that it has, in the form that they have there.

    Two rows under one event id are one interaction, as where exports overlap.

    Raises:
        DataError: it is no export, or a value cannot take the form.
    """
    types = database.types(new)
    require_columns(where, list(types), needed=KEYS, advice=_WRITE)
    if not types["timestamp"].startswith(("TIMESTAMP", "DATE")):
        raise DataError(f"{where}: its timestamps are {types['timestamp']}, no moments. {_WRITE}")
    for label in raw.labels:
        if types.get(label, "DOUBLE") in ("VARCHAR", "BOOLEAN"):
            raise DataError(f"{where}: its column {label!r} is {types[label]}, no numbers. {_WRITE}")
    forms = {
        "user_id": "user_id::VARCHAR",
        "item_id": "item_id::VARCHAR",
        "timestamp": _MOMENTS[timestamp_format(database, raw)],
    }
    forms |= {label: quote(label) for label in raw.labels if label in types}
    base = database.types(raw.interactions.get_name())
    forms |= {name: _form(name, types[name], base[name]) for name in raw.context if name in types}
    columns = ", ".join(f"{form} AS {quote(name)}" for name, form in forms.items())
    first = f"row_number() OVER (PARTITION BY {EVENT_ID} ORDER BY {INPUT_ROW}) = 1"
    once = f" QUALIFY {EVENT_ID} IS NULL OR {first}" if EVENT_ID in types else ""
    with faults_told(where, "Send it as the other interactions have it."):
        return database.create(new, f"SELECT {columns}, {INPUT_ROW} FROM {quote(new)}{once}")


def replace_items(database: Database, items: str, new: str, *, where: str) -> ir.Table:
    """The stored table `items` with the rows of `new`: in place of those with the same id, or after all others.

    Raises:
        DataError: a value of `new` cannot take the form that its column has.
    """
    base, types = database.types(items), database.types(new)
    require_columns(where, list(types), needed=["item_id"], advice=_WRITE)
    forms = [
        f"{_form(name, kind, base[name]) if name in base else quote(name)} AS {quote(name)}"
        for name, kind in types.items()
        if name not in ("item_id", INPUT_ROW)
    ]
    columns = ", ".join(["item_id::VARCHAR AS item_id", *forms])
    count = f"(SELECT coalesce(max({INPUT_ROW}), 0) FROM {quote(items)})"
    with faults_told(where, "Put it as the items table has it."):
        return database.create(
            items,
            f"SELECT * FROM {quote(items)} ANTI JOIN {quote(new)} USING (item_id) UNION ALL BY NAME "
            f"SELECT {columns}, {INPUT_ROW} + {count} AS {INPUT_ROW} FROM {quote(new)}",
        )


def with_text_ids(database: Database, name: str, table: ir.Table) -> ir.Table:
    """The stored table with ids as they are told elsewhere: the number 42.0 would not be the text "42" of an export."""
    return database.create(name, table.mutate(**{key: string_id(table[key]) for key in ("user_id", "item_id")}))


_MOMENTS = {
    "moment": "timestamp::TIMESTAMP",
    "iso": "strftime(timestamp::TIMESTAMP, '%Y-%m-%dT%H:%M:%S.%fZ')",
    "s": "epoch_us(timestamp::TIMESTAMP) / 1e6",
    "ms": "epoch_us(timestamp::TIMESTAMP) / 1e3",
    "us": "epoch_us(timestamp::TIMESTAMP)",
}
"""How a table tells its moments -> the same of an export."""


def _form(name: str, kind: str, wanted: str) -> str:
    """The SQL that gives a column the form of another: single values or lists, and text only where that has text."""
    column = quote(name)
    if kind.endswith("[]") and wanted == "VARCHAR":
        return f"array_to_string({column}, '{_SEPARATOR}')"
    if kind == "VARCHAR" and wanted.endswith("[]"):
        return f"string_split({column}, '{_SEPARATOR}')"
    if kind == "VARCHAR" and wanted != "VARCHAR":
        return f"CAST({column} AS {wanted})"
    return column
