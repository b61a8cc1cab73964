"""`submit`, `status` and `schedule` as a person types them, against a server that is played."""

import contextlib
import os
import signal
import sys
import threading
import tomllib
from pathlib import Path
from typing import Any

import kfp_api
import pytest
from click.testing import CliRunner, Result
from kfp_api import nodes

from twotower.cli.main import Commands
from twotower.cli.pipeline_server import _followed, schedule, status, submit
from twotower.pipeline.compile import compile_pipeline
from twotower.pipeline.profile import load_profile
from twotower.pipeline.server import connect
from twotower.pipeline.submit import submit_run


@pytest.fixture(scope="module")
def our_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real pipeline, compiled once; a command would compile it anew each time."""
    path = tmp_path_factory.mktemp("ours") / "pipeline.yaml"
    compile_pipeline(load_profile(None), path)
    return path


def call(*words: Any) -> Result:
    commands = Commands(commands={"submit": submit, "schedule": schedule, "status": status})
    return CliRunner().invoke(commands, [str(word) for word in words])


def test_submit_compiles_the_recipe_and_prints_the_link_alone(api: Any) -> None:
    result = call(
        "submit", "--host", api.url, "--data", "s3://b/log", "--variant", "train.epochs=3,seed=2", "--no-cache"
    )

    assert (result.exit_code, result.stdout) == (0, f"{api.url}/#/runs/details/r-1\n")
    (sent,) = api.asked("POST", "/apis/v2beta1/runs")
    given = sent.body["runtime_config"]["parameters"]
    assert tomllib.loads(given["recipe"])["name"] == "simulated"
    assert (given["data"], given["variants"]) == ("s3://b/log", [{"train.epochs": "3", "seed": "2"}])
    inner = sent.body["pipeline_spec"]["pipeline_spec"]["components"]["comp-exit-handler-1"]["dag"]["tasks"]["prepare"]
    assert inner["cachingOptions"] == {}


def test_waiting_tells_each_change_once_and_ends_with_the_table(api: Any, our_package: Path) -> None:
    done = nodes("prepare", "SUCCEEDED", end="03:02:40")
    api.script = [("RUNNING", nodes("prepare", "RUNNING")), ("SUCCEEDED", done)]

    result = call("submit", "--host", api.url, "--package", our_package, "--wait", "--timeout", "1m")

    assert result.exit_code == 0
    changes = [line for line in result.stderr.splitlines() if "Prepare the tables" in line]
    assert [line.split("  ")[2] for line in changes] == ["running", "succeeded"]
    assert changes[-1].endswith("2 min 40 s")
    assert "succeeded" in next(line for line in result.stdout.splitlines() if "Prepare the tables" in line)


def test_a_failed_run_ends_with_code_1_its_reason_and_its_log(api: Any, our_package: Path) -> None:
    api.script = [("FAILED", nodes("prepare", "FAILED", end="03:00:10", number="7"))]
    api.logs = {f"{kfp_api.WORKFLOW}-7": "reading\nError: no such column: user"}

    waited = call("submit", "--host", api.url, "--package", our_package, "--wait")
    asked = call("status", waited.stdout.splitlines()[0], "--host", api.url)

    for result in (waited, asked):
        assert result.exit_code == 1
        assert "  Error: no such column: user\nPrepare the tables failed: no reason given (log: http" in result.stderr


def test_status_of_a_run_that_goes_on_is_no_failure(api: Any, our_package: Path) -> None:
    call("submit", "--host", api.url, "--package", our_package)
    api.script = [("RUNNING", nodes("prepare", "RUNNING"))]

    result = call("status", "r-1", "--host", api.url)

    assert (result.exit_code, result.stderr) == (0, "")
    assert "running" in result.stdout


def test_a_fault_of_a_command_is_one_line_and_code_2(api: Any) -> None:
    for words in (["status", "r-77", "--host", api.url], ["status", "r-1", "--host", "nowhere:1"]):
        result = call(*words)
        assert result.exit_code == 2
        assert result.stderr.startswith("Error: ")
        assert result.stderr.count("\n") == 1


def test_the_token_comes_from_the_environment_or_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("t0k3n\n")
    with kfp_api.KfpApi(token="t0k3n") as api:
        listed = ["schedule", "--host", api.url, "--list"]
        assert "(401)" in call(*listed).stderr
        assert call(*listed, "--token-file", file).exit_code == 0
        monkeypatch.setenv("TWOTOWER_KFP_TOKEN", "t0k3n")
        assert call(*listed).exit_code == 0
        file.write_text("")
        assert "it holds no token" in call(*listed, "--token-file", file).stderr


def test_a_schedule_is_made_listed_and_deleted_by_its_command(api: Any, our_package: Path) -> None:
    host = ["--host", api.url]
    made = call("schedule", *host, "--package", our_package, "--cron", "0 3 * * *", "--window-days", 90, "--no-catchup")
    assert made.stdout == f"{api.url}/#/recurringrun/details/s-1\n"
    (sent,) = api.asked("POST", "/apis/v2beta1/recurringruns")
    assert sent.body["no_catchup"] is True

    (row,) = [line for line in call("schedule", *host, "--list").stdout.splitlines() if "simulated" in line]
    assert row.split()[:9] == ["simulated", "0", "0", "3", "*", "*", "*", "on", "90"]
    assert call("schedule", *host, "--delete", "simulated").stderr == "simulated (0 0 3 * * *) is deleted.\n"
    assert api.schedules == {}


def test_a_slip_in_the_times_is_told_before_the_server_is_asked(api: Any) -> None:
    result = call("schedule", "--host", api.url, "--cron", "61 * * * *")

    assert (result.exit_code, api.requests) == (2, [])
    assert "the minute is '61'" in result.stderr


def test_a_schedule_wants_one_thing_at_a_time(api: Any) -> None:
    for words in ([], ["--list", "--delete", "a"], ["--cron", "0 3 * * *", "--list"]):
        assert (
            "Say one of --cron TIMES, --list and --delete NAME." in call("schedule", "--host", api.url, *words).stderr
        )


@pytest.mark.skipif(sys.platform == "win32", reason="there is no pseudo-terminal there")
def _all_drawn(screen: int) -> str:
    """What a terminal whose other side is closed was sent, however many pieces it came in; closes it."""
    pieces = []
    with contextlib.suppress(OSError):  # Linux says "input/output error" at the end, others give nothing.
        while piece := os.read(screen, 65_536):
            pieces.append(piece)
    os.close(screen)
    return b"".join(pieces).decode()


def test_on_a_terminal_the_table_is_drawn_and_wiped(
    api: Any, our_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pty

    api.script = [("SUCCEEDED", nodes("prepare", "SUCCEEDED", end="03:00:10"))]
    screen, side = pty.openpty()
    with open(side, "w") as terminal:  # noqa: PTH123 - a descriptor
        server = connect(api.url)
        run = submit_run(our_package, {}, host=api.url)
        monkeypatch.setattr(sys, "stderr", terminal)
        assert _followed(server, run.run_id, timeout=None).state == "SUCCEEDED"
    drawn = _all_drawn(screen)
    assert "Prepare the tables" in drawn
    assert "\x1b[2K" in drawn


@pytest.mark.skipif(sys.platform == "win32", reason="a thread there cannot signal another")
def test_whoever_stops_waiting_is_told_that_the_run_goes_on(api: Any, our_package: Path) -> None:
    # Whoever started the tests in the background let SIGINT be ignored, and the wait would never end.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    api.script = [("RUNNING", nodes("prepare", "RUNNING"))]
    main = threading.main_thread().ident
    stop = threading.Timer(0.1, lambda: signal.pthread_kill(main, signal.SIGINT))
    api.on_look = stop.start

    result = call("submit", "--host", api.url, "--package", our_package, "--wait")

    assert result.exit_code == 130
    assert f"The run goes on: twotower pipeline status r-1 --host {api.url}\n" in result.stderr
