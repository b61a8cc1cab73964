"""Pods of a run or of a training job: why one does not start, and the end of what it printed.

Kubernetes is asked through the kubeconfig, or from within a pod through its service account.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from twotower.errors import PipelineError

CALL_TIMEOUT = (5.0, 30.0)
"""Seconds for a connection and for an answer."""

STUCK = (
    "ImagePullBackOff",
    "ErrImagePull",
    "ErrImageNeverPull",
    "InvalidImageName",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
    "CrashLoopBackOff",
)
"""Why a container waits, where waiting longer seldom helps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodState:
    """One pod, as far as somebody who looks for a fault wants to know it."""

    name: str
    phase: str
    trouble: str
    """Why it does not run or did not end well, empty where all is well."""
    node_name: str
    """The engine's path to the task, as in `run-x.root.train.executor`; empty for pods of no pipeline."""
    index: str
    """The number of the pod among those of its job."""


def kubernetes_client() -> Any:
    """The way to the cluster that the kubeconfig, or the pod in which this runs, names."""
    import urllib3
    import yaml
    from kubernetes import client, config

    configuration = client.Configuration()
    try:
        try:
            config.load_incluster_config(client_configuration=configuration)
        except config.ConfigException:
            # Named, because the client reads KUBECONFIG but once, when it is imported.
            config.load_kube_config(config_file=os.environ.get("KUBECONFIG"), client_configuration=configuration)
    except (config.ConfigException, yaml.YAMLError, OSError) as fault:
        raise PipelineError(
            f"Kubernetes: no cluster is set up here ({' '.join(str(fault).split())}). Set KUBECONFIG, or check with "
            "`kubectl cluster-info`."
        ) from fault
    configuration.retries = urllib3.Retry(connect=1, read=0, redirect=2, other=0)
    return client.ApiClient(configuration)


def list_pods(api_client: Any, namespace: str, *, selector: str) -> list[PodState]:
    """The pods that carry these labels, the oldest first."""
    from kubernetes import client

    # Read as it is: the client's own types refuse a status that lacks a field.
    answer = client.CoreV1Api(api_client).list_namespaced_pod(
        namespace, label_selector=selector, _preload_content=False, _request_timeout=CALL_TIMEOUT
    )
    pods = sorted(json.loads(answer.data)["items"], key=lambda pod: str(pod["metadata"].get("creationTimestamp")))
    return [_state(pod) for pod in pods]


def log_lines(api_client: Any, namespace: str, pod: str, *, container: str, tail: int | None = None) -> list[str]:
    """What the container printed, all of it or its end; nothing where it has not begun."""
    from kubernetes import client

    limit = {} if tail is None else {"tail_lines": tail}
    try:
        # Not decoded by the client, which would show bytes by their repr.
        answer = client.CoreV1Api(api_client).read_namespaced_pod_log(
            pod, namespace, container=container, _preload_content=False, _request_timeout=CALL_TIMEOUT, **limit
        )
    except client.ApiException as fault:
        if fault.status in (400, 404):  # Its container has not begun, or the pod has gone.
            return []
        raise
    return str(answer.data.decode("utf-8", "replace")).splitlines()


def trouble_of(pod: Mapping[str, Any]) -> str:
    """Why the pod does not run, or how it ended, from its status; empty where all is well."""
    status = pod.get("status", {})
    containers: Sequence[Mapping[str, Any]] = [
        *status.get("initContainerStatuses", ()),
        *status.get("containerStatuses", ()),
    ]
    for container in containers:
        waiting = container.get("state", {}).get("waiting") or {}
        if waiting.get("reason") in STUCK:
            return _told(waiting["reason"], waiting.get("message"), image=container.get("image"))
    for container in containers:
        ended = container.get("state", {}).get("terminated") or {}
        if ended.get("exitCode"):
            return _told(ended.get("reason") or "Error", ended.get("message"), code=ended["exitCode"])
    for condition in status.get("conditions", ()):
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return _told(condition.get("reason") or "Unschedulable", condition.get("message"))
    return _told(status.get("reason") or "Failed", status.get("message")) if status.get("phase") == "Failed" else ""


def _state(pod: Mapping[str, Any]) -> PodState:
    metadata = pod["metadata"]
    return PodState(
        name=metadata["name"],
        phase=pod.get("status", {}).get("phase", ""),
        trouble=trouble_of(pod),
        node_name=(metadata.get("annotations") or {}).get("workflows.argoproj.io/node-name", ""),
        index=(metadata.get("labels") or {}).get("batch.kubernetes.io/job-completion-index", ""),
    )


def _told(reason: str, message: str | None, *, image: str | None = None, code: int | None = None) -> str:
    said = " ".join((message or "").split())
    if image and image not in said:
        said = f"{said} (image {image})".strip()
    if code is not None:
        reason = f"{reason}, exit code {code}"
    return f"{reason}: {said}" if said else reason
