"""Waiting until all of Kubeflow Pipelines is ready, with what is not and why told at each look."""

import time
from collections.abc import Callable, MutableMapping
from dataclasses import replace

from twotower.cluster import plan
from twotower.cluster.plan import NAMESPACE, ClusterSettings
from twotower.cluster.tools import Finished, run
from twotower.cluster.workloads import Trouble, Workload, Workloads, objects_in, workloads_in
from twotower.errors import ClusterError

Watch = Callable[[Workloads], None]
"""Told what is ready each time that somebody looked."""
LastWords = MutableMapping[tuple[str, str], str]
"""Pod and container -> what it said before it ended; asked once each."""

INTERVAL = 3.0
"""Seconds between two looks."""
ASK_DOCTOR = "`twotower cluster doctor` says what is wrong."


def wait_until_ready(settings: ClusterSettings, *, watch: Watch) -> None:
    """Look at what runs Kubeflow Pipelines until all of it is ready.

    A look that fails is made again: an API server on a busy laptop does not answer each time.

    Raises:
        ClusterError: the time is up; the line has the first thing that is not ready, and why.
    """
    until = time.monotonic() + settings.timeout
    said: dict[tuple[str, str], str] = {}
    while True:
        finished = run(plan.workloads(settings))
        seen = _with_last_words(settings, finished, said=said)
        watch(seen)
        if seen.is_ready:
            return
        left = until - time.monotonic()
        if left <= 0:
            raise ClusterError(_late(settings, seen, finished=finished))
        time.sleep(min(INTERVAL, left))


def _late(settings: ClusterSettings, seen: Workloads, *, finished: Finished) -> str:
    why = "nothing is there" if finished.is_ok else finished.complaint
    first = next(iter(seen.not_ready), Workload(name="kubectl", is_ready=False, why=why))
    return (
        f"{NAMESPACE}: {seen.summary} after {settings.timeout:.0f} s; {first.name}: {first.why}. {ASK_DOCTOR} "
        "`twotower cluster up --timeout 30m` goes on waiting."
    )


def _with_last_words(settings: ClusterSettings, finished: Finished, *, said: LastWords) -> Workloads:
    """What a look showed, where each crash also has what the container said before."""
    seen = workloads_in(objects_in(finished.stdout) if finished.is_ok else [])
    return replace(seen, all=tuple(_told_why(settings, each, said=said) for each in seen.all))


def _told_why(settings: ClusterSettings, workload: Workload, *, said: LastWords) -> Workload:
    trouble = workload.trouble
    if trouble is None or trouble.kind != "crash loop":
        return workload
    key = (trouble.name, trouble.container)
    if key not in said:
        said[key] = last_words(settings, trouble)
    return replace(workload, why=f"{trouble}; last: {said[key]}")


def last_words(settings: ClusterSettings, trouble: Trouble) -> str:
    """The last lines of a container that ended, in one."""
    command = plan.last_lines(settings, namespace=trouble.namespace, pod=trouble.name, container=trouble.container)
    finished = run(command)
    return " | ".join(line.strip() for line in finished.stdout.splitlines() if line.strip()) or "it said nothing"
