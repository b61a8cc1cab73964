"""The rights in deploy/rbac are enough for what hands the training to the cluster, and none is too many."""

from typing import Any

import pytest
import yaml

from twotower.errors import PipelineError
from twotower.pipeline.trainjob import TrainJobSpec, launch_train_job
from twotower.release.manifests import deploy_file

SPEC = TrainJobSpec(
    name="nightly",
    namespace="kubeflow",
    image="twotower-pipeline:0123456789ab",
    recipe="s3://b/recipe.toml",
    split="s3://b/split",
    out="s3://b/model",
)


def rules() -> dict[str, list[dict[str, Any]]]:
    """The rules for training by namespace."""
    objects = yaml.safe_load_all(deploy_file("rbac/train.yaml").read_text(encoding="utf-8"))
    return {each["metadata"]["namespace"]: each["rules"] for each in objects if each["kind"] == "Role"}


def node(kube: Any, phase: str) -> None:
    """The pod of the first node, as JobSet labels it."""
    labels = {
        "jobset.sigs.k8s.io/jobset-name": "nightly",
        "jobset.sigs.k8s.io/replicatedjob-name": "node",
        "batch.kubernetes.io/job-completion-index": "0",
    }
    kube.put(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "nightly-node-0-0", "namespace": "kubeflow", "labels": labels},
            "spec": {"containers": [{"name": "node", "image": SPEC.image}]},
            "status": {"phase": phase},
        }
    )
    kube.logs["kubeflow", "nightly-node-0-0"] = ["epoch 1", "epoch 2"]


def ended(kind: str) -> dict[str, Any]:
    return {"conditions": [{"type": kind, "status": "True", "reason": "JobsEnded", "message": "as said"}]}


def launch(kube: Any, **more: Any) -> list[str]:
    told: list[str] = []
    launch_train_job(SPEC, report=told.append, poll=0.02, **more)
    return told


def test_the_rights_for_training_are_enough_and_none_is_too_many(kube: Any) -> None:
    kube.rules = rules()
    kube.on_write("trainjobs", lambda api, _: node(api, "Running"))
    kube.progress("trainjobs", "nightly", [{}, ended("Complete")])
    assert "epoch 2" in launch(kube)
    kube.remove("trainjobs", "nightly", "kubeflow")
    kube.progress("trainjobs", "nightly", [{}])
    with pytest.raises(PipelineError):
        launch(kube, timeout=0.1)  # Is given up, and so deleted.
    used = {(f"{asked.plural}/{asked.subresource}".rstrip("/"), asked.verb) for asked in kube.requests}
    granted = {(plural, verb) for rule in rules()["kubeflow"] for plural in rule["resources"] for verb in rule["verbs"]}
    assert granted == used


def test_training_in_another_namespace_is_refused_and_the_rights_are_named(kube: Any) -> None:
    kube.rules = {"elsewhere": rules()["kubeflow"]}
    with pytest.raises(PipelineError, match="The rights it needs are in deploy/rbac"):
        launch(kube)
