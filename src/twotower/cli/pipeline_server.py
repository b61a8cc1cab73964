"""`pipeline submit`, `pipeline schedule`, `pipeline status`: what talks to a Kubeflow Pipelines server."""

import contextlib
import functools
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from twotower.cli.cluster import seconds
from twotower.cli.options import pair, recipe_options, variants_of
from twotower.cli.pipeline_progress import COLUMNS, cells, shown, title
from twotower.cli.progress import tell
from twotower.errors import PipelineError

if TYPE_CHECKING:
    from twotower.pipeline.follow import RunState
    from twotower.pipeline.profile import Profile
    from twotower.pipeline.schedule import Schedule
    from twotower.pipeline.server import Server
    from twotower.recipe import Recipe

Decorated = Callable[..., Any]
FAILED = 1
"""Exit code of a run that failed; 2 is for a run that could not be asked about."""


def server_options(command: Decorated) -> Decorated:
    """Which server, and who asks it; the command gets `connect` and `reach`, the keywords of both."""

    @functools.wraps(command)
    def with_server(host: str, token_file: Path | None, namespace: str | None, **named: Any) -> Any:
        cookie = os.environ.get("TWOTOWER_KFP_COOKIE") or None
        reach = {"host": host, "token": _token(token_file), "cookie": cookie, "namespace": namespace}
        return command(reach=reach, **named)

    decorated: Decorated = with_server
    for decorate in (
        click.option(
            "--namespace", metavar="NAME", help="Whose runs, on a server for many users; by default the profile's."
        ),
        click.option(
            "--token-file",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            metavar="FILE",
            help="Holds the token; or set TWOTOWER_KFP_TOKEN, or TWOTOWER_KFP_COOKIE for a login before the server.",
        ),
        click.option(
            "--host",
            required=True,
            envvar="TWOTOWER_KFP_HOST",
            metavar="URL",
            help="The server or its UI, as in http://127.0.0.1:8080; or set TWOTOWER_KFP_HOST.",
        ),
    ):
        decorated = decorate(decorated)
    return decorated


def run_options(command: Decorated) -> Decorated:
    """What runs: a recipe on data, compiled with a profile or before; the command gets `job`."""

    @functools.wraps(command)
    def with_job(recipe: "Recipe", **named: Any) -> Any:
        names = ("data", "registry", "variant", "param", "profile", "package")
        job = {"recipe": recipe, **{name: named.pop(name) for name in names}}
        return command(job=job, **named)

    file = click.Path(exists=True, dir_okay=False, path_type=Path)
    decorated: Decorated = with_job
    for decorate in (
        click.option("--service-account", metavar="NAME", help="As whom the tasks act; by default the profile's."),
        click.option("--no-cache", is_flag=True, help="Run every task, also where a result is in the cache."),
        click.option("--create-experiment", is_flag=True, help="Make the experiment where there is none of the name."),
        click.option("--experiment", default="Default", show_default=True, help="Groups runs on the server."),
        click.option(
            "--package", type=file, metavar="FILE", help="A pipeline compiled before; by default it is compiled now."
        ),
        click.option("--profile", type=file, metavar="FILE", help="Where the tasks run and what they may use."),
        click.option("--param", multiple=True, metavar="NAME=VALUE", help="A parameter of the pipeline by its name."),
        click.option(
            "--variant",
            multiple=True,
            metavar="KEY=VALUE[,...]",
            help="A variant to train, as in train.epochs=3; of several, the best by validation goes on.",
        ),
        click.option("--registry", metavar="ADDRESS", help="Where versions are kept; by default the profile's."),
        click.option("--data", metavar="ADDRESS", help="Where the data is, in place of the recipe's."),
    ):
        decorated = decorate(decorated)
    return recipe_options(decorated)


