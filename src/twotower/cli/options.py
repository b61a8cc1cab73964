"""Arguments and options that several commands share."""

import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from twotower.recipe import Recipe

Command = Callable[..., Any]


def directory(flag: str, text: str) -> Callable[[Command], Command]:
    """A directory that an earlier step wrote."""
    kind = click.Path(exists=True, file_okay=False, path_type=Path)
    return click.option(flag, required=True, type=kind, metavar="DIR", help=text)


def optional_directory(flag: str, text: str) -> Callable[[Command], Command]:
    """A directory that an earlier step may have written."""
    kind = click.Path(exists=True, file_okay=False, path_type=Path)
    return click.option(flag, type=kind, metavar="DIR", help=text)


def data_option(command: Command) -> Command:
    """Where the data lies, in place of the recipe's own word for it."""
    text = "Where the data lies, if not where the recipe says: a folder, a file, a .zip; also s3://, gs://, https://."
    return click.option("--data", default="", metavar="ADDRESS", help=text)(command)


def registry_option(command: Command) -> Command:
    """The folder or object store that keeps the versions."""
    text = "Where versions are kept: a folder, s3://... or gs://..."
    return click.option("--registry", required=True, metavar="ADDRESS", help=text)(command)


def processes_option(command: Command) -> Command:
    """How many workers train together on this machine."""
    text = "Train by so many workers on this machine, each with its share of the tables and of every batch."
    return click.option("--processes", type=click.IntRange(min=1), default=1, metavar="N", help=text)(command)


def out(text: str) -> Callable[[Command], Command]:
    """The directory that the command writes; one that is there is replaced when the new one is complete."""
    return click.option("--out", required=True, type=click.Path(path_type=Path), metavar="DIR", help=text)


def pair(text: str, *, option: str) -> tuple[str, str]:
    """Name and value of `KEY=VALUE`, as an option was given it."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise click.BadParameter(f"{text!r} is not KEY=VALUE, as in train.epochs=3.", param_hint=option)
    return name.strip(), value


def variants_of(texts: Sequence[str]) -> list[dict[str, str]]:
    """What each `--variant KEY=VALUE,KEY=VALUE` sets; a comma within a value, as in `[64,32]`, parts nothing."""
    pieces = (re.split(r",(?=[a-z_.]+=)", text) for text in texts)
    return [dict(pair(piece, option="--variant") for piece in each) for each in pieces]


def recipe_options(command: Command) -> Command:
    """Give the command `recipe`: the one named, or the embedded one, with the command line's settings over it."""

    @functools.wraps(command)
    def with_recipe(recipe: str | None, overrides: tuple[str, ...], data_dir: str | None, **named: Any) -> Any:
        return command(recipe=_chosen_recipe(recipe, overrides=overrides, data_dir=data_dir), **named)

    decorated: Command = with_recipe
    for decorate in (
        click.option("--data-dir", metavar="DIR", help="The folder that holds the data sets: prepare.data_dir."),
        click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="As in --set train.epochs=3."),
        click.argument("recipe", required=False, metavar="[RECIPE]"),
    ):
        decorated = decorate(decorated)
    return decorated


def _chosen_recipe(recipe: str | None, *, overrides: tuple[str, ...], data_dir: str | None) -> "Recipe":
    from twotower.recipe import load_recipe

    settings = dict(pair(override, option="--set") for override in overrides)
    if data_dir is not None:
        settings["prepare.data_dir"] = data_dir
    return load_recipe(recipe, settings)
