"""What the played Kubernetes API keeps and is asked: kinds, requests, and the fields that server-side apply merges."""

import json
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Object = dict[str, Any]
Fields = tuple[str, ...]


class Resource(NamedTuple):
    """One kind of object that the API serves."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True


RESOURCES = (
    Resource("", "v1", "namespaces", "Namespace", False),
    Resource("", "v1", "pods", "Pod"),
    Resource("", "v1", "secrets", "Secret"),
    Resource("", "v1", "services", "Service"),
    Resource("", "v1", "serviceaccounts", "ServiceAccount"),
    Resource("", "v1", "configmaps", "ConfigMap"),
    Resource("", "v1", "events", "Event"),
    Resource("apps", "v1", "deployments", "Deployment"),
    Resource("apps", "v1", "replicasets", "ReplicaSet"),
    Resource("autoscaling", "v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler"),
    Resource("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy"),
    Resource("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget"),
    Resource("trainer.kubeflow.org", "v1alpha1", "trainjobs", "TrainJob"),
    Resource("trainer.kubeflow.org", "v1alpha1", "clustertrainingruntimes", "ClusterTrainingRuntime", False),
)

KEYED = {
    "containers": ("name",),
    "initContainers": ("name",),
    "env": ("name",),
    "volumes": ("name",),
    "volumeMounts": ("mountPath",),
    "containers.ports": ("containerPort", "protocol"),
    "spec.ports": ("port", "protocol"),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
    "conditions": ("type",),
}
"""Lists that server-side apply merges element by element; every other list is replaced whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request as it came in."""

    verb: str
    plural: str
    subresource: str
    name: str
    namespace: str
    query: Mapping[str, str]
    body: Object
    content_type: str


@dataclass(slots=True, kw_only=True)
class Stored:
    """An object with the field paths that each manager applied."""

    body: Object
    owners: dict[str, set[Fields]] = field(default_factory=dict)


class RefusedError(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, reason: str, message: str, causes: Sequence[Object] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": status}
        self.body |= {"message": message, "details": {"causes": list(causes)}}


def leaves(value: Any, path: Fields = ()) -> Iterator[tuple[Fields, Any]]:
    """Each field's path and value; an element of a keyed list has its keys in the path, a map is its fields."""
    server_side = {("metadata", name) for name in ("uid", "generation", "resourceVersion", "creationTimestamp")}
    if path in server_side or (path in ((), ("status",)) and not value):
        return
    if isinstance(value, dict) and value:
        for name, each in value.items():
            yield from leaves(each, (*path, name))
    elif isinstance(value, list) and value and (keys := _keys(path)):
        for each in value:
            told = ",".join(f"{key}={json.dumps(each.get(key, 'TCP'))}" for key in keys)
            yield from leaves(each, (*path[:-1], f"{path[-1]}[{told}]"))
    else:
        yield path, value


def _keys(path: Fields) -> tuple[str, ...]:
    if path[-1] != "ports":
        return KEYED.get(path[-1], ())
    return KEYED["containers.ports" if "containers" in path[-2] else "spec.ports"]


def assemble(fields: Mapping[Fields, Any]) -> Object:
    """The object of these leaves: the inverse of `leaves`."""
    body: Object = {}
    elements: dict[Fields, Object] = {}
    for path, value in fields.items():
        here = body
        for depth, part in enumerate(path[:-1]):
            name, bracket, _ = part.partition("[")
            if bracket and (at := path[: depth + 1]) not in elements:
                elements[at] = {}
                here.setdefault(name, []).append(elements[at])
            here = elements[path[: depth + 1]] if bracket else here.setdefault(name, {})
        here[path[-1]] = deepcopy(value)
    return body


def cause(path: Fields, owner: str, version: str) -> Object:
    told = f'conflict with "{owner}" using {version}'
    return {"reason": "FieldManagerConflict", "message": told, "field": "." + ".".join(path)}


def is_selected(body: Object, namespace: str, query: Mapping[str, str]) -> bool:
    metadata = body["metadata"]
    labels = metadata.get("labels", {})
    pairs = [pair.replace("==", "=").partition("=") for pair in query.get("labelSelector", "").split(",") if pair]
    wanted = query.get("fieldSelector", "").partition("metadata.name=")[2]
    return (
        namespace in ("", metadata.get("namespace", ""))
        and all(labels.get(name) == value if equals else name in labels for name, equals, value in pairs)
        and wanted in ("", metadata["name"])
    )
