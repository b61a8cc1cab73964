"""A TrainJob on a cluster: created, looked at, deleted, with every refusal told in one line."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from twotower.errors import PipelineError
from twotower.pipeline.pods import CALL_TIMEOUT, PodState, list_pods, log_lines

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
INSTALL = (
    "kubectl apply --server-side -k 'https://github.com/kubeflow/trainer.git/manifests/overlays/manager?ref=v2.3.0', "
    "then the same with overlays/runtimes"
)
NODE = "node"
"""The job and the container of the runtime that train."""

PATIENCE = 120.0
"""Seconds for which a pod may be unable to start, or the cluster away; an image just pushed may need a moment."""

Report = Callable[[str], None]
"""Told each line that is worth showing: changes of state, the first node's log, the reason of a failure."""


class GivenUpError(PipelineError):
    """The job would not end by itself, or not in time."""


class _FailedError(PipelineError):
    """The job ended, and badly."""


class AwayError(PipelineError):
    """The cluster cannot be asked right now."""


class _ThereError(PipelineError):
    """There is a job of that name."""


class _GoneError(PipelineError):
    """There is no job of that name any more."""


class TrainJob:
    """A TrainJob on the cluster, and what has been told about it so far."""

    def __init__(
        self, api_client: Any, name: str, *, namespace: str, report: Report, patience: float = PATIENCE
    ) -> None:
        from kubernetes import client

        self.what = f"TrainJob {namespace}/{name}"
        self.report = report
        self.last_seen = "created"
        self._api_client, self._patience = api_client, patience
        self._name, self._namespace = name, namespace
        self._objects = client.CustomObjectsApi(api_client)
        self._where = {"group": GROUP, "version": VERSION, "namespace": namespace, "plural": PLURAL}
        self._shown = ("", 0)
        self._told: set[str] = set()
        self._stuck_since: float | None = None

    def start(self, manifest: Mapping[str, Any]) -> None:
        """Create the job, or go on with the same one that an attempt before this one has left.

        The task that launches may be tried again: a job that still runs, or is done, is the same work; one that failed
        makes room.
        """
        try:
            self._create(manifest)
            return
        except _ThereError:
            old = self._get()
        if old["spec"].get("trainer") != manifest["spec"]["trainer"]:
            raise _other_job(self.what, namespace=self._namespace, name=self._name)
        if "Failed" not in _conditions(old):
            self._tell_once("it is there already, from an attempt before this one; going on with it")
            return
        self._tell_once("an attempt before this one has failed; starting anew")
        self._remove()
        self._create(manifest)

    def _remove(self) -> None:
        """Delete the job and wait until its name is free."""
        begun = time.monotonic()
        self._delete()
        while time.monotonic() - begun < PATIENCE:
            try:
                self._get()
            except _GoneError:
                return
            time.sleep(0.2)
        raise PipelineError(f"{self.what}: it was deleted and is still there; see its finalizers.")

    def _get(self) -> dict[str, Any]:
        with self._refusals("get"):
            found: dict[str, Any] = self._objects.get_namespaced_custom_object(
                **self._where, name=self._name, _request_timeout=CALL_TIMEOUT
            )
        return found

    def _create(self, manifest: Mapping[str, Any]) -> None:
        with self._refusals("create"):
            # A field that this Trainer does not know must not be dropped in silence: it may be the service account.
            self._objects.create_namespaced_custom_object(
                **self._where, body=manifest, field_validation="Strict", _request_timeout=CALL_TIMEOUT
            )

    def delete(self) -> None:
        """Take the job and its pods away; a cluster that refuses is told of, for the first fault matters more."""
        try:
            self._delete()
        except _GoneError:
            return
        except PipelineError as fault:
            self.report(f"{fault} It may still be running: kubectl delete trainjob -n {self._namespace} {self._name}")

    def _delete(self) -> None:
        with self._refusals("delete"):
            self._objects.delete_namespaced_custom_object(
                **self._where,
                name=self._name,
                propagation_policy="Foreground",  # The name is free when the pods are gone.
                _request_timeout=CALL_TIMEOUT,
            )

    def look(self) -> bool:
        """Report what is new; whether the training is done.

        Raises:
            PipelineError: It failed, or one of its pods cannot start.
        """
        conditions = _conditions(self._get())
        with self._refusals("get"):
            pods = list_pods(self._api_client, self._namespace, selector=self._selector)
            self._show_log(pods)
        for condition in conditions.values():
            self._tell_once(f"{condition['type']}: {_reason(condition)}")
        if "Failed" in conditions:
            self._show_failed(pods)
            raise _FailedError(
                f"{self.what} failed: {_reason(conditions['Failed'])}{_blamed(pods)}. It is kept: kubectl describe "
                f"trainjob -n {self._namespace} {self._name}."
            )
        self._check_stuck(pods)
        return "Complete" in conditions

    @property
    def _selector(self) -> str:
        """The nodes' pods; JobSet, which Trainer runs on, labels them so."""
        return f"jobset.sigs.k8s.io/jobset-name={self._name},jobset.sigs.k8s.io/replicatedjob-name={NODE}"

    def _show_log(self, pods: Sequence[PodState]) -> None:
        """Report what the first node has printed since the last look.

        The whole log is read each time: a line an epoch makes it small, and a count of lines never loses one.
        """
        first = next((pod for pod in reversed(pods) if pod.index == "0" and pod.phase != "Pending"), None)
        if first is None:
            return
        lines = log_lines(self._api_client, self._namespace, first.name, container=NODE)
        pod, seen = self._shown
        if pod != first.name or len(lines) < seen:  # Another attempt, or a log that was cut.
            seen = 0
        for line in lines[seen:]:
            self.report(line)
        self._shown = (first.name, len(lines))

    def _show_failed(self, pods: Sequence[PodState], *, tail: int = 40) -> None:
        """Report the end of the log of the node that failed, unless it is the one whose log was shown all along."""
        failed = next((pod for pod in pods if pod.trouble and pod.index != "0"), None)
        if failed is None:
            return
        self.report(f"The end of the log of {failed.name} ({failed.trouble}):")
        with self._refusals("log"):
            for line in log_lines(self._api_client, self._namespace, failed.name, container=NODE, tail=tail):
                self.report(line)

    def _check_stuck(self, pods: Sequence[PodState]) -> None:
        stuck = next((pod for pod in pods if pod.phase == "Pending" and pod.trouble), None)
        if stuck is None:
            self.last_seen = ", ".join(f"{pod.name} {pod.phase}" for pod in pods) or self.last_seen
            self._stuck_since = None
            return
        self.last_seen = f"{stuck.name}: {stuck.trouble}"
        self._tell_once(self.last_seen)
        self._stuck_since = self._stuck_since or time.monotonic()
        if time.monotonic() - self._stuck_since >= self._patience:
            raise GivenUpError(
                f"{self.what}: a pod has not started for {self._patience:g} s, deleted. {self.last_seen}."
            )

    def _tell_once(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            self.report(f"{self.what}: {line}")

    @contextlib.contextmanager
    def _refusals(self, verb: str) -> Iterator[None]:
        """What the cluster refuses, in one line."""
        import urllib3
        from kubernetes import client

        try:
            yield
        except client.ApiException as fault:
            raise _refusal(self.what, verb, fault, namespace=self._namespace) from fault
        except urllib3.exceptions.HTTPError as fault:
            reason = str(getattr(fault, "reason", None) or fault).rpartition(": ")[2]
            raise AwayError(f"{self.what}: Kubernetes cannot be reached ({reason}).") from fault


def _refusal(what: str, verb: str, fault: Any, *, namespace: str) -> PipelineError:
    """What to do about an answer that is no success."""
    said = _said(fault)
    if fault.status == 404 and verb != "create":
        return _GoneError(f"{what}: it is gone; somebody else deleted it.")
    if fault.status == 404 and "namespaces" in said:
        return PipelineError(f"{what}: there is no namespace {namespace}: kubectl create namespace {namespace}.")
    if fault.status == 404:
        return PipelineError(f"{what}: this cluster does not know TrainJobs; install Kubeflow Trainer: {INSTALL}.")
    if fault.status == 409:
        return _ThereError(f"{what}: there is one of that name.")
    if fault.status in (401, 403):
        return PipelineError(f"{what}: not allowed ({fault.status}): {said}. The rights it needs are in deploy/rbac.")
    if "unknown field" in said and "runtimePatches" in said:
        return PipelineError(
            f"{what}: this Kubeflow Trainer does not know runtimePatches, which carry the service account, the node "
            "selector and the tolerations; update it to 2.2 or newer, or leave these out of the profile."
        )
    kind = AwayError if fault.status >= 500 or fault.status == 429 else PipelineError
    return kind(f"{what}: Kubernetes answers {fault.status} to {verb}: {said}.")


def _other_job(what: str, *, namespace: str, name: str) -> PipelineError:
    return PipelineError(
        f"{what}: there is another job of that name: kubectl delete trainjob -n {namespace} {name}, or take "
        "another name."
    )


def _said(fault: Any) -> str:
    """The API server's own words."""
    try:
        found = json.loads(fault.body or "")
    except ValueError:
        return str(fault.reason)
    return " ".join(str(found.get("message", fault.reason)).split()) if isinstance(found, dict) else str(fault.reason)


def _conditions(job: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What holds of the job, by type: Complete, Failed, Suspended, ..."""
    found = job.get("status", {}).get("conditions", ())
    return {each["type"]: each for each in found if each.get("status") == "True"}


def _reason(condition: Mapping[str, Any]) -> str:
    parts = [condition.get("reason", ""), " ".join(condition.get("message", "").split())]
    return ": ".join(part for part in parts if part) or "no reason given"


def _blamed(pods: Sequence[PodState]) -> str:
    """The pod that failed first, as a clause."""
    failed = next((pod for pod in pods if pod.trouble), None)
    return f" ({failed.name}: {failed.trouble})" if failed else ""
