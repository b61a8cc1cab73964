"""A run as it goes on, and why it failed: what each task is doing, and the end of the failed one's log."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from urllib.parse import quote

from twotower.errors import PipelineError
from twotower.pipeline.pods import PodState, kubernetes_client, list_pods, log_lines
from twotower.pipeline.server import Server, ServerAwayError, read_text, told
from twotower.pipeline.tasks import ENDED, PipelineTask, TaskState, pipeline_tasks, task_states

PATIENCE = 60.0
"""Seconds for which a server that has answered before may be away: it restarts, or a forwarded port breaks."""

STUCK_AFTER = 60.0
"""Seconds that a task may take to start before its pod is asked why."""

Watch = Callable[["RunState | str"], None]
"""Told each state of the run, and each remark about it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """A run at one moment."""

    run_id: str
    name: str
    state: str
    """PENDING, RUNNING, SUCCEEDED, FAILED, CANCELED, ...: the server's word."""
    url: str
    started: datetime | None
    ended: datetime | None
    message: str
    tasks: tuple[TaskState, ...]

    @property
    def is_ended(self) -> bool:
        return self.state in ENDED

    @property
    def has_failed(self) -> bool:
        return self.state in ("FAILED", "CANCELED")


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why one task failed, and what it printed last."""

    task: str
    message: str
    log: tuple[str, ...]
    source: str
    """Where the log is from, or how to get it where it could not be had."""


def run_url(server: Server, run_id: str) -> str:
    """Where a person looks at the run."""
    return f"{server.host}/#/runs/details/{run_id}"


def read_run(server: Server, run_id: str) -> RunState:
    """What has become of the run and of each of its tasks.

    Raises:
        PipelineError: There is no such run, or the server cannot be asked.
    """
    with told(f"run {run_id}", server, hint=f"The runs are listed at {server.host}/#/runs."):
        run = server.client.get_run(run_id)
        tasks = _tasks_of(server, run)
    details = run.run_details.task_details or () if run.run_details else ()
    state = str(run.state or "PENDING")
    return RunState(
        run_id=run_id,
        name=run.display_name or run_id,
        state=state,
        url=run_url(server, run_id),
        started=run.created_at,
        ended=run.finished_at if run.finished_at and run.finished_at.year > 1970 else None,
        message=" ".join((run.error.message or "").split()) if run.error else "",
        tasks=tuple(task_states(details, tasks, run_ended=state in ENDED)),
    )


def follow_run(
    server: Server, run_id: str, *, watch: Watch, timeout: float | None = None, poll: float = 3.0
) -> RunState:
    """The run as it ended; each state on the way is shown to `watch`.

    Raises:
        PipelineError: It has not ended in `timeout` seconds, or the server is away for too long. The run goes on.
    """
    begun = heard = time.monotonic()
    reasons = _Reasons(server, run_id)
    run: RunState | None = None
    while True:
        try:
            run = reasons.beside(read_run(server, run_id))
            heard = time.monotonic()
            watch(run)
        except ServerAwayError as fault:
            if run is None or time.monotonic() - heard > PATIENCE:
                raise
            watch(f"{fault} Trying again.")
        if run is not None and run.is_ended:
            return run
        if timeout is not None and time.monotonic() - begun + poll > timeout:
            raise PipelineError(_not_ended(server, run_id, run, timeout=timeout))
        time.sleep(poll)


def failures(server: Server, run: RunState, *, lines: int = 40) -> list[Failure]:
    """Each failed task with its message and the end of its log; one entry for the run where no task is to blame."""
    pods = _pods(server, run.run_id)
    found = [_failure(server, run, task, pods=pods, lines=lines) for task in run.tasks if task.state == "failed"]
    if found or not run.has_failed:
        return found
    stuck = next((pod.trouble for pod in reversed(pods or ()) if pod.trouble), "")
    message = run.message or stuck or f"the run is {run.state.lower()} and no task says why"
    return [Failure(task=run.name, message=message, log=(), source=f"look at {run.url}")]


def _tasks_of(server: Server, run: Any) -> list[PipelineTask]:
    spec, reference = run.pipeline_spec, run.pipeline_version_reference
    if not spec and reference and reference.pipeline_version_id:
        version = server.client.get_pipeline_version(reference.pipeline_id, reference.pipeline_version_id)
        spec = version.pipeline_spec
    return pipeline_tasks(spec) if spec else []


class _Reasons:
    """Why tasks do not start, asked of their pods now and then: an image that cannot be pulled waits for ever."""

    def __init__(self, server: Server, run_id: str) -> None:
        self._server, self._run_id = server, run_id
        self._next = time.monotonic() + STUCK_AFTER
        self._pods: list[PodState] = []

    def beside(self, run: RunState) -> RunState:
        """The run with the reason beside each task whose pod has one."""
        waiting = [
            task for task in run.tasks if task.state in ("starting", "running") or (task.started and not task.ended)
        ]
        if run.is_ended or not waiting:
            return run
        if time.monotonic() >= self._next:
            pods = _pods(self._server, self._run_id)
            self._pods = [pod for pod in pods or () if pod.phase == "Pending" and pod.trouble]
            # A cluster that cannot be asked once is not asked again: each attempt may wait for seconds.
            self._next = math.inf if pods is None else time.monotonic() + STUCK_AFTER / 2
        troubles = {task.key: pod.trouble for task in waiting for pod in self._pods if _is_of(pod, task)}
        tasks = [replace(task, message=task.message or troubles.get(task.key, "")) for task in run.tasks]
        return replace(run, tasks=tuple(tasks))


def _not_ended(server: Server, run_id: str, run: RunState | None, *, timeout: float) -> str:
    doing = [f"{task.name}: {task.message or task.state}" for task in run.tasks if _is_busy(task)] if run else []
    state = run.state if run else "unknown"
    return (
        f"run {run_id}: {state} after {timeout:g} s ({', '.join(doing) or 'no task has begun'}). It goes on; see "
        f"`twotower pipeline status {run_id} --host {server.host}`."
    )


def _is_busy(task: TaskState) -> bool:
    return bool(task.message) or task.state in ("starting", "running")


def _failure(server: Server, run: RunState, task: TaskState, *, pods: Sequence[PodState] | None, lines: int) -> Failure:
    own = [pod for pod in pods or () if pod.trouble and _is_of(pod, task)]
    trouble = own[-1].trouble if own else ""
    log, source = _log(server, run, task, pods=own, lines=lines)
    return Failure(task=task.name, message=task.message or trouble or "no reason given", log=tuple(log), source=source)


def _is_of(pod: PodState, task: TaskState) -> bool:
    """Whether the pod is the task's: its path through the engine's nodes goes through the task, or its driver."""
    return not {task.key, f"{task.key}-driver"}.isdisjoint(pod.node_name.split("."))


def _log(
    server: Server, run: RunState, task: TaskState, *, pods: Sequence[PodState], lines: int
) -> tuple[list[str], str]:
    """The end of the log, from the first that has it: the API, the UI before it, the pod itself."""
    for node in _pod_names(task.nodes):
        path = f"/apis/v1alpha1/runs/{quote(run.run_id)}/nodes/{quote(node)}/log"
        if text := read_text(server, path, {"follow": "false"}):
            return text.splitlines()[-lines:], f"{server.host}{path}"
        query = {"podname": node, "runid": run.run_id, "podnamespace": server.pods_namespace}
        if text := read_text(server, "/k8s/pod/logs", query):
            return text.splitlines()[-lines:], f"{server.host}/k8s/pod/logs, pod {node}"
    for pod in reversed(pods):
        if found := _pod_log(server, pod.name, lines=lines):
            return found, f"kubectl logs -n {server.pods_namespace} {pod.name} -c main"
    return [], (
        f"no log could be had from {server.host}; try `kubectl logs -n {server.pods_namespace} "
        f"-l pipeline/runid={run.run_id} -c main --prefix`, or {run.url}"
    )


def _pod_names(nodes: Sequence[str]) -> list[str]:
    """Names that a node's pod may have: the engine puts the template's name before the node's number.

    Seen in kubeflow/pipelines, backend/src/common/util/workflow.go (RetrievePodName).
    """
    names = list(nodes)
    for node in nodes:
        workflow, _, number = node.rpartition("-")
        templates = ("system-container-impl", "retry-system-container-impl")
        names += [f"{workflow}-{template}-{number}" for template in templates if "system-container" not in node]
    return names


def _pods(server: Server, run_id: str) -> list[PodState] | None:
    """The run's pods, or None where the cluster cannot be asked: the server is enough for all but the reasons."""
    import kubernetes.client
    import urllib3

    try:
        return list_pods(kubernetes_client(), server.pods_namespace, selector=f"pipeline/runid={run_id}")
    except (PipelineError, kubernetes.client.ApiException, urllib3.exceptions.HTTPError):
        return None


def _pod_log(server: Server, pod: str, *, lines: int) -> list[str]:
    import kubernetes.client
    import urllib3

    try:
        return log_lines(kubernetes_client(), server.pods_namespace, pod, container="main", tail=lines)
    except (PipelineError, kubernetes.client.ApiException, urllib3.exceptions.HTTPError):
        return []
