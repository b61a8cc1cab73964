"""Up, open, status, down: each goes on from what is there."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from twotower.cluster import forward, plan, preflight
from twotower.cluster.plan import APPLIED, ClusterSettings
from twotower.cluster.releases import PIPELINE_VERSION
from twotower.cluster.tools import Command, must, run, this_system
from twotower.cluster.wait import ASK_DOCTOR, INTERVAL, Watch, wait_until_ready
from twotower.cluster.workloads import Object, Workloads, objects_in, workloads_in
from twotower.errors import ClusterError

Say = Callable[[str], None]
"""Told one line about what is done now."""

WAKING = 180.0
"""Seconds that the API server of a node that was off has to answer."""
GO_ON = "`twotower cluster up` goes on from here once that is mended."


def up(settings: ClusterSettings, *, deploy: Path, needs_images: bool, say: Say, watch: Watch) -> str:
    """A cluster with Kubeflow Pipelines in it and the images loaded; gives the address of its page.

    What is there already is left as it is, so that a second call goes on where the first was stopped.

    Args:
        settings: The cluster.
        deploy: The folder of our own manifests.
        needs_images: Whether an image that Docker does not have is a fault; otherwise it is said and left out.
        say: Told what is done.
        watch: Told what is ready.

    Raises:
        ClusterError: what keeps it from going on, in one line.
    """
    _check_machine(settings, say=say)
    settings = replace(settings, images=_images_of(settings, needs_images=needs_images, say=say))
    is_there = exists(settings)
    found = _wake(settings, say=say) if is_there else None
    if found is not None and found != settings.pipeline_version:
        raise ClusterError(
            f"cluster {settings.name!r} has Kubeflow Pipelines {found}, not {settings.pipeline_version}. Keep it with "
            f"--pipeline-version {found}, or delete it first: twotower cluster down --name {settings.name}."
        )
    if found is None:
        _find_release(settings)
    if not is_there:
        forward.stop(settings)  # One that is left over leads into a cluster that is gone.
        _do(plan.create(settings, deploy=deploy), say=say, mend=GO_ON)
    if found is None:
        for command in plan.apply(settings, deploy=deploy):
            _do(command, say=say, mend=GO_ON)
    for image in settings.images:
        _do(plan.load(settings, image), say=say, mend=GO_ON)
    wait_until_ready(settings, watch=watch)
    return open_page(settings)


def open_page(settings: ClusterSettings) -> str:
    """The address of the page, with a port-forward behind it that runs."""
    forward.ensure(settings)
    return settings.url


def reopen(settings: ClusterSettings) -> str:
    """`open_page` of a cluster that is there.

    Raises:
        ClusterError: there is no such cluster.
    """
    if not exists(settings):
        raise ClusterError(
            f"there is no cluster {settings.name!r}. Make it: twotower cluster up --name {settings.name}."
        )
    return open_page(settings)


def down(settings: ClusterSettings, *, say: Say) -> bool:
    """Nothing is left of the cluster; whether there was one."""
    if forward.stop(settings):
        say(plan.stop_forward(settings).why)
    if not exists(settings):
        return False
    _do(plan.delete(settings), say=say, mend="Start Docker, then try again.")
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What there is, and how it does."""

    node: str
    """The state of the node's container, such as `running`."""
    pipeline_version: str | None
    """The release that is wholly applied."""
    workloads: Workloads
    images: tuple[str, ...]
    """Our own images that the node has."""
    forwarded: forward.Forward | None


def status(settings: ClusterSettings) -> Status | None:
    """How the cluster does, or nothing where there is none.

    Raises:
        ClusterError: the cluster is there and does not answer.
    """
    if not exists(settings):
        return None
    node = must(plan.node_state(settings), mend=ASK_DOCTOR).strip()
    if node != "running":
        raise ClusterError(
            f"the node of cluster {settings.name!r} is {node}. Start it: twotower cluster up --name {settings.name}."
        )
    version = applied_version(must(plan.applied(settings), mend=ASK_DOCTOR))
    found = objects_in(must(plan.nodes(settings), mend=ASK_DOCTOR))
    return Status(
        node=node,
        pipeline_version=version,
        workloads=workloads_in(objects_in(must(plan.workloads(settings), mend=ASK_DOCTOR))),
        images=own_images(found),
        forwarded=forward.alive(settings),
    )


