"""The process in which kfp's local runner works: it is told what to run, and tells how it goes, in lines of JSON.

kfp replaces log handlers and the standard output while it runs, keeps its settings in globals, and starts a task again
that was interrupted. All of that ends with this process, which is the only child of whoever asked (`local.py`).
"""

import json
import logging
import os
import shlex
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from twotower.errors import PipelineError
from twotower.pipeline.local_log import FAULT, LOG, LocalLog, TaskEnd
from twotower.pipeline.profile import parse_profile


def main() -> None:
    """Run what the standard input says; the last line told is the outputs, or the fault."""
    job = json.load(sys.stdin)
    # Whatever else is printed goes to stderr: the standard output is for our lines alone.
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    # kfp puts it into a script for `sh`, where a blank or a backslash would part it.
    sys.executable = shlex.quote(Path(sys.executable).as_posix())
    try:
        outputs = _run(job, channel)
    except PipelineError as fault:
        _tell(channel, fault=str(fault))
    else:
        _tell(channel, outputs=outputs)


def _run(job: Mapping[str, Any], channel: TextIO) -> dict[str, Any]:
    from kfp import local

    from twotower.pipeline.compile import pipeline_for

    root = Path(job["root"])
    profile = parse_profile(job["profile"], where="profile")
    ends: list[TaskEnd] = []

    def ended(end: TaskEnd) -> None:
        ends.append(end)
        _tell(channel, end=asdict(end))

    with (root / LOG).open("w", encoding="utf-8") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # That requests and limits have no effect here: they are for a cluster.
        log = LocalLog(file, ended=ended, line=lambda line: _tell(channel, line=line))
        local.init(
            _docker_runner(job) if job["in_docker"] else local.SubprocessRunner(use_venv=False),
            pipeline_root=str(root),
            workspace_root=str(root / ".workspace"),
            enable_caching=job["cached"],
            cache_root=str(root / ".cache"),
        )
        try:
            with _listening(log):
                pipeline_for(profile)(**job["arguments"])
        except RuntimeError as fault:
            if not log.failed:
                raise
            raise PipelineError(_failure(log, root / LOG)) from fault
    return _outputs(log, ends, root=root)


def _docker_runner(job: Mapping[str, Any]) -> Any:
    """Containers that see the run's directory, the registry and the data under the names that they have here."""
    from docker.types import Mount

    from twotower import storage
    from twotower.pipeline.docker_runner import truthful_docker_runner

    places = {str(Path(job["root"]).parent): False}
    for name, read_only in (("data", True), ("registry", False)):
        place = job["arguments"].get(name, "")
        if place and not storage.is_address(place):
            places[storage.absolute(place)] = read_only
    for place, read_only in places.items():
        if not read_only:
            Path(place).mkdir(parents=True, exist_ok=True)
    mounts = [Mount(place, place, type="bind", read_only=read_only) for place, read_only in places.items()]
    return truthful_docker_runner(mounts=mounts)


@contextmanager
def _listening(log: LocalLog) -> Iterator[None]:
    """Let kfp's standard output and its log go to `log`."""
    root = logging.getLogger()
    root.addHandler(logging.NullHandler())  # Without any, Python would add one that writes to stderr.
    root.addFilter(log)
    root.setLevel(logging.INFO)
    with redirect_stdout(log):
        yield


def _failure(log: LocalLog, path: Path) -> str:
    """Which task failed first and why, in one line; of a bug, the end of what it printed goes to stderr before."""
    task, tail = next(iter(log.failed.items()))
    fault = next((line.removeprefix(FAULT) for line in reversed(tail) if line.startswith(FAULT)), None)
    if fault is not None:
        return f"{fault.rstrip('.')}. (Step {task} of {path})"
    sys.stderr.write("\n".join([*tail, ""]))
    return f"step {task} failed: {tail[-1] if tail else 'it printed nothing'}. The whole log: {path}"


def _outputs(log: LocalLog, ends: list[TaskEnd], *, root: Path) -> dict[str, Any]:
    """What each task gave: of those that ran, from their folders; of the others, from the cache."""
    runs = sorted(path for path in root.glob("twotower-*") if path.is_dir())
    found: dict[str, Any] = {}
    for end in ends:
        if end.state == "cached":
            entry = next(iter((root / ".cache").glob(f"{log.keys[end.task]}*.json")))
            cached = json.loads(entry.read_text(encoding="utf-8"))
            found[end.task] = {name: value["uri"] for name, value in cached.items() if isinstance(value, dict)}
        elif end.state == "done":
            folders = sorted(runs[-1].glob(f"{end.task}-*")) or sorted(runs[-1].glob(end.task))
            found[end.task] = {path.name: str(path) for folder in folders[-1:] for path in folder.iterdir()}
    return found


def _tell(channel: TextIO, **what: Any) -> None:
    channel.write(json.dumps(what) + "\n")
    channel.flush()


if __name__ == "__main__":
    main()
