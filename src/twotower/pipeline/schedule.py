"""A compiled pipeline on a server: started again and again, by the clock."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twotower.errors import PipelineError
from twotower.pipeline.server import Server, told
from twotower.pipeline.submit import find_experiment, read_package, without_cache

SCHEDULED_TIME = "[[ScheduledTime.2006-01-02T15:04:05Z]]"
"""What the server replaces by the moment for which a run was due, in UTC, as in 2026-11-25T03:00:00Z.

The layout is Go's reference time. Seen in kubeflow/pipelines, backend/src/common/util/parameter_formatter.go. Servers
were reported to leave it as it is for pipelines of version 2 (kubeflow/pipelines#12494): who reads the parameter takes
a value that begins with `[[` for the time at which the task runs.
"""

PAGE = 100
MOST_AT_ONCE = 10
"""The server refuses more."""

FIELDS = (
    ("second", 0, 59, ()),
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of the month", 1, 31, ()),
    ("month", 1, 12, ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")),
    ("day of the week", 0, 6, ("sun", "mon", "tue", "wed", "thu", "fri", "sat")),
)
"""Name, least and greatest value of each field, and the names that stand for values from the least on."""

WORDS = ("@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly")

PART = re.compile(r"(?P<first>\*|\?|\w+)(-(?P<last>\w+))?(/(?P<step>\d+))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A pipeline that a server starts by the clock."""

    schedule_id: str
    name: str
    cron: str
    is_enabled: bool
    max_concurrency: int
    catches_up: bool
    arguments: Mapping[str, Any]
    url: str


def create_schedule(
    server: Server,
    package: Path,
    *,
    arguments: Mapping[str, Any],
    name: str,
    cron: str,
    experiment: str = "Default",
    create_experiment: bool = False,
    window_days: int | None = None,
    warm_start: bool = False,
    max_concurrency: int = 1,
    catch_up: bool = True,
    enabled: bool = True,
    replace: bool = False,
    no_cache: bool = False,
    service_account: str | None = None,
) -> Schedule:
    """Let the server start the compiled pipeline by the clock.

    Args:
        server: See `connect`.
        package: The compiled pipeline, a YAML file.
        arguments: The pipeline's parameters.
        name: Of the schedule; there is one of a name.
        cron: When, in five fields as in a crontab, or in six with seconds before them.
        experiment: The name under which the server groups the runs.
        create_experiment: Make the experiment where there is none of that name.
        window_days: Each run reads the data of so many days before the moment for which it was due.
        warm_start: Each run begins with the weights of the last bundle.
        max_concurrency: So many runs may go on at once.
        catch_up: Make up for each moment that was missed while the schedule was off.
        enabled: Whether the clock runs from now on.
        replace: Take the place of a schedule of the same name.
        no_cache: Run every task, also where its result is in the cache.
        service_account: As whom the tasks act in the cluster.

    Raises:
        PipelineError: The times cannot be read, the name is taken, or the server refuses.
    """
    when = six_fields(cron)
    if not 1 <= max_concurrency <= MOST_AT_ONCE:
        raise PipelineError(f"--max-concurrency {max_concurrency}: the server takes 1 to {MOST_AT_ONCE}.")
    given = {**arguments, **_window(window_days), **({"warm_start": True} if warm_start else {})}
    read_package(package, given)
    old = [each for each in list_schedules(server) if each.name == name]
    if old and not replace:
        raise PipelineError(
            f"{server.host}: there is a schedule {name!r} ({old[0].cron}). Take another --name, or put this one in its "
            "place with --replace."
        )
    experiment_id = find_experiment(server, experiment, create=create_experiment)
    with without_cache(package, no_cache) as sent, told(f"schedule {name!r}", server):
        made = server.client.create_recurring_run(
            experiment_id=experiment_id,
            job_name=name,
            cron_expression=when,
            max_concurrency=max_concurrency,
            no_catchup=not catch_up,
            params=given,
            pipeline_package_path=str(sent),
            enabled=enabled,
            service_account=service_account,
        )
    # The old ones go last: a refusal leaves everything as it was.
    for each in old:
        _delete(server, each)
    return _schedule(server, made)


def list_schedules(server: Server) -> list[Schedule]:
    """Every schedule of the server, or of the namespace on a server for many users."""
    found: list[Any] = []
    page = ""
    with told("schedules", server):
        while True:
            answer = server.client.list_recurring_runs(page_token=page, page_size=PAGE, namespace=server.namespace)
            found += answer.recurring_runs or ()
            page = answer.next_page_token or ""
            if not page:
                return [_schedule(server, each) for each in found]


def delete_schedule(server: Server, name: str) -> list[Schedule]:
    """Stop and forget the schedule of this name; runs that it has started go on.

    Raises:
        PipelineError: There is none of that name; the message lists those there are.
    """
    known = list_schedules(server)
    gone = [each for each in known if each.name == name]
    if not gone:
        names = ", ".join(each.name for each in known) or "none"
        raise PipelineError(f"{server.host}: there is no schedule {name!r}; there is {names}.")
    for each in gone:
        _delete(server, each)
    return gone


def six_fields(cron: str) -> str:
    """The times as the server reads them, with seconds in front.

    Raises:
        PipelineError: A field says what no clock shows.
    """
    text = cron.strip()
    if text in WORDS or re.fullmatch(r"@every (\d+(h|m|s))+", text):
        return text
    parts = text.split()
    if len(parts) not in (5, 6):
        raise PipelineError(
            f"--cron {cron!r}: {len(parts)} fields, but it takes 5 (minute, hour, day of the month, month, day of the "
            'week) or 6 (seconds before them), as in "0 3 * * *" for three in the morning.'
        )
    parts = parts if len(parts) == 6 else ["0", *parts]
    for part, (name, least, most, names) in zip(parts, FIELDS, strict=True):
        for piece in part.split(","):
            if (why := _fault(piece, least=least, most=most, names=names)) is not None:
                raise PipelineError(f"--cron {cron!r}: the {name} is {part!r}, but {why}.")
    return " ".join(parts)


def _fault(piece: str, *, least: int, most: int, names: tuple[str, ...]) -> str | None:
    """What is wrong with one part of a field, or None."""
    match = PART.fullmatch(piece)
    if match is None:
        return f"{piece or 'an empty part'!r} is none of *, 5, 1-5, */15, 1,2"
    if match["step"] == "0":
        return "a step of 0 leads nowhere"
    if match["first"] in ("*", "?"):
        return None if match["last"] is None else f"{piece!r} has an end and no beginning"
    numbers = [_number(text, least=least, names=names) for text in (match["first"], match["last"]) if text is not None]
    if not all(least <= number <= most for number in numbers):
        return f"it goes from {least} to {most}" + (f" ({names[0]} to {names[-1]})" if names else "")
    return f"{piece!r} ends before it begins" if numbers[-1] < numbers[0] else None


def _number(text: str, *, least: int, names: tuple[str, ...]) -> int:
    """The value that a text stands for; -1, which no field takes, for any other text."""
    if text.lower() in names:
        return least + names.index(text.lower())
    return int(text) if text.isdecimal() else -1


def _window(days: int | None) -> dict[str, Any]:
    if days is None:
        return {}
    if days < 1:
        raise PipelineError(f"--window-days {days}: a window has at least 1 day.")
    return {"until": SCHEDULED_TIME, "window_days": days}


def _delete(server: Server, schedule: Schedule) -> None:
    with told(f"schedule {schedule.name!r}", server):
        server.client.delete_recurring_run(schedule.schedule_id)


def _schedule(server: Server, run: Any) -> Schedule:
    trigger = run.trigger
    clock = trigger.cron_schedule.cron if trigger and trigger.cron_schedule else ""
    seconds = trigger.periodic_schedule.interval_second if trigger and trigger.periodic_schedule else None
    return Schedule(
        schedule_id=run.recurring_run_id,
        name=run.display_name,
        cron=clock or (f"every {seconds} s" if seconds else ""),
        is_enabled=str(run.status or run.mode).startswith("ENABLE"),
        max_concurrency=int(run.max_concurrency or 1),
        catches_up=not run.no_catchup,
        arguments=(run.runtime_config.parameters or {}) if run.runtime_config else {},
        url=f"{server.host}/#/recurringrun/details/{run.recurring_run_id}",
    )
