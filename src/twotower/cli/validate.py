"""`twotower validate`: what the data holds and what is wrong with it, before anything is trained."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from twotower.cli.options import optional_directory, recipe_options

if TYPE_CHECKING:
    from twotower.recipe import Recipe


@click.command()
@recipe_options
@optional_directory("--raw", "What `fetch` wrote; without, the recipe's source is read.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Where profile.html and profile.json go.")
def validate(recipe: "Recipe", raw: Path | None, out: Path | None) -> None:
    """Tell counts, density, time span, popularity skew, missing values and faults of the recipe's data.

    Ends with code 2 where a fault was found. Without --out nothing is written.

    \b
    Example:
      twotower validate recipe.toml
    """
    from twotower import steps
    from twotower.data.profile import profile

    if out is not None:
        faults = steps.validate(recipe, raw=raw, out=out)
        click.echo(out)
        for fault in faults:
            click.echo(f"Error: {fault}", err=True)
        click.get_current_context().exit(2 if faults else 0)

    found = profile(recipe.prepare, seed=recipe.seed, raw_from=raw)
    for line in found.lines():
        click.echo(line)
    if found.faults:
        click.get_current_context().exit(2)