@click.command()
@run_options
@click.option("--name", metavar="NAME", help="Of the run; by default the pipeline's with the time.")
@click.option("--wait", is_flag=True, help="Follow the run to its end.")
@click.option(
    "--timeout",
    callback=lambda *given: given[2] and seconds(*given),
    metavar="DURATION",
    help="With --wait: at most, as in 90s, 15m, 2h.",
)
@server_options
def submit(
    job: dict[str, Any],
    reach: dict[str, Any],
    experiment: str,
    create_experiment: bool,
    no_cache: bool,
    service_account: str | None,
    name: str | None,
    wait: bool,
    timeout: float | None,
) -> None:
    """Start the pipeline on a Kubeflow Pipelines server; prints the run's link.

    With --wait, the table of its tasks follows, and the exit code is 1 when the run fails, with the reason and the end
    of the failed task's log on stderr; it is 2 when the server refuses or the run takes longer than --timeout. The run
    then goes on.

    \b
    Example:
      twotower pipeline submit recipe.toml --host http://127.0.0.1:8080 --wait
      twotower pipeline submit recipe.toml --host http://127.0.0.1:8080 --profile gpu.toml --data s3://bucket/log.parquet
    """
    from twotower.pipeline.submit import submit_run

    with _compiled(job) as (package, arguments, profile):
        reach["namespace"] = reach["namespace"] or profile.namespace
        run = submit_run(
            package,
            arguments,
            experiment=experiment,
            create_experiment=create_experiment,
            run_name=name,
            no_cache=no_cache,
            service_account=service_account or profile.service_account,
            **reach,
        )
    click.echo(run.url)
    if wait:
        server = _connect(reach)
        _end(server, _followed(server, run.run_id, timeout=timeout))


@click.command()
@click.argument("run")
@server_options
def status(run: str, reach: dict[str, Any]) -> None:
    """Show what each task of a run is doing. RUN is its id, the end of its link.

    The exit code is 1 for a run that failed or was stopped, with the reason and the end of the log on stderr, and 0 for
    one that succeeded or goes on.

    \b
    Example:
      twotower pipeline status 3f1c2b7e-1c5e-4f0e-9f43-0c6f9f3a2d11 --host http://127.0.0.1:8080
    """
    from twotower.pipeline.follow import read_run

    server = _connect(reach)
    # A link is what a person has at hand.
    _end(server, read_run(server, run.rstrip("/").rpartition("/")[2]))


@click.command()
@run_options
@click.option("--cron", metavar="TIMES", help='When, as in "0 3 * * *"; in UTC, unless the server is set up otherwise.')
@click.option("--name", metavar="NAME", help="Of the schedule; by default the recipe's.")
@click.option("--window-days", type=click.IntRange(min=1), help="Each run reads the data of so many days before it.")
@click.option("--warm-start", is_flag=True, help="Each run begins with the weights of the last bundle.")
@click.option("--max-concurrency", default=1, show_default=True, help="So many runs may go on at once.")
@click.option("--no-catchup", is_flag=True, help="Leave out the runs that were missed while the schedule was off.")
@click.option("--disable", is_flag=True, help="Make it, but do not start its clock.")
@click.option("--replace", is_flag=True, help="Take the place of a schedule of the same name.")
@click.option("--list", "listing", is_flag=True, help="Show the schedules there are.")
@click.option("--delete", metavar="NAME", help="Stop a schedule; runs that it has started go on.")
@server_options
def schedule(
    job: dict[str, Any], reach: dict[str, Any], cron: str | None, listing: bool, delete: str | None, **options: Any
) -> None:
    """Let the server start the pipeline by the clock; or show, or delete, such schedules.

    \b
    Example:
      twotower pipeline schedule recipe.toml --host http://127.0.0.1:8080 --cron "0 3 * * *" \\
        --window-days 90 --warm-start
      twotower pipeline schedule --host http://127.0.0.1:8080 --list
      twotower pipeline schedule --host http://127.0.0.1:8080 --delete nightly
    """
    from twotower.pipeline.schedule import delete_schedule, list_schedules

    if [cron is not None, listing, delete is not None].count(True) != 1:
        raise click.UsageError("Say one of --cron TIMES, --list and --delete NAME.")
    if cron is not None:
        click.echo(_scheduled(job, reach, cron=cron, **options).url)
        return
    server = _connect(reach)
    if delete is not None:
        for gone in delete_schedule(server, delete):
            tell(f"{gone.name} ({gone.cron}) is deleted.")
    else:
        _print_schedules(list_schedules(server))


def _scheduled(job: dict[str, Any], reach: dict[str, Any], *, cron: str, **options: Any) -> "Schedule":
    from twotower.pipeline.schedule import create_schedule, six_fields

    six_fields(cron)  # A slip is told before the pipeline is compiled and the server asked.
    with _compiled(job) as (package, arguments, profile):
        reach["namespace"] = reach["namespace"] or profile.namespace
        return create_schedule(
            _connect(reach),
            package,
            arguments=arguments,
            cron=cron,
            name=options["name"] or job["recipe"].name,
            experiment=options["experiment"],
            create_experiment=options["create_experiment"],
            window_days=options["window_days"],
            warm_start=options["warm_start"],
            max_concurrency=options["max_concurrency"],
            catch_up=not options["no_catchup"],
            enabled=not options["disable"],
            replace=options["replace"],
            no_cache=options["no_cache"],
            service_account=options["service_account"] or profile.service_account,
        )


