"""Your own tables: CSV, Parquet, JSON lines, or whatever SQL DuckDB can run.

A table is named by a file (also `*.csv`, a folder of Parquet files, `s3://...`, `https://...`) or by a query, which may
read databases that are attached: `attach = {shop = "shop.sqlite"}` and `interactions = "SELECT * FROM shop.orders"`.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import ibis.expr.types as ir

from twotower.data.config import FilesConfig
from twotower.data.database import Database, faults_told, literal, quote
from twotower.data.interactions import RawData, require_columns, string_id
from twotower.data.sources.recorded import conform_interactions, replace_items, with_text_ids
from twotower.data.sources.text_files import SUFFIXES, csv_query, find_encoding_fault, typed_columns
from twotower.data.tables import GIVEN_PART, INPUT_ROW, KEYS, RESERVED
from twotower.errors import DataError, RecipeError

TABLES = ("interactions", "new_interactions", "validation", "test", "users", "items", "new_items")
"""Settings that name a table."""

_QUERY = re.compile(r"\s*(select|with|from|values)\s", re.IGNORECASE)
_PARQUET, _JSON = (".parquet", ".pq"), (".json", ".jsonl", ".ndjson")


def read_files(database: Database, config: FilesConfig, *, data_dir: str | None) -> RawData:
    """The tables that the recipe names, their columns under our names.

    Raises:
        RecipeError: no interactions are named, or in a way that we cannot read.
        DataError: a file is missing, empty, not UTF-8 or not a table, or lacks a column.
    """
    if not config.interactions:
        raise RecipeError("prepare.files.interactions names no table. Give a file, a URI or a SQL query.")
    for name, uri in config.attach.items():
        with faults_told(f"prepare.files.attach.{name} = {uri!r}", "Give a database that DuckDB can attach."):
            database.execute(f"ATTACH {literal(str(_local(uri, data_dir) or uri))} AS {quote(name)} (READ_ONLY)")
    for name in (*config.labels, *config.context):
        if name in RESERVED:
            raise RecipeError(f"prepare.files: {name!r} is a name of ours. Map the column to another in columns.")
    text = (*KEYS, *config.labels)
    tables = {name: _stage(database, config, name, data_dir=data_dir, text=text) for name in _parts(config)}
    interactions = _join_parts(database, config, tables)
    users, items = (
        _with_id(database, config, name, key=key, data_dir=data_dir)
        for name, key in (("users", "user_id"), ("items", "item_id"))
    )
    if config.new_items:
        items = _with_new_items(database, config, items, data_dir=data_dir)
    title = config.title or ("title" if items is not None and "title" in items.columns else None)
    if title is not None:
        found = () if items is None else items.columns
        require_columns(config.items or "prepare.files.items", found, needed=[title], advice="Set prepare.files.title.")
    return RawData(
        name=_shown(config.interactions),
        interactions=interactions,
        users=users,
        items=items,
        labels=config.labels,
        context=config.context,
        title_column=title,
        timestamp_format=config.timestamp_format,
    )


def local_files(config: FilesConfig, *, data_dir: str | None) -> dict[str, Path]:
    """Table -> the file of this machine that the recipe names for it; a query or an address names none.

    Raises:
        DataError: one of them is not there, or empty.
    """
    found = {name: _local(getattr(config, name), data_dir) for name in TABLES if getattr(config, name)}
    files = {name: path for name, path in found.items() if path is not None}
    for path in files.values():
        _refuse_missing(path)
    return files


def is_unseen(config: FilesConfig) -> bool:
    """Whether a table comes by a query from an address or a server, so that nobody can tell whether it changed."""
    queries = [place for name in TABLES if _QUERY.match(place := getattr(config, name))]
    servers = [place for place in config.attach.values() if _local(place, None) is None or not Path(place).exists()]
    return bool(servers) or any("://" in query for query in queries)


def _parts(config: FilesConfig) -> list[str]:
    """The settings that name interactions, in the order of train, validation, test."""
    if config.validation and not config.test:
        raise RecipeError("prepare.files.validation: there is no prepare.files.test beside it. Name both, or neither.")
    return ["interactions", *(name for name in ("new_interactions", "validation", "test") if getattr(config, name))]


def _join_parts(database: Database, config: FilesConfig, tables: Mapping[str, ir.Table]) -> ir.Table:
    """The interactions of all parts below each other; the columns asked for, and no other."""
    wanted = [*KEYS, *config.labels, *config.context]
    numbers = {"interactions": 0, "new_interactions": 0, "validation": 1, "test": 2}
    if config.new_interactions:
        tables = {**tables, "new_interactions": _conformed(database, config, tables["interactions"])}
    selects = []
    for place, (name, table) in enumerate(tables.items()):
        if name != "new_interactions":  # Where no event had a label, the export has no column of it.
            require_columns(_shown(getattr(config, name)), table.columns, needed=wanted, advice=_RENAME)
        columns = ", ".join(quote(column) for column in wanted if column in table.columns)
        part = f", {numbers[name]}::TINYINT AS {GIVEN_PART}" if config.test else ""
        selects.append(f"SELECT {columns}{part}, {place} AS {_PLACE}, {INPUT_ROW} FROM {quote('staged_' + name)}")
    # Rows are counted on from part to part, in the order train, validation, test.
    row = f"row_number() OVER (ORDER BY {_PLACE}, {INPUT_ROW}) AS {INPUT_ROW}" if len(selects) > 1 else INPUT_ROW
    joined = " UNION ALL BY NAME ".join(selects)
    with faults_told(_shown(config.interactions), "Give all parts the same columns."):
        return database.create("raw_interactions", f"SELECT * EXCLUDE ({_PLACE}, {INPUT_ROW}), {row} FROM ({joined})")


_PLACE = "twotower_place"


def _conformed(database: Database, config: FilesConfig, interactions: ir.Table) -> ir.Table:
    """What a server recorded, in the form of the staged interactions."""
    require_columns(_shown(config.interactions), interactions.columns, needed=KEYS, advice=_RENAME)
    raw = RawData(
        name=_shown(config.interactions),
        interactions=with_text_ids(database, "staged_interactions", interactions),
        users=None,
        items=None,
        labels=config.labels,
        context=config.context,
        timestamp_format=config.timestamp_format,
    )
    where = _shown(config.new_interactions)
    return conform_interactions(database, raw, "staged_new_interactions", where=where)


_RENAME = "Map it in prepare.files.columns (ours = yours)."


def _with_id(database: Database, config: FilesConfig, name: str, *, key: str, data_dir: str | None) -> ir.Table | None:
    """The users or items table with its id as a string, or None where none is named."""
    if not getattr(config, name):
        return None
    table = _stage(database, config, name, data_dir=data_dir, text=(key,))
    require_columns(_shown(getattr(config, name)), table.columns, needed=[key], advice=_RENAME)
    return database.create(f"raw_{name}", table.mutate(**{key: string_id(table[key])}))


def _with_new_items(
    database: Database, config: FilesConfig, items: ir.Table | None, *, data_dir: str | None
) -> ir.Table:
    """The items table with what was put while a server ran."""
    if items is None:
        raise RecipeError("prepare.files.new_items: there is no prepare.files.items beside it. Name both.")
    new = _stage(database, config, "new_items", data_dir=data_dir, text=("item_id",))
    return replace_items(database, items.get_name(), new.get_name(), where=_shown(config.new_items))


def _stage(
    database: Database, config: FilesConfig, name: str, *, data_dir: str | None, text: Sequence[str]
) -> ir.Table:
    """Copy a table into the session, columns under our names, rows numbered.

    Args:
        database: The session.
        config: Says where the table is.
        name: The setting that names it.
        data_dir: The folder that a file's name is relative to.
        text: Columns of a CSV that stay as they are written: ids keep their zeros, a faulty value is told by its row.
    """
    place = getattr(config, name)
    path = _local(place, data_dir)
    if path is not None:
        _refuse_missing(path)
    try:
        with faults_told(_shown(place), f"Check the file, or write a query in prepare.files.{name}."):
            query, is_text = _query(place if path is None else str(path), path)
            columns = _renamed(list(database.schema(query).names), config.columns)
            numbered = f"SELECT {columns}, row_number() OVER () AS {INPUT_ROW} FROM ({query})"
            table = database.create(f"staged_{name}", numbered)
    except DataError:
        if path is not None and path.is_file() and (fault := find_encoding_fault(path)):
            raise DataError(fault) from None
        raise
    if is_text:
        others = [column for column in table.columns if column not in (*text, INPUT_ROW)]
        if assignments := typed_columns(database, f"staged_{name}", others):
            table = database.create(
                f"staged_{name}", f"SELECT * REPLACE ({assignments}) FROM {quote('staged_' + name)}"
            )
    return table


def _query(place: str, path: Path | None) -> tuple[str, bool]:
    """The SQL that reads the table, and whether it gives nothing but text."""
    if path is None and _QUERY.match(place):
        return place.strip().rstrip(";"), False
    suffixes = Path(place.split("?")[0]).suffixes
    kind = next((suffix for suffix in reversed(suffixes) if suffix not in (".gz", ".zst")), "")
    if kind in SUFFIXES:
        return csv_query(place, path if path is not None and path.is_file() else None), True
    if kind in _PARQUET:
        return f"SELECT * FROM read_parquet({literal(place)}, union_by_name = true)", False
    if kind in _JSON:
        return f"SELECT * FROM read_json({literal(place)})", False
    if path is not None and path.is_dir():
        return f"SELECT * FROM read_parquet({literal(place + '/**/*.parquet')}, union_by_name = true)", False
    raise RecipeError(f"prepare.files: {place!r} is no .csv, .tsv, .parquet or .jsonl file, and no query. Name one.")


def _renamed(found: Sequence[str], columns: dict[str, str]) -> str:
    """The select list that gives the table's columns our names."""
    ours = {theirs: name for name, theirs in columns.items() if theirs in found}
    hidden = {name for theirs, name in ours.items() if name in found and name != theirs}
    kept = [name for name in found if name in ours or name not in (*hidden, INPUT_ROW)]
    return ", ".join(f"{quote(name)} AS {quote(ours.get(name, name))}" for name in kept)


def _local(place: str, data_dir: str | None) -> Path | None:
    """The file on this machine, or None for a query or a URI."""
    if _QUERY.match(place) or "://" in place or re.match(r"[a-z]{2,}:", place):
        return None
    return Path(data_dir or ".") / Path(place).expanduser()


def _refuse_missing(path: Path) -> None:
    if any(sign in str(path) for sign in "*?["):
        if not list(path.parent.glob(path.name)) and "**" not in str(path):
            raise DataError(f"{path}: no file has such a name. Check prepare.files and the folder.")
    elif not path.exists():
        raise DataError(f"{path}: no such file. Check prepare.files and the folder that it is relative to.")
    elif path.is_file() and path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty. Name a file that holds a header and rows.")


def _shown(place: str) -> str:
    """A name for messages: long queries are cut, and all stay on one line."""
    line = " ".join(place.split())
    return line if len(line) <= 80 else line[:77] + "..."
