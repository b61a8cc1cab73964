"""The pipeline on this machine, with no cluster: the same definition, run by kfp's local runner.

Each task is a process of its own, or a container. A task whose image, inputs and code are as they were is taken from
the cache; the image's tag is a hash of the code, so a change of code is a change of key.
"""

import json
import logging
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twotower.errors import PipelineError
from twotower.pipeline.image import PIPELINE, code_tag
from twotower.pipeline.local_log import FAULT, LocalLog, TaskEnd
from twotower.pipeline.profile import Profile, TaskSettings

LOG = "run.log"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalRun:
    """A run that ended well."""

    ends: tuple[TaskEnd, ...]
    """Every task's end, in order."""
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Task -> output -> the path of an artifact, or the value of a parameter."""

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
        env={},
        secrets=(),
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

    Args:
        arguments: Pipeline parameters.
        profile: As for a cluster; requests and limits have no effect here.
        out: Gets `pipeline/` with every task's outputs, the cache, and the whole log.
        cached: Take what is there from the cache.
        in_docker: Run each task in a container of the profile's image, not in a process.
        ended: Told each task's end, as it comes.
        line: Told each line that a task prints.

    Raises:
        PipelineError: a task failed; the message holds its fault, or the end of its output.
    """
    from kfp import local

    from twotower.pipeline.compile import pipeline_for

    root = out.resolve() / "pipeline"
    root.mkdir(parents=True, exist_ok=True)
    ends: list[TaskEnd] = []

    def note(end: TaskEnd) -> None:
        ends.append(end)
        ended(end)

    with (root / LOG).open("w", encoding="utf-8") as file, _quiet():
        log = LocalLog(file, ended=note, line=line)
        local.init(
            _docker_runner(out, arguments) if in_docker else _process_runner(),
            pipeline_root=str(root),
            workspace_root=str(root / ".workspace"),
            enable_caching=cached,
            cache_root=str(root / ".cache"),
        )
        try:
            with _listening(log):
                pipeline_for(profile)(**arguments)
        except RuntimeError as fault:
            if not log.failed:
                raise
            raise PipelineError(_failure(log, root / LOG)) from fault
    return LocalRun(ends=tuple(ends), outputs=_outputs(log, ends, root=root))


def _process_runner() -> Any:
    from kfp import local

    if shutil.which("sh") is None:
        raise PipelineError(
            "pipeline run --local: kfp starts its tasks by `sh`, which is not on the PATH. On Windows install Git, "
            "whose folder usr\\bin has it, or go the same path by `twotower run`."
        )
    return local.SubprocessRunner(use_venv=False)


def _docker_runner(out: Path, arguments: Mapping[str, Any]) -> Any:
    """Containers that see the run's directory, and the data where that is a path of this machine, under their names."""
    from docker.types import Mount

    from twotower import storage
    from twotower.pipeline.docker_runner import truthful_docker_runner

    places = {str(out.resolve()): False}
    for name, read_only in (("data", True), ("registry", False)):
        place = arguments.get(name, "")
        if place and not storage.is_address(place):
            places[storage.absolute(place)] = read_only
    for place, read_only in places.items():
        if not read_only:
            Path(place).mkdir(parents=True, exist_ok=True)
    mounts = [Mount(place, place, type="bind", read_only=read_only) for place, read_only in places.items()]
    return truthful_docker_runner(mounts=mounts)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without kfp's warnings that requests, limits and titles have no effect on one machine: they are for a cluster."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _listening(log: LocalLog) -> Iterator[None]:
    """Let kfp's standard output and its log go to `log`."""
    root = logging.getLogger()
    level = root.level
    root.addFilter(log)
    root.setLevel(logging.INFO)
    try:
        with redirect_stdout(log):
            yield
    finally:
        root.removeFilter(log)
        root.setLevel(level)


def _failure(log: LocalLog, path: Path) -> str:
    """Which task failed first and why, in one line; of a bug, the end of what it printed goes to stderr before."""
    task, tail = next(iter(log.failed.items()))
    fault = next((line.removeprefix(FAULT) for line in reversed(tail) if line.startswith(FAULT)), None)
    if fault is not None:
        return f"{fault.rstrip('.')}. (Step {task} of {path})"
    sys.stderr.write("\n".join([*tail, ""]))
    return f"step {task} failed: {tail[-1] if tail else 'it printed nothing'}. The whole log: {path}"


def _outputs(log: LocalLog, ends: list[TaskEnd], *, root: Path) -> dict[str, dict[str, Any]]:
    """What each task gave: of those that ran, from their folders; of the others, from the cache."""
    runs = sorted(path for path in root.glob("twotower-*") if path.is_dir())
    found: dict[str, dict[str, Any]] = {}
    for end in ends:
        if end.state == "cached":
            entry = next(iter((root / ".cache").glob(f"{log.keys[end.task]}*.json")))
            cached = json.loads(entry.read_text(encoding="utf-8"))
            found[end.task] = {name: _value(value) for name, value in cached.items()}
        elif end.state == "done" and runs:
            folders = sorted(runs[-1].glob(f"{end.task}-*")) or sorted(runs[-1].glob(end.task))
            found[end.task] = {path.name: path for folder in folders[-1:] for path in folder.iterdir()}
    return found


def _value(value: Any) -> Any:
    return Path(value["uri"]) if isinstance(value, dict) and "uri" in value else value
