"""`twotower export`: a bundle in other servers' terms."""

import sys
from pathlib import Path

import click

from twotower.cli.options import optional_directory, out
from twotower.cli.progress import tell

DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path)


@click.group()
def export() -> None:
    """Hand a bundle on to other servers. Its ONNX graphs need no export: they lie in model/ of the bundle.

    \b
    Example:
      twotower export savedmodel runs/films --out served/films
    """


@export.command()
@click.argument("source", metavar="RUN_OR_BUNDLE", type=DIRECTORY)
@out("Where versions lie, as TensorFlow Serving's model_base_path; a new one is added.")
@optional_directory(
    "--model", "What `train` wrote, which holds the weights; by default that of the run or its registry."
)
@click.option(
    "--python",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=sys.executable,
    metavar="PATH",
    help="The Python of an environment that holds TensorFlow; by default this one.",
)
@click.option("--version", type=click.IntRange(min=1), help="Number of the version; by default the next one.")
def savedmodel(source: Path, out: Path, model: Path | None, python: Path, version: int | None) -> None:
    """Both stages as one TensorFlow SavedModel: user ids or histories in, the best items out.

    \b
    Example:
      twotower export savedmodel runs/films --out served/films
      twotower export savedmodel films/bundle --model films/model --out served/films --python tf/bin/python
    """
    from twotower.savedmodel.export import export_savedmodel

    bundle = source / "bundle" if (source / "bundle").is_dir() else source
    target = export_savedmodel(
        bundle, model=model or _model_of(bundle), out=out, python=python, version=version, watch=tell
    )
    click.echo(target)


def _model_of(bundle: Path) -> Path:
    """Where `run` leaves the model that a bundle was made from; after `pipeline run`, the registry has it by its id."""
    from twotower import artifact
    from twotower.bundle_config import KIND, bundle_id

    beside = bundle.parent / "model"
    if beside.is_dir() or not (models := list(bundle.parent.glob("registry/*/models"))):
        return beside
    version = bundle_id(artifact.read_manifest(bundle, kind=KIND))
    return next((path / version for path in models if (path / version).is_dir()), beside)
