"""Every reference in deploy/ leads to something that is there: ports, labels, secrets, accounts, roles, volumes."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from twotower.release import deployment

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
FOLDERS = sorted(path.parent.relative_to(DEPLOY).as_posix() for path in DEPLOY.rglob("kustomization.yaml"))

MADE_BY_CODE = {("twotower", "Secret", deployment.API_KEY)}
MADE_BY_KUBEFLOW = {
    ("", "Namespace", "kubeflow"),
    ("kubeflow", "ServiceAccount", "pipeline-runner"),
    ("kubeflow", "Secret", "mlpipeline-minio-artifact"),
}
MADE_BEFORE = {("", "Namespace", "twotower")}
"""By deploy/rbac or a serving overlay, which are applied first."""
THERE = MADE_BY_CODE | MADE_BY_KUBEFLOW | MADE_BEFORE
Object = dict[str, Any]
Places = set[tuple[str, str, str]]
Render = Callable[[str], list[dict[str, Any]]]
Pods = Callable[[Object], Iterator[Object]]


def of_kind(objects: list[Object], kind: str) -> list[Object]:
    return [each for each in objects if each["kind"] == kind]


def place(each: Object) -> tuple[str, str, str]:
    return each["metadata"].get("namespace", ""), each["kind"], each["metadata"]["name"]


def dangling(objects: list[Object], pods_of: Pods) -> list[str]:
    """What these objects refer to and nothing has."""
    known = {place(each) for each in objects} | THERE
    faults = []
    for each in objects:
        namespace, kind, name = place(each)
        found = [*_targets(each, known), *_labels(each, objects), *_ports(each, objects)]
        for pod in pods_of(each):
            found += [*_of_pod(pod, namespace, known), *_keys(pod, objects)]
        if kind != "Namespace" and ("", "Namespace", namespace) not in known:
            found.append(f"no namespace {namespace}")
        faults += [f"{kind} {name}: {fault}" for fault in found]
    return faults


def _targets(each: Object, known: Places) -> Iterator[str]:
    """What is named by kind and name."""
    namespace, kind, _ = place(each)
    wanted = []
    if kind == "HorizontalPodAutoscaler":
        wanted = [(namespace, each["spec"]["scaleTargetRef"]["kind"], each["spec"]["scaleTargetRef"]["name"])]
    if kind == "RoleBinding":
        wanted = [(namespace, each["roleRef"]["kind"], each["roleRef"]["name"])]
        wanted += [(who["namespace"], who["kind"], who["name"]) for who in each["subjects"]]
    if kind == "ServiceMonitor":
        keys = [endpoint["authorization"]["credentials"] for endpoint in each["spec"]["endpoints"]]
        wanted = [(namespace, "Secret", key["name"]) for key in keys]
    yield from (f"no {target}" for target in wanted if target not in known)


def _labels(each: Object, objects: list[Object]) -> Iterator[str]:
    """What is chosen by labels."""
    namespace, kind, _ = place(each)
    spec = each.get("spec", {})
    selectors = {
        "Service": lambda: spec["selector"],
        "Deployment": lambda: spec["selector"]["matchLabels"],
        "PodDisruptionBudget": lambda: spec["selector"]["matchLabels"],
        "ServiceMonitor": lambda: spec["selector"]["matchLabels"],
        "NetworkPolicy": lambda: spec["podSelector"]["matchLabels"],
    }
    if kind not in selectors or namespace != "twotower":  # What Kubeflow's own pods are called is not ours to see.
        return
    if kind == "ServiceMonitor":
        labelled = [one["metadata"] for one in of_kind(objects, "Service")]
    else:
        labelled = [one["spec"]["template"]["metadata"] for one in of_kind(objects, "Deployment")]
    wanted = selectors[kind]()
    if not any(wanted.items() <= one["labels"].items() for one in labelled):
        yield f"selects nothing by {wanted}"


def _ports(each: Object, objects: list[Object]) -> Iterator[str]:
    """What is reached by a port's name or number."""
    namespace, kind, _ = place(each)
    pods = [one["spec"]["template"]["spec"] for one in of_kind(objects, "Deployment")]
    open_ports = [port for pod in pods for port in pod["containers"][0]["ports"]]
    there: set[Any] = {port["name"] for port in open_ports} | {port["containerPort"] for port in open_ports}
    wanted: list[Any] = []
    if kind == "Service":
        wanted = [port["targetPort"] for port in each["spec"]["ports"]]
    if kind == "NetworkPolicy" and namespace == "twotower":
        wanted = [port["port"] for rule in each["spec"]["ingress"] for port in rule["ports"]]
    if kind == "ServiceMonitor":
        wanted = [endpoint["port"] for endpoint in each["spec"]["endpoints"]]
        there = {port["name"] for one in of_kind(objects, "Service") for port in one["spec"]["ports"]}
    yield from (f"no port {port}" for port in wanted if port not in there)


