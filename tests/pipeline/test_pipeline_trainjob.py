"""Training handed to Kubeflow Trainer: the real Kubernetes client, over HTTP, against a server that plays the API."""

import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kube_api
import pytest

from twotower.errors import PipelineError
from twotower.pipeline.trainjob import TrainJobSpec, launch_train_job, train_job_manifest

COMPLETE = {"type": "Complete", "status": "True", "reason": "JobsCompleted", "message": "jobset completed successfully"}
FAILED = {
    "type": "Failed",
    "status": "True",
    "reason": "JobsFailed",
    "message": "jobset failed due to one job\nfailing",
}


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    with kube_api.KubeApi() as served:
        monkeypatch.setenv("KUBECONFIG", str(served.write_kubeconfig(tmp_path / "config")))
        yield served


def spec(**fields: Any) -> TrainJobSpec:
    given = {
        "name": "films",
        "namespace": "kubeflow",
        "image": "twotower-pipeline:abc",
        "recipe": "films.toml",
        "split": "s3://b/split",
        "out": "s3://b/model",
    }
    return TrainJobSpec(**given | fields)


def launch(job: TrainJobSpec | None = None, **options: Any) -> list[str]:
    """What was reported, also where the launch fails."""
    lines: list[str] = []
    options = {"poll": 0.01, "timeout": 5.0} | options
    try:
        launch_train_job(job or spec(), report=lines.append, **options)
    except PipelineError as fault:
        lines.append(f"FAULT {fault}")
    assert not any("\n" in line for line in lines)
    return lines


