"""The pipeline on this machine, with no cluster: the same definition, run by kfp's local runner.

Each task is a process of its own, or a container. A task whose image, inputs and code are as they were is taken from
the cache; the image's tag is a hash of the code, so a change of code is a change of key.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twotower.errors import PipelineError, TwotowerError
from twotower.pipeline.image import PIPELINE, code_tag
from twotower.pipeline.interrupts import terminated_as_interrupt
from twotower.pipeline.local_log import LOG, TaskEnd
from twotower.pipeline.profile import Profile, TaskSettings

ENDS_WITHIN_S = 10.0
"""Seconds that interrupted tasks get to end by themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalRun:
    """A run that ended well."""

    ends: tuple[TaskEnd, ...]
    """Every task's end, in order."""
    outputs: dict[str, dict[str, Path]]
    """Task -> artifact -> where it lies."""

    @property
    def all_cached(self) -> bool:
        """Whether every task that may be cached was."""
        from twotower.pipeline.pipeline import UNCACHED

        return all(end.state == "cached" for end in self.ends if end.task.replace("-", "_") not in UNCACHED)


def local_profile(*, registry: Path, deploy_to: Path, image: str | None = None) -> Profile:
    """What a run on this machine needs of a profile: one retry after a second, and folders in place of a cluster."""
    return Profile(
        image=image or f"{PIPELINE}:{code_tag()}",
        registry=str(registry.resolve()),
        deploy_to=str(deploy_to.resolve()),
        retry_backoff_seconds=1,
        tasks={"default": TaskSettings(retries=1)},
    )


def run_local(
    arguments: Mapping[str, Any],
    *,
    profile: Profile,
    out: Path,
    cached: bool = True,
    in_docker: bool = False,
    ended: Callable[[TaskEnd], None],
    line: Callable[[str], None],
) -> LocalRun:
    """Run the pipeline below one directory.

    Interrupted, it ends all tasks, tells the webhook, and leaves what is finished in the cache.

    Args:
        arguments: Pipeline parameters.
        profile: As for a cluster; requests and limits have no effect here.
        out: Gets `pipeline/` with every task's outputs, the cache, and the whole log.
        cached: Take what is there from the cache.
        in_docker: Run each task in a container of the profile's image, not in a process.
        ended: Told each task's end, as it comes.
        line: Told each line that a task prints.

    Raises:
        PipelineError: a task failed, and the message holds its fault or the end of its output; or another run goes on
            in the same directory.
    """
    if not in_docker and shutil.which("sh") is None:
        raise PipelineError(
            "pipeline run --local: kfp starts its tasks by `sh`, which is not on the PATH. On Windows install Git, "
            "whose folder usr\\bin has it, or go the short path by `twotower run`."
        )
    root = out.resolve() / "pipeline"
    root.mkdir(parents=True, exist_ok=True)
    job = {"arguments": dict(arguments), "root": str(root), "cached": cached, "in_docker": in_docker}
    ends: list[TaskEnd] = []
    outputs: dict[str, dict[str, Path]] | None = None
    with _alone(root), terminated_as_interrupt(), _child(job, profile) as told:
        try:
            for event in told:
                if "end" in event:
                    ends.append(TaskEnd(**event["end"]))
                    ended(ends[-1])
                elif "line" in event:
                    line(event["line"])
                elif "fault" in event:
                    raise PipelineError(event["fault"])
                else:
                    outputs = {
                        task: {name: Path(path) for name, path in found.items()}
                        for task, found in event["outputs"].items()
                    }
        except KeyboardInterrupt:
            _tell_of_cancelled(arguments, profile=profile, root=root)
            raise
    if outputs is None:
        raise PipelineError(f"the local runner ended before the pipeline did. What it printed: {root / LOG}")
    return LocalRun(ends=tuple(ends), outputs=outputs)


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """The one run in this directory: two would take each other's results for theirs."""
    from filelock import FileLock, Timeout

    lock = FileLock(root / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as fault:
        raise PipelineError(f"{root.parent}: another run goes on here. Wait for it, or name another --out.") from fault
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _child(job: Mapping[str, Any], profile: Profile) -> Iterator[Iterator[dict[str, Any]]]:
    """What the process with kfp in it tells; with the block, it and all its tasks end."""
    command = [sys.executable, "-m", "twotower.pipeline.local_child"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8", **_group_of_its_own()
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with process.stdin as stdin:
            json.dump({**job, "profile": profile.tree()}, stdin)
        yield (json.loads(text) for text in process.stdout)
        process.wait()
    finally:
        _end_group(process)


def _group_of_its_own() -> dict[str, Any]:
    """So that Ctrl-C reaches us alone: kfp would take an interrupted task for one to be tried again."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def _end_group(process: "subprocess.Popen[str]") -> None:
    """End the process and everything that it started: politely, then not."""
    if sys.platform == "win32":
        if process.poll() is None:
            subprocess.run(["taskkill", "/F", "/T", "/PID", str(process.pid)], capture_output=True, check=False)
        process.wait()
        return
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(ENDS_WITHIN_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _tell_of_cancelled(arguments: Mapping[str, Any], *, profile: Profile, root: Path) -> None:
    """What the exit task would have told, had it come to it."""
    from twotower import steps
    from twotower.recipe import load_recipe
    from twotower.release.summary import Outcome

    with suppress(TwotowerError):
        name = load_recipe(arguments.get("recipe"), arguments.get("settings", {})).name
        outcome = Outcome(run=root.parent.name, name=name, state="CANCELLED", error="interrupted")
        registry = arguments.get("registry") or profile.registry
        steps.summarize(outcome, registry=registry, webhook=arguments.get("webhook", ""), out=root / "cancelled")
