"""`twotower init`: a commented recipe from the user's own files."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from twotower.cli.guess import Column, LogShape

KEYS = ("user_id", "item_id", "timestamp")
GUESSED_FOR = {"interactions": KEYS, "users": ("user_id",), "items": ("item_id",)}
"""Table -> the key columns that it must have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One of the user's tables, and which of its columns are keys."""

    source: str
    """File, URI or query, as the user named it."""
    columns: "list[Column]"
    keys: dict[str, str]
    """Our name -> theirs."""
    reasons: dict[str, str]
    """Our name -> why."""
    shape: "LogShape | None" = None
    """How long its histories are; of the interactions alone."""

    @property
    def others(self) -> "list[Column]":
        """The columns that are no keys."""
        return [column for column in self.columns if column.name not in self.keys.values()]


@click.command()
@click.option(
    "--interactions", required=True, metavar="FILE", help="Who met what, when: a file, a URI or an SQL query."
)
@click.option("--users", metavar="FILE", help="One row per user.")
@click.option("--items", metavar="FILE", help="One row per item: the catalogue.")
@click.option("--column", "named", multiple=True, metavar="OURS=THEIRS", help="As in --column user_id=who.")
@click.option("--force", is_flag=True, help="Replace a recipe that is there.")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), default=Path("recipe.toml"), show_default=True,
    help="Where the recipe goes.",
)  # fmt: skip
def init(
    interactions: str, users: str | None, items: str | None, named: tuple[str, ...], force: bool, output: Path
) -> None:
    """Look into your files and write a commented recipe for them.

    Which column is what is guessed from names and contents, and told in the recipe beside each guess.

    \b
    Example:
      twotower init --interactions ratings.csv --items movies.csv -o recipe.toml
    """
    from twotower.recipe import load_recipe

    if output.exists() and not force:
        raise click.UsageError(f"{output} is there already: name another with -o, or say --force.")
    tables = inspect({"interactions": interactions, "users": users, "items": items}, named=_named_columns(named))
    output.write_text("\n".join(render(tables, name=output.stem)) + "\n", encoding="utf-8")
    load_recipe(str(output), {})
    click.echo(output)
    click.echo(f"Read it, then: twotower validate {output} && twotower run {output}", err=True)


def _named_columns(named: tuple[str, ...]) -> dict[str, str]:
    for pair in named:
        if pair.partition("=")[0] not in KEYS or "=" not in pair:
            raise click.BadParameter(
                f"{pair!r}: say one of {', '.join(KEYS)}, as in user_id=who.", param_hint="--column"
            )
    return dict(pair.split("=", 1) for pair in named)


def inspect(sources: dict[str, str | None], *, named: dict[str, str]) -> dict[str, Table]:
    """Each table that there is, with its key columns found.

    Args:
        sources: Table ("interactions", "users", "items") -> file, URI or query.
        named: Key columns that the user named: ours -> theirs.

    Raises:
        DataError: a table cannot be read, a column that is named is in none, or a key column is neither named nor to be
            guessed.
    """
    from twotower.cli.guess import read_columns, read_shape, table_query
    from twotower.data.database import open_database

    tables = {}
    with open_database() as database:
        columns = {
            source: read_columns(database, table_query(source), where=source)
            for source in sources.values()
            if source is not None
        }
        _refuse_absent(columns, named)
        for table, source in sources.items():
            if source is not None:
                found = _with_keys(source, columns[source], roles=GUESSED_FOR[table], named=named)
                if table == "interactions":
                    user, timestamp = found.keys["user_id"], found.keys["timestamp"]
                    query = table_query(source)
                    shape = read_shape(database, query, user=user, timestamp=timestamp, where=source)
                    found = replace(found, shape=shape)
                tables[table] = found
    return tables


def _refuse_absent(columns: "dict[str, list[Column]]", named: dict[str, str]) -> None:
    """Refuse a column that the user named and that no table has."""
    from twotower.errors import DataError

    there = {source: [column.name for column in found] for source, found in columns.items()}
    for ours, theirs in named.items():
        if not any(theirs in names for names in there.values()):
            held = "; ".join(f"{source} has {', '.join(names)}" for source, names in there.items())
            raise DataError(f"--column {ours}={theirs}: no column {theirs!r}; {held}. Name one of them.")


def _with_keys(source: str, columns: "list[Column]", *, roles: Sequence[str], named: dict[str, str]) -> Table:
    from twotower.cli.guess import find_role
    from twotower.errors import DataError

    keys, reasons, there = {}, {}, [column.name for column in columns]
    for role in roles:
        if (name := named.get(role)) is not None and name in there:
            keys[role], reasons[role] = name, "as you said"
        elif (found := find_role(columns, role)) is not None:
            keys[role], reasons[role] = found[0].name, found[1]
        elif len(roles) == 1 and "id" in there:
            keys[role], reasons[role] = "id", "the id of its table"
        else:
            raise DataError(
                f"{source}: which column is the {role}? There are {', '.join(there)}. Say it: --column {role}=NAME."
            )
    return Table(source=source, columns=columns, keys=keys, reasons=reasons)


