"""Ask a bundle: `recommend` for a query, `similar` for an item. Nothing that trains is imported here."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from twotower.serving.recommender import Recommender

BUNDLE = click.argument(
    "bundle", required=False, metavar="[BUNDLE]", type=click.Path(exists=True, file_okay=False, path_type=Path)
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
HOW_MANY = click.option(
    "-k", "k", type=click.IntRange(min=1), default=10, show_default=True, help="Items to answer with."
)


@click.command()
@BUNDLE
@click.option("--user", metavar="ID", help="Whom to recommend for; the bundle knows the user's history.")
@click.option(
    "--history", metavar="ID,ID", default="", help="Items met, the oldest first: for somebody the bundle does not know."
)
@HOW_MANY
@click.option("--exclude", metavar="ID,ID", default="", help="Items to leave out besides those already seen.")
@AS_JSON
@click.option(
    "--users",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Whom a batch is for: a file with user_id; all by default.",
)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Answer a batch, into a Parquet file.")
def recommend(
    bundle: Path | None,
    user: str | None,
    history: str,
    k: int,
    exclude: str,
    as_json: bool,
    users: Path | None,
    output: Path | None,
) -> None:
    """The best items for a user, for a history, or for many users at once.

    Retrieval brings hundreds of candidates, ranking orders them; the table shows what each stage thought. Without a
    user and a history the popular items answer, and say so. Without BUNDLE the newest runs/*/bundle answers.

    \b
    Example:
      twotower recommend --user 42 -k 10
      twotower recommend runs/simulated/bundle --history 17,4,99 --json
      twotower recommend runs/simulated/bundle --users users.csv --output answers.parquet
    """
    if output is not None:
        if user or history or exclude or as_json:
            raise click.UsageError("--output is for a batch; leave out --user, --history, --exclude and --json.")
        _open(bundle).write_batch(output, user_ids=None if users is None else _read_user_ids(users), k=k)
        click.echo(output)
        return
    if users is not None:
        raise click.UsageError("--users is for a batch; say where its answers go, by --output.")
    met = _ids(history)
    answer = _open(bundle).recommend(user, history=met, k=k, exclude=_ids(exclude))
    if as_json:
        click.echo(json.dumps(answer.to_dict(), indent=1, ensure_ascii=False))
        return
    from twotower.cli.tables import print_recommendation

    for note in answer.notes:
        click.echo(note, err=True)
    print_recommendation(answer, title=f"Recommendations for {_query_name(user, met)}")


@click.command()
@BUNDLE
@click.option("--item", required=True, metavar="ID", help="Whose neighbours.")
@HOW_MANY
@AS_JSON
def similar(bundle: Path | None, item: str, k: int, as_json: bool) -> None:
    """The items nearest to one item, by the candidate tower.

    Without BUNDLE the newest runs/*/bundle answers.

    \b
    Example:
      twotower similar --item 17
    """
    answer = _open(bundle).similar(item, k=k)
    if as_json:
        click.echo(json.dumps(answer.to_dict(), indent=1, ensure_ascii=False))
        return
    from twotower.cli.tables import print_similar

    print_similar(answer)


def _open(bundle: Path | None) -> "Recommender":
    """The bundle named, or else the newest below runs/.

    Raises:
        RequestError: none is named, and there is none.
    """
    import twotower
    from twotower.errors import RequestError

    if bundle is None:
        found = sorted(Path("runs").glob("*/bundle"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise RequestError("No bundle named, and none in runs/. Name one, or make one: twotower run.")
        bundle = found[-1]
        click.echo(f"Answering from {bundle}", err=True)
    return twotower.load(bundle)


def _read_user_ids(path: Path) -> list[str]:
    """The distinct ids of a CSV or Parquet file's `user_id` column, as strings, in the file's order.

    Raises:
        DataError: the file cannot be read, or has no such column.
    """
    import pyarrow as pa
    from pyarrow import csv, parquet

    from twotower.errors import DataError

    try:
        if path.suffix.lower() == ".parquet":
            table = parquet.read_table(path)
        else:
            # As text: an id such as 007 stays what it is.
            as_text = csv.ConvertOptions(column_types={"user_id": pa.string()})
            table = csv.read_csv(path, convert_options=as_text)
    except pa.ArrowInvalid as fault:
        raise DataError(f"{path}: neither CSV with a header nor Parquet ({str(fault).splitlines()[0]}).") from fault
    if "user_id" not in table.column_names:
        raise DataError(f"{path}: no column 'user_id'; there are {', '.join(table.column_names)}. Name one so.")
    return list(dict.fromkeys(str(value) for value in table["user_id"].to_pylist() if value is not None))


def _ids(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _query_name(user: str | None, history: list[str]) -> str:
    if user is not None:
        return f"user {user}"
    return "this history" if history else "anybody"
