"""What runs in the cluster, what of it is not ready, and why: from what kubectl says."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from twotower.errors import ClusterError

Object = Mapping[str, Any]
"""One resource, as the API server describes it."""

Kind = Literal["image pull", "pending", "claim", "crash loop", "out of memory", "evicted", "container"]

IMAGE_PULL = {"ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
TRAINING = "jobset.sigs.k8s.io/jobset-name"
"""Label of the jobs that Kubeflow Trainer makes."""
CANNOT_START = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """Why one pod or claim does not do what it should."""

    kind: Kind
    namespace: str
    name: str
    detail: str
    container: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A deployment or a job."""

    name: str
    is_ready: bool
    why: str
    """Where it is not ready: what holds it up."""
    trouble: Trouble | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Workloads:
    """Everything that one look at the cluster showed."""

    all: tuple[Workload, ...]
    troubles: tuple[Trouble, ...]

    @property
    def not_ready(self) -> tuple[Workload, ...]:
        """Those that are waited for."""
        return tuple(workload for workload in self.all if not workload.is_ready)

    @property
    def is_ready(self) -> bool:
        """Whether there is something, and all of it is ready."""
        return bool(self.all) and not self.not_ready

    @property
    def summary(self) -> str:
        """How many are ready."""
        return f"{len(self.all) - len(self.not_ready)} of {len(self.all)} ready"


def objects_in(text: str) -> list[Object]:
    """The items of a list that kubectl printed as JSON.

    Raises:
        ClusterError: it printed something else.
    """
    try:
        items: list[Object] = json.loads(text)["items"]
    except (ValueError, KeyError, TypeError) as fault:
        raise ClusterError(
            f"kubectl: no JSON in its answer ({text[:60]!r}). Run kubectl by hand to see why."
        ) from fault
    return items


def workloads_in(objects: Iterable[Object]) -> Workloads:
    """What is ready and what is not, by name."""
    found = list(objects)
    pods = [item for item in found if item["kind"] == "Pod"]
    unbound = _unbound_claims(found)
    troubles = [trouble for pod in pods if (trouble := pod_trouble(pod, unbound=unbound)) is not None]
    by_pod = {(trouble.namespace, trouble.name): trouble for trouble in troubles}
    workloads = [_workload(item, pods, by_pod) for item in found if _counts(item)]
    return Workloads(all=tuple(sorted(workloads, key=lambda each: each.name)), troubles=tuple(troubles))


def _counts(item: Object) -> bool:
    """Whether Kubeflow Pipelines waits for it; a training's job, kept after it ended, is none of its."""
    of_a_training = TRAINING in item["metadata"].get("labels", {})
    return item["kind"] == "Deployment" or (item["kind"] == "Job" and not of_a_training)


def _workload(item: Object, pods: list[Object], by_pod: Mapping[tuple[str, str], Trouble]) -> Workload:
    meta = item["metadata"]
    if _is_ready(item):
        return Workload(name=meta["name"], is_ready=True, why="")
    own = [pod for pod in pods if _owner(pod) == (meta["namespace"], item["kind"], meta["name"])]
    troubled = [by_pod[key] for pod in own if (key := (meta["namespace"], pod["metadata"]["name"])) in by_pod]
    trouble = troubled[0] if troubled else None
    why = _failed(item) or (str(trouble) if trouble else _starting(own))
    return Workload(name=meta["name"], is_ready=False, why=why, trouble=trouble)


def _is_ready(item: Object) -> bool:
    status = item.get("status", {})
    if item["kind"] == "Job":
        return any(each["type"] == "Complete" and each["status"] == "True" for each in status.get("conditions", []))
    wanted = item["spec"].get("replicas", 1)
    if status.get("observedGeneration", 0) < item["metadata"].get("generation", 0):
        return False
    return all(status.get(each, 0) >= wanted for each in ("availableReplicas", "updatedReplicas"))


