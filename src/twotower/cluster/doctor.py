"""What usually goes wrong with a cluster on a laptop, looked for one by one, each with what mends it."""

import json
from collections.abc import Iterator

from twotower.cluster import forward, plan, preflight
from twotower.cluster.lifecycle import applied_version, unreachable_release
from twotower.cluster.plan import ClusterSettings
from twotower.cluster.preflight import Finding
from twotower.cluster.releases import skewed, version_in
from twotower.cluster.tools import is_installed, run, this_system
from twotower.cluster.wait import last_words
from twotower.cluster.workloads import Trouble, objects_in, workloads_in

MENDS = {
    "image pull": "Yours: twotower cluster up --image NAME:TAG. Another: see its name and tag, and the network.",
    "pending": "Give Docker more memory or CPUs, or ask for less in the pipeline's profile.",
    "claim": "See why: kubectl describe persistentvolumeclaims --all-namespaces. Mostly the node's disk is full.",
    "crash loop": "Its last lines say why; a database that was stopped half-way: twotower cluster down, then up.",
    "out of memory": "Raise the memory limit of the step in the pipeline's profile, or give Docker more memory.",
    "evicted": "The node was short of disk or memory: docker system prune, or give Docker more.",
    "container": "Make the secret or config map that it names, in the same namespace.",
}
"""What to do about each kind of trouble of a pod."""


def examine(settings: ClusterSettings) -> Iterator[Finding]:
    """Everything that is wrong: the machine first, then the cluster on it, where there is one.

    Later checks need what the earlier ones look at: nothing is asked of a cluster whose Docker does not answer.
    """
    system = this_system()
    missing = preflight.missing_tools(system)
    yield from missing
    yield from preflight.check_versions(system)
    yield from preflight.check_inotify()
    if is_installed("git") and (finding := unreachable_release(settings)):
        yield finding
    if not is_installed("docker"):
        return
    docker = list(preflight.check_docker(system))
    yield from docker
    if missing or any(finding.what.startswith(preflight.NO_DAEMON) for finding in docker):
        return
    yield from _examine_cluster(settings)


def _examine_cluster(settings: ClusterSettings) -> Iterator[Finding]:
    clusters = run(plan.clusters())
    if not clusters.is_ok:
        yield Finding(what=f"kind cannot list its clusters: {clusters.complaint}", mend="Restart Docker.")
    elif settings.name not in clusters.stdout.split():
        yield from preflight.check_port(settings.port)
    else:
        yield from _examine_forward(settings)
        yield from _examine_node(settings)


def _examine_forward(settings: ClusterSettings) -> Iterator[Finding]:
    """A port-forward that has ended or says nothing; where its port is another's, that."""
    if running := forward.alive(settings):
        if not forward.answers(running.port):
            yield Finding(
                what=f"the port-forward runs, but http://127.0.0.1:{running.port} says nothing",
                mend=f"Start it anew: twotower cluster open --name {settings.name}.",
            )
        return
    taken = list(preflight.check_port(settings.port))
    yield from taken
    if not taken:
        yield Finding(
            what=f"no port-forward runs, so {settings.url} shows nothing",
            mend=f"Start it again: twotower cluster open --name {settings.name}.",
        )


def _examine_node(settings: ClusterSettings) -> Iterator[Finding]:
    state = run(plan.node_state(settings))
    if state.stdout.strip() != "running":
        yield Finding(
            what=f"the node {settings.node} is {state.stdout.strip() or state.complaint}",
            mend=f"Start it: twotower cluster up --name {settings.name}.",
        )
        return
    versions = run(plan.versions(settings))
    if not versions.is_ok:
        yield Finding(
            what=f"the API server does not answer: {versions.complaint}",
            mend=f"Wait a minute after a start; otherwise: docker restart {settings.node}.",
        )
        return
    yield from _examine_versions(settings, versions.stdout)
    yield from _examine_conditions(settings)
    yield from _examine_workloads(settings)


def _examine_versions(settings: ClusterSettings, text: str) -> Iterator[Finding]:
    found = json.loads(text)
    client, server = (version_in(found[side]["gitVersion"]) for side in ("clientVersion", "serverVersion"))
    if client and server and (skew := skewed(client, server)):
        yield Finding(what=skew, mend="Install a kubectl of the cluster's minor release.", is_blocking=False)
    applied = run(plan.applied(settings))
    version = applied_version(applied.stdout) if applied.is_ok else None
    if version is None:
        yield Finding(
            what="Kubeflow Pipelines is not wholly applied",
            mend=f"Go on: twotower cluster up --name {settings.name}.",
        )
    elif version != settings.pipeline_version:
        yield Finding(
            what=f"Kubeflow Pipelines is {version}, and {settings.pipeline_version} is expected",
            mend=f"Say --pipeline-version {version} if that is meant, or make it anew: twotower cluster down, then up.",
        )


def _examine_conditions(settings: ClusterSettings) -> Iterator[Finding]:
    nodes = run(plan.nodes(settings))
    for node in objects_in(nodes.stdout) if nodes.is_ok else []:
        for condition in node["status"].get("conditions", []):
            kind, is_bad = condition["type"], condition["status"] != "False"
            if is_bad if kind.endswith("Pressure") else kind == "Ready" and condition["status"] != "True":
                said = condition.get("message", "").strip() or condition["status"]
                yield Finding(what=f"node {node['metadata']['name']}, {kind}: {said}", mend=_mend_of_node(kind))


def _mend_of_node(condition: str) -> str:
    match condition:
        case "DiskPressure":
            return "Make room: docker system prune removes what no container uses."
        case "MemoryPressure" | "PIDPressure":
            return "Give Docker more memory, or let fewer runs go on at the same time."
        case _:
            return "Restart it: docker restart, with the node's name."


def _examine_workloads(settings: ClusterSettings) -> Iterator[Finding]:
    found = run(plan.all_workloads(settings))
    if not found.is_ok:
        yield Finding(what=f"the pods cannot be listed: {found.complaint}", mend="Try again in a minute.")
        return
    for trouble in workloads_in(objects_in(found.stdout)).troubles:
        yield Finding(what=_described(settings, trouble), mend=MENDS[trouble.kind])


def _described(settings: ClusterSettings, trouble: Trouble) -> str:
    where = f"pod {trouble.namespace}/{trouble.name}, {trouble}"
    return f"{where}; last: {last_words(settings, trouble)}" if trouble.kind == "crash loop" else where
