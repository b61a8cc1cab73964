"""A bundle put where questions are answered: applied, followed until it answers, and taken back if it does not.

What other people set in the objects (a bigger limit, an annotation of their cloud) stays theirs; only the bundle and
the image are always ours. Nothing here reads a Secret.
"""

import re
import secrets
import time
from dataclasses import dataclass

from twotower.errors import ClusterError
from twotower.release.kube import Cluster, Report, TransientError, connect, short
from twotower.release.manifests import BUNDLE, NAME, Object, bundle_of, image_of, serving_objects

NAMESPACE = "twotower"
API_KEY = "twotower-api-key"
"""Secret whose field `key` every caller has to show; made once, never changed."""
LABEL = f"app.kubernetes.io/name={NAME}"
LOG_LINES = 20
OURS = re.compile(rf"(\.image|\.args|\.annotations\.{re.escape(BUNDLE)})$")
"""The fields that say what is served: ours, whoever set them last."""

_HOPELESS = {"ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName", "CreateContainerConfigError"}
"""Reasons of a waiting container that seldom go away by themselves."""
_TRIES = 2
"""Restarts after which a container that ends again and again counts as hopeless, too."""
_TOO_LATE = "its deadline for progress has passed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What a Deployment serves."""

    bundle: str
    """Address of the bundle."""
    image: str
    """The serving image, with its tag."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """How long to follow a rollout, and how patiently."""

    timeout: float = 600.0
    """Seconds after which a bundle that does not answer yet counts as failed."""
    patience: float = 30.0
    """Seconds that a pod may stay in a state that seldom ends well, such as an image that cannot be pulled."""
    every: float = 2.0
    """Seconds between two looks."""


DEFAULT_ROLLOUT = Rollout()


def apply_serving(
    bundle_address: str,
    *,
    image: str,
    report: Report,
    namespace: str = NAMESPACE,
    context: str | None = None,
    rollout: Rollout = DEFAULT_ROLLOUT,
    before: Served | None = None,
) -> Served | None:
    """Have the bundle answer, and give what answered before; None where nothing did.

    When the rollout fails, what answered before is put back. Its pods go only when others are ready, so questions are
    answered throughout.

    Args:
        bundle_address: Where the sealed bundle lies, as the pods see it.
        image: The serving image with its tag.
        report: Takes progress and, on failure, the last lines of a pod's log, a line at a time.
        namespace: Where to; it has to be there unless the caller may make it.
        context: Of the kubeconfig; by default the current one, or the cluster that this runs in.
        rollout: How long to wait.
        before: What to put back, where it is known better than what stands there now.

    Raises:
        ClusterError: no cluster, no right to it, or the bundle does not come up.
    """
    with connect(namespace=namespace, context=context) as cluster:
        before = before or _served(cluster)
        wanted = Served(bundle=bundle_address, image=image)
        _apply(cluster, wanted, report=report)
        try:
            fault = _follow(cluster, wanted, rollout=rollout, report=report)
        except ClusterError as told:  # Whether it came up cannot be seen, so it counts as one that did not.
            fault = str(told)
        if fault is not None:
            raise ClusterError(f"{fault} {_put_back(cluster, before, wanted=wanted, report=report)}")
        return before


def roll_back(
    bundle_address: str,
    *,
    report: Report,
    image: str | None = None,
    namespace: str = NAMESPACE,
    context: str | None = None,
    rollout: Rollout = DEFAULT_ROLLOUT,
) -> Served | None:
    """Have an earlier bundle answer again; as `apply_serving`, with the image that runs now unless another is named.

    Raises:
        ClusterError: nothing is deployed, or as for `apply_serving`.
    """
    if image is None:
        now = served(namespace=namespace, context=context)
        if now is None:
            raise ClusterError(
                f"{namespace}: no {NAME} is deployed, so there is nothing to roll back. Deploy a bundle."
            )
        image = now.image
    return apply_serving(
        bundle_address, image=image, report=report, namespace=namespace, context=context, rollout=rollout
    )


def served(*, namespace: str = NAMESPACE, context: str | None = None) -> Served | None:
    """What is deployed now, or None where nothing is.

    Raises:
        ClusterError: no cluster, or no right to it.
    """
    with connect(namespace=namespace, context=context) as cluster:
        return _served(cluster)


def _served(cluster: Cluster) -> Served | None:
    deployment = cluster.get("apps/v1", "Deployment", NAME)
    if deployment is None:
        return None
    template = deployment["spec"]["template"]
    address = bundle_of(template)
    return None if address is None else Served(bundle=address, image=image_of(template))


def _apply(cluster: Cluster, wanted: Served, *, report: Report) -> None:
    """Namespace and API key where they are missing, then every object."""
    objects = serving_objects(bundle_address=wanted.bundle, image=wanted.image, namespace=cluster.namespace)
    for each in objects:
        if each["kind"] != "Namespace":
            continue
        if cluster.get("v1", "Namespace", cluster.namespace) is None:
            cluster.create(each)
    key = {"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "stringData": {"key": secrets.token_urlsafe(32)}}
    key["metadata"] = {"name": API_KEY, "namespace": cluster.namespace, "labels": {"app.kubernetes.io/name": NAME}}
    if cluster.create(key):
        report(f"Made the Secret {cluster.namespace}/{API_KEY}: callers show its `key` as a bearer token")
    for each in objects:
        if each["kind"] != "Namespace":
            cluster.apply(each, ours=OURS, report=report)
    report(f"Applied {cluster.namespace}/{NAME}: {wanted.bundle} by {wanted.image}")


def _put_back(cluster: Cluster, before: Served | None, *, wanted: Served, report: Report) -> str:
    """Undo a failed rollout; gives the sentence that says what was done."""
    if before is None:
        return "Nothing was deployed before; the pods are left for a look."
    if before == wanted:
        return "It is what was deployed before, too; the pods are left for a look."
    try:
        _apply(cluster, before, report=report)
    except ClusterError as fault:
        return f"{before.bundle} could not be put back ({fault})"
    return f"{before.bundle} was put back."


def _follow(cluster: Cluster, wanted: Served, *, rollout: Rollout, report: Report) -> str | None:
    """Wait until all pods serve what is wanted; gives the fault, in a sentence, where they do not get there."""
    start = time.monotonic()
    told, stuck_since = "", None
    while True:
        state, troubles = _look(cluster, wanted)
        if state is None:
            report(f"{NAME} serves {wanted.bundle} after {time.monotonic() - start:.0f} s")
            return None
        line = "; ".join([state, *(trouble.told for trouble in troubles)])
        if line != told:
            report(f"{NAME}: {line}")
            told = line
        now = time.monotonic()
        stuck_since = (stuck_since or now) if any(trouble.is_hopeless for trouble in troubles) else None
        is_stuck = stuck_since is not None and now - stuck_since >= rollout.patience
        if is_stuck or now - start >= rollout.timeout or state == _TOO_LATE:
            return _fault(cluster, wanted, waited=now - start, state=state, troubles=troubles, report=report)
        time.sleep(rollout.every)


def _look(cluster: Cluster, wanted: Served) -> "tuple[str | None, list[_Trouble]]":
    """What the rollout waits for now, None when it is complete, and which of its pods are in trouble."""
    try:
        deployment = cluster.get("apps/v1", "Deployment", NAME)
        if deployment is None:
            return f"somebody deleted {NAME}", []
        if (state := _progress(deployment)) is None:
            return None, []
        pods = [pod for pod in cluster.pods(LABEL) if _is_of(pod, wanted)]
    except TransientError as fault:
        return str(fault), []
    return state, [trouble for pod in pods if (trouble := _trouble(pod))]


def _progress(deployment: Object) -> str | None:
    """What a rollout still waits for; None when it is complete."""
    spec, status = deployment["spec"], deployment.get("status", {})
    wanted = spec.get("replicas", 1)
    updated, available = status.get("updatedReplicas", 0), status.get("availableReplicas", 0)
    if status.get("observedGeneration", 0) < deployment["metadata"].get("generation", 0):
        return "not seen by its controller yet"
    if any(each.get("reason") == "ProgressDeadlineExceeded" for each in status.get("conditions", ())):
        return _TOO_LATE
    if updated < wanted:
        return f"{updated} of {wanted} new pods made"
    if status.get("replicas", 0) > updated:
        return f"{status['replicas'] - updated} old pods still to go"
    if available < updated:
        return f"{available} of {updated} new pods ready"
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trouble:
    """Why a pod is not ready."""

    pod: str
    told: str
    is_hopeless: bool
    has_log: bool


def _trouble(pod: Object) -> _Trouble | None:
    """What keeps a pod from being ready, where it says so."""
    name, status = pod["metadata"]["name"], pod.get("status", {})
    for container in status.get("containerStatuses", ()):
        if container.get("ready", False):
            continue
        waiting = container.get("state", {}).get("waiting", {})
        ended = container.get("state", {}).get("terminated") or container.get("lastState", {}).get("terminated") or {}
        reason = waiting.get("reason") or ended.get("reason", "")
        if reason in ("", "ContainerCreating", "PodInitializing"):
            continue
        details = f"exit code {ended['exitCode']}" if "exitCode" in ended else short(waiting.get("message", ""))
        return _Trouble(
            pod=name,
            told=f"{name} {reason} ({details})",
            is_hopeless=reason in _HOPELESS or container.get("restartCount", 0) >= _TRIES,
            has_log=bool(ended),
        )
    for condition in status.get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            told = f"{name} has no node ({short(condition.get('message', ''))})"
            return _Trouble(pod=name, told=told, is_hopeless=False, has_log=False)
    return None


def _is_of(pod: Object, wanted: Served) -> bool:
    return bundle_of(pod) == wanted.bundle and image_of(pod) == wanted.image


def _fault(
    cluster: Cluster, wanted: Served, *, waited: float, state: str, troubles: list[_Trouble], report: Report
) -> str:
    """One sentence on why the rollout failed; the last lines of the failing pod's log go to `report`."""
    why = troubles[0].told if troubles else state
    last = ""
    for trouble in troubles:
        if trouble.has_log and (lines := cluster.log(trouble.pod, lines=LOG_LINES)):
            report(f"The last lines of pod {trouble.pod}:")
            for line in lines:
                report(f"  {line}")
            last = f"; it said: {short(lines[-1])}"
            break
    return f"{cluster.namespace}/{NAME}: {wanted.bundle} does not answer after {waited:.0f} s: {why}{last}."
