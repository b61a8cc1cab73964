"""Stand-ins for the programs that `twotower cluster` calls: real executables on the PATH that record and play."""

import json
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from twotower.cli.cluster import cluster
from twotower.cli.main import Commands
from twotower.cluster import forward
from twotower.cluster.plan import ClusterSettings

TOOLS = ("docker", "kind", "kubectl", "git", "browser")
IMAGE = "twotower-pipeline:1a2b3c4d5e6f"
PLAYER = Path(__file__).with_name("stand_in.py")


class StandIns:
    """The programs as a test sees them: what they answer, and what they were asked."""

    def __init__(self, folder: Path, *, port: int) -> None:
        self.folder, self.port = folder, port
        self.rules: list[dict[str, Any]] = []
        self.player = shutil.copy(PLAYER, folder)
        (folder / "bin").mkdir()
        for tool in TOOLS:
            self._install(tool)
        self.show(deployment("ml-pipeline"), deployment("mysql"), job("init-seaweedfs"))
        self.write("nodes.json", {"items": [node()]})

    def _install(self, tool: str) -> None:
        if os.name == "nt":
            launcher, text = f"{tool}.cmd", f'@"{sys.executable}" -SE "{self.player}" {tool} %*\r\n'
        else:
            launcher, text = tool, f'#!/bin/sh\nexec "{sys.executable}" -SE "{self.player}" {tool} "$@"\n'
        path = self.folder / "bin" / launcher
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)

    def remove(self, tool: str) -> None:
        for path in (self.folder / "bin").glob(f"{tool}*"):
            if path.stem == tool:
                path.unlink()

    def write(self, name: str, value: Any) -> None:
        (self.folder / name).write_text(json.dumps(value), encoding="utf-8")

    def play(self, *calls: str, answers: list[dict[str, Any]]) -> None:
        """From now on a call that contains all these words gets these answers, one after the other."""
        self.rules.append({"calls": calls, "answers": answers})
        self.write("scenario.json", self.rules)

    def show(self, *objects: dict[str, Any]) -> None:
        """What runs in the cluster from now on."""
        self.write("workloads.json", {"items": objects})

    def have_cluster(self, *, applied: str | None = "2.17.0") -> None:
        """A cluster that somebody made before."""
        self.write("state.json", {"clusters": ["twotower"], "applied": applied})

    def calls(self) -> list[tuple[str, ...]]:
        path = self.folder / "calls.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        called = [tuple(json.loads(line)) for line in lines]
        # With -C it is asked for the code's own tag, which is no part of what is done to a cluster.
        return [call for call in called if call[:2] != ("git", "-C")]

    def forget(self) -> None:
        (self.folder / "calls.jsonl").unlink(missing_ok=True)

    def run(self, command: str, *arguments: str) -> Result:
        """`twotower cluster COMMAND ...`, in process, at a port of this test's own; `up` with one image."""
        if command == "up" and "--image" not in arguments:
            arguments = ("--image", IMAGE, *arguments)
        return self.invoke(command, *arguments)

    def invoke(self, command: str, *arguments: str) -> Result:
        """The same, exactly as it is written."""
        group = Commands("twotower", {"cluster": cluster})
        port = ["--port", str(self.port)] if "--port" not in arguments else []
        return CliRunner().invoke(group, ["cluster", command, *port, *arguments])

    @property
    def settings(self) -> ClusterSettings:
        return ClusterSettings(port=self.port)


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIns]:
    """Healthy tools and no cluster; nothing else is on the PATH, and state is kept in the test's folder."""
    programs = StandIns(tmp_path, port=free_port())
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("TWOTOWER_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setattr("twotower.cluster.preflight.INOTIFY", {})
    yield programs
    forward.stop(programs.settings)


@pytest.fixture
def made() -> SimpleNamespace:
    """Resources as the API server describes them: `made.pod(...)`, `made.deployment(...)` and so on."""
    return SimpleNamespace(deployment=deployment, job=job, pod=pod, waiting=waiting, node=node)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def deployment(name: str, *, ready: bool = True, namespace: str = "kubeflow") -> dict[str, Any]:
    count = 1 if ready else 0
    return {
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace, "generation": 1},
        "spec": {"replicas": 1},
        "status": {"observedGeneration": 1, "availableReplicas": count, "updatedReplicas": 1},
    }


def job(name: str, *, complete: bool = True) -> dict[str, Any]:
    conditions = [{"type": "Complete", "status": "True"}] if complete else []
    return {
        "kind": "Job",
        "metadata": {"name": name, "namespace": "kubeflow"},
        "spec": {},
        "status": {"conditions": conditions},
    }


def pod(deployment: str, *, status: dict[str, Any], claims: tuple[str, ...] = ()) -> dict[str, Any]:
    volumes = [{"name": claim, "persistentVolumeClaim": {"claimName": claim}} for claim in claims]
    return {
        "kind": "Pod",
        "metadata": {
            "name": f"{deployment}-7d9f8-abcde",
            "namespace": "kubeflow",
            "ownerReferences": [{"kind": "ReplicaSet", "name": f"{deployment}-7d9f8"}],
        },
        "spec": {"volumes": volumes},
        "status": status,
    }


def waiting(reason: str, message: str = "", *, last: dict[str, Any] | None = None) -> dict[str, Any]:
    """The status of a pod whose only container waits."""
    container = {
        "name": "main",
        "image": "ghcr.io/kubeflow/kfp-api-server:2.17.0",
        "state": {"waiting": {"reason": reason, "message": message}},
        "lastState": {"terminated": last} if last else {},
    }
    return {"phase": "Pending", "containerStatuses": [container]}


def node(**conditions: str) -> dict[str, Any]:
    told = {"Ready": "True", "DiskPressure": "False", "MemoryPressure": "False", **conditions}
    return {
        "kind": "Node",
        "metadata": {"name": "twotower-control-plane"},
        "status": {
            "conditions": [{"type": kind, "status": status, "message": ""} for kind, status in told.items()],
            "images": [
                {"names": ["docker.io/library/twotower-pipeline@sha256:1", "docker.io/library/twotower-pipeline:abc"]},
                {"names": ["ghcr.io/kubeflow/kfp-frontend:2.17.0"]},
            ],
        },
    }
