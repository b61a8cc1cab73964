"""`twotower cluster open`, `status` and `down`."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from twotower.cluster import forward

RUN = "import sys; from twotower.cli.cluster import cluster; cluster(sys.argv[1:])"


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_open_starts_a_port_forward_that_has_ended_again(stand_ins: Any) -> None:
    stand_ins.run("up", "--no-open")
    first = forward.alive(stand_ins.settings)
    assert first is not None
    forward.end(first)
    while forward.alive(stand_ins.settings) is not None:
        time.sleep(0.05)
    result = stand_ins.run("open", "--no-open")
    assert (result.exit_code, result.stdout) == (0, f"http://127.0.0.1:{stand_ins.port}\n")
    assert forward.alive(stand_ins.settings) != first
    assert is_open(stand_ins.port)


def test_open_at_another_port_ends_the_old_port_forward(stand_ins: Any) -> None:
    stand_ins.run("up", "--no-open")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        other = probe.getsockname()[1]
    assert stand_ins.run("open", "--no-open", "--port", str(other)).exit_code == 0
    assert (is_open(stand_ins.port), is_open(other)) == (False, True)


def test_open_without_a_cluster_says_how_to_make_one(stand_ins: Any) -> None:
    result = stand_ins.run("open")
    assert result.exit_code == 2
    assert result.stderr == "Error: there is no cluster 'twotower'. Make it: twotower cluster up --name twotower.\n"


def test_a_port_forward_that_ends_at_once_says_its_last_words(stand_ins: Any) -> None:
    stand_ins.have_cluster()
    said = 'Error from server (NotFound): services "ml-pipeline-ui" not found\n'
    stand_ins.play("port-forward", answers=[{"rc": 1, "stderr": said}])
    result = stand_ins.run("open", "--no-open")
    assert result.exit_code == 2
    assert f"did not answer: {said.strip()}. `twotower cluster doctor`" in result.stderr
    assert forward.recorded(stand_ins.settings) is None


def test_a_process_id_that_is_another_programs_by_now_is_left_alone(stand_ins: Any) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        record = forward.record_path(stand_ins.settings)
        record.parent.mkdir(parents=True)
        record.write_text(json.dumps({"pid": other.pid, "port": stand_ins.port}), encoding="utf-8")
        assert not forward.stop(stand_ins.settings)
        assert other.poll() is None
        other.communicate(b"\n")


def test_a_damaged_record_counts_as_none(stand_ins: Any) -> None:
    record = forward.record_path(stand_ins.settings)
    record.parent.mkdir(parents=True)
    record.write_text('{"pid": ', encoding="utf-8")
    assert forward.alive(stand_ins.settings) is None


@pytest.mark.skipif(os.name == "nt", reason="Windows opens pages by the registry, not by BROWSER")
def test_the_page_is_opened_in_the_browser(stand_ins: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_ins.have_cluster()
    monkeypatch.setenv("BROWSER", f"{stand_ins.folder / 'bin' / 'browser'} %s")
    command = [sys.executable, "-c", RUN, "open", "--port", str(stand_ins.port)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    assert stand_ins.calls()[-1] == ("browser", f"http://127.0.0.1:{stand_ins.port}")


def test_status_tells_everything_in_a_table(stand_ins: Any, made: Any) -> None:
    stand_ins.run("up", "--no-open")
    stand_ins.show(
        made.deployment("ml-pipeline"),
        made.deployment("mysql", ready=False),
        made.pod("mysql", status=made.waiting("ImagePullBackOff", "not found")),
    )
    stand_ins.forget()
    result = stand_ins.run("status")
    assert result.exit_code == 0, result.stderr
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "node twotower-control-plane, running" in lines
    assert "Kubeflow Pipelines 2.17.0" in lines
    assert "workloads 1 of 2 ready" in lines
    assert f"port-forward http://127.0.0.1:{stand_ins.port}" in lines
    assert "images twotower-pipeline:abc" in lines
    assert "mysql image pull: ghcr.io/kubeflow/kfp-api-server:2.17.0: not found" in lines
    assert [call[0] for call in stand_ins.calls()] == ["kind", "docker", "kubectl", "kubectl", "kubectl"]


def test_status_without_a_cluster_says_how_to_make_one(stand_ins: Any) -> None:
    result = stand_ins.run("status")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "There is no cluster 'twotower'. Make it: twotower cluster up --name twotower\n"


def test_status_of_a_cluster_whose_node_is_off_says_how_to_start_it(stand_ins: Any) -> None:
    stand_ins.have_cluster()
    stand_ins.play("docker inspect", answers=[{"stdout": "exited\n"}])
    result = stand_ins.run("status")
    assert result.exit_code == 2
    assert result.stderr == (
        "Error: the node of cluster 'twotower' is exited. Start it: twotower cluster up --name twotower.\n"
    )


def test_status_where_docker_does_not_answer_is_one_line(stand_ins: Any) -> None:
    stand_ins.play("get clusters", answers=[{"rc": 1, "stderr": "ERROR: failed to list clusters: exit status 1"}])
    result = stand_ins.run("status")
    assert result.exit_code == 2
    assert result.stderr.startswith(
        "Error: kind get clusters: ERROR: failed to list clusters: exit status 1. Is Docker"
    )
    assert len(result.stderr.splitlines()) == 1


def test_down_ends_the_port_forward_and_deletes_the_cluster(stand_ins: Any) -> None:
    stand_ins.run("up", "--no-open")
    stand_ins.forget()
    result = stand_ins.run("down")
    assert (result.exit_code, result.stdout) == (0, "Cluster 'twotower' is deleted.\n"), result.stderr
    assert stand_ins.calls() == [("kind", "get", "clusters"), ("kind", "delete", "cluster", "--name", "twotower")]
    assert forward.recorded(stand_ins.settings) is None
    assert not is_open(stand_ins.port)


def test_down_without_a_cluster_says_so(stand_ins: Any) -> None:
    result = stand_ins.run("down")
    assert (result.exit_code, result.stdout) == (0, "There was no cluster 'twotower'.\n")
    assert stand_ins.calls() == [("kind", "get", "clusters")]


def test_clusters_of_other_names_are_left_alone(stand_ins: Any) -> None:
    stand_ins.write("state.json", {"clusters": ["twotower-2", "mine"], "applied": None})
    assert stand_ins.run("down").stdout == "There was no cluster 'twotower'.\n"


@pytest.mark.parametrize(
    ("system", "variable", "folder"),
    [
        ("linux", "XDG_STATE_HOME", "twotower"),
        ("windows", "LOCALAPPDATA", "twotower"),
    ],
)
def test_state_is_kept_where_the_system_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str, variable: str, folder: str
) -> None:
    monkeypatch.delenv("TWOTOWER_STATE_DIR", raising=False)
    monkeypatch.setattr(forward, "this_system", lambda: system)
    monkeypatch.setenv(variable, str(tmp_path))
    assert forward.state_dir() == tmp_path / folder
