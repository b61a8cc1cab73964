"""Arguments and options that several commands share."""

import functools
from collections.abc import Callable
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


def out(text: str) -> Callable[[Command], Command]:
    """The directory that the command writes; one that is there is replaced when the new one is complete."""
    return click.option("--out", required=True, type=click.Path(path_type=Path), metavar="DIR", help=text)


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

    for override in overrides:
        if "=" not in override:
            raise click.BadParameter(f"{override!r} is not KEY=VALUE, as in train.epochs=3.", param_hint="--set")
    settings = dict(override.split("=", 1) for override in overrides)
    if data_dir is not None:
        settings["prepare.data_dir"] = data_dir
    return load_recipe(recipe, settings)
