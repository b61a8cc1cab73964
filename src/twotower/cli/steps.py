"""One command per step: each names its directories and calls the function of the same name in `twotower.steps`."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from twotower.cli.options import (
    data_option,
    directory,
    optional_directory,
    out,
    processes_option,
    recipe_options,
    registry_option,
)
from twotower.cli.progress import tell, watching
from twotower.errors import TrainingError

if TYPE_CHECKING:
    from twotower.recipe import Recipe


@click.command()
@recipe_options
@data_option
def locate(recipe: "Recipe", data: str) -> None:
    """Say which version of the data lies where the recipe, or --data, says.

    The version changes when the data does: files count by content, what lies afar by names, sizes and times.

    \b
    Example:
      twotower locate recipe.toml --data s3://bucket/logs
    """
    from twotower import steps

    click.echo(steps.locate(recipe, data=data))


@click.command()
@recipe_options
@data_option
@out("Where the raw tables go.")
def fetch(recipe: "Recipe", data: str, out: Path) -> None:
    """Copy the source's tables from wherever they lie, or make the simulated world.

    \b
    Example:
      twotower fetch recipe.toml --data https://example.org/log.parquet --out runs/first/raw
    """
    from twotower import steps

    steps.fetch(recipe, data=data, out=out)
    _tell(out)


@click.command()
@recipe_options
@optional_directory("--raw", "What `fetch` wrote; without, the recipe's source is read.")
@out("Where the prepared tables go.")
def prepare(recipe: "Recipe", raw: Path | None, out: Path) -> None:
    """Turn raw tables into checked ones: ids, types, duplicates, minimum counts, positives.

    \b
    Example:
      twotower prepare recipe.toml --out runs/first/prepared
    """
    from twotower import steps

    steps.prepare(recipe, raw=raw, out=out)
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
@click.option("--split", required=True, metavar="DIR", help="What `split` wrote: a folder, or its address.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint; ends in the same weights.")
@click.option("--warm-start", metavar="DIR", help="An earlier model, or its address: its weights begin this one.")
@processes_option
@click.option("--out", required=True, metavar="DIR", help="Where the model goes: a folder, or an address.")
def train(recipe: "Recipe", split: str, resume: bool, warm_start: str | None, processes: int, out: str) -> None:
    """Fit the joint model: two towers and the ranking head.

    With addresses (s3://, gs://) it reads and writes there, as on the nodes of a TrainJob; of several nodes the first
    one writes.

    \b
    Example:
      twotower train recipe.toml --split runs/first/split --out runs/first/model
      twotower train recipe.toml --split runs/first/split --processes 4 --out runs/first/model
    """
    from twotower import storage
    from twotower.training.launch import as_worker, launch_training

    if resume and storage.is_address(out):
        raise TrainingError(
            f"--resume: a training whose model goes to an address ({storage.shown(out)}) keeps no checkpoint. Leave "
            "--resume out, or name a folder."
        )
    if processes > 1:
        from twotower.recipe import recipe_toml

        launch_training(
            recipe_toml(recipe), split=split, out=out, processes=processes, resume=resume, warm_start=warm_start
        )
    else:
        with as_worker():
            _train(recipe, split=split, resume=resume, warm_start=warm_start, out=out)
    click.echo(out)


def _train(recipe: "Recipe", *, split: str, resume: bool, warm_start: str | None, out: str) -> None:
    """Train in this process, alone or as one of several."""
    from twotower.training.distributed import is_first, joined

    with joined(), tempfile.TemporaryDirectory(prefix="twotower-") as scratch, watching(is_first()) as watch:
        from twotower import steps, storage

        target = Path(scratch) / "model" if storage.is_address(out) else Path(out)
        steps.train(
            recipe,
            split=_here(split, Path(scratch) / "split"),
            out=target,
            resume=resume,
            warm_start=None if warm_start is None else _here(warm_start, Path(scratch) / "start"),
            watch=watch,
        )
        if storage.is_address(out) and is_first():
            storage.upload(target, out)


def _here(place: str, copy: Path) -> Path:
    """A folder of this machine: the place itself, or a copy of what lies at an address."""
    from twotower import storage

    return storage.download(place, copy) if storage.is_address(place) else Path(place)


@click.command()
@click.argument(
    "models", nargs=-1, required=True, metavar="MODEL...", type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@out("Where the best model goes.")
def choose(models: tuple[Path, ...], out: Path) -> None:
    """Copy the best of several models, by the metric that training watched on the validation part.

    \b
    Example:
      twotower choose runs/wide/model runs/deep/model --out runs/best/model
    """
    from twotower import steps

    steps.choose(models, out=out)
    _tell(out)


@click.command()
@recipe_options
@registry_option
@directory("--model", "What `train` wrote.")
def champion(recipe: "Recipe", registry: str, model: Path) -> None:
    """Say which version a model has to beat: the one that answers now. An empty line where there is none.

    A model is not its own rival: where the champion came from this very model, the one it was held against is told.

    \b
    Example:
      twotower champion recipe.toml --registry registry --model runs/first/model
    """
    from twotower import steps

    rival, withdrawn = steps.champion(recipe, registry=registry, model=model)
    if withdrawn:
        tell(f"This very model was rolled back as {withdrawn}: the gate will refuse it.")
    click.echo(rival)


@click.command()
@recipe_options
@directory("--split", "What `split` wrote.")
@directory("--model", "What `train` wrote.")
@optional_directory("--champion", "The bundle that answers now, to be judged beside the model.")
@out("Where the report goes.")
def evaluate(recipe: "Recipe", split: Path, model: Path, champion: Path | None, out: Path) -> None:
    """Judge the model and its baselines on the test part, exactly: every item scored for every query.

    \b
    Example:
      twotower evaluate recipe.toml --split runs/first/split --model runs/first/model --out runs/first/report
    """
    from twotower import steps

    with watching() as watch:
        steps.evaluate(recipe, split=split, model=model, champion=champion, out=out, watch=watch)
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
@directory("--report", "What `evaluate` wrote, with the champion where there is one.")
@directory("--index", "What `index` wrote.")
@click.option("--champion", default="", metavar="VERSION", help="The champion's name, for the card.")
@click.option("--withdrawn", default="", metavar="VERSION", help="This model's version that was rolled back.")
@out("Where the verdict goes.")
def gate(recipe: "Recipe", report: Path, index: Path, champion: str, withdrawn: str, out: Path) -> None:
    """Decide whether the candidate takes the champion's place, by the recipe's `[gate]`; prints the verdict.

    \b
    Example:
      twotower gate recipe.toml --report runs/first/report --index runs/first/index --out runs/first/gate
    """
    from twotower import steps

    verdict = steps.gate(recipe, report=report, index=index, champion=champion, withdrawn=withdrawn, out=out)
    tell(str(out))
    click.echo(verdict.reason)


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


@click.command("smoke-test")
@directory("--bundle", "What `bundle` wrote.")
@out("Where the answers go.")
def smoke_test(bundle: Path, out: Path) -> None:
    """Start a real server on a bundle, ask it over HTTP what users will ask, and stop it.

    \b
    Example:
      twotower smoke-test --bundle runs/first/bundle --out runs/first/smoke
    """
    from twotower import steps

    steps.smoke_test(bundle, out=out)
    _tell(out)


def _tell(directory: Path) -> None:
    """The result of a step is where it lies."""
    click.echo(directory)
