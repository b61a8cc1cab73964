"""How does the cost grow: a step's with the tables, an epoch's with the interactions, memory with a streamed log?

Tables: the same step of the same model on a user table of 10^4, 10^5, ... rows, calls of twenty steps taken in turns.
`table_ratio` is the slowest table's median step over the fastest's.

Interactions: logs of 10^5, 10^6, ... interactions of the same users and items are trained for an epoch, each by a
process of its own; what is longer than a fiftieth of the largest is streamed from disk. Counted is the time from one
compiled call's end to the next one's, reading of windows included, without the first call of each length, which
compiles. `linearity` is the largest relative departure of the seconds per interaction from their mean; logs that are
too short to be timed once are gone through several times.

Memory: `stream_gb` is how much more memory of its own the process with the longest streamed log held at most, from its
start to its end, than that with the shortest one.

With `--page` the plots and the table on docs/performance.md are written anew.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import results

from scale.page import PAGE, fill, table
from scale.plots import draw
from scale.watched import watch

KEYS = ("table_ratio", "linearity", "stream_gb")
USERS, ITEMS, DIM, BATCH = 100_000, 20_000, 32, 4096
FIRST_TABLE, LARGEST_TABLE = 10_000, 10_000_000
FIRST_LOG = 100_000
TIMED = 1_000_000
"""Examples that a timing is taken from at least."""
STREAMED_FROM = 50
"""A log longer than the largest divided by this is streamed."""
PIECE = 1_000_000
PLOTS = {
    "tables": "Milliseconds a step against rows of the user table",
    "interactions": "Seconds an epoch against interactions",
    "memory": "Peak memory against interactions",
}
"""File, as `draw` writes it, and what it shows."""


def run(arguments: list[str]) -> dict[str, float]:
    """Measure all three, keep the raw figures, and draw the plots."""
    parser = argparse.ArgumentParser(prog="run.py growth", description=__doc__)
    parser.add_argument("--largest", type=float, default=1e8, help="interactions of the longest log (default 1e8)")
    parser.add_argument("--tables", type=float, default=LARGEST_TABLE, help="rows of the largest table (default 1e7)")
    parser.add_argument("--rounds", type=int, default=7, help="timed calls on each table (default 7)")
    parser.add_argument("--page", action="store_true", help="write docs/performance.md and its plots anew")
    parser.add_argument("--log", nargs=4, help=argparse.SUPPRESS)  # What a process of its own is told.
    options = parser.parse_args(arguments)
    if options.log:
        split, rows, memory_rows, passes = options.log
        print(json.dumps(train_log(Path(split), int(rows), memory_rows=int(memory_rows), passes=int(passes))))
        return dict.fromkeys(KEYS, math.nan)
    tables = step_times(_powers(FIRST_TABLE, int(options.tables)), rounds=options.rounds)
    logs = train_logs(
        _powers(FIRST_LOG, int(options.largest)), memory_rows=max(int(options.largest) // STREAMED_FROM, 32 * BATCH)
    )
    raw = {"tables": tables, "logs": logs, "users": USERS, "items": ITEMS, "dim": DIM, "batch_size": BATCH}
    print(f"raw figures: {results.write('growth', raw)}")
    if options.page:
        draw(raw, to=PAGE.with_suffix(""))
        fill("growth", told(raw))
    return figures(tables, logs)


def figures(tables: list[dict[str, Any]], logs: list[dict[str, Any]]) -> dict[str, float]:
    """The last line's figures from the raw ones."""
    steps = [statistics.median(table["seconds"]) for table in tables]
    rates = [log["seconds_per_interaction"] for log in logs]
    mean = statistics.fmean(rates)
    streamed = [log["peak_gb"] for log in logs if log["streamed"]]
    return {
        "table_ratio": max(steps) / min(steps),
        "linearity": max(abs(rate / mean - 1) for rate in rates),
        "stream_gb": streamed[-1] - streamed[0],
    }


def told(raw: dict[str, Any]) -> str:
    """The three plots, the last line, and the raw figures as tables."""
    found = figures(raw["tables"], raw["logs"])
    steps = [[f"{each['rows']:,}", f"{1000 * statistics.median(each['seconds']):.1f}"] for each in raw["tables"]]
    logs = [
        [
            f"{log['interactions']:,}",
            "streamed" if log["streamed"] else "in memory",
            f"{1e6 * log['seconds_per_interaction']:.2f}",
            f"{log['peak_gb']:.2f}",
        ]
        for log in raw["logs"]
    ]
    line = f"`growth: {' '.join(f'{key}={found[key]:.4g}' for key in KEYS)}`"
    held = table(["interactions", "train part", "microseconds each", "peak memory, GB"], logs)
    plots = [f"![{text}]({PAGE.stem}/{name}.svg)" for name, text in PLOTS.items()]
    return "\n\n".join([*plots, line, table(["rows of the user table", "milliseconds a step"], steps), held])