def _of_pod(pod: Object, namespace: str, known: Places) -> Iterator[str]:
    """What a pod mounts, probes, and is."""
    account = pod.get("serviceAccountName")
    if account and (namespace, "ServiceAccount", account) not in known:
        yield f"no account {account}"
    volumes = {volume["name"] for volume in pod.get("volumes", ())}
    for container in pod["containers"]:
        yield from (f"no volume {m['name']}" for m in container.get("volumeMounts", ()) if m["name"] not in volumes)
        own = {port.get("name") for port in container.get("ports", ())}
        own |= {port["containerPort"] for port in container.get("ports", ())}
        probes = [container[name] for name in ("startupProbe", "readinessProbe", "livenessProbe") if name in container]
        yield from (f"no port to probe: {each}" for each in probes if each["httpGet"]["port"] not in own)
    for wanted in _secrets(pod):
        if not wanted.get("optional") and (namespace, "Secret", wanted["name"]) not in known:
            yield f"no Secret {wanted['name']}"


def _keys(pod: Object, objects: list[Object]) -> Iterator[str]:
    """The keys that a pod reads from secrets that are applied beside it; an optional one has to be spelt right, too."""
    for wanted in _secrets(pod):
        for secret in of_kind(objects, "Secret"):
            if secret["metadata"]["name"] == wanted["name"] and wanted["key"] not in secret["stringData"]:
                yield f"no {wanted['key']} in Secret {wanted['name']}"


def _secrets(pod: Object) -> list[Object]:
    variables = [variable for container in pod["containers"] for variable in container.get("env", ())]
    return [variable["valueFrom"]["secretKeyRef"] for variable in variables if "valueFrom" in variable]


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_reference_leads_to_something(folder: str, rendered: Render, pods_of: Pods) -> None:
    is_component = folder.startswith("serving/components/")
    assert dangling([*rendered(folder), *(rendered("serving/base") if is_component else ())], pods_of) == []


BREAKS = {
    "a port that no container has": ("Service", lambda each: each["spec"]["ports"][0].update(targetPort="web")),
    "pods that nobody has": ("Service", lambda each: each["spec"]["selector"].update(tier="front")),
    "a budget for others": (
        "PodDisruptionBudget",
        lambda each: each["spec"]["selector"]["matchLabels"].update(tier="front"),
    ),
    "an autoscaler of nothing": (
        "HorizontalPodAutoscaler",
        lambda each: each["spec"]["scaleTargetRef"].update(name="serve"),
    ),
    "a secret without its key": ("Secret", lambda each: each["stringData"].pop("AWS_REGION")),
    "a policy for another port": (
        "NetworkPolicy",
        lambda each: each["spec"].get("ingress")[0]["ports"][0].update(port=80),
    ),
    "a volume that is gone": ("Deployment", lambda each: each["spec"]["template"]["spec"]["volumes"].pop()),
    "an account of nobody": (
        "Deployment",
        lambda each: each["spec"]["template"]["spec"].update(serviceAccountName="who"),
    ),
    "labels of another": (
        "Deployment",
        lambda each: each["spec"]["template"]["metadata"]["labels"].update({"app.kubernetes.io/name": "other"}),
    ),
}


@pytest.mark.parametrize("change", BREAKS)
def test_a_reference_that_is_broken_is_found(change: str, rendered: Render, pods_of: Pods) -> None:
    objects = deepcopy(rendered("serving/overlays/kind"))
    kind, breaks = BREAKS[change]
    breaks(next(each for each in of_kind(objects, kind) if each["metadata"]["namespace"] == "twotower"))
    assert dangling(objects, pods_of) != []


def test_the_secret_that_nobody_applies_is_made_by_the_deploy_step(rendered: Render, pods_of: Pods) -> None:
    pods = [pod for each in rendered("serving/base") for pod in pods_of(each)]
    wanted = {secret["name"] for pod in pods for secret in _secrets(pod) if not secret.get("optional")}
    assert wanted == {deployment.API_KEY}
