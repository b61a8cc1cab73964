"""What the serving benchmarks do alike: a server and its client on cores of their own, several runs, one median.

The server is `twotower serve` as users start it, on loopback. Requests are due at a constant rate and latency runs from
the moment when one was due until its whole answer is read (`twotower.serving.load.generator`).
"""

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from twotower.bundle import Bundle
from twotower.serving.load.child import Child, cores_apart, on_cores, serving
from twotower.serving.load.generator import LoadPlan, LoadResult, Saturation, find_saturation, run_loop
from twotower.serving.load.measuring import measure, request_bodies

DRAWN = 20_000
"""Requests made ready, for users drawn alike; a longer run begins again with the first."""
STEP_S = 4.0
"""How long each rate is tried on the way to the highest."""
NO_STORE = ("--store", "none")
"""Where nothing is written, nothing on disk should be left or waited for."""


def say(line: str) -> None:
    """A line about progress."""
    print(line, file=sys.stderr, flush=True)


def options(name: str, about: str | None, *, seconds: float, rate: float | None = None) -> argparse.ArgumentParser:
    """The arguments that the serving benchmarks share."""
    parser = argparse.ArgumentParser(prog=f"run.py {name}", description=about)
    parser.add_argument("--bundle", type=Path, help="what is served; by default one made for the purpose, and kept")
    parser.add_argument("--seconds", type=float, default=seconds, help=f"how long is measured (default {seconds:g})")
    if rate is not None:
        parser.add_argument("--rate", type=float, default=rate, help=f"requests a second (default {rate:g})")
    return parser


@contextmanager
def started(bundle: Path, *told: str) -> Iterator[Child]:
    """A server on a bundle with options of its own; this process runs on another core as long as it lasts."""
    cores = cores_apart()
    if cores is None:
        say("cores cannot be chosen here: server and client share them, and the figures suffer")
    server, client = cores or (None, None)
    with serving(bundle, *told, cores=server) as child, on_cores(client):
        yield child


def plan(child: Child, bodies: Sequence[bytes], *, rate: float, seconds: float) -> LoadPlan:
    """A constant load on a server, after two seconds to warm up."""
    return LoadPlan(url=child.url, rate=rate, seconds=seconds, bodies=bodies, warmup=2.0)


def measured_runs(bundle: Path, *, rate: float, seconds: float, k: int, runs: int) -> list[dict[str, Any]]:
    """What each of several runs gave: a server of its own, and users drawn by a seed of its own."""
    opened = Bundle.load(bundle)
    found = []
    for run in range(runs):
        bodies = request_bodies(opened, k=k, count=DRAWN, users="uniform", seed=run)
        with started(bundle, *NO_STORE) as child:
            served = run_loop(measure(plan(child, bodies, rate=rate, seconds=seconds)))
            memory = {"resident_mb": child.resident_mb(), "unshared_mb": child.unshared_mb()}
            ready = {"seed": run, "ready_seconds": child.ready_seconds, "bundle": child.bundle_id, "k": k}
        told = served.load.summary() | {
            f"p{percent}_ms": for_all(served.load, percent) for percent in (50, 95, 99, 100)
        }
        found.append(ready | told | {"timings_ms": served.timings_ms} | memory)
        one = found[-1]
        say(f"run {run}: p50 {one['p50_ms']:.2f} ms, p99 {one['p99_ms']:.2f} ms")
    return found


def saturation(child: Child, bodies: Sequence[bytes], *, rate: float) -> Saturation:
    """The highest rate that a server follows, looked for from `rate` on."""
    first = replace(plan(child, bodies, rate=rate, seconds=STEP_S), warmup=1.0)
    found = run_loop(find_saturation(first))
    say(f"highest rate followed: {found.max_rps:.0f} a second")
    return found


def median(runs: Sequence[dict[str, Any]], key: str) -> float:
    """Over runs."""
    return float(statistics.median(float(run[key]) for run in runs))


def for_all(load: LoadResult, percent: float) -> float:
    """Latency that `percent` of all requests stay within: whoever got no answer has waited for ever, in ms."""
    status = load.status[load.first :]
    latency = np.where(status == 200, load.latency_ms[load.first :], np.inf)
    return float(np.percentile(latency, percent, method="higher"))


def refuse_failures(runs: Sequence[dict[str, Any]]) -> None:
    """A latency is worth nothing where requests failed; those turned away are in the latency.

    Raises:
        RuntimeError: some failed.
    """
    for run in runs:
        if run["errors"] or not {"200", "429", "503"}.issuperset(run["counts"]):
            raise RuntimeError(f"requests failed: {run['counts']} {run['errors']}")
