"""`twotower cluster up`: what is called, in which order, and what stops it."""

import json
import socket
from typing import Any

import pytest

from twotower.cluster import forward
from twotower.pipeline.image import PIPELINE, SERVE, tagged

MANIFESTS = "github.com/kubeflow/pipelines/manifests/kustomize"
KUBECTL = ("kubectl", "--context", "kind-twotower")
LOOK_AT_MACHINE = [
    ("docker", "info", "--format", "{{.ServerVersion}} {{.MemTotal}} {{.DockerRootDir}}"),
    ("kind", "version"),
    ("kubectl", "version", "--client"),
]
LOOK_AT_WORKLOADS = (
    *(*KUBECTL, "get", "deployments,jobs,pods,persistentvolumeclaims", "--namespace", "kubeflow"),
    *("--output", "json"),
)
FIND = ("git", "ls-remote", "--exit-code", "https://github.com/kubeflow/pipelines", "refs/tags/2.17.0")
APPLY = [
    (*KUBECTL, "apply", "-k", f"{MANIFESTS}/cluster-scoped-resources?ref=2.17.0"),
    (*KUBECTL, "wait", "crd/applications.app.k8s.io", "--for=condition=established", "--timeout=60s"),
    (*KUBECTL, "apply", "-k", f"{MANIFESTS}/env/platform-agnostic?ref=2.17.0"),
    (*KUBECTL, "apply", "-k", "deploy/rbac"),
    (*KUBECTL, "apply", "-k", "deploy/kfp-storage"),
    (*KUBECTL, "label", "namespace", "kubeflow", "--overwrite", "twotower.dev/applied=2.17.0"),
]
CREATE = ("kind", "create", "cluster", "--name", "twotower", "--config", "deploy/kind/cluster.yaml", "--wait", "5m")
START = ("docker", "start", "twotower-control-plane")
NAMESPACE = (*KUBECTL, "get", "namespace", "kubeflow", "--ignore-not-found", "--output", "json")
IMAGE = "twotower-pipeline:1a2b3c4d5e6f"
HAS_IMAGE = ("docker", "image", "inspect", "--format", "{{.Id}}", IMAGE)
LOAD = ("kind", "load", "docker-image", IMAGE, "--name", "twotower")


def forward_to(port: int) -> tuple[str, ...]:
    target = ("--namespace", "kubeflow", "svc/ml-pipeline-ui", f"{port}:80", "--address", "127.0.0.1")
    return (*KUBECTL, "port-forward", *target)


@pytest.fixture(autouse=True)
def in_repository(monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config) -> None:
    monkeypatch.chdir(pytestconfig.rootpath)


def test_from_nothing_to_the_page(stand_ins: Any) -> None:
    result = stand_ins.run("up", "--no-open")
    assert (result.exit_code, result.stdout) == (0, f"http://127.0.0.1:{stand_ins.port}\n"), result.stderr
    assert stand_ins.calls() == [
        *LOOK_AT_MACHINE,
        HAS_IMAGE,
        ("kind", "get", "clusters"),
        FIND,
        CREATE,
        *APPLY,
        LOAD,
        LOOK_AT_WORKLOADS,
        forward_to(stand_ins.port),
    ]
    assert "Create the cluster" in result.stderr
    assert result.stderr.rstrip().endswith("3 of 3 ready")


def test_the_port_forward_outlives_the_command_and_answers(stand_ins: Any) -> None:
    result = stand_ins.run("up", "--no-open")
    assert result.exit_code == 0, result.stderr
    with socket.create_connection(("127.0.0.1", stand_ins.port), timeout=5):
        assert forward.alive(stand_ins.settings) is not None


def test_a_second_up_leaves_what_is_there_as_it_is(stand_ins: Any) -> None:
    stand_ins.run("up", "--no-open")
    started = forward.alive(stand_ins.settings)
    stand_ins.forget()
    result = stand_ins.run("up", "--no-open")
    assert result.exit_code == 0, result.stderr
    # No create, no apply, no second port-forward; a node that the machine has stopped would be started.
    assert stand_ins.calls() == [
        *LOOK_AT_MACHINE,
        HAS_IMAGE,
        ("kind", "get", "clusters"),
        START,
        NAMESPACE,
        LOAD,  # kind itself leaves out what the node has.
        LOOK_AT_WORKLOADS,
    ]
    assert forward.alive(stand_ins.settings) == started


def test_an_up_that_was_stopped_while_applying_goes_on_there(stand_ins: Any) -> None:
    offline = {
        "rc": 1,
        "stderr": 'E1125 10:03:38 run.go:72] "command failed" err=<\n\tfailed to run \'/usr/bin/git fetch --depth=1 '
        "https://github.com/kubeflow/pipelines 2.17.0': fatal: unable to access "
        "'https://github.com/kubeflow/pipelines/': Could not resolve host: github.com\n\t: exit status 128\n >\n",
    }
    stand_ins.play("apply -k", "platform-agnostic", answers=[offline, {}])
    first = stand_ins.run("up", "--no-open")
    assert first.exit_code == 2
    told = first.stderr.strip().splitlines()[-1]
    assert told.startswith("Error: kubectl --context kind-twotower apply: ")
    assert "Could not resolve host: github.com" in told
    assert told.endswith("`twotower cluster up` goes on from here once that is mended.")
    stand_ins.forget()
    assert stand_ins.run("up", "--no-open").exit_code == 0
    called = stand_ins.calls()
    assert CREATE not in called
    assert called[4:11] == [("kind", "get", "clusters"), START, NAMESPACE, FIND, *APPLY[:3]]


