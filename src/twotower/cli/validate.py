"""`twotower validate`: what the data holds and what is wrong with it, before anything is trained."""

from typing import TYPE_CHECKING

import click

from twotower.cli.options import recipe_options

if TYPE_CHECKING:
    from twotower.recipe import Recipe


@click.command()
@recipe_options
def validate(recipe: "Recipe") -> None:
    """Tell counts, density, time span, popularity skew, missing values and faults of the recipe's data.

    Ends with code 2 where a fault was found. Nothing is written.

    \b
    Example:
      twotower validate recipe.toml
    """
    from twotower.data.profile import profile

    found = profile(recipe.prepare, seed=recipe.seed)
    for line in found.lines():
        click.echo(line)
    if found.faults:
        click.get_current_context().exit(2)
