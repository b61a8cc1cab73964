"""What has become of each task of a run, flat and under the names that the pipeline gave them.

The server lists the nodes of the engine: a task is a node of its key, beside `KEY-driver` and `executor`, and every
loop, condition and exit handler is a node, too. The compiled pipeline says which of them are tasks, and in which order.
Seen in kubeflow/pipelines, backend/src/v2/compiler/argocompiler/dag.go and container.go, which make these names.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

ENDED = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED")
"""States of a run, and of a node, after which nothing more happens."""

STATES = {
    "PENDING": "waiting",
    "RUNNING": "running",
    "PAUSED": "running",
    "CANCELING": "running",
    "SUCCEEDED": "succeeded",
    "FAILED": "failed",
    "CANCELED": "canceled",
}
"""The engine's words in ours; what has no word here was passed over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskState:
    """One row of the table."""

    name: str
    key: str
    """What the engine calls the task; the same for each turn of a loop."""
    state: str
    """waiting, starting, running, succeeded, cached, skipped, failed or canceled."""
    started: datetime | None = None
    ended: datetime | None = None
    message: str = ""
    nodes: tuple[str, ...] = ()
    """The engine's nodes below the task: those that ran its container."""

    def seconds(self, now: datetime) -> float | None:
        """How long the task took, or has taken so far."""
        if self.started is None or self.state in ("skipped", "waiting"):
            return None
        return max(((self.ended or now) - self.started).total_seconds(), 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineTask:
    """A task that runs a container, as the compiled pipeline names it."""

    key: str
    name: str


def pipeline_tasks(spec: Mapping[str, Any]) -> list[PipelineTask]:
    """The tasks that run containers, each after those it waits for, out of all the nested parts of the pipeline."""
    spec = spec.get("pipeline_spec", spec)
    return list(_tasks_of(spec["root"]["dag"], spec.get("components", {})))


def _tasks_of(dag: Mapping[str, Any], components: Mapping[str, Any]) -> Iterator[PipelineTask]:
    for key, task in _in_order(dag["tasks"]):
        component = components[task["componentRef"]["name"]]
        if "dag" in component:
            yield from _tasks_of(component["dag"], components)
        else:
            yield PipelineTask(key=key, name=task.get("taskInfo", {}).get("name", key))


def _in_order(tasks: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Tasks after those they depend on; otherwise as they come."""
    left = dict(tasks)
    while left:
        ready = [key for key, task in left.items() if not set(task.get("dependentTasks", ())) & left.keys()]
        for key in ready or list(left):
            yield key, left.pop(key)


def task_states(details: Sequence[Any], tasks: Sequence[PipelineTask], *, run_ended: bool) -> list[TaskState]:
    """The rows of the table: one for each task, or one for each turn of a loop."""
    by_name: dict[str, list[Any]] = {}
    for detail in sorted(details, key=lambda each: _moment(each.create_time) or datetime.max.replace(tzinfo=UTC)):
        by_name.setdefault(detail.display_name or "", []).append(detail)
    rows: list[TaskState] = []
    for task in tasks or _guessed(by_name):
        nodes, drivers = by_name.get(task.key, []), by_name.get(f"{task.key}-driver", [])
        turns = max(len(nodes), len(drivers), 1)
        for turn in range(turns):
            node = nodes[turn] if turn < len(nodes) else None
            driver = drivers[turn] if turn < len(drivers) else None
            name = task.name if turns == 1 else f"{task.name} ({turn + 1})"
            rows.append(_row(name, task.key, node=node, driver=driver, details=details, run_ended=run_ended))
    return rows


def _guessed(by_name: Mapping[str, Sequence[Any]]) -> list[PipelineTask]:
    """Tasks of a pipeline that the server does not show: names with a driver that are no part of the plumbing."""
    plumbing = ("root", "iteration", "for-loop-", "condition-", "exit-handler-")
    return [
        PipelineTask(key=name, name=name)
        for name in by_name
        if f"{name}-driver" in by_name and not name.startswith(plumbing)
    ]


def _row(name: str, key: str, *, node: Any, driver: Any, details: Sequence[Any], run_ended: bool) -> TaskState:
    if node is None or (_state(node) == "RUNTIME_STATE_UNSPECIFIED" and driver is not None):
        return _driven(name, key, driver=driver, run_ended=run_ended)
    state = STATES.get(_state(node), "skipped")
    executors = [each for each in details if (each.display_name or "").startswith("executor")]
    return TaskState(
        name=name,
        key=key,
        state="cached" if state == "succeeded" and _was_cached(node, executors) else state,
        started=_moment(node.start_time),
        ended=_moment(node.end_time),
        message=_error(node) or next((text for each in _below(node, executors) if (text := _error(each))), ""),
        nodes=_nodes(node, executors),
    )


def _driven(name: str, key: str, *, driver: Any, run_ended: bool) -> TaskState:
    """A task whose own node is not there: not yet begun, being started, or never reached."""
    if driver is None:
        return TaskState(name=name, key=key, state="skipped" if run_ended else "waiting")
    if _state(driver) == "FAILED":
        return TaskState(
            name=name,
            key=key,
            state="failed",
            started=_moment(driver.start_time),
            ended=_moment(driver.end_time),
            message=_error(driver) or "the part that prepares it (its driver) failed",
            nodes=_nodes(driver, ()),
        )
    return TaskState(name=name, key=key, state="skipped" if run_ended else "starting")


def _was_cached(node: Any, executors: Sequence[Any]) -> bool:
    """Whether the result came from the cache: the engine then passes over the task's executor.

    A server that does not say which executor is whose (`pod_name` is empty up to 2.17, kubeflow/pipelines#14007) leaves
    the time: no pod starts and ends within the second in which an executor was passed over.
    """
    if own := _below(node, executors):
        return all(_state(each) == "SKIPPED" for each in own)
    started, ended = _moment(node.start_time), _moment(node.end_time)
    if started is None or ended is None or ended - started > timedelta(seconds=1):
        return False
    passed_over = [_moment(each.start_time) for each in executors if _state(each) == "SKIPPED"]
    return any(moment is not None and started <= moment <= ended for moment in passed_over)


def _below(node: Any, executors: Sequence[Any]) -> list[Any]:
    """The executors of the task, where the server links them."""
    children = set(_children(node))
    linked = [each for each in executors if each.pod_name and each.pod_name in children]
    return linked or [each for each in executors if each.parent_task_id and each.parent_task_id == node.task_id]


def _nodes(node: Any, executors: Sequence[Any]) -> tuple[str, ...]:
    """The engine's nodes that ran the task's container, the last attempt first."""
    named = [name for each in _below(node, executors) for name in reversed(_children(each))]
    return tuple(dict.fromkeys([*named, *reversed(_children(node)), *([node.pod_name] if node.pod_name else [])]))


def _children(node: Any) -> list[str]:
    return [child.pod_name for child in node.child_tasks or () if child.pod_name]


def _state(node: Any) -> str:
    return str(node.state or "RUNTIME_STATE_UNSPECIFIED")


def _error(node: Any) -> str:
    return " ".join((node.error.message or "").split()) if node.error else ""


def _moment(time: datetime | None) -> datetime | None:
    """The server writes the year 1 or 1970 where there is no time."""
    return time if time is not None and time.year > 1970 else None
