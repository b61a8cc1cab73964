"""Training handed to Kubeflow Trainer: one TrainJob, N nodes of JAX, followed until it ends.

The API is trainer.kubeflow.org/v1alpha1. What only newer versions know (`runtimePatches`, from 2.2 on) is written only
where it is asked for. Seen in kubeflow/trainer, pkg/apis/trainer/v1alpha1/trainjob_types.go and
manifests/base/runtimes/jax_distributed.yaml: the runtime's job and its container are both called `node`. Each node is
told its place among them by environment variables, which `training.distributed` reads.
"""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from twotower.errors import PipelineError
from twotower.pipeline.interrupts import terminated_as_interrupt
from twotower.pipeline.pods import kubernetes_client
from twotower.pipeline.trainjob_on_cluster import (
    GROUP,
    NODE,
    PATIENCE,
    VERSION,
    AwayError,
    GivenUpError,
    Report,
    TrainJob,
)

LONGEST_NAME = 40
"""Names of pods and services are made of the job's by appending; 63 is Kubernetes's limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJobSpec:
    """One training, to be run by N nodes."""

    name: str
    namespace: str
    image: str
    """The pipeline image: it holds this package."""
    recipe: str
    """As `twotower train` takes it: a path within the image, or an address."""
    split: str
    """Address of what `split` wrote; every node reads it."""
    out: str
    """Address to which the first node writes the model."""
    nodes: int = 1
    runtime: str = "jax-distributed"
    """Name of the ClusterTrainingRuntime."""
    arguments: tuple[str, ...] = ()
    """Further words of the command, as in `("--set", "train.epochs=3")`."""
    requests: Mapping[str, str] = field(default_factory=lambda: {"cpu": "1", "memory": "2Gi"})
    """For each node."""
    limits: Mapping[str, str] = field(default_factory=lambda: {"memory": "4Gi"})
    """For each node; a GPU is `{"nvidia.com/gpu": "1"}`."""
    env: Mapping[str, str] = field(default_factory=dict)
    secret_env: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Environment variable -> (secret, key in it)."""
    service_account: str | None = None
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Mapping[str, Any]] = ()
    image_pull_secrets: Sequence[str] = ()


def train_job_manifest(spec: TrainJobSpec) -> dict[str, Any]:
    """The object that Kubeflow Trainer turns into pods.

    Raises:
        PipelineError: The name or the number of nodes is none that Kubernetes takes.
    """
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", spec.name) or len(spec.name) > LONGEST_NAME:
        raise PipelineError(
            f"TrainJob {spec.name!r}: a name has small letters, digits and dashes, begins with a letter, does not end "
            f"with a dash, and has at most {LONGEST_NAME} characters."
        )
    if spec.nodes < 1:
        raise PipelineError(f"TrainJob {spec.name}: {spec.nodes} nodes, but it takes at least 1.")
    trainer = {
        "image": spec.image,
        "command": ["twotower", "train", spec.recipe, "--split", spec.split, "--out", spec.out, *spec.arguments],
        "numNodes": spec.nodes,
        "resourcesPerNode": {"requests": dict(spec.requests), "limits": dict(spec.limits)},
    }
    secrets = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
        for name, (secret, key) in spec.secret_env.items()
    ]
    if env := [*({"name": name, "value": value} for name, value in spec.env.items()), *secrets]:
        trainer["env"] = env
    job: dict[str, Any] = {"runtimeRef": {"name": spec.runtime}, "trainer": trainer}
    if pod := _pod_patch(spec):
        job["runtimePatches"] = [_runtime_patch(pod)]
    labels = {"app.kubernetes.io/name": "twotower", "app.kubernetes.io/component": "train"}
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainJob",
        "metadata": {"name": spec.name, "namespace": spec.namespace, "labels": labels},
        "spec": job,
    }


def launch_train_job(
    spec: TrainJobSpec,
    *,
    report: Report,
    timeout: float | None = None,
    poll: float = 5.0,
    patience: float = PATIENCE,
    api_client: Any = None,
) -> None:
    """Train on the cluster and come back when the model has been written.

    A job that is given up (a timeout, an interruption, a pod that cannot start) is deleted; one that failed stays, for
    whoever wants to look at it.

    Args:
        spec: What to train, and where.
        report: Told what happens, line by line.
        timeout: Seconds after which the job is given up.
        poll: Seconds between two looks.
        patience: Seconds for which a pod may be unable to start.
        api_client: A `kubernetes.client.ApiClient`; by default the one of the kubeconfig or of the pod.

    Raises:
        PipelineError: Trainer is not installed, the cluster refuses, or the training failed.
    """
    manifest = train_job_manifest(spec)
    job = TrainJob(
        api_client or kubernetes_client(), spec.name, namespace=spec.namespace, report=report, patience=patience
    )
    with terminated_as_interrupt():
        job.start(manifest)
        report(f"TrainJob {spec.namespace}/{spec.name}: {spec.nodes} nodes of {spec.image}")
        try:
            _follow(job, timeout=timeout, poll=poll)
        except (GivenUpError, KeyboardInterrupt):
            job.delete()
            raise


def _follow(job: TrainJob, *, timeout: float | None, poll: float) -> None:
    """Look at the job until it has ended."""
    begun = heard = time.monotonic()
    while True:
        try:
            ended = job.look()
            heard = time.monotonic()
        except AwayError as fault:
            if time.monotonic() - heard > PATIENCE:
                raise GivenUpError(str(fault)) from fault
            job.report(f"{fault} Trying again.")
            ended = False
        if ended:
            return
        if timeout is not None and time.monotonic() - begun + poll > timeout:
            raise GivenUpError(f"{job.what}: not done after {timeout:g} s, deleted. Last seen: {job.last_seen}.")
        time.sleep(poll)


def _pod_patch(spec: TrainJobSpec) -> dict[str, Any]:
    """What the runtime's pods have to be told besides."""
    patch = {
        "serviceAccountName": spec.service_account,
        "nodeSelector": dict(spec.node_selector),
        "tolerations": [dict(each) for each in spec.tolerations],
        "imagePullSecrets": [{"name": name} for name in spec.image_pull_secrets],
    }
    return {name: value for name, value in patch.items() if value}


def _runtime_patch(pod: Mapping[str, Any]) -> dict[str, Any]:
    """The patch at the place where the runtime keeps its pods; `manager` says whose it is."""
    job = {"name": NODE, "template": {"spec": {"template": {"spec": pod}}}}
    return {
        "manager": "twotower.dev/launcher",
        "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [job]}}},
    }
