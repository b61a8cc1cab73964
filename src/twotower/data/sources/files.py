"""Your own tables: CSV, Parquet, JSON lines, or whatever SQL DuckDB can run.

A table is named by a file (also `*.csv`, a folder of Parquet files, `s3://...`, `https://...`) or by a query, which may
read databases that are attached: `attach = {shop = "shop.sqlite"}` and `interactions = "SELECT * FROM shop.orders"`.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir
from ibis.common.exceptions import IbisTypeError

from twotower.data.config import FilesConfig
from twotower.data.database import Database, faults_told, literal, quote
from twotower.data.engine import Engine
from twotower.data.interactions import RawData, require_columns, string_id
from twotower.data.sources.recorded import conform_interactions, replace_items, with_text_ids
from twotower.data.sources.text_files import SUFFIXES, csv_query, find_encoding_fault, is_blank, typed_columns
from twotower.data.tables import GIVEN_PART, INPUT_ROW, KEYS, RESERVED
from twotower.errors import DataError, RecipeError
from twotower.storage import is_address

TABLES = ("interactions", "new_interactions", "validation", "test", "users", "items", "new_items")
"""Settings that name a table."""

_QUERY = re.compile(r"\s*(select|with|from|values)\s", re.IGNORECASE)
_PARQUET, _JSON = (".parquet", ".pq"), (".json", ".jsonl", ".ndjson")
_MAGIC = b"PAR1"
"""Begins and ends every Parquet file."""


def read_files(engine: Engine, config: FilesConfig, *, data_dir: str | None) -> RawData:
    """The tables that the recipe names, their columns under our names.

    Raises:
        RecipeError: no interactions are named, or in a way that we cannot read.
        DataError: a file is missing, empty, not UTF-8 or not a table, or lacks a column.
    """
    if not config.interactions:
        raise RecipeError("prepare.files.interactions names no table. Give a file, a URI or a SQL query.")
    for name, uri in config.attach.items():
        with faults_told(f"prepare.files.attach.{name} = {uri!r}", "Give a database that DuckDB can attach."):
            engine.local.execute(f"ATTACH {literal(str(_local(uri, data_dir) or uri))} AS {quote(name)} (READ_ONLY)")
    for name in (*config.labels, *config.context):
        if name in RESERVED:
            raise RecipeError(f"prepare.files: {name!r} is a name of ours. Map the column to another in columns.")
    interactions, parts = _join_parts(engine, config, _staged_parts(engine, config, data_dir=data_dir))
    users = _with_id(engine, config, "users", key="user_id", data_dir=data_dir)
    if config.new_items:
        items = _with_id(engine.local, config, "items", key="item_id", data_dir=data_dir)
        items = engine.take(_with_new_items(engine.local, config, items, data_dir=data_dir).get_name())
    else:
        items = _with_id(engine, config, "items", key="item_id", data_dir=data_dir)
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
        parts=parts,
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
    places = [getattr(config, name) for name in TABLES]
    queries = [place for place in places if _QUERY.match(place)]
    if any("://" in place and not is_address(place) for place in places if place not in queries):  # hdfs://, s3a://
        return True
    servers = [place for place in config.attach.values() if _local(place, None) is None or not Path(place).exists()]
    return bool(servers) or any("://" in query for query in queries)


def _parts(config: FilesConfig) -> list[str]:
    """The settings that name interactions, in the order of train, validation, test."""
    if config.validation and not config.test:
        raise RecipeError("prepare.files.validation: there is no prepare.files.test beside it. Name both, or neither.")
    return ["interactions", *(name for name in ("new_interactions", "validation", "test") if getattr(config, name))]


def _staged_parts(engine: Engine, config: FilesConfig, *, data_dir: str | None) -> dict[str, ir.Table]:
    """The tables of interactions by the setting that names them; what a server recorded in the form of the others."""
    names, text = _parts(config), (*KEYS, *config.labels)
    if not config.new_interactions:
        return {name: _stage(engine, config, name, data_dir=data_dir, text=text) for name in names}
    here = {name: _stage(engine.local, config, name, data_dir=data_dir, text=text) for name in names}
    here["new_interactions"] = _conformed(engine.local, config, here["interactions"])
    return {name: engine.take(table.get_name()) for name, table in here.items()}


def _join_parts(
    engine: Engine, config: FilesConfig, tables: Mapping[str, ir.Table]
) -> tuple[ir.Table, tuple[tuple[str, int], ...]]:
    """The interactions of all parts below each other, and where each ends; the columns asked for, and no other."""
    wanted = [*KEYS, *config.labels, *config.context]
    for name, table in tables.items():
        if name != "new_interactions":  # Where no event had a label, the export has no column of it.
            _require(config, name, table.columns, needed=wanted)
    types = {
        column: _common_type([t[column].type() for t in tables.values() if column in t.columns]) for column in wanted
    }
    numbers = {"interactions": 0, "new_interactions": 0, "validation": 1, "test": 2}
    parts, ends, before = [], [], 0
    for name, table in tables.items():
        columns = {
            column: table[column].cast(kind) if column in table.columns else ibis.null(kind)
            for column, kind in types.items()
        }
        if config.test:
            columns[GIVEN_PART] = ibis.literal(numbers[name], "int8")
        # Rows are counted on from part to part, in the order train, validation, test.
        parts.append(table.select(**columns, **{INPUT_ROW: table[INPUT_ROW] + before}))
        if len(tables) > 1:
            before += engine.rows(table.aggregate(last=table[INPUT_ROW].max()))[0][0] or 0
            ends.append((_shown(getattr(config, name)), before))
    if len(parts) == 1:
        return parts[0], ()
    with engine.faults_told(_shown(config.interactions), "Give all parts the same columns."):
        return engine.create("raw_interactions", ibis.union(*parts, distinct=False)), tuple(ends)


def _common_type(types: Sequence[dt.DataType]) -> dt.DataType:
    """A type that holds the values of all: text, where there is no narrower one."""
    try:
        return dt.highest_precedence(types)
    except IbisTypeError:
        return dt.string


def _conformed(database: Database, config: FilesConfig, interactions: ir.Table) -> ir.Table:
    """What a server recorded, in the form of the staged interactions."""
    _require(config, "interactions", interactions.columns, needed=KEYS)
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


def _require(config: FilesConfig, name: str, found: Sequence[str], *, needed: Sequence[str]) -> None:
    """Refuse a table that lacks a column, in the words of its own header where the recipe renames its columns.

    Raises:
        DataError: names the column that is missing and those that there are.
    """
    for column in needed:
        if column not in found and (theirs := config.columns.get(column, column)) != column:
            there = [config.columns.get(ours, ours) for ours in found]
            advice = f"Correct prepare.files.columns.{column} = {theirs!r}."
            require_columns(_shown(getattr(config, name)), there, needed=[theirs], advice=advice)
    advice = "Map it in prepare.files.columns (ours = yours)."
    require_columns(_shown(getattr(config, name)), found, needed=needed, advice=advice)


def _with_id(engine: Engine, config: FilesConfig, name: str, *, key: str, data_dir: str | None) -> ir.Table | None:
    """The users or items table with its id as a string, or None where none is named."""
    if not getattr(config, name):
        return None
    table = _stage(engine, config, name, data_dir=data_dir, text=(key,))
    _require(config, name, table.columns, needed=[key])
    return engine.create(f"raw_{name}", table.mutate(**{key: string_id(table[key])}))


def _with_new_items(
    database: Database, config: FilesConfig, items: ir.Table | None, *, data_dir: str | None
) -> ir.Table:
    """The items table with what was put while a server ran."""
    if items is None:
        raise RecipeError("prepare.files.new_items: there is no prepare.files.items beside it. Name both.")
    new = _stage_here(database, config, "new_items", data_dir=data_dir, text=("item_id",))
    return replace_items(database, items.get_name(), new.get_name(), where=_shown(config.new_items))


def _stage(engine: Engine, config: FilesConfig, name: str, *, data_dir: str | None, text: Sequence[str]) -> ir.Table:
    """A table for the engine, columns under our names, rows numbered: read by its workers, or handed over."""
    place = getattr(config, name)
    path = _local(place, data_dir)
    if _is_parquet(place, path):
        if path is not None:
            _refuse_missing(path)
        with engine.faults_told(_shown(place), f"Check the files, or read them by a query in prepare.files.{name}."):
            spread = engine.spread_parquet(f"staged_{name}", place if path is None else str(path))
        if spread is not None:
            columns = _ours(spread.columns, config.columns)
            return spread.select(
                **{ours: spread[theirs] for theirs, ours in columns.items()}, **{INPUT_ROW: spread[INPUT_ROW]}
            )
    return engine.take(_stage_here(engine.local, config, name, data_dir=data_dir, text=text).get_name())


def _stage_here(
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
            columns = _renamed(database.columns(query), config.columns)
            numbered = f"SELECT {columns}, row_number() OVER () AS {INPUT_ROW} FROM ({query})"
            table = database.create(f"staged_{name}", numbered)
    except DataError:
        if path is not None and path.is_file() and (fault := _fault_of(path)):
            raise DataError(fault) from None
        raise
    if is_text:
        others = [column for column in table.columns if column not in (*text, INPUT_ROW)]
        if assignments := typed_columns(database, f"staged_{name}", others):
            table = database.create(
                f"staged_{name}", f"SELECT * REPLACE ({assignments}) FROM {quote('staged_' + name)}"
            )
    return table


def _fault_of(path: Path) -> str | None:
    """What is wrong with a file that cannot be read, where that can be told better than DuckDB does."""
    with path.open("rb") as file:
        begins = file.read(len(_MAGIC)) == _MAGIC
        file.seek(max(0, path.stat().st_size - len(_MAGIC)))
        ends = file.read() == _MAGIC
    if begins and _suffix(path.name) not in _PARQUET:
        return f"{path}: Parquet by its first bytes. Call it by a name that ends in .parquet."
    if begins and not ends:
        return f"{path}: a Parquet file that breaks off before its end. Write or copy it again."
    return find_encoding_fault(path) if _suffix(path.name) in (*SUFFIXES, *_JSON) else None


def _query(place: str, path: Path | None) -> tuple[str, bool]:
    """The SQL that reads the table, and whether it gives nothing but text."""
    if path is None and _QUERY.match(place):
        return place.strip().rstrip(";"), False
    kind = _suffix(place)
    if kind in SUFFIXES:
        return csv_query(place, path if path is not None and path.is_file() else None), True
    if kind in _PARQUET:
        return f"SELECT * FROM read_parquet({literal(place)}, union_by_name = true)", False
    if kind in _JSON:
        return f"SELECT * FROM read_json({literal(place)})", False
    if path is not None and path.is_dir():
        return f"SELECT * FROM read_parquet({literal(place + '/**/*.parquet')}, union_by_name = true)", False
    raise RecipeError(f"prepare.files: {place!r} is no .csv, .tsv, .parquet or .jsonl file, and no query. Name one.")


def _is_parquet(place: str, path: Path | None) -> bool:
    """Whether a file, a folder or an address holds Parquet; an address that tells no kind is taken for a folder."""
    if path is None and (_QUERY.match(place) or "://" not in place or place.startswith(("http://", "https://"))):
        return False
    kind = _suffix(place)
    return kind in _PARQUET or (kind == "" if path is None else path.is_dir() and kind not in (*SUFFIXES, *_JSON))


def _suffix(place: str) -> str:
    suffixes = Path(place.split("?")[0]).suffixes
    return next((suffix for suffix in reversed(suffixes) if suffix not in (".gz", ".zst")), "")


def _renamed(found: Sequence[str], columns: dict[str, str]) -> str:
    """The select list that gives the table's columns our names."""
    return ", ".join(f"{quote(theirs)} AS {quote(ours)}" for theirs, ours in _ours(found, columns).items())


def _ours(found: Sequence[str], columns: dict[str, str]) -> dict[str, str]:
    """The table's columns that are kept -> our names for them."""
    ours = {theirs: name for name, theirs in columns.items() if theirs in found}
    hidden = {name for theirs, name in ours.items() if name in found and name != theirs}
    kept = [name for name in found if name in ours or name not in (*hidden, INPUT_ROW)]
    return {name: ours.get(name, name) for name in kept}


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
    elif is_blank(path):
        raise DataError(f"{path}: the file is empty. Name a file that holds a header and rows.")


def _shown(place: str) -> str:
    """A name for messages: long queries are cut, and all stay on one line."""
    line = " ".join(place.split())
    return line if len(line) <= 80 else line[:77] + "..."
