"""`twotower cluster doctor`: each of the usual failures is found, and what mends it is said."""

import os
import signal
import socket
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from twotower.cluster import forward, preflight
from twotower.cluster.doctor import MENDS, examine
from twotower.cluster.workloads import Kind

GIB = 2**30
DOWN = "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?"
FORBIDDEN = "permission denied while trying to connect to the Docker daemon socket"
VERSION = '{"clientVersion": {"gitVersion": "v1.33.1"}, "serverVersion": {"gitVersion": "v1.36.0"}}'


@pytest.fixture
def healthy(stand_ins: Any) -> Any:
    """A cluster that is up, with its port-forward."""
    stand_ins.have_cluster()
    assert stand_ins.run("open", "--no-open").exit_code == 0
    stand_ins.forget()
    return stand_ins


def test_a_healthy_cluster_has_no_findings(healthy: Any) -> None:
    result = healthy.run("doctor")
    assert (result.exit_code, result.output) == (0, "Nothing found.\n")


def test_a_machine_without_a_cluster_has_no_findings(stand_ins: Any) -> None:
    assert stand_ins.run("doctor").output == "Nothing found.\n"


@pytest.mark.parametrize(
    ("calls", "answer", "what", "mend"),
    [
        (("docker info",), {"rc": 1, "stderr": DOWN}, f"Docker's daemon does not answer: {DOWN}", "Start it: "),
        (("docker info",), {"rc": 1, "stderr": FORBIDDEN}, "permission denied", "sudo usermod -aG docker"),
        (("docker info",), {"stdout": f"28.3.2 {2 * GIB} /none\n"}, "Docker has 2.0 GiB of memory", ""),
        (("docker info",), {"stdout": f"19.3.1 {8 * GIB} /none\n"}, "docker is 19.3, which is too old", "Install"),
        (("kind version",), {"stdout": "kind v0.11.1 go1.16"}, "kind is 0.11, which is too old: 0.29", "Install"),
        (("kind version",), {"rc": 126, "stderr": "bad CPU type"}, "kind does not run: bad CPU type", "Install"),
        (("version --client",), {"stdout": "Client Version: v1.21.0"}, "kubectl is 1.21, which is too old", "Install"),
        (("ls-remote",), {"rc": 128, "stderr": "fatal: no route"}, "cannot be fetched: fatal: no route", "HTTPS_PROXY"),
        (("ls-remote",), {"rc": 2}, "Kubeflow Pipelines has no release 2.17.0", "Choose another"),
        (("get clusters",), {"rc": 1, "stderr": "ERROR: broken"}, "kind cannot list its clusters", "Restart Docker"),
        (
            ("docker inspect",),
            {"stdout": "exited\n"},
            "the node twotower-control-plane is exited",
            "twotower cluster up",
        ),
        (("docker inspect",), {"rc": 1, "stderr": "Error: No such object"}, "No such object", "twotower cluster up"),
        (
            ("kind-twotower version",),
            {"rc": 1, "stderr": "refused"},
            "the API server does not answer: refused",
            "docker",
        ),
        (("kind-twotower version",), {"stdout": VERSION}, "kubectl is 1.33 and the cluster 1.36", "Install a kubectl"),
        (
            ("get namespace",),
            {"stdout": '{"metadata": {"labels": {"twotower.dev/applied": "2.16.0"}}}'},
            "Kubeflow Pipelines is 2.16.0, and 2.17.0 is expected",
            "--pipeline-version 2.16.0",
        ),
        (("get namespace",), {}, "Kubeflow Pipelines is not wholly applied", "twotower cluster up"),
        (("get deployments",), {"rc": 1, "stderr": "timed out"}, "the pods cannot be listed: timed out", "again"),
    ],
)
def test_what_a_tool_says_is_found(
    healthy: Any, calls: tuple[str, ...], answer: dict[str, Any], what: str, mend: str
) -> None:
    healthy.play(*calls, answers=[answer])
    result = healthy.run("doctor")
    assert result.exit_code == 2
    first, second, *others = result.stdout.splitlines()
    assert first.startswith("1. ")
    assert what in first
    assert mend in second
    assert others == []


@pytest.mark.parametrize("tool", ["docker", "kind", "kubectl", "git"])
def test_a_missing_tool_is_found_and_what_needs_it_is_not_asked(healthy: Any, tool: str) -> None:
    healthy.remove(tool)
    result = healthy.run("doctor")
    assert result.exit_code == 2
    assert result.stdout.startswith(f"1. {tool} is not on the PATH\n   Install it: ")
    assert len(result.stdout.splitlines()) == 2


@pytest.mark.parametrize(
    ("kind", "reason", "last"),
    [
        ("image pull", "ImagePullBackOff", None),
        ("crash loop", "CrashLoopBackOff", {"exitCode": 1}),
        ("out of memory", "CrashLoopBackOff", {"exitCode": 137, "reason": "OOMKilled"}),
        ("container", "CreateContainerConfigError", None),
    ],
)
def test_a_container_in_trouble_is_found(
    healthy: Any, made: Any, kind: Kind, reason: str, last: dict[str, Any]
) -> None:
    healthy.show(made.deployment("mysql", ready=False), made.pod("mysql", status=made.waiting(reason, last=last)))
    healthy.play("logs mysql-7d9f8-abcde", answers=[{"stdout": "cannot lock\n"}])
    result = healthy.run("doctor")
    assert result.exit_code == 2
    assert result.stdout.startswith(f"1. pod kubeflow/mysql-7d9f8-abcde, {kind}: ")
    assert MENDS[kind] in result.stdout
    assert ("last: cannot lock" in result.stdout) == (kind == "crash loop")


