"""Which library finds the nearest items fastest, at equal recall?

Two worlds of 1,000,000 items: what a model learned (64 wide, and its bias), and clustered unit vectors, 64 wide. Each
library builds by itself, in a process of its own, and is searched for the best 100 by one thread, one query at a time.
The setting of each peer is the fastest that reaches the recall on one half of the queries, told of both sides with a
chance of 95%; recall is then measured on the other half, and time too: a few queries of each in turns, round after
round. Ours is what the recipe's `auto` builds when it is asked for that recall.

`latency_ratio` is our median over that of the fastest peer, the worst of all worlds and recalls; `recall` the share of
the best 100 that ours found when asked for 99%, the lowest of all worlds. It fails where what ours found falls short
of a recall by more than chance.
"""

import argparse
import math
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import results
from ann.contest import SURE, Entry, Process, built, entered, take_turns
from ann.libraries import APPROXIMATE, EXACT
from ann.ours import facts
from ann.worker import OURS
from ann.worlds import clustered, trained

KEYS = ("latency_ratio", "recall")
LEVELS = (0.95, 0.99)
ALL = 1.0
"""The recall of an exact search."""
WORLD_1M = Path(__file__).resolve().parents[1] / "serving" / "world_1m.py"
WORLDS = ("trained", "clustered")
THREADS = 2
"""That build; searches have one."""
EXACT_ROUNDS, EXACT_CHUNK = 5, 10
COLUMNS = {
    "level": "asked",
    "recall": "recall@100",
    "ms": "ms",
    "build_s": "build s",
    "build_peak_mb": "to build MB",
    "own_mb": "held MB",
    "mapped_mb": "mapped MB",
    "file_mb": "files MB",
}
"""Figure -> its heading."""


def run(arguments: list[str]) -> dict[str, float]:
    """Build, tune, time, print the tables and keep the raw figures."""
    options = _options(arguments)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as kept:
        for name in options.worlds:
            found = _contest(Path(kept) / name, options)
            print(_table(name, found), flush=True)
            rows += [{"world": name, **row} for row in found]
    raw = {"rows": rows, "threads": THREADS, "options": {key: str(value) for key, value in vars(options).items()}}
    print(f"raw figures: {results.write('ann', raw)}")
    _demand_recall(rows)
    return figures(rows)


def figures(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The last line's figures from the raw ones."""
    judged = [row for row in rows if row["level"] in LEVELS]
    ours = {(row["world"], row["level"]): row for row in judged if row["name"].startswith(OURS)}
    peers = [row for row in judged if not row["name"].startswith(OURS)]
    ratios = [ours[row["world"], row["level"]]["ms"] / row["ms"] for row in peers]
    recalls = [row["recall"] for (_, level), row in ours.items() if level == max(LEVELS)]
    return {"latency_ratio": max(ratios, default=math.nan), "recall": min(recalls)}


def _demand_recall(rows: list[dict[str, Any]]) -> None:
    """Ours found as much as it was asked for, or so little less that a chance of one in twenty explains it."""
    for row in rows:
        if row["name"].startswith(OURS) and row["recall"] + SURE * row["recall_error"] < row["level"]:
            raise RuntimeError(f"{row['world']}: {row['name']} found {row['recall']:.4f} +- {row['recall_error']:.4f}")


def _options(arguments: list[str]) -> argparse.Namespace:
    known = [*EXACT, *APPROXIMATE]
    parser = argparse.ArgumentParser(prog="run.py ann", description=__doc__)
    parser.add_argument("--items", type=int, default=1_000_000, help="of the clustered world (default 1000000)")
    parser.add_argument("--worlds", nargs="+", default=[*WORLDS], choices=WORLDS, help="(default both)")
    parser.add_argument("--peers", nargs="*", default=known, choices=known, help="(default all; nothing for none)")
    parser.add_argument("--queries", type=int, default=2000, help="that tune, and as many that judge (default 2000)")
    parser.add_argument("--rounds", type=int, default=20, help="of timing (default 20)")
    parser.add_argument("--chunk", type=int, default=50, help="queries timed in a turn (default 50)")
    parser.add_argument("--one-thread", action="store_true", help="build ours by one thread as well")
    parser.add_argument("--bundle", type=Path, help="whose embeddings are the trained ones (default: a million made)")
    return parser.parse_args(arguments)


def _contest(world: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All libraries on one world."""
    world.mkdir()
    if world.name == "trained":
        trained(options.bundle or _world_1m(), world, queries=options.queries)
    else:
        clustered(options.items, world, queries=options.queries)
    ours = [f"{OURS} {level}" for level in LEVELS]
    costs: dict[str, dict[str, Any]] = {}
    for name in (f"{OURS} exact", *ours, *options.peers):
        costs[name] = built(name, world, world / name, threads=THREADS)
        _say(f"{world.name}: {name} built in {costs[name]['build_s']:.0f} s")
    for name in ours:
        costs[name]["facts"] = facts(world / name)
        if options.one_thread:
            alone = built(name, world, world / f"{name} alone", threads=1)
            costs[name]["build_s_by_one_thread"] = alone["build_s"]
    return _timed(costs, world, rounds=options.rounds, chunk=options.chunk)


def _timed(costs: dict[str, dict[str, Any]], world: Path, *, rounds: int, chunk: int) -> list[dict[str, Any]]:
    """Every library at every recall, tuned and timed; its memory is what it held after all of that."""
    with ExitStack() as stack:
        exact: list[Entry] = []
        approximate: list[Entry] = []
        for name in costs:
            process = stack.enter_context(Process(name, world))
            ladders = process.ask("load", out=str(world / name))["ladders"]
            for level in _levels(name):
                entry = entered(name, process, world, level=level, ladders=ladders)
                if entry is None:
                    _say(f"{world.name}: {name} does not reach {level}")
                    continue
                (exact if level == ALL else approximate).append(entry)
                _say(f"{world.name}: {name} reaches {level} with {entry.setting}: {entry.recall:.4f}")
        take_turns(exact, rounds=EXACT_ROUNDS, queries=EXACT_CHUNK)
        take_turns(approximate, rounds=rounds, queries=chunk)
        return [entry.raw() | costs[entry.name] | entry.process.ask("memory") for entry in (*exact, *approximate)]


def _levels(name: str) -> tuple[float, ...]:
    """The recalls at which a library takes part; each of ours was built for one."""
    if name in EXACT or name == f"{OURS} exact":
        return (ALL,)
    return (float(name.split()[1]),) if name.startswith(OURS) else LEVELS


def _table(world: str, rows: list[dict[str, Any]]) -> str:
    """What is printed: a line for each library and recall, the fastest first."""
    lines = [f"{world}: {'library':16}" + "".join(f"{column:>12}" for column in COLUMNS.values())]
    lines += [
        f"{'':{len(world) + 1}} {row['name']:16}" + "".join(f"{row[key]:12.4g}" for key in COLUMNS)
        for row in sorted(rows, key=lambda row: (row["level"], row["ms"]))
    ]
    return "\n".join(lines)


def _world_1m() -> Path:
    """Made, where it is not there, by a process that is gone before anything is timed."""
    made = subprocess.run([sys.executable, str(WORLD_1M)], check=True, stdout=subprocess.PIPE, text=True)
    return Path(made.stdout.splitlines()[-1])


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