def step_times(sizes: list[int], *, rounds: int) -> list[dict[str, Any]]:
    """Seconds a step on each table, in turns."""
    from scale.tables import steps_on

    sides = [steps_on(rows) for rows in sizes]
    for side in sides:
        side.seconds_per_step()  # Compiles.
    seconds: list[list[float]] = [[] for _ in sides]
    for _ in range(rounds):
        for side, found in zip(sides, seconds, strict=True):
            found.append(side.seconds_per_step())
    for rows, found in zip(sizes, seconds, strict=True):
        print(f"table of {rows:,} rows: {1000 * statistics.median(found):.1f} ms a step", file=sys.stderr)
    return [{"rows": rows, "seconds": found} for rows, found in zip(sizes, seconds, strict=True)]


def train_logs(sizes: list[int], *, memory_rows: int) -> list[dict[str, Any]]:
    """Train an epoch of each log in a process of its own."""
    found = []
    for rows in sizes:
        with tempfile.TemporaryDirectory(prefix="twotower-growth-") as scratch:
            split = Path(scratch) / "split"
            write_log(split, rows)
            told = [str(split), str(rows), str(memory_rows), str(-(-TIMED // rows))]
            seen = watch([sys.executable, str(Path(results.__file__).with_name("run.py")), "growth", "--log", *told])
        log = json.loads(next(line for line in seen.output.splitlines() if line.startswith("{"))) | seen.raw()
        print(
            f"log of {rows:,}: {1e6 * log['seconds_per_interaction']:.2f} us an interaction, {log['peak_gb']:.2f} GB"
            f"{', streamed' if log['streamed'] else ''}",
            file=sys.stderr,
        )
        found.append(log)
    return found


def train_log(split: Path, rows: int, *, memory_rows: int, passes: int) -> dict[str, Any]:
    """Train on a log and time the compiled calls, but for those that compile."""
    from twotower.data.schema import HistoryFeature, IdFeature
    from twotower.data.split import load_split
    from twotower.model.config import ModelConfig, RetrievalConfig
    from twotower.training.config import TrainConfig
    from twotower.training.progress import TrainProgress
    from twotower.training.train import train

    model = ModelConfig(
        query=(IdFeature(kind="id", column="user_id", dim=DIM), HistoryFeature(kind="history", length=10)),
        candidate=(IdFeature(kind="id", column="item_id", dim=DIM),),
        retrieval=RetrievalConfig(negatives="sampled", in_batch_negatives=512, uniform_negatives=512),
    )
    last, met = [time.perf_counter(), 0], set[int]()
    timed = [0.0, 0]

    def tell(progress: TrainProgress) -> None:
        now, steps = time.perf_counter(), progress.step - int(last[1])
        is_within_an_epoch = last[1] % (progress.steps // progress.epochs) > 0
        if steps in met and is_within_an_epoch:
            timed[0] += now - last[0]
            timed[1] += steps * min(BATCH, rows)
        met.add(steps)
        last[:] = now, progress.step

    train(
        TrainConfig(
            epochs=passes + 1 if passes > 1 else 1, batch_size=BATCH, steps_per_call=10, memory_rows=memory_rows
        ),
        model_config=model,
        dataset=load_split(split),
        seed=0,
        checkpoint=split.with_name("checkpoint"),
        resume=False,
        report=tell,
    )
    return {
        "interactions": rows,
        "streamed": rows > memory_rows,
        "memory_rows": memory_rows,
        "timed_interactions": timed[1],
        "seconds_per_interaction": timed[0] / timed[1],
    }


def write_log(directory: Path, rows: int) -> None:
    """A split directory whose train part is all: an interaction a second, by even users and items of Zipf's law."""
    from twotower.artifact import write_artifact
    from twotower.data.tables import INTERACTIONS, PART
    from twotower.data.tables import ITEMS as ITEM_TABLE
    from twotower.data.tables import USERS as USER_TABLE

    generator = np.random.default_rng(0)
    weight = 1 / (np.arange(ITEMS) + 10.0)
    edges = np.cumsum(weight) / weight.sum()
    metadata: dict[str, Any] = {"protocol": "time", "label_columns": [], "context_columns": [], "title_column": None}
    with write_artifact(directory, kind="split", metadata=metadata) as out:
        for file, name, count in ((USER_TABLE, "user_id", USERS), (ITEM_TABLE, "item_id", ITEMS)):
            pq.write_table(pa.table({name: pa.array(np.arange(count)).cast(pa.string())}), out / file)
        writer = None
        for start in range(0, rows, PIECE):
            size = min(PIECE, rows - start)
            item = np.minimum(np.searchsorted(edges, generator.random(size)), ITEMS - 1)
            table = pa.table(
                {
                    "user_id": pa.array(generator.integers(USERS, size=size)).cast(pa.string()),
                    "item_id": pa.array(item).cast(pa.string()),
                    "timestamp": pa.array((start + np.arange(size)) * 1_000_000).cast(pa.timestamp("us")),
                    "positive": pa.array(np.ones(size, bool)),
                    PART: pa.array(np.zeros(size, np.int8)),
                }
            )
            writer = writer or pq.ParquetWriter(out / INTERACTIONS, table.schema)
            writer.write_table(table)
        if writer is not None:
            writer.close()


def _powers(first: int, last: int) -> list[int]:
    return [10**power for power in range(round(math.log10(first)), round(math.log10(last)) + 1)]
