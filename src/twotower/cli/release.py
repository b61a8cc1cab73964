"""What becomes of a bundle: `register`, `deploy`, `rollback`, and `summarize` for a run's end."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from twotower.cli.options import directory, out, recipe_options, registry_option
from twotower.cli.progress import tell

if TYPE_CHECKING:
    from twotower.recipe import Recipe

TO = click.option(
    "--to",
    default="",
    metavar="TARGET",
    help="Where it answers from: a folder, kubernetes:NAMESPACE, or nothing for the registry's record alone.",
)
IMAGE = click.option(
    "--image", default="", metavar="IMAGE", help="The serving image, for Kubernetes; by default the one that runs."
)


@click.command()
@recipe_options
@directory("--bundle", "What `bundle` wrote.")
@directory("--model", "What `train` wrote: kept for a warm start.")
@registry_option
def register(recipe: "Recipe", bundle: Path, model: Path, registry: str) -> None:
    """Keep a bundle as a version of its recommender; prints the version.

    \b
    Example:
      twotower register recipe.toml --bundle runs/first/bundle --model runs/first/model --registry registry
    """
    from twotower import steps

    click.echo(steps.register(recipe, bundle=bundle, model=model, registry=registry))


@click.command()
@recipe_options
@click.option("--version", required=True, metavar="VERSION", help="As `register` printed it.")
@registry_option
@click.option(
    "--champion", metavar="VERSION", help="What it was held against: refused where another was promoted since."
)
@TO
@IMAGE
def deploy(recipe: "Recipe", version: str, registry: str, champion: str | None, to: str, image: str) -> None:
    """Let a registered version answer: it becomes the champion.

    \b
    Example:
      twotower deploy recipe.toml --version mine-0123456789ab --registry registry --to bundle
    """
    from twotower import steps

    deployed = steps.deploy(
        recipe, version=version, registry=registry, champion=champion, to=to, image=image, watch=tell
    )
    click.echo(deployed.version)


@click.command()
@recipe_options
@registry_option
@TO
@IMAGE
def rollback(recipe: "Recipe", registry: str, to: str, image: str) -> None:
    """Let the version before the champion answer again; a second call undoes the first.

    \b
    Example:
      twotower rollback recipe.toml --registry registry --to bundle
    """
    from twotower.release.registry import Registry
    from twotower.release.target import roll_back

    champion = roll_back(Registry(address=registry, name=recipe.name), to, image=image, report=tell)
    click.echo(champion.version)


@click.command()
@recipe_options
@click.option("--run", required=True, metavar="RUN", help="The run's name.")
@click.option(
    "--state", required=True, type=click.Choice(["SUCCEEDED", "FAILED", "CANCELLED"]), help="How the run ended."
)
@click.option("--error", default="", metavar="TEXT", help="What went wrong, where something did.")
@registry_option
@click.option("--webhook", default="", metavar="URL", help="Who is told, by a POST of the summary as JSON.")
@out("Where the summary goes.")
def summarize(recipe: "Recipe", run: str, state: str, error: str, registry: str, webhook: str, out: Path) -> None:
    """Write how a run ended, as a page and as JSON, and tell a webhook.

    \b
    Example:
      twotower summarize recipe.toml --run nightly-7 --state FAILED --registry registry --out runs/first/summary
    """
    from twotower import steps
    from twotower.release.summary import Outcome

    outcome = Outcome(run=run, name=recipe.name, state=state, error=error)
    steps.summarize(outcome, registry=registry, webhook=webhook, out=out)
    click.echo(json.loads((out / "summary.json").read_text(encoding="utf-8"))["state"])