def exists(settings: ClusterSettings) -> bool:
    """Whether kind has a cluster of this name."""
    return settings.name in must(plan.clusters(), mend="Is Docker running? " + ASK_DOCTOR).split()


def applied_version(namespace: str) -> str | None:
    """The release in the label of the namespace that kubectl printed, where all of it was applied."""
    if not namespace.strip():
        return None
    labels: dict[str, str] = json.loads(namespace)["metadata"].get("labels", {})
    return labels.get(APPLIED)


def own_images(nodes: list[Object]) -> tuple[str, ...]:
    """Which images of this project the node has."""
    names = (name for node in nodes for image in node["status"].get("images", []) for name in image.get("names") or [])
    # A local image gets a registry's name in front; the digest form of the same image says nothing to a reader.
    short = {name.rpartition("/")[2] for name in names if "@" not in name}
    return tuple(sorted(name for name in short if name.startswith("twotower-")))


def _check_machine(settings: ClusterSettings, *, say: Say) -> None:
    """Raise the first thing that keeps a cluster from being made; say the others."""
    system, own = this_system(), forward.alive(settings)
    checks = (
        preflight.missing_tools(system),
        preflight.check_docker(system),
        preflight.check_versions(system),
        preflight.check_inotify(),
        [] if own is not None and own.port == settings.port else preflight.check_port(settings.port),
    )
    for check in checks:
        for finding in check:
            if finding.is_blocking:
                raise ClusterError(str(finding))
            say(f"Warning: {finding}")


def _images_of(settings: ClusterSettings, *, needs_images: bool, say: Say) -> tuple[str, ...]:
    """Those of the images that Docker has."""
    found = []
    for image in settings.images:
        finished = run(plan.image_here(image))
        if finished.is_ok:
            found.append(image)
        elif needs_images:
            raise ClusterError(f"--image {image}: {finished.complaint}. Build it first; docs/kind.md says how.")
        else:
            say(f"Docker has no image {image}, so the cluster gets none. docs/kind.md says how to build it.")
    return tuple(found)


def _wake(settings: ClusterSettings, *, say: Say) -> str | None:
    """The release that is applied in a cluster that is there, once its API server answers."""
    _do(plan.start_node(settings), say=say, mend=GO_ON)
    until = time.monotonic() + WAKING
    while not (finished := run(plan.applied(settings))).is_ok:
        if time.monotonic() >= until:
            raise ClusterError(f"cluster {settings.name!r} does not answer: {finished.complaint}. {ASK_DOCTOR}")
        time.sleep(INTERVAL)
    return applied_version(finished.stdout)


def _find_release(settings: ClusterSettings) -> None:
    """Before minutes are spent on a cluster: whether its manifests can be had."""
    finding = unreachable_release(settings)
    if finding is not None:
        raise ClusterError(str(finding))


def unreachable_release(settings: ClusterSettings) -> preflight.Finding | None:
    """Why GitHub does not give the release's manifests, or nothing where it does."""
    finished = run(plan.find_release(settings))
    if finished.is_ok:
        return None
    version = settings.pipeline_version
    if finished.returncode == 2:
        return preflight.Finding(
            what=f"Kubeflow Pipelines has no release {version}",
            mend=f"Choose another, such as --pipeline-version {PIPELINE_VERSION}.",
        )
    return preflight.Finding(
        what=f"the manifests of Kubeflow Pipelines cannot be fetched: {finished.complaint}",
        mend="Let this machine reach github.com, where kubectl fetches them while applying (a proxy: HTTPS_PROXY).",
    )


def _do(command: Command, *, say: Say, mend: str) -> None:
    say(command.why)
    must(command, mend=mend)
