"""`twotower keys`: who may ask a server for what."""

from pathlib import Path

import click

KEYS = click.option(
    "--keys",
    "file",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The key file: digests, never keys. `serve --keys FILE` reads it.",
)


@click.group()
def keys() -> None:
    """Make, list and remove the keys that a server asks for; a running one notices within seconds.

    \b
    Example:
      twotower keys add web --scope read --keys keys.json
    """


@keys.command()
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    required=True,
    type=click.Choice(["read", "write", "admin"]),
    help="What it may do: ask; send events and items; swap bundles. Any number of times.",
)
@KEYS
def add(name: str, scopes: tuple[str, ...], file: Path) -> None:
    """Make a key and print it, this once: the file keeps its digest only.

    \b
    Example:
      twotower keys add shop --scope read --scope write --keys keys.json
    """
    from twotower.serving.door.keys import SCOPES, add_key

    click.echo(add_key(file, name, scopes=[scope for scope in SCOPES if scope in scopes]))


@keys.command("list")
@KEYS
def list_keys(file: Path) -> None:
    """Print names, scopes and dates of the keys.

    \b
    Example:
      twotower keys list --keys keys.json
    """
    from twotower.cli.tables import print_table
    from twotower.serving.door.keys import read_keys

    rows = [[key.name, " ".join(key.scopes), f"{key.created:%Y-%m-%d %H:%M}"] for key in read_keys(file)]
    print_table(str(file), ["name", "scopes", "created"], rows)


@keys.command()
@click.argument("name")
@KEYS
def remove(name: str, file: Path) -> None:
    """Take a key away: no server lets it in any more.

    \b
    Example:
      twotower keys remove shop --keys keys.json
    """
    from twotower.serving.door.keys import remove_key

    remove_key(file, name)
