"""The workflow runs commands that exist, with options that they have, on three systems, with no right but to read."""

import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from twotower.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
Object = dict[str, Any]


def workflow(path: Path) -> Object:
    tree: Object = yaml.safe_load(path.read_text(encoding="utf-8"))
    return tree


def steps() -> list[Object]:
    return [step for path in FILES for job in workflow(path)["jobs"].values() for step in job["steps"]]


def lines() -> list[list[str]]:
    """The words of every line of every script; a line that goes on by a backslash is one."""
    scripts = [step["run"].replace("\\\n", " ") for step in steps() if "run" in step]
    return [shlex.split(line, comments=True) for script in scripts for line in script.splitlines() if line.strip()]


def calls(program: str) -> list[list[str]]:
    """The arguments of each call of a program."""
    return [words[1:] for words in lines() if words and words[0] == program]


def flag_of(word: str) -> str:
    return word.partition("=")[0]


def faults(arguments: list[str]) -> list[str]:
    """What the command line does not know of a call of `twotower`."""
    command: click.Command = main
    words = arguments[: arguments.index("||")] if "||" in arguments else arguments
    while isinstance(command, click.Group):
        name, *words = words or [""]
        if name not in command.commands:
            return [f"{command.name} has no command {name!r}"]
        command = command.commands[name]
    known = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    return [f"{command.name} has no option {word}" for word in words if word[0] == "-" and flag_of(word) not in known]


def test_every_twotower_command_is_one() -> None:
    assert [call for call in calls("twotower") if faults(call)] == []
    named = [" ".join(call[:2]) for call in calls("twotower")]
    assert {"cluster up", "cluster doctor", "cluster down", "pipeline submit"} <= set(named)


def test_a_command_or_an_option_that_is_none_is_found() -> None:
    assert faults(["cluster", "upp"]) == ["cluster has no command 'upp'"]
    assert faults(["similar", "--userr", "1"]) == ["similar has no option --userr"]
    assert faults(["similar", "--json", "||", "true"]) == []


def test_every_target_of_make_and_every_job_of_dev_py_is_one() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([\w-]+):", makefile, re.MULTILINE)
    jobs = re.findall(r"dev\.py ([\w-]+)", makefile)
    assert {call[0] for call in calls("make")} <= set(targets)
    assert {call[1] for call in calls("python") if call[0] == "dev.py"} <= set(jobs)


def test_every_folder_file_and_target_that_is_named_is_there() -> None:
    words = [word for line in lines() for word in line]
    named = [word for word in words if re.match(r"(deploy|requirements)/", word)]
    assert set(named) == {"deploy/profiles/kind.toml", "requirements/dev.txt"}
    assert [word for word in named if not (ROOT / word).exists()] == []
    stages = re.findall(r"^FROM .* AS (\S+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    targets = [call[call.index("--target") + 1] for call in calls("docker")]
    assert sorted(targets) == ["pipeline", "serve"]
    assert set(targets) <= set(stages)


def test_checks_and_tests_run_on_three_systems_on_windows_without_make() -> None:
    job = workflow(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["test"]
    systems = [system.partition("-")[0] for system in job["strategy"]["matrix"]["system"]]
    assert sorted(systems) == ["macos", "ubuntu", "windows"]
    runs = {(step.get("if"), step["run"]) for step in job["steps"] if "run" in step}
    for what in ("check", "test"):
        assert ("runner.os != 'Windows'", f"make {what}") in runs
        assert ("runner.os == 'Windows'", f"python dev.py {what}") in runs


def test_what_the_cluster_says_is_kept_when_the_run_on_kind_fails() -> None:
    job = workflow(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["kind"]
    diagnosis = next(step for step in job["steps"] if "twotower cluster doctor" in step.get("run", ""))
    assert diagnosis["if"] == "${{ failure() || cancelled() }}"
    for command in ("kubectl get pods --all-namespaces", "kubectl describe", "kubectl logs", "kubectl get events"):
        assert command in diagnosis["run"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_workflow_may_only_read_ends_in_time_and_gives_way_to_its_successor(path: Path) -> None:
    tree = workflow(path)
    assert tree["permissions"] == {"contents": "read"}
    assert tree["concurrency"]["cancel-in-progress"] is True
    for job in tree["jobs"].values():
        assert job["timeout-minutes"] <= 90
        assert "permissions" not in job
    assert "secrets." not in path.read_text(encoding="utf-8")


def test_actions_are_pinned_to_a_major_version() -> None:
    used = [step["uses"] for step in steps() if "uses" in step]
    assert {use.partition("@")[0] for use in used} == {"actions/checkout", "actions/setup-python", "helm/kind-action"}
    assert [use for use in used if not re.fullmatch(r"[\w-]+/[\w-]+@v\d+", use)] == []
