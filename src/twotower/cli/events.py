"""What a server has recorded, for the next training: `events export` and `events prune`."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from twotower.cli.progress import tell

if TYPE_CHECKING:
    from twotower.serving.store.event_tables import Written

FILE = click.Path(dir_okay=False, path_type=Path)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _moment(ctx: click.Context, param: click.Parameter, text: str | None) -> int | None:  # noqa: ARG001 - click's
    """Microseconds since 1970 of a moment in ISO 8601, which is UTC where it names no zone."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as fault:
        raise click.BadParameter(f"{text!r} is no moment. Write it as 2026-11-01 or 2026-11-01T12:00:00.") from fault
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - EPOCH) // timedelta(microseconds=1)


@click.group()
def events() -> None:
    """What a server has recorded in its STORE, a file or postgresql://...

    \b
    Example:
      twotower events export events.sqlite --out events.parquet
    """


@events.command()
@click.argument("store")
@click.option("--out", type=FILE, metavar="FILE", help="The interactions, as Parquet: prepare.files.new_interactions.")
@click.option("--since", callback=_moment, metavar="ISO", help="Only the interactions from this moment on.")
@click.option("--items", type=FILE, metavar="FILE", help="The items put, as Parquet: prepare.files.new_items.")
def export(store: str, out: Path | None, since: int | None, items: Path | None) -> None:
    """Write what the next training reads: the interactions, and the items that were put.

    Impressions stay in the store, which is read and not changed. A server may go on writing meanwhile.

    \b
    Example:
      twotower events export events.sqlite --out events.parquet --items new-items.parquet
    """
    if out is None and items is None:
        raise click.UsageError("Nothing to write. Name a file by --out, by --items, or by both.")
    from twotower.serving.store.contract import EARLIEST_US, open_store
    from twotower.serving.store.event_tables import write_interactions, write_items

    opened = open_store(store, read_only=True)
    try:
        if out is not None:
            written = write_interactions(opened, out, since=EARLIEST_US if since is None else since)
            _say(out, written, noun="interactions")
        if items is not None:
            written, last = write_items(opened, items)
            _say(items, written, noun=f"items, up to write {last}")
    finally:
        opened.close()


@events.command()
@click.argument("store")
@click.option(
    "--before", callback=_moment, metavar="ISO", help="Remove the events of before this moment, of either kind."
)
@click.option(
    "--items-until",
    type=click.IntRange(min=0),
    metavar="WRITE",
    help="Forget the items put up to this write, as `export` told it; removals stay.",
)
def prune(store: str, before: int | None, items_until: int | None) -> None:
    """Remove what was exported and is no longer needed. A server may go on writing meanwhile.

    An event whose id was removed would be taken for new if it were sent again.

    \b
    Example:
      twotower events prune events.sqlite --before 2026-01-01
    """
    if before is None and items_until is None:
        raise click.UsageError("Nothing to remove. Say --before, --items-until, or both.")
    from twotower.serving.store.contract import open_store

    opened = open_store(store, must_exist=True)
    try:
        if before is not None:
            click.echo(f"{opened.prune_events(before=before)} events removed")
        if items_until is not None:
            click.echo(f"{opened.prune_items(until=items_until)} items forgotten")
    finally:
        opened.close()


def _say(file: Path, written: "Written", *, noun: str) -> None:
    click.echo(f"{file}: {written.rows} {noun}; {', '.join(written.columns)}")
    if written.left_out:
        tell(f"Context left out, as a label has the same name: {', '.join(written.left_out)}.")