def pod(index: int, phase: str, **container: Any) -> dict[str, Any]:
    """A pod of node `index`, labelled as JobSet labels it."""
    labels = {
        "jobset.sigs.k8s.io/jobset-name": "films",
        "jobset.sigs.k8s.io/replicatedjob-name": "node",
        "batch.kubernetes.io/job-completion-index": str(index),
    }
    metadata = {"name": f"films-node-0-{index}-x", "namespace": "kubeflow", "labels": labels}
    status = {"phase": phase, "containerStatuses": [{"name": "node", "image": "twotower-pipeline:abc"} | container]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": status}


# The manifest


def test_the_manifest_says_what_to_train_and_where() -> None:
    job = train_job_manifest(
        spec(
            nodes=2,
            arguments=("--set", "train.epochs=3"),
            limits={"memory": "8Gi", "nvidia.com/gpu": "1"},
            env={"A": "1"},
            secret_env={"AWS_SECRET_ACCESS_KEY": ("twotower-storage", "secret")},
        )
    )

    assert (job["apiVersion"], job["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    assert job["metadata"]["name"] == "films"
    assert job["metadata"]["namespace"] == "kubeflow"
    secret = {"secretKeyRef": {"name": "twotower-storage", "key": "secret"}}
    assert job["spec"] == {
        "runtimeRef": {"name": "jax-distributed"},
        "trainer": {
            "image": "twotower-pipeline:abc",
            "command": [
                *("twotower", "train", "films.toml", "--split", "s3://b/split", "--out", "s3://b/model"),
                *("--set", "train.epochs=3"),
            ],
            "numNodes": 2,
            "resourcesPerNode": {
                "requests": {"cpu": "1", "memory": "2Gi"},
                "limits": {"memory": "8Gi", "nvidia.com/gpu": "1"},
            },
            "env": [{"name": "A", "value": "1"}, {"name": "AWS_SECRET_ACCESS_KEY", "valueFrom": secret}],
        },
    }


def test_what_only_pods_can_be_told_is_a_patch_of_the_runtime() -> None:
    gpu = {"key": "nvidia.com/gpu", "operator": "Exists"}
    job = train_job_manifest(spec(service_account="trainer", tolerations=[gpu], node_selector={"pool": "gpu"}))

    (patch,) = job["spec"]["runtimePatches"]
    (replicated,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert replicated["name"] == "node"
    assert replicated["template"]["spec"]["template"]["spec"] == {
        "serviceAccountName": "trainer",
        "nodeSelector": {"pool": "gpu"},
        "tolerations": [gpu],
    }


@pytest.mark.parametrize("name", ["Films", "1films", "films-", "films_a", "f" * 41, ""])
def test_a_name_that_kubernetes_would_refuse_is_refused(name: str) -> None:
    with pytest.raises(PipelineError, match=r"begins with a letter"):
        train_job_manifest(spec(name=name))


def test_no_nodes_are_refused() -> None:
    with pytest.raises(PipelineError, match=r"0 nodes, but it takes at least 1"):
        train_job_manifest(spec(nodes=0))


# The launch


def test_a_launch_reports_the_first_nodes_log_once_and_ends_with_the_job(api: Any) -> None:
    log = api.logs["kubeflow", "films-node-0-0-x"] = ["epoch 1"]
    api.on_write("trainjobs", lambda api, job: api.put(pod(0, "Running")))
    api.on_write("trainjobs", lambda api, job: api.put(pod(1, "Running")))
    api.logs["kubeflow", "films-node-0-1-x"] = ["from the second node"]
    done = {"conditions": [COMPLETE]}
    api.on_write(
        "trainjobs", lambda api, job: api.later(0.2, lambda: log.append("epoch 2 \N{GREEK SMALL LETTER EPSILON}"))
    )
    api.on_write(
        "trainjobs", lambda api, job: api.later(0.4, lambda: api.set_status("trainjobs", "films", "kubeflow", done))
    )

    assert launch(spec(nodes=2)) == [
        "TrainJob kubeflow/films: 2 nodes of twotower-pipeline:abc",
        "epoch 1",
        "epoch 2 \N{GREEK SMALL LETTER EPSILON}",
        "TrainJob kubeflow/films: Complete: JobsCompleted: jobset completed successfully",
    ]
    assert api.get("trainjobs", "films", "kubeflow")["spec"]["trainer"]["numNodes"] == 2


def test_unknown_fields_are_not_dropped_in_silence(api: Any) -> None:
    api.progress("trainjobs", "films", [{"conditions": [COMPLETE]}])
    launch()

    (created,) = [asked for asked in api.requests if asked.verb == "create"]
    assert created.query["fieldValidation"] == "Strict"


def test_a_suspended_job_is_told_and_waited_for(api: Any) -> None:
    suspended = {"type": "Suspended", "status": "True", "reason": "Suspended", "message": "TrainJob is suspended"}
    resumed = suspended | {"status": "False", "reason": "Resumed"}
    api.progress(
        "trainjobs",
        "films",
        [{"conditions": [suspended]}] * 3 + [{"conditions": [resumed]}, {"conditions": [COMPLETE]}],
    )

    assert launch()[1:] == [
        "TrainJob kubeflow/films: Suspended: Suspended: TrainJob is suspended",
        "TrainJob kubeflow/films: Complete: JobsCompleted: jobset completed successfully",
    ]


def test_a_failure_names_its_reason_and_its_pod_shows_the_log_and_keeps_the_job(api: Any) -> None:
    ended = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    api.on_write("trainjobs", lambda api, job: api.put(pod(0, "Running")))
    api.on_write("trainjobs", lambda api, job: api.put(pod(1, "Failed", state=ended)))
    api.logs["kubeflow", "films-node-0-1-x"] = ["step 1", "step 2"]
    api.progress("trainjobs", "films", [{}, {"conditions": [FAILED]}])

    assert launch()[-4:] == [
        "The end of the log of films-node-0-1-x (OOMKilled, exit code 137):",
        "step 1",
        "step 2",
        "FAULT TrainJob kubeflow/films failed: JobsFailed: jobset failed due to one job failing (films-node-0-1-x: "
        "OOMKilled, exit code 137). It is kept: kubectl describe trainjob -n kubeflow films.",
    ]
    assert api.names("trainjobs", "kubeflow") == ["films"]


def test_an_image_that_cannot_be_pulled_ends_the_launch_and_the_job(api: Any) -> None:
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}}
    api.on_write("trainjobs", lambda api, job: api.put(pod(0, "Pending", state=waiting)))

    *_, fault = launch(patience=0.1)

    assert fault == (
        "FAULT TrainJob kubeflow/films: a pod has not started for 0.1 s, deleted. films-node-0-0-x: ImagePullBackOff: "
        "Back-off pulling image (image twotower-pipeline:abc)."
    )
    assert api.names("trainjobs", "kubeflow") == []


def test_a_job_that_takes_too_long_is_deleted(api: Any) -> None:
    api.on_write("trainjobs", lambda api, job: api.put(pod(0, "Running")))

    *_, fault = launch(timeout=0.1)

    assert fault == (
        "FAULT TrainJob kubeflow/films: not done after 0.1 s, deleted. Last seen: films-node-0-0-x Running."
    )
    assert api.names("trainjobs", "kubeflow") == []


@pytest.mark.skipif(sys.platform == "win32", reason="a process there cannot send itself this signal")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_deletes_the_job_and_leaves_the_handlers_as_they_were(api: Any, number: int) -> None:
    before = signal.getsignal(signal.SIGTERM)
    timer = threading.Timer(0.3, signal.raise_signal, [number])
    api.on_write("trainjobs", lambda api, job: timer.start())

    with pytest.raises(KeyboardInterrupt):
        launch()
    assert api.names("trainjobs", "kubeflow") == []
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_api_that_is_away_for_a_moment_does_not_end_the_launch(api: Any) -> None:
    api.refuse("get", "trainjobs", status=503, reason="ServiceUnavailable", message="etcd is electing", times=1)
    api.progress("trainjobs", "films", [{"conditions": [COMPLETE]}])

    assert launch()[1] == "TrainJob kubeflow/films: Kubernetes answers 503 to get: etcd is electing. Trying again."


# A launch that is tried again


def test_a_second_attempt_goes_on_with_the_job_of_the_first(api: Any) -> None:
    api.put(train_job_manifest(spec()))
    api.progress("trainjobs", "films", [{}, {"conditions": [COMPLETE]}])

    assert "it is there already, from an attempt before this one; going on with it" in launch()[0]


def test_a_second_attempt_starts_anew_where_the_first_has_failed(api: Any) -> None:
    api.put(train_job_manifest(spec()))
    first = api.get("trainjobs", "films", "kubeflow")["metadata"]["uid"]
    api.set_status("trainjobs", "films", "kubeflow", {"conditions": [FAILED]})
    api.on_write(
        "trainjobs", lambda api, job: api.set_status("trainjobs", "films", "kubeflow", {"conditions": [COMPLETE]})
    )

    assert launch()[-1] == "TrainJob kubeflow/films: Complete: JobsCompleted: jobset completed successfully"
    assert api.get("trainjobs", "films", "kubeflow")["metadata"]["uid"] != first


def test_another_job_of_the_name_is_left_alone(api: Any) -> None:
    api.put(train_job_manifest(spec(recipe="other.toml")))

    (fault,) = launch()

    assert "there is another job of that name: kubectl delete trainjob -n kubeflow films" in fault
    assert api.names("trainjobs", "kubeflow") == ["films"]


# A cluster that refuses


def test_a_cluster_without_kubeflow_trainer_is_told_how_to_install_it(monkeypatch: Any, tmp_path: Path) -> None:
    others = [each for each in kube_api.RESOURCES if each.plural != "trainjobs"]
    with kube_api.KubeApi(resources=others) as api:
        monkeypatch.setenv("KUBECONFIG", str(api.write_kubeconfig(tmp_path / "config")))
        (fault,) = launch()

    assert "does not know TrainJobs; install Kubeflow Trainer: kubectl apply --server-side -k" in fault


def test_a_namespace_that_is_not_there_is_told(api: Any) -> None:
    (fault,) = launch(spec(namespace="films"))

    assert fault == ("FAULT TrainJob films/films: there is no namespace films: kubectl create namespace films.")


def test_missing_rights_are_told_with_where_they_are_given(api: Any) -> None:
    api.rules = {}

    (fault,) = launch()

    assert "not allowed (403)" in fault
    assert 'cannot create resource "trainjobs"' in fault
    assert "deploy/rbac" in fault


def test_a_trainer_that_is_too_old_for_the_patch_is_told(api: Any) -> None:
    said = (
        'TrainJob in version "v1alpha1" cannot be handled: strict decoding error: unknown field "spec.runtimePatches"'
    )
    api.refuse("create", "trainjobs", status=400, reason="BadRequest", message=said)

    (fault,) = launch(spec(service_account="trainer"))

    assert "update it to 2.2 or newer" in fault


def test_a_cluster_that_is_not_there_is_told(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    assert "no cluster is set up here" in launch()[0]

    with kube_api.KubeApi() as api:
        monkeypatch.setenv("KUBECONFIG", str(api.write_kubeconfig(tmp_path / "config")))
    (fault,) = launch()
    assert "Kubernetes cannot be reached" in fault


def test_a_refused_deletion_is_told_beside_the_fault_that_led_to_it(api: Any) -> None:
    api.refuse("delete", "trainjobs", status=403, reason="Forbidden", message="no")

    lines = launch(timeout=0.05)

    assert "It may still be running: kubectl delete trainjob -n kubeflow films" in lines[-2]
    assert "not done after 0.05 s" in lines[-1]
