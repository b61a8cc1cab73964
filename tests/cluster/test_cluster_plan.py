"""The commands as they are printed: for three shells, the same as those that are run and as docs/kind.md."""

import os
import re
import shlex
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from twotower.cli.cluster import cluster
from twotower.cluster import plan, shell
from twotower.cluster.plan import ClusterSettings
from twotower.cluster.tools import SYSTEMS, Command, System
from twotower.release.manifests import deploy_file

IMAGES = ("twotower-pipeline:TAG", "twotower-serve:TAG")
DEPLOY = Path("deploy")
SETTINGS = ClusterSettings()
FENCES = {"linux": "bash", "macos": "bash", "windows": "powershell"}


@pytest.fixture(autouse=True)
def in_repository(monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config) -> None:
    monkeypatch.chdir(pytestconfig.rootpath)


def calls_of(commands: list[Command]) -> list[tuple[str, ...]]:
    """What running a plan on a machine without a cluster is recorded as."""
    run = [each for each in commands if each.mode in ("run", "background") and not each.only_if]
    return [(*each.argv, *each.read_as) for each in run]


def test_up_runs_what_it_prints(stand_ins: Any) -> None:
    settings = ClusterSettings(port=stand_ins.port, images=IMAGES)
    options = [option for image in IMAGES for option in ("--image", image)]
    assert stand_ins.run("up", "--no-open", *options).exit_code == 0
    assert stand_ins.calls() == calls_of(plan.up(settings, deploy=DEPLOY))


def test_what_up_prints_as_conditional_is_what_a_second_up_runs_besides(stand_ins: Any) -> None:
    stand_ins.run("up", "--no-open")
    printed = plan.up(ClusterSettings(port=stand_ins.port, images=("twotower-pipeline:1a2b3c4d5e6f",)), deploy=DEPLOY)
    before = set(stand_ins.calls())
    stand_ins.run("up", "--no-open")
    besides = [call for call in stand_ins.calls() if call not in before]
    assert besides == [(*each.argv, *each.read_as) for each in printed if each.only_if]


@pytest.mark.parametrize("command", ["open", "status", "doctor", "down"])
def test_the_others_run_what_they_print(stand_ins: Any, command: str) -> None:
    stand_ins.have_cluster()
    if command == "doctor":
        stand_ins.run("open", "--no-open")
        stand_ins.forget()
    stand_ins.run(command, *(["--no-open"] if command == "open" else []))
    of = {"open": plan.open_page, "status": plan.status, "doctor": plan.doctor, "down": plan.down}[command]
    # The doctor asks about the machine in an order of its own.
    assert sorted(stand_ins.calls()) == sorted(calls_of(of(stand_ins.settings)))