def test_a_node_that_was_off_is_waited_for(stand_ins: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twotower.cluster.lifecycle.INTERVAL", 0.01)
    stand_ins.have_cluster()
    refused = {"rc": 1, "stderr": "The connection to the server 127.0.0.1:6443 was refused"}
    labelled = {"stdout": '{"metadata": {"labels": {"twotower.dev/applied": "2.17.0"}}}'}
    stand_ins.play("get namespace", answers=[refused, refused, labelled])
    assert stand_ins.run("up", "--no-open").exit_code == 0
    assert stand_ins.calls().count(NAMESPACE) == 3


def test_another_release_in_the_cluster_is_refused(stand_ins: Any) -> None:
    stand_ins.have_cluster(applied="2.16.0")
    result = stand_ins.run("up", "--no-open")
    assert result.exit_code == 2
    assert "has Kubeflow Pipelines 2.16.0, not 2.17.0. Keep it with --pipeline-version 2.16.0" in result.stderr


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        ("1.7.0", "its overlay platform-agnostic-pns was deleted in 2024"),
        ("1.8.5", "its overlay platform-agnostic-pns was deleted in 2024"),
        ("2.0.0", "it needs an image of MinIO that its registry has lost"),
        ("2.14.3", "it needs an image of MinIO that its registry has lost"),
        ("master", "not the name of a release"),
        ("2.17", "not the name of a release"),
        ("2.17.0;rm", "not the name of a release"),
        ("", "not the name of a release"),
    ],
)
def test_a_release_that_cannot_work_is_refused_with_the_reason(stand_ins: Any, version: str, reason: str) -> None:
    result = stand_ins.run("up", "--pipeline-version", version)
    assert result.exit_code == 2
    assert reason in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert stand_ins.calls() == []


@pytest.mark.parametrize("version", ["2.15.0", "2.16.1", "2.17.0", "3.0.0", "2.18.0-rc.1"])
def test_a_release_that_can_work_is_applied(stand_ins: Any, version: str) -> None:
    result = stand_ins.run("up", "--dry-run", "--pipeline-version", version)
    assert f"env/platform-agnostic?ref={version}" in result.stdout
    assert "env/dev" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--name", "Two Tower"), "only lower-case letters"),
        (("--name", "--all"), "only lower-case letters"),
        (("--port", "0"), "not between 1 and 65535"),
        (("--image", "twotower-pipeline"), "not NAME:TAG"),
        (("--image", "--all:1"), "not NAME:TAG"),
        (("--image", "twotower-pipeline:latest"), "Give the image a tag of its own"),
        (("--timeout", "soon"), "give one such as 90s, 15m or 1h"),
    ],
)
def test_an_option_that_cannot_be_is_refused(stand_ins: Any, arguments: tuple[str, ...], reason: str) -> None:
    result = stand_ins.run("up", *arguments)
    assert result.exit_code == 2
    assert reason in result.stderr
    assert stand_ins.calls() == []


@pytest.mark.parametrize("tool", ["docker", "kind", "kubectl", "git"])
def test_a_missing_tool_is_named_with_the_command_that_installs_it(stand_ins: Any, tool: str) -> None:
    stand_ins.remove(tool)
    result = stand_ins.run("up")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: {tool} is not on the PATH. Install it: ")
    assert stand_ins.calls() == []


def test_a_port_of_another_program_stops_it_before_anything_is_made(stand_ins: Any) -> None:
    with socket.create_server(("127.0.0.1", stand_ins.port)):
        result = stand_ins.run("up")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: port {stand_ins.port} of this machine cannot be had: ")
    assert f"choose another: --port {stand_ins.port + 1}." in result.stderr
    assert stand_ins.calls() == LOOK_AT_MACHINE


def test_too_little_memory_stops_it_and_little_memory_is_told(stand_ins: Any) -> None:
    gib = 2**30
    answers = [{"stdout": f"28.3.2 {memory} /no/such/folder\n"} for memory in (3 * gib, 5 * gib)]
    stand_ins.play("docker info", answers=answers)
    first, second = (stand_ins.run("up", "--no-open") for _ in answers)
    assert (first.exit_code, second.exit_code) == (2, 0)
    assert "Error: Docker has 3.0 GiB of memory; 6 GiB are needed." in first.stderr
    assert "Warning: Docker has 5.0 GiB of memory; 6 GiB are needed." in second.stderr


def test_an_image_that_docker_does_not_have_stops_it_before_anything_is_made(stand_ins: Any) -> None:
    stand_ins.play(
        "image inspect", answers=[{"rc": 1, "stderr": f"Error response from daemon: No such image: {IMAGE}"}]
    )
    result = stand_ins.run("up")
    assert result.exit_code == 2
    assert f"--image {IMAGE}: Error response from daemon: No such image: {IMAGE}. Build it first" in result.stderr
    assert stand_ins.calls() == [*LOOK_AT_MACHINE, HAS_IMAGE]


