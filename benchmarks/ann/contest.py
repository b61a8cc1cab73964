"""Tune each library to a recall, then time all of them in turns."""

import json
import statistics
import subprocess
import sys
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from ann import environment
from ann.libraries import Setting
from ann.worker import OURS
from ann.worlds import limited, shares_found

SURE = 1.645
"""Standard errors below a mean that hold the true one with a chance of 95%; twotower asks as much of itself."""
TRIED = 1000
"""Queries that settings are compared by."""


class Process:
    """A library at work; see `worker.py`."""

    def __init__(self, name: str, world: Path, *, threads: int = 1) -> None:
        """Start it: ours in this environment, a peer in theirs."""
        python = sys.executable if name.startswith(OURS) else environment.python()
        self._process = subprocess.Popen(
            [python, "-m", "ann.worker", name, str(world)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).resolve().parents[1],
            env=limited(threads),
        )
        self._name = name

    def ask(self, do: str, **told: Any) -> Any:
        """The answer to one command."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError(f"{self._name}: no pipe")
        stdin.write(json.dumps({"do": do, **told}) + "\n")
        stdin.flush()
        line = stdout.readline()
        if not line:
            raise RuntimeError(f"{self._name}: ended with {self._process.wait()} when told to {do}")
        return json.loads(line)

    def __enter__(self) -> Self:
        """For `with`."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self._process.communicate()


@dataclass(slots=True, kw_only=True)
class Entry:
    """One library at one recall."""

    name: str
    level: float
    process: Process
    setting: Setting
    recall: float
    """On the queries that did not tune it."""
    error: float
    """The standard error of `recall`."""
    milliseconds: list[list[float]] = field(default_factory=list)
    """Round -> query -> time."""

    @property
    def median(self) -> float:
        """Of all queries."""
        return statistics.median(value for values in self.milliseconds for value in values)

    def raw(self) -> dict[str, Any]:
        """For the results."""
        rounds = [statistics.median(values) for values in self.milliseconds]
        facts = {"name": self.name, "level": self.level, "setting": self.setting, "recall": self.recall}
        return facts | {"recall_error": self.error, "ms": self.median, "ms_by_round": rounds}


def built(name: str, world: Path, out: Path, *, threads: int) -> dict[str, float]:
    """Build and save by a process of its own; what that took."""
    out.mkdir(parents=True)
    with Process(name, world, threads=threads) as process:
        figures: dict[str, float] = process.ask("build", out=str(out), threads=threads)
    return figures


def entered(
    name: str, process: Process, world: Path, *, level: float, ladders: Sequence[Sequence[Setting]]
) -> Entry | None:
    """The fastest setting that reaches the recall on the queries that tune, judged on the others; None for none."""
    found = _reaching(process, world, level=level, ladders=ladders)
    if len(found) > 1:
        told = {"part": "tune", "start": 0, "count": TRIED}
        found.sort(key=lambda setting: statistics.median(process.ask("seconds", setting=setting, **told)))
    if not found:
        return None
    shares = shares_found(world, "test", process.ask("rows", part="test", setting=found[0]))
    mean, error = float(shares.mean()), float(shares.std() / np.sqrt(len(shares)))
    return Entry(name=name, level=level, process=process, setting=found[0], recall=mean, error=error)


def _reaching(process: Process, world: Path, *, level: float, ladders: Sequence[Sequence[Setting]]) -> list[Setting]:
    """The first setting of each ladder that reaches the recall; a library with one setting alone has that one."""

    def reaches(setting: Setting) -> bool:
        shares = shares_found(world, "tune", process.ask("rows", part="tune", setting=setting))
        return bool(shares.mean() - SURE * shares.std() / np.sqrt(len(shares)) >= level)

    if sum(len(ladder) for ladder in ladders) == 1:
        return [ladders[0][0]]
    places = [(ladder, bisect_left(ladder, True, key=reaches)) for ladder in ladders]
    return [ladder[place] for ladder, place in places if place < len(ladder)]


def take_turns(entries: Sequence[Entry], *, rounds: int, queries: int) -> None:
    """Time the same few queries on each of them, round after round; every round begins with another one.

    Before, each answers all queries once: who was tuned first has waited for the others, and where the system takes
    back memory that nobody reads (here one lost its pages within ten minutes), the first rounds would time its return.
    """
    for entry in entries:
        entry.process.ask("rows", part="test", setting=entry.setting)
    for turn in range(rounds):
        first = turn % len(entries)
        for entry in (*entries[first:], *entries[:first]):
            told = {"part": "test", "setting": entry.setting, "start": turn * queries, "count": queries}
            entry.milliseconds.append([1e3 * seconds for seconds in entry.process.ask("seconds", **told)])
