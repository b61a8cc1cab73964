"""Runs by the clock: the real kfp.Client, over HTTP, against a server that is played."""

from pathlib import Path
from typing import Any

import pytest

from twotower.errors import PipelineError
from twotower.pipeline.schedule import create_schedule, delete_schedule, list_schedules, six_fields
from twotower.pipeline.server import connect


def scheduled(api: Any, package: Path, **options: Any) -> Any:
    given = {"arguments": {"recipe": "r"}, "name": "nightly", "cron": "0 3 * * *"} | options
    return create_schedule(connect(api.url), package, **given)


def test_a_schedule_carries_its_clock_its_window_and_its_limits(api: Any, package: Path) -> None:
    schedule = scheduled(api, package, window_days=30, warm_start=True, catch_up=False)

    (sent,) = api.asked("POST", "/apis/v2beta1/recurringruns")
    assert sent.body["trigger"] == {"cron_schedule": {"cron": "0 0 3 * * *"}}
    assert (sent.body["mode"], sent.body["no_catchup"], sent.body["max_concurrency"]) == ("ENABLE", True, 1)
    assert sent.body["runtime_config"]["parameters"] == {
        "recipe": "r",
        "until": "[[ScheduledTime.2006-01-02T15:04:05Z]]",
        "window_days": 30,
        "warm_start": True,
    }
    assert (schedule.name, schedule.cron, schedule.is_enabled) == ("nightly", "0 0 3 * * *", True)


def test_a_schedule_can_be_made_without_starting_its_clock(api: Any, package: Path) -> None:
    assert scheduled(api, package, enabled=False).is_enabled is False


def test_a_second_schedule_of_a_name_is_refused_unless_it_is_to_replace_the_first(api: Any, package: Path) -> None:
    scheduled(api, package)
    with pytest.raises(PipelineError, match=r"there is a schedule 'nightly' \(0 0 3 \* \* \*\).*--replace"):
        scheduled(api, package, cron="0 4 * * *")

    scheduled(api, package, cron="0 4 * * *", replace=True)

    assert [(each.name, each.cron) for each in list_schedules(connect(api.url))] == [("nightly", "0 0 4 * * *")]


def test_a_replacement_that_is_refused_leaves_the_old_schedule(api: Any, package: Path) -> None:
    scheduled(api, package)
    server = connect(api.url)
    with pytest.raises(PipelineError, match=r"no experiment 'none'"):
        scheduled(api, package, replace=True, experiment="none")

    assert [each.name for each in list_schedules(server)] == ["nightly"]


def test_schedules_are_listed_over_all_pages_and_deleted_by_name(api: Any, package: Path) -> None:
    server = connect(api.url)
    for name in ("a", "b", "c"):
        scheduled(api, package, name=name)

    assert [each.name for each in list_schedules(server)] == ["a", "b", "c"]
    assert [each.name for each in delete_schedule(server, "b")] == ["b"]
    with pytest.raises(PipelineError, match=r"no schedule 'b'; there is a, c\."):
        delete_schedule(server, "b")


@pytest.mark.parametrize(
    ("cron", "six"),
    [
        ("0 3 * * *", "0 0 3 * * *"),
        ("*/15 9-17 * * mon-FRI", "0 */15 9-17 * * mon-FRI"),
        ("30 0 3 1,15 JAN ?", "30 0 3 1,15 JAN ?"),
        ("@daily", "@daily"),
        ("@every 1h30m", "@every 1h30m"),
    ],
)
def test_times_become_six_fields(cron: str, six: str) -> None:
    assert six_fields(cron) == six


@pytest.mark.parametrize(
    ("cron", "why"),
    [
        ("0 3 * *", "4 fields"),
        ("", "0 fields"),
        ("60 3 * * *", "the minute is '60', but it goes from 0 to 59"),
        ("0 24 * * *", "the hour is '24'"),
        ("0 3 0 * *", "the day of the month is '0'"),
        ("0 3 * 13 *", "the month is '13', but it goes from 1 to 12 (jan to dec)"),
        ("0 3 * * 7", "the day of the week is '7', but it goes from 0 to 6 (sun to sat)"),
        ("0 3 * * moon", "the day of the week is 'moon'"),
        ("0 5-3 * * *", "'5-3' ends before it begins"),
        ("*/0 * * * *", "a step of 0"),
        ("1, * * * *", "'an empty part' is none of"),
        ("@hourlyish", "1 fields"),
    ],
)
def test_times_that_no_clock_shows_are_refused_by_field(cron: str, why: str) -> None:
    with pytest.raises(PipelineError) as told:
        six_fields(cron)
    assert why in str(told.value)


@pytest.mark.parametrize(
    ("option", "why"), [({"max_concurrency": 11}, "1 to 10"), ({"window_days": 0}, "at least 1 day")]
)
def test_limits_that_the_server_would_refuse_are_refused_first(
    api: Any, package: Path, option: dict[str, int], why: str
) -> None:
    with pytest.raises(PipelineError, match=why):
        scheduled(api, package, **option)
    assert api.schedules == {}
