"""`twotower tune`: better settings by trials, here or by Katib on a cluster."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from twotower.cli.options import recipe_options
from twotower.cli.progress import tell

if TYPE_CHECKING:
    from twotower.recipe import Recipe
    from twotower.tuning.results import Results

SHOWN = 10
"""Trials in the table on the screen."""


@click.command()
@recipe_options
@click.option("--trials", type=click.IntRange(min=1), default=30, show_default=True, help="In all, earlier ones too.")
@click.option(
    "--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Trials at a time, each in a process."
)
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", help="Where the study goes; by default runs/NAME-tune."
)
@click.option("--katib", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write an Experiment.")
@click.option("--split", default="", metavar="ADDRESS", help="For --katib: where the pods read what `split` wrote.")
@click.option(
    "--profile",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="For --katib: image, resources and secrets, as for `twotower pipeline`.",
)
def tune(
    recipe: "Recipe",
    trials: int,
    jobs: int,
    out: Path | None,
    katib: Path | None,
    split: str,
    profile: Path | None,
) -> None:
    """Look for better settings of [model] and [train], by the metric on the validation part.

    What is tried stands in the recipe under [tune.space]; without, the settings that most often decide, around the
    recipe's own. Trials that fall behind are ended early. The same command goes on where an earlier one stopped.

    \b
    Example:
      twotower tune recipe.toml --trials 30 --jobs 2 --out runs/tuned
      twotower tune recipe.toml --katib experiment.yaml --split s3://mlpipeline/first/split
    """
    if katib is not None:
        if out is not None:
            raise click.UsageError("--katib writes one file; leave out --out.")
        if not split:
            raise click.UsageError("--katib needs --split: the address from which the pods read the split.")
        _write_experiment(recipe, trials=trials, jobs=jobs, split=split, profile=profile, to=katib)
        return
    if split or profile:
        raise click.UsageError("--split and --profile are for --katib; a run here makes its own split below --out.")
    from twotower.tuning.tune import tune

    out = out or Path("runs") / f"{recipe.name}-tune"
    try:
        results = tune(recipe, trials=trials, jobs=jobs, out=out, tell=tell)
    except KeyboardInterrupt:
        tell(f"The trials that ended are kept in {out}; the same command goes on.")
        raise
    _show(results, out)


def _show(results: "Results", out: Path) -> None:
    """The best trials, the result in a sentence, and the next command."""
    from twotower.cli.tables import print_table
    from twotower.tuning.page import value_text
    from twotower.tuning.results import BEST, PAGE, TABLE

    keys = [each.key for each in results.space]
    rows = [
        [
            str(row.number),
            row.state,
            "" if row.value is None else f"{row.value:.4f}",
            *(value_text(row.values[key]) if key in row.values else "" for key in keys),
        ]
        for row in results.ranked()[:SHOWN]
    ]
    more = f", {SHOWN} of {len(results.trials)}" if len(results.trials) > SHOWN else ""
    columns = ["#trial", "state", f"#{results.metric}", *(f"#{key.rpartition('.')[2]}" for key in keys)]
    print_table(f"Trials by validation {results.metric}{more}", columns, rows)
    click.echo(results.summary().capitalize())
    click.echo(f"Trials:  {out / TABLE}")
    click.echo(f"Report:  {out / PAGE}")
    click.echo(f"Run it:  twotower run {out / BEST}")


def _write_experiment(recipe: "Recipe", *, trials: int, jobs: int, split: str, profile: Path | None, to: Path) -> None:
    from twotower.pipeline.dress import settings_of
    from twotower.pipeline.profile import load_profile
    from twotower.tuning.katib import Trials, experiment_yaml, items_of, needs

    place = load_profile(profile)
    task = settings_of("train", place)
    limits = {"cpu": task.cpu_limit, "memory": task.memory_limit}
    gpus = {str(task.gpu_kind): str(task.gpus)} if task.gpus else {}
    spec = Trials(
        image=place.image,
        namespace=place.namespace or "kubeflow",
        split=split,
        trials=trials,
        at_a_time=jobs,
        requests={"cpu": str(task.cpu_request), "memory": str(task.memory_request)},
        limits={name: str(amount) for name, amount in limits.items()} | gpus,
        env=place.environment,
        secret_env={
            variable: (secret.name, key, secret.optional)
            for secret in place.all_secrets
            for key, variable in secret.env.items()
        },
        service_account=place.service_account,
        node_selector=place.node_selector,
        tolerations=[
            {"key": one.key, "operator": one.operator}
            | ({"value": one.value} if one.value else {})
            | ({"effect": one.effect} if one.effect else {})
            for one in place.tolerations
        ],
        image_pull_secrets=place.image_pull_secrets,
    )
    text = experiment_yaml(recipe, spec, items=items_of(recipe, split))
    _write(text, to)
    for line in needs(spec):
        tell(line)
    click.echo(to)


def _write(text: str, to: Path) -> None:
    from twotower.errors import StorageError

    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(text, encoding="utf-8")
    except OSError as fault:
        raise StorageError(f"{to}: cannot be written ({fault.strerror}). Name another file for --katib.") from fault
