"""`twotower pipeline`: compile the pipeline, run it here, send it to a server."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from twotower.cli.options import data_option, recipe_options, variants_of
from twotower.cli.pipeline_server import schedule, status, submit
from twotower.cli.progress import tell

if TYPE_CHECKING:
    from twotower.pipeline.local import LocalRun
    from twotower.pipeline.local_log import TaskEnd
    from twotower.recipe import Recipe

SHOWN = 10
"""Items in the sample answer."""
PROFILE = click.option(
    "--profile",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Where the tasks run and what they may use, as TOML; docs/profile.md lists its keys.",
)


@click.group()
def pipeline() -> None:
    """The path as a Kubeflow pipeline: on this machine, or on a server.

    \b
    Example:
      twotower pipeline run --local
      twotower pipeline compile -o pipeline.yaml
      twotower pipeline submit recipe.toml --host http://127.0.0.1:8080 --wait
    """


@click.command("compile")
@PROFILE
@click.option(
    "-o",
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("pipeline.yaml"),
    show_default=True,
    metavar="FILE",
    help="Where the pipeline goes.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["ir", "kubernetes"]),
    default="ir",
    show_default=True,
    help="ir is what the UI takes; kubernetes writes Pipeline and PipelineVersion resources.",
)
def compile_command(profile: Path | None, out: Path, form: Any) -> None:
    """Write the pipeline as the file that the Kubeflow Pipelines UI takes.

    \b
    Example:
      twotower pipeline compile -o pipeline.yaml
      twotower pipeline compile --profile gpu.toml --format kubernetes -o pipeline-resources.yaml
    """
    from twotower.pipeline.compile import compile_pipeline
    from twotower.pipeline.profile import load_profile

    compile_pipeline(load_profile(profile), out, form=form)
    click.echo(out)


@click.command("run")
@recipe_options
@data_option
@click.option("--local", is_flag=True, help="Run on this machine: the only place that `run` knows; see `submit`.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Where the run goes; by default runs/NAME.")
@click.option("--registry", metavar="ADDRESS", help="Where versions are kept; by default a folder in the run's.")
@click.option("--variant", "variants", multiple=True, metavar="KEY=VALUE[,...]", help="A variant to train; repeatable.")
@click.option("--until", default="", metavar="MOMENT", help="Interactions from then on are left out, as in 2026-11-01.")
@click.option("--window-days", type=click.FloatRange(min=0), default=0, metavar="DAYS", help="Keep only so many days.")
@click.option("--warm-start", is_flag=True, help="Begin with the weights of the champion.")
@click.option("--webhook", default="", metavar="URL", help="Who is told how the run ended, by POST.")
@click.option("--no-cache", is_flag=True, help="Run every task, also where its result is in the cache.")
@click.option("--docker", "image", metavar="IMAGE", help="Run each task in a container of this image.")
def run_command(
    recipe: "Recipe",
    data: str,
    local: bool,
    out: Path | None,
    registry: str | None,
    variants: tuple[str, ...],
    until: str,
    window_days: float,
    warm_start: bool,
    webhook: str,
    no_cache: bool,
    image: str | None,
) -> None:
    """Run the pipeline on this machine, with no cluster: the same definition, every task a process of its own.

    RECIPE is a TOML file or the name of one that comes with twotower; without it, an invented world of films is the
    data. A task whose inputs, settings and code are as they were is taken from the cache. What passes the gate is kept
    in the registry and answers from runs/NAME/bundle; a candidate that is refused changes nothing there.

    \b
    Example:
      twotower pipeline run --local
      twotower pipeline run --local movielens-1m --data ../data --variant train.epochs=3 --variant train.epochs=5
    """
    from twotower import storage
    from twotower.pipeline.local import local_profile, run_local
    from twotower.recipe import recipe_toml

    if not local:
        raise click.UsageError("Say --local to run on this machine; `twotower pipeline submit` runs on a server.")
    out = out or Path("runs") / recipe.name
    profile = local_profile(registry=out / "registry", deploy_to=out / "bundle", image=image)
    arguments = {
        "recipe": recipe_toml(recipe),
        "data": storage.absolute(data) if data else "",
        "until": until,
        "window_days": float(window_days),
        "warm_start": warm_start,
        "webhook": webhook,
        "variants": variants_of(variants) or [{}],
        **({"registry": storage.absolute(registry)} if registry else {}),
    }
    started = time.monotonic()
    found = run_local(
        arguments,
        profile=profile,
        out=out,
        cached=not no_cache,
        in_docker=image is not None,
        ended=_tell_end,
        line=_tell_line,
    )
    _show(found, out, seconds=time.monotonic() - started)


def _tell_end(end: "TaskEnd") -> None:
    took = "cached" if end.state == "cached" else f"{end.seconds:.1f} s"
    tell(f"{end.task:<11} {took if end.state in ('done', 'cached') else f'{end.state} after {took}'}")


def _tell_line(line: str) -> None:
    """An epoch, a verdict or a rollout is worth a line; that a step has ended is told by its own line."""
    if " took " not in line:
        tell(f"            {line}")


def _show(run: "LocalRun", out: Path, *, seconds: float) -> None:
    """The measured table, the gate's verdict, an answer of what is deployed, and what to type next."""
    from twotower.cli.run import show_answer
    from twotower.cli.tables import print_report

    report = Path(run.outputs["evaluate"]["report"])
    content: Mapping[str, Any] = json.loads((report / "report.json").read_text(encoding="utf-8"))
    print_report(dict(content))
    cached = sum(end.state == "cached" for end in run.ends)
    tell(f"{len(run.ends)} tasks in {seconds:.1f} s, {cached} of them from the cache.")
    click.echo(_reason(Path(run.outputs["gate"]["card"])))
    bundle = out / "bundle"
    if (bundle / "manifest.json").is_file():
        show_answer(bundle, content, count=SHOWN)
    page = report / "report.html"
    click.echo(f"Report:  {os.path.relpath(page) if page.is_relative_to(Path.cwd()) else page}")


def _reason(card: Path) -> str:
    """The verdict's sentence, which stands below the card's heading."""
    return card.read_text(encoding="utf-8").splitlines()[2]


for command in (compile_command, run_command, submit, schedule, status):
    pipeline.add_command(command)