def _failed(item: Object) -> str:
    """Why a job has given up; a deployment never does."""
    for condition in item.get("status", {}).get("conditions", []):
        if item["kind"] == "Job" and condition["type"] == "Failed" and condition["status"] == "True":
            return f"failed: {_line(condition.get('message', 'it gave up'))}"
    return ""


def _starting(pods: list[Object]) -> str:
    """What a pod without trouble is doing."""
    if not pods:
        return "no pod yet"
    waiting = [state["reason"] for status in _containers(pods[0]) if (state := status["state"].get("waiting"))]
    if waiting:
        return f"{waiting[0]}"
    return "running, not ready yet" if pods[0]["status"].get("phase") == "Running" else "starting"


def _owner(pod: Object) -> tuple[str, str, str] | None:
    """Namespace, kind and name of the deployment or job that a pod belongs to."""
    for owner in pod["metadata"].get("ownerReferences", []):
        if owner["kind"] == "ReplicaSet":
            # A deployment's replica sets are called after it, with a hash behind.
            return pod["metadata"]["namespace"], "Deployment", owner["name"].rpartition("-")[0]
        if owner["kind"] == "Job":
            return pod["metadata"]["namespace"], "Job", owner["name"]
    return None


def _unbound_claims(objects: Iterable[Object]) -> dict[tuple[str, str], str]:
    """Namespace and name of each claim that has no volume, with its phase."""
    return {
        (item["metadata"]["namespace"], item["metadata"]["name"]): phase
        for item in objects
        if item["kind"] == "PersistentVolumeClaim" and (phase := item.get("status", {}).get("phase")) != "Bound"
    }


def pod_trouble(pod: Object, *, unbound: Mapping[tuple[str, str], str]) -> Trouble | None:
    """What keeps a pod from running, or nothing where it runs, ended well, or is on its way."""
    meta, status = pod["metadata"], pod["status"]
    where = {"namespace": meta["namespace"], "name": meta["name"]}
    if status.get("reason") == "Evicted":
        return Trouble(kind="evicted", detail=_line(status.get("message", "by the node")), **where)
    for container in _containers(pod):
        if found := _container_trouble(container):
            kind, detail = found
            return Trouble(kind=kind, detail=detail, container=container["name"], **where)
    if status.get("phase") != "Pending":
        return None
    for claim in _claims(pod):
        # A pod that waits for a volume to be made has no condition that would say so.
        if phase := unbound.get((meta["namespace"], claim)):
            return Trouble(kind="claim", detail=f"the claim {claim} is {phase}: it has no volume", **where)
    for condition in status.get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return Trouble(kind="pending", detail=_line(condition.get("message", "no node takes it")), **where)
    return None


def _claims(pod: Object) -> Iterator[str]:
    for volume in pod.get("spec", {}).get("volumes", []):
        if "persistentVolumeClaim" in volume:
            yield volume["persistentVolumeClaim"]["claimName"]


def _containers(pod: Object) -> Iterator[Object]:
    status = pod["status"]
    for container in (*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])):
        yield {"state": {}, "lastState": {}, **container}


def _container_trouble(container: Object) -> tuple[Kind, str] | None:
    """Kind and detail of what is wrong with one container."""
    waiting = container["state"].get("waiting", {})
    ended = container["state"].get("terminated") or container["lastState"].get("terminated") or {}
    reason, message = waiting.get("reason", ""), _line(waiting.get("message", ""))
    if reason in IMAGE_PULL:
        return "image pull", f"{container.get('image', '?')}: {message or reason}"
    if reason in CANNOT_START:
        return "container", f"{container['name']}: {message or reason}"
    is_down = bool(waiting) or "terminated" in container["state"]
    if is_down and ended.get("reason") == "OOMKilled":
        return "out of memory", f"{container['name']} took more than its limit"
    if reason == "CrashLoopBackOff":
        return "crash loop", f"{container['name']} ended with code {ended.get('exitCode', '?')}, again and again"
    return None


def _line(text: str) -> str:
    """A message of the cluster in one line, not too long to be read."""
    short = " ".join(text.split())
    return short if len(short) <= 200 else short[:197] + "..."