def render(tables: dict[str, Table], *, name: str) -> Iterator[str]:
    """The recipe's lines, each guess with its reason."""
    yield f"# Written by `twotower init` from {', '.join(table.source for table in tables.values())}."
    yield "# What follows `#` says why; correct what is wrong. Every other key has a default: see docs/recipe.md."
    yield ""
    yield f"name = {_quoted(name)}"
    yield ""
    yield from _prepare_lines(tables["interactions"])
    yield ""
    yield from _files_lines(tables)
    yield ""
    yield from _model_lines(tables)


def _prepare_lines(interactions: Table) -> Iterator[str]:
    from twotower.cli.guess import find_event, find_rating

    event, rating = find_event(interactions.others), find_rating(interactions.others)
    yield "[prepare]"
    yield 'source = "files"'
    others = " Others would be, for instance" if event or rating else ""
    yield f"# Which interactions retrieval should bring, as an SQL condition: all of them.{others}"
    if event is not None:
        yield f"#   {event.name} = '{event.examples[-1]}'  (it holds {', '.join(event.examples)})"
    if rating is not None:
        yield f"#   {rating.name} >= 4  (it goes from {rating.low} to {rating.high})"
    yield 'positives = "true"'


def _files_lines(tables: dict[str, Table]) -> Iterator[str]:
    from twotower.cli.guess import TITLE_NAMES, find, find_event, find_rating

    others = tables["interactions"].others
    event, rating = find_event(others), find_rating(others)
    used = [column.name for column in (event, rating) if column is not None]
    names = _our_names(tables)
    yield "[prepare.files]"
    for name, table in tables.items():
        yield f"{name} = {_quoted(_source(table, names))}"
    yield f"labels = {_list([rating.name] if rating else [])}  # numbers that ranking may predict"
    yield f"context = {_list([event.name] if event else [])}  # further columns to keep"
    if left := [column.name for column in others if column.name not in used]:
        yield f"# Not used: {', '.join(left)}. Name under `context` what is known when a recommendation is asked for."
    if "items" in tables and (title := find(tables["items"].others, TITLE_NAMES)) is not None:
        yield f"title = {_quoted(title.name)}  # how a reader knows an item"
    yield ""
    yield "[prepare.files.columns]  # our name = yours"
    for theirs, ours in names.items():
        yield f"{ours} = {_quoted(theirs)}  # {tables['interactions'].reasons[ours]}"


def _our_names(tables: dict[str, Table]) -> dict[str, str]:
    """Their name -> ours, as the interactions have it; another table that calls a key otherwise is renamed."""
    return {tables["interactions"].keys[ours]: ours for ours in KEYS}


def _source(table: Table, names: dict[str, str]) -> str:
    """The table as the user named it, or a query that renames a key which the interactions call otherwise."""
    from twotower.cli.guess import table_query

    renamed = {theirs: ours for ours, theirs in table.keys.items() if names.get(theirs) != ours}
    if not renamed:
        return table.source
    select = ", ".join(f'"{theirs}" AS {ours}' for theirs, ours in renamed.items())
    left = ", ".join(f'"{theirs}"' for theirs in renamed)
    return f"SELECT {select}, * EXCLUDE ({left}) FROM ({table_query(table.source)})"


def _model_lines(tables: dict[str, Table]) -> Iterator[str]:
    from twotower.cli.guess import find_rating, guess_history

    names = _our_names(tables)
    yield "[model]"
    yield "# What each tower reads. A user is known by what they met, so a new one needs no training."
    yield "# The history is pooled by place and age (`history`), or read in its order by a transformer (`sequence`)."
    yield "query = ["
    shape = tables["interactions"].shape
    guess = guess_history(shape) if shape is not None else None
    if guess is not None:
        yield f"  {{ {guess.toml} }},  # {guess.reason}"
    yield from _feature_lines(tables.get("users"), names)
    yield "]"
    yield "candidate = ["
    yield '  { kind = "id", column = "item_id", dim = 64 },'
    yield from _feature_lines(tables.get("items"), names)
    yield "]"
    if guess is not None and '"sequence"' in str(guess.toml):
        yield ""
        yield "[model.retrieval]  # what served a sequence best on MovieLens-1M's validation part"
        yield "temperature = 1.0"
        yield "unit_vectors = false"
    if (rating := find_rating(tables["interactions"].others)) is not None:
        yield ""
        yield "[model.ranking]"
        yield "labels = ["
        yield '  { name = "met", kind = "listwise", weight = 0.2 },  # what a user met, against what they did not'
        yield f'  {{ name = {_quoted(rating.name)}, kind = "regression" }},'
        yield "]"


def _feature_lines(table: Table | None, names: dict[str, str]) -> Iterator[str]:
    from twotower.cli.guess import guess_feature

    for column in table.others if table else []:
        guess = guess_feature(column, called=names.get(column.name, column.name))
        if guess.toml is None:
            yield f"  # {column.name} left out: {guess.reason}"
        else:
            yield f"  {{ {guess.toml} }},  # {guess.reason}"


def _list(names: Sequence[str]) -> str:
    return f"[{', '.join(map(_quoted, names))}]"


def _quoted(text: str) -> str:
    """A TOML string; JSON writes the same one."""
    return json.dumps(text, ensure_ascii=False)