def test_without_a_choice_both_images_of_this_code_are_loaded_where_docker_has_them(stand_ins: Any) -> None:
    pipeline, serve = tagged(PIPELINE), tagged(SERVE)
    stand_ins.play("image inspect", serve, answers=[{"rc": 1, "stderr": "No such image"}])
    result = stand_ins.invoke("up", "--no-open")
    assert result.exit_code == 0, result.stderr
    assert f"Docker has no image {serve}, so the cluster gets none." in result.stderr
    loads = [call for call in stand_ins.calls() if call[:2] == ("kind", "load")]
    assert loads == [("kind", "load", "docker-image", pipeline, "--name", "twotower")]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (
            {"rc": 2},
            "Error: Kubeflow Pipelines has no release 2.99.0. Choose another, such as --pipeline-version 2.17.0.",
        ),
        (
            {"rc": 128, "stderr": "fatal: unable to access '...': Could not resolve host: github.com"},
            "Error: the manifests of Kubeflow Pipelines cannot be fetched: fatal: unable to access '...': Could not "
            "resolve host: github.com. Let this machine reach github.com",
        ),
    ],
)
def test_manifests_that_cannot_be_had_stop_it_before_a_cluster_is_made(
    stand_ins: Any, answer: dict[str, Any], told: str
) -> None:
    stand_ins.play("ls-remote", answers=[answer])
    result = stand_ins.run("up", "--pipeline-version", "2.99.0")
    assert result.exit_code == 2
    assert result.stderr.startswith(told)
    assert not any(call[:2] == ("kind", "create") for call in stand_ins.calls())


def test_what_is_waited_for_is_told_once_for_each_change(
    stand_ins: Any, made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twotower.cluster.wait.INTERVAL", 0.01)
    stand_ins.have_cluster()
    late, ready = made.deployment("mysql", ready=False), made.deployment("mysql")
    creating = made.pod("mysql", status=made.waiting("ContainerCreating"))
    pulling = made.pod("mysql", status=made.waiting("ImagePullBackOff", "not found"))
    looks = [[late], [late, creating], [late, creating], [late, pulling], [ready]]
    stand_ins.play("get deployments", answers=[{"stdout": items_of(look)} for look in looks])
    result = stand_ins.run("up", "--no-open")
    assert result.exit_code == 0
    at = result.stderr.splitlines().index("0 of 1 ready")
    assert result.stderr.splitlines()[at:] == [
        "0 of 1 ready",
        "  mysql: no pod yet",
        "  mysql: ContainerCreating",
        "  mysql: image pull: ghcr.io/kubeflow/kfp-api-server:2.17.0: not found",
        "1 of 1 ready",
    ]


def test_time_that_is_up_says_what_is_not_ready_and_why(stand_ins: Any, made: Any) -> None:
    stand_ins.have_cluster()
    down = made.waiting("CrashLoopBackOff", last={"exitCode": 1, "reason": "Error"})
    stand_ins.show(
        made.deployment("ml-pipeline"), made.deployment("mysql", ready=False), made.pod("mysql", status=down)
    )
    stand_ins.play("logs mysql-7d9f8-abcde", answers=[{"stdout": "starting\ncannot lock ibdata1\n"}])
    result = stand_ins.run("up", "--timeout", "0s")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith(
        "Error: kubeflow: 1 of 2 ready after 0 s; mysql: crash loop: main ended with code 1, again and again; "
        "last: starting | cannot lock ibdata1. `twotower cluster doctor` says what is wrong."
    )


def test_a_look_that_fails_is_made_again(stand_ins: Any, made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twotower.cluster.wait.INTERVAL", 0.01)
    stand_ins.have_cluster()
    busy = {"rc": 1, "stderr": "Unable to connect to the server: net/http: TLS handshake timeout"}
    ready = {"stdout": items_of([made.deployment("mysql")])}
    stand_ins.play("get deployments", answers=[busy, ready])
    assert stand_ins.run("up", "--no-open").exit_code == 0


def test_a_cluster_that_never_answers_is_told_as_that(stand_ins: Any) -> None:
    stand_ins.have_cluster()
    stand_ins.play("get deployments", answers=[{"rc": 1, "stderr": "Unable to connect to the server"}])
    result = stand_ins.run("up", "--timeout", "0s")
    assert result.exit_code == 2
    assert "kubeflow: 0 of 0 ready after 0 s; kubectl: Unable to connect to the server." in result.stderr


def test_a_command_that_does_not_answer_is_ended(stand_ins: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from twotower.cluster import tools

    stand_ins.play("kind version", answers=[{"sleep": 30}])
    finished = tools.run(tools.Command(argv=("kind", "version"), why="", timeout=1))
    assert (finished.returncode, finished.complaint) == (tools.NO_ANSWER, "no answer within 1 s")


def items_of(objects: list[dict[str, Any]]) -> str:
    return json.dumps({"items": objects})