def test_an_evicted_a_pending_and_a_claimless_pod_are_found(healthy: Any, made: Any) -> None:
    full = {"type": "PodScheduled", "status": "False", "message": "1 Insufficient cpu."}
    claim = {"kind": "PersistentVolumeClaim", "metadata": {"name": "data", "namespace": "kubeflow"}, "status": {}}
    healthy.show(
        made.pod("a", status={"phase": "Failed", "reason": "Evicted", "message": "The node was low on memory."}),
        made.pod("b", status={"phase": "Pending", "conditions": [full]}),
        made.pod("c", status={"phase": "Pending"}, claims=("data",)),
        {**claim, "status": {"phase": "Pending"}},
    )
    told = healthy.run("doctor").stdout.splitlines()
    assert [line.partition(", ")[2] for line in told[::2]] == [
        "evicted: The node was low on memory.",
        "pending: 1 Insufficient cpu.",
        "claim: the claim data is Pending: it has no volume",
    ]
    assert [line.strip() for line in told[1::2]] == [MENDS["evicted"], MENDS["pending"], MENDS["claim"]]


@pytest.mark.parametrize(
    ("conditions", "what", "mend"),
    [
        ({"DiskPressure": "True"}, "node twotower-control-plane, DiskPressure: True", "docker system prune"),
        ({"MemoryPressure": "True"}, "node twotower-control-plane, MemoryPressure: True", "Give Docker more memory"),
        ({"Ready": "Unknown"}, "node twotower-control-plane, Ready: Unknown", "Restart it"),
    ],
)
def test_a_node_under_pressure_is_found(
    healthy: Any, made: Any, conditions: dict[str, str], what: str, mend: str
) -> None:
    healthy.write("nodes.json", {"items": [made.node(**conditions)]})
    first, second = healthy.run("doctor").stdout.splitlines()
    assert first == f"1. {what}"
    assert mend in second


def test_a_dead_port_forward_is_found(healthy: Any) -> None:
    forward.stop(healthy.settings)
    result = healthy.run("doctor")
    assert f"1. no port-forward runs, so http://127.0.0.1:{healthy.port} shows nothing" in result.stdout
    assert "twotower cluster open" in result.stdout


@pytest.mark.skipif(os.name == "nt", reason="stops a process by a signal")
def test_a_port_forward_that_says_nothing_is_found_and_started_anew(
    healthy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "ANSWER", 0.5)
    monkeypatch.setattr(forward, "GRACE", 0.5)
    first = forward.alive(healthy.settings)
    assert first is not None
    os.kill(first.pid, signal.SIGSTOP)
    told = healthy.run("doctor").stdout
    assert told.startswith(f"1. the port-forward runs, but http://127.0.0.1:{healthy.port} says nothing\n")
    assert healthy.run("open", "--no-open").exit_code == 0
    assert forward.alive(healthy.settings) != first


def test_a_port_of_another_program_is_found_without_and_with_a_cluster(stand_ins: Any) -> None:
    with socket.create_server(("127.0.0.1", stand_ins.port)):
        without = stand_ins.run("doctor")
        stand_ins.have_cluster()
        beside = stand_ins.run("doctor")
    assert without.stdout == beside.stdout
    assert without.stdout.startswith(f"1. port {stand_ins.port} of this machine cannot be had: ")


def test_limits_of_inotify_below_what_kind_advises_are_found(tmp_path: Path) -> None:
    (tmp_path / "max_user_instances").write_text("128\n", encoding="ascii")
    (tmp_path / "max_user_watches").write_text("524288\n", encoding="ascii")
    (finding,) = preflight.check_inotify(tmp_path)
    assert finding.what == "fs.inotify.max_user_instances is 128; 512 is needed"
    assert "sudo sysctl fs.inotify.max_user_instances=512" in finding.mend
    assert not finding.is_blocking


def test_a_system_without_inotify_has_no_such_finding(tmp_path: Path) -> None:
    assert list(preflight.check_inotify(tmp_path / "none")) == []


@pytest.mark.parametrize(("free", "blocking"), [(5 * GIB, [True]), (10 * GIB, [False]), (30 * GIB, [])])
def test_a_disk_that_is_nearly_full_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, blocking: list[bool]
) -> None:
    # A disk cannot be filled for a test: the size that the system reports is set.
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda folder: usage(0, 0, free))
    assert [finding.is_blocking for finding in preflight.check_disk(tmp_path)] == blocking


@pytest.mark.parametrize("system", ["linux", "macos", "windows"])
def test_too_little_memory_is_mended_in_the_way_of_the_system(system: Any) -> None:
    mends = {"linux": "a machine with more", "macos": "Docker Desktop, Settings", "windows": ".wslconfig"}
    (finding,) = preflight.check_memory(5 * GIB, system)
    assert mends[system] in finding.mend
    assert list(preflight.check_memory(6 * GIB, system)) == []


def test_nothing_is_changed_by_looking(healthy: Any) -> None:
    list(examine(healthy.settings))
    changing = {"apply", "create", "delete", "start", "load", "label"}
    assert [call for call in healthy.calls() if changing & set(call)] == []
