"""`twotower cluster`: kind and Kubeflow Pipelines on this machine, up and down."""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from twotower.cli.progress import tell

if TYPE_CHECKING:
    from rich.table import Table

    from twotower.cluster.lifecycle import Status
    from twotower.cluster.plan import ClusterSettings
    from twotower.cluster.tools import Command
    from twotower.cluster.wait import Watch
    from twotower.cluster.workloads import Workloads

Decorated = Callable[..., Any]
UNITS = {"s": 1, "m": 60, "h": 3600}


def seconds(_ctx: click.Context, parameter: click.Parameter, value: str) -> float:
    """`90s`, `15m`, `1h` -> seconds."""
    match = re.fullmatch(r"(\d+)([smh])", value)
    if match is None:
        raise click.BadParameter(f"{value!r} is no duration; give one such as 90s, 15m or 1h", param=parameter)
    return float(int(match[1]) * UNITS[match[2]])


def cluster_options(command: Decorated) -> Decorated:
    """Which cluster, and whether its commands are only printed."""
    options = (
        click.option("--name", default="twotower", show_default=True, help="The cluster's name."),
        click.option(
            "--port", type=int, default=8080, show_default=True, help="Where this machine sees Kubeflow Pipelines."
        ),
        click.option(
            "--dry-run", is_flag=True, help="Print the kind and kubectl commands that it stands for, run none."
        ),
        click.option(
            "--os",
            "system",
            type=click.Choice(["linux", "macos", "windows"]),
            help="With --dry-run: for the shell of this system; by default, of this machine.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def version_option(command: Decorated) -> Decorated:
    """Which Kubeflow Pipelines."""
    option = click.option(
        "--pipeline-version", metavar="X.Y.Z", help="The release of Kubeflow Pipelines; by default the one pinned here."
    )
    return option(command)


@click.group()
def cluster() -> None:
    """Kubeflow Pipelines on this machine, in a cluster of kind: one command up, one down.

    Needs Docker, kind, kubectl and git. With --dry-run each command prints the plain commands that it stands for;
    docs/kind.md goes through them by hand.

    \b
    Example:
      twotower cluster up
      twotower cluster doctor
    """


@cluster.command()
@cluster_options
@version_option
@click.option(
    "--image",
    "images",
    multiple=True,
    metavar="NAME:TAG",
    help="A local image for the cluster; may be repeated. By default both images of this code, where Docker has them.",
)
@click.option(
    "--timeout",
    callback=seconds,
    metavar="TIME",
    default="15m",
    show_default=True,
    help="How long Kubeflow Pipelines may take.",
)
@click.option("--no-open", is_flag=True, help="Print the page's address, but do not open it.")
def up(dry_run: bool, system: str | None, no_open: bool, images: tuple[str, ...], **named: Any) -> None:
    """Make the cluster, apply Kubeflow Pipelines, wait until it is ready, and open its page.

    What is there already is left as it is: after an interruption the same command goes on.

    \b
    Example:
      twotower cluster up
      twotower cluster up --image twotower-pipeline:1a2b3c4d5e6f --timeout 30m
      twotower cluster up --dry-run --os windows
    """
    from twotower.cluster import lifecycle, plan
    from twotower.pipeline.image import PIPELINE, SERVE, tagged

    settings = _settings({**named, "images": images or (tagged(PIPELINE), tagged(SERVE))})
    if dry_run:
        _print_plan(plan.up(settings, deploy=_deploy()), system)
        return
    with _watching() as watch:
        url = lifecycle.up(settings, deploy=_deploy(), needs_images=bool(images), say=tell, watch=watch)
    _show_page(url, is_opened=not no_open)


@cluster.command("open")
@cluster_options
@click.option("--no-open", is_flag=True, help="Print the page's address, but do not open it.")
def open_(dry_run: bool, system: str | None, no_open: bool, **named: Any) -> None:
    """Show the page of Kubeflow Pipelines; starts the port-forward again where it has ended.

    \b
    Example:
      twotower cluster open
    """
    from twotower.cluster import lifecycle, plan

    settings = _settings(named)
    if dry_run:
        _print_plan(plan.open_page(settings), system)
        return
    _show_page(lifecycle.reopen(settings), is_opened=not no_open)


@cluster.command()
@cluster_options
def status(dry_run: bool, system: str | None, **named: Any) -> None:
    """What is there, what is not ready and why. Exit code 0 also where something is not ready; see `doctor`.

    \b
    Example:
      twotower cluster status
    """
    from twotower.cluster import lifecycle, plan

    settings = _settings(named)
    if dry_run:
        _print_plan(plan.status(settings), system)
        return
    found = lifecycle.status(settings)
    if found is None:
        click.echo(f"There is no cluster {settings.name!r}. Make it: twotower cluster up --name {settings.name}")
        return
    _print_status(settings, found)


@cluster.command()
@cluster_options
@version_option
@click.pass_context
def doctor(ctx: click.Context, /, dry_run: bool, system: str | None, **named: Any) -> None:
    """Look for what usually goes wrong, and say what mends it. Exit code 2 where something is found.

    \b
    Example:
      twotower cluster doctor
    """
    from twotower.cluster import plan
    from twotower.cluster.doctor import examine

    settings = _settings(named)
    if dry_run:
        _print_plan(plan.doctor(settings), system)
        return
    count = 0
    for count, finding in enumerate(examine(settings), start=1):
        click.echo(f"{count}. {finding.what}\n   {finding.mend}")
    if count:
        ctx.exit(2)
    click.echo("Nothing found.")


@cluster.command()
@cluster_options
def down(dry_run: bool, system: str | None, **named: Any) -> None:
    """Delete the cluster, with everything in it, and end the port-forward.

    \b
    Example:
      twotower cluster down
    """
    from twotower.cluster import lifecycle, plan

    settings = _settings(named)
    if dry_run:
        _print_plan(plan.down(settings), system)
        return
    was_there = lifecycle.down(settings, say=tell)
    click.echo(f"Cluster {settings.name!r} is deleted." if was_there else f"There was no cluster {settings.name!r}.")


def _settings(named: dict[str, Any]) -> "ClusterSettings":
    """The options that were given; what is not an option of the command keeps its default."""
    from twotower.cluster.plan import ClusterSettings

    return ClusterSettings(**{key: value for key, value in named.items() if value is not None})


def _deploy() -> Path:
    """The folder of our manifests, short where it lies below the current one, so that it can be typed anywhere."""
    from twotower.release.manifests import deploy_file

    path, here = deploy_file("kind/cluster.yaml").parents[1], Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _print_plan(commands: "list[Command]", system: str | None) -> None:
    from twotower.cluster.shell import script
    from twotower.cluster.tools import SYSTEMS, this_system

    chosen = next(each for each in SYSTEMS if each == (system or this_system()))
    click.echo(script(commands, chosen).rstrip())


def _show_page(url: str, *, is_opened: bool) -> None:
    click.echo(url)
    if is_opened:
        from twotower.cluster.browser import open_in_browser

        open_in_browser(url)


def _print_status(settings: "ClusterSettings", found: "Status") -> None:
    from twotower.cli.tables import print_table

    version = found.pipeline_version or "not wholly applied; `twotower cluster up` goes on"
    page = f"http://127.0.0.1:{found.forwarded.port}" if found.forwarded else "none; `twotower cluster open` starts it"
    rows = [
        ["node", f"{settings.node}, {found.node}"],
        ["Kubeflow Pipelines", version],
        ["workloads", found.workloads.summary],
        ["port-forward", page],
        ["images", ", ".join(found.images) or "none of ours; `twotower cluster up --image NAME:TAG` loads one"],
    ]
    print_table(f"Cluster {settings.name}", ["", ""], rows)
    if found.workloads.not_ready:
        print_table("Not ready", ["", "why"], [[each.name, each.why] for each in found.workloads.not_ready])


@contextmanager
def _watching() -> "Iterator[Watch]":
    """What is not ready and why: a table that is drawn anew on a terminal, a line for each change elsewhere."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), transient=True, auto_refresh=False) as live:
        yield lambda seen: live.update(_table(seen), refresh=True)


class _Lines:
    """Tells what has changed since the last look, and nothing else."""

    def __init__(self) -> None:
        self._told: dict[str, str] = {}
        self._summary = ""

    def __call__(self, seen: "Workloads") -> None:
        if seen.summary != self._summary:
            self._summary = seen.summary
            tell(seen.summary)
        now = {each.name: each.why for each in seen.not_ready}
        for name, why in now.items():
            if self._told.get(name) != why:
                tell(f"  {name}: {why}")
        self._told = now


def _table(seen: "Workloads") -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(f"Kubeflow Pipelines: {seen.summary}"), title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("not ready")
    table.add_column("why", overflow="fold")
    for each in seen.not_ready:
        table.add_row(Text(each.name), Text(each.why))
    return table