@pytest.mark.parametrize("command", ["up", "open", "status", "doctor", "down"])
def test_a_dry_run_needs_no_tool_and_calls_none(stand_ins: Any, command: str) -> None:
    for tool in ("docker", "kind", "kubectl"):
        stand_ins.remove(tool)
    result = stand_ins.run(command, "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert "kind get clusters\n" in result.stdout
    assert stand_ins.calls() == []


def test_no_reason_holds_a_sign_that_means_something_to_a_shell() -> None:
    # zsh, the shell of macOS, takes a pasted comment for a command: it says so and goes on, unless a quote is open.
    plans = (plan.up(SETTINGS, deploy=DEPLOY), plan.doctor(SETTINGS), plan.status(SETTINGS), plan.down(SETTINGS))
    whys = {command.why for commands in plans for command in commands}
    assert [why for why in whys if not re.fullmatch(r"[\w ,.:/-]+", why)] == []


@pytest.mark.parametrize("system", ["linux", "macos"])
def test_a_posix_shell_reads_the_arguments_that_are_run(system: System) -> None:
    for command in plan.up(ClusterSettings(images=IMAGES), deploy=DEPLOY):
        line = shell.command_line(command, system)
        if command.mode == "run":
            assert tuple(shlex.split(line)) == command.argv
        if command.mode == "background":
            words = shlex.split(line)
            assert (words[0], tuple(words[1 : 1 + len(command.argv)])) == ("nohup", command.argv)


def test_powershell_gets_its_own_quoting() -> None:
    # {}, ?, spaces and commas mean something to PowerShell outside of quotes; a quote is doubled inside of them.
    argv = ("docker", "info", "{{.Id}} x", "a,b", "https://host/path?ref=1", "it's", "--for=condition=x", "1:80")
    assert shell.joined(argv, "windows") == (
        "docker info '{{.Id}} x' 'a,b' 'https://host/path?ref=1' 'it''s' --for=condition=x 1:80"
    )


@pytest.mark.skipif(shutil.which("pwsh") is None, reason="needs PowerShell")
def test_powershell_reads_the_arguments_that_are_run() -> None:
    for command in plan.up(ClusterSettings(images=IMAGES), deploy=DEPLOY):
        if command.mode == "run":
            line = shell.command_line(command, "windows")
            code = f"function show {{ $args -join '|' }}; show {line}"
            done = subprocess.run(["pwsh", "-NoProfile", "-Command", code], capture_output=True, text=True, check=True)
            assert done.stdout.strip() == "|".join(command.argv)


def test_the_background_is_each_shells_own() -> None:
    command = plan.forward(ClusterSettings())
    posix = (
        "nohup kubectl --context kind-twotower port-forward --namespace kubeflow svc/ml-pipeline-ui 8080:80 "
        '--address 127.0.0.1 >port-forward.log 2>&1 & echo "$!" >port-forward.pid'
    )
    assert shell.command_line(command, "linux") == posix
    assert shell.command_line(command, "windows") == (
        "(Start-Process -WindowStyle Hidden -PassThru -FilePath kubectl -ArgumentList '--context','kind-twotower',"
        "'port-forward','--namespace','kubeflow','svc/ml-pipeline-ui','8080:80','--address','127.0.0.1').Id "
        "| Set-Content port-forward.pid"
    )


def test_the_page_is_opened_by_each_systems_own_command() -> None:
    lines = [shell.command_line(plan.browse(ClusterSettings()), system) for system in SYSTEMS]
    url = "http://127.0.0.1:8080"
    assert lines == [f"xdg-open {url}", f"open {url}", f"Start-Process {url}"]


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
def test_the_printed_commands_start_and_end_a_port_forward(
    stand_ins: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:{os.defpath}"}
    start, stop = (shell.command_line(each(stand_ins.settings), "linux") for each in (plan.forward, plan.stop_forward))
    subprocess.run(["/bin/sh", "-c", start], env=environment, check=True, timeout=30)
    wait_until(stand_ins.port, is_open=True)
    subprocess.run(["/bin/sh", "-c", stop], env=environment, check=True, timeout=30)
    wait_until(stand_ins.port, is_open=False)


def wait_until(port: int, *, is_open: bool) -> None:
    for _ in range(200):
        with socket.socket() as probe:
            if (probe.connect_ex(("127.0.0.1", port)) == 0) == is_open:
                return
        time.sleep(0.05)
    raise AssertionError(f"port {port}: is_open is not {is_open} after 10 s")


KUBECTL = shutil.which("kubectl")


ASKED = (
    *(plan.versions(SETTINGS), plan.applied(SETTINGS), plan.nodes(SETTINGS), plan.workloads(SETTINGS)),
    *(plan.all_workloads(SETTINGS), plan.forward(SETTINGS), plan.kubectl_client()),
    plan.last_lines(SETTINGS, namespace="kubeflow", pod="x", container="y"),
    *(command for command in plan.apply(SETTINGS, deploy=DEPLOY) if "github.com" not in command.argv[-1]),
)


@pytest.mark.skipif(KUBECTL is None, reason="needs kubectl")
@pytest.mark.parametrize("command", ASKED, ids=lambda command: command.why)
def test_the_real_kubectl_knows_every_argument(command: Command, tmp_path: Path) -> None:
    # Without a cluster it gets as far as looking for the context, which it does after reading its arguments.
    environment = {**os.environ, "KUBECONFIG": str(tmp_path / "none")}
    argv = [str(KUBECTL), *command.argv[1:], *command.read_as]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False, timeout=60)
    missing = ('context "kind-twotower" does not exist', "context was not found for specified context: kind-twotower")
    assert done.returncode == 0 or any(told in done.stderr for told in missing), done.stderr


def page() -> str:
    return (Path("docs") / "kind.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("command", ["up", "status", "down"])
def test_the_page_shows_what_a_dry_run_prints(stand_ins: Any, command: str, system: System) -> None:
    options = [option for image in IMAGES for option in ("--image", image)] if command == "up" else []
    result = stand_ins.invoke(command, "--dry-run", "--os", system, "--port", "8080", *options)
    assert result.exit_code == 0, result.stderr
    assert f"```{FENCES[system]}\n{result.stdout}```\n" in page()


def test_every_cluster_command_of_the_page_exists() -> None:
    named = set(re.findall(r"twotower cluster (\w+)", page()))
    assert named == set(cluster.commands)


def test_every_file_of_ours_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"\b(?:deploy|docs|src)/[\w./-]+\w", page()))
    assert [name for name in sorted(named) if not Path(name).exists()] == []


def test_the_config_of_the_cluster_is_one_pinned_node() -> None:
    config = yaml.safe_load(deploy_file("kind/cluster.yaml").read_text(encoding="utf-8"))
    assert (config["kind"], config["apiVersion"]) == ("Cluster", "kind.x-k8s.io/v1alpha4")
    (node,) = config["nodes"]
    assert node["role"] == "control-plane"
    assert re.fullmatch(r"kindest/node:v1\.33\.\d+@sha256:[0-9a-f]{64}", node["image"])


@pytest.mark.parametrize("name", ["up", "open", "status", "doctor", "down"])
def test_help_of_every_subcommand_ends_with_an_example_and_tells_every_option(name: str) -> None:
    command = cluster.commands[name]
    _, found, example = (command.help or "").partition("Example:")
    assert found
    assert all(line.strip().startswith(f"twotower cluster {name}") for line in example.strip().splitlines())
    options = [each for each in command.params if isinstance(each, click.Option)]
    assert [each.name for each in options if not each.help] == []
