"""One command per step: each names its directories and calls the function of the same name in `twotower.steps`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from twotower.cli.options import directory, out, recipe_options
from twotower.cli.progress import watching

if TYPE_CHECKING:
    from twotower.recipe import Recipe


@click.command()
@recipe_options
@out("Where the prepared tables go.")
def prepare(recipe: "Recipe", out: Path) -> None:
    """Turn raw tables into checked ones: ids, types, duplicates, minimum counts, positives.

    \b
    Example:
      twotower prepare recipe.toml --out runs/first/prepared
    """
    from twotower import steps

    steps.prepare(recipe, out=out)
    _tell(out)


@click.command()
@recipe_options
@directory("--prepared", "What `prepare` wrote.")
@out("Where the split goes.")
def split(recipe: "Recipe", prepared: Path, out: Path) -> None:
    """Say which interactions train, validate and test.

    \b
    Example:
      twotower split recipe.toml --prepared runs/first/prepared --out runs/first/split
    """
    from twotower import steps

    steps.split(recipe, prepared=prepared, out=out)
    _tell(out)


@click.command()
@recipe_options
@directory("--split", "What `split` wrote.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint; ends in the same weights.")
@out("Where the model goes.")
def train(recipe: "Recipe", split: Path, resume: bool, out: Path) -> None:
    """Fit the joint model: two towers and the ranking head.

    \b
    Example:
      twotower train recipe.toml --split runs/first/split --out runs/first/model
    """
    from twotower import steps

    with watching() as watch:
        steps.train(recipe, split=split, out=out, resume=resume, watch=watch)
    _tell(out)


@click.command()
@recipe_options
@directory("--split", "What `split` wrote.")
@directory("--model", "What `train` wrote.")
@out("Where the report goes.")
def evaluate(recipe: "Recipe", split: Path, model: Path, out: Path) -> None:
    """Judge the model and its baselines on the test part, exactly: every item scored for every query.

    \b
    Example:
      twotower evaluate recipe.toml --split runs/first/split --model runs/first/model --out runs/first/report
    """
    from twotower import steps

    with watching() as watch:
        steps.evaluate(recipe, split=split, model=model, out=out, watch=watch)
    _tell(out)


@click.command()
@recipe_options
@directory("--split", "What `split` wrote.")
@directory("--model", "What `train` wrote.")
@out("Where the index goes.")
def index(recipe: "Recipe", split: Path, model: Path, out: Path) -> None:
    """Embed every candidate and build the index that retrieval searches.

    \b
    Example:
      twotower index recipe.toml --split runs/first/split --model runs/first/model --out runs/first/index
    """
    from twotower import steps

    steps.index(recipe, split=split, model=model, out=out)
    _tell(out)


@click.command()
@recipe_options
@directory("--split", "What `split` wrote.")
@directory("--model", "What `train` wrote.")
@directory("--index", "What `index` wrote.")
@directory("--report", "What `evaluate` wrote.")
@out("Where the bundle goes.")
def bundle(recipe: "Recipe", split: Path, model: Path, index: Path, report: Path, out: Path) -> None:
    """Seal model, index, vocabularies and report into the one directory that a server reads.

    \b
    Example:
      twotower bundle recipe.toml --split runs/first/split --model runs/first/model \\
        --index runs/first/index --report runs/first/report --out runs/first/bundle
    """
    from twotower import steps

    steps.bundle(recipe, split=split, model=model, index=index, report=report, out=out)
    _tell(out)


def _tell(directory: Path) -> None:
    """The result of a step is where it lies."""
    click.echo(directory)