def _print_schedules(schedules: "list[Schedule]") -> None:
    from twotower.cli.tables import print_table

    rows = [
        [
            each.name,
            each.cron,
            "on" if each.is_enabled else "off",
            str(each.arguments.get("window_days", "")),
            "yes" if each.arguments.get("warm_start") else "",
            each.schedule_id,
        ]
        for each in schedules
    ]
    print_table("Schedules", ["name", "times", "clock", "#window, days", "warm start", "id"], rows)


@contextlib.contextmanager
def _compiled(job: Mapping[str, Any]) -> "Iterator[tuple[Path, dict[str, Any], Profile]]":
    """The pipeline as a file, its arguments, and the profile that it was compiled with."""
    from twotower.pipeline.compile import compile_pipeline
    from twotower.pipeline.profile import load_profile
    from twotower.pipeline.submit import typed_arguments

    profile = load_profile(job["profile"])
    _refuse_local_places(job, profile)
    with tempfile.TemporaryDirectory() as folder:
        package = job["package"] or Path(folder) / "pipeline.yaml"
        if job["package"] is None:
            compile_pipeline(profile, package)
        typed = typed_arguments(package, dict(pair(text, option="--param") for text in job["param"]))
        yield package, {**_arguments(job), **typed}, profile


def _refuse_local_places(job: Mapping[str, Any], profile: "Profile") -> None:
    """A path of this machine means nothing to a task on a cluster, unless a volume is mounted there.

    Raises:
        PipelineError: data, registry or a table of the recipe is such a path.
    """
    from twotower import storage

    prepare = job["recipe"].prepare
    places = {"--data": job["data"], "--registry": job["registry"]}
    if not job["data"] and prepare.source == "files":
        places |= {"prepare.files.interactions": prepare.files.interactions}
    for name, place in places.items():
        if place and not storage.is_address(place) and len(place.split()) == 1 and profile.workspace is None:
            raise PipelineError(
                f"{name} = {place!r}: a path of this machine, which no task on a cluster sees. Name an address (s3://, "
                "gs://, https://), or a workspace volume in the profile."
            )


def _arguments(job: Mapping[str, Any]) -> dict[str, Any]:
    """The pipeline's parameters, those that were said."""
    from twotower.recipe import recipe_toml

    variants = variants_of(job["variant"])
    said = {"data": job["data"], "registry": job["registry"], "variants": variants}
    return {"recipe": recipe_toml(job["recipe"]), **{name: value for name, value in said.items() if value}}


def _token(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get("TWOTOWER_KFP_TOKEN") or None
    token = file.read_text(encoding="utf-8").strip()
    if not token or len(token.split()) > 1:
        raise PipelineError(f"--token-file {file}: it holds no token, which is one word.")
    return token


def _connect(reach: Mapping[str, Any]) -> "Server":
    from twotower.pipeline.server import connect

    return connect(reach["host"], **{name: value for name, value in reach.items() if name != "host"})


def _end(server: "Server", run: "RunState") -> None:
    """Print the table; a run that failed also tells why, and ends the command with code 1."""
    from twotower.cli.tables import print_table
    from twotower.pipeline.follow import failures

    now = datetime.now(UTC)
    print_table(title(run), list(COLUMNS), [cells(task, now) for task in run.tasks])
    if not run.has_failed:
        return
    for failure in failures(server, run):
        for line in failure.log:
            tell(f"  {line}")
        tell(f"{failure.task} failed: {failure.message} ({'log: ' if failure.log else ''}{failure.source})")
    click.get_current_context().exit(FAILED)


def _followed(server: "Server", run_id: str, *, timeout: float | None) -> "RunState":
    """The run as it ended: a table that changes on a terminal, a line for each change elsewhere."""
    from twotower.pipeline.follow import follow_run

    try:
        with shown() as watch:
            return follow_run(server, run_id, watch=watch, timeout=timeout)
    except KeyboardInterrupt:
        tell(f"The run goes on: twotower pipeline status {run_id} --host {server.host}")
        raise
