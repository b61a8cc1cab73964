"""Does a training step's cost follow the batch, or the tables? The same step on large and on small embedding tables.

Both models have a user id and an item id, 64 wide, with the default tasks around them: once 1,000,000 users and 500,000
items, once 10,000 of each. Batch, negatives and number of interactions are equal. Calls of twenty steps alternate
between the two; the ratio is the median over the pairs. The compiled program is read as well: what it allocates for
itself must be smaller than a table, so that neither a dense gradient nor a copy of a table can hide in it, and the
tables given to it must be updated in place.
"""

import argparse
import math
import statistics
import sys

import results
from scale.stepping import Steps, even_log

KEYS = ("ratio",)
DIM = 64
LARGE, SMALL = (1_000_000, 500_000), (10_000, 10_000)
FLOAT = 4
"""Bytes."""


def sized(users: int, items: int, *, batch_size: int) -> Steps:
    """The steps of a model whose tables have one row for each."""
    from twotower.data.schema import IdFeature
    from twotower.model.config import ModelConfig, RetrievalConfig
    from twotower.training.config import TrainConfig
    from twotower.training.train import build_model

    model_config = ModelConfig(
        query=(IdFeature(kind="id", column="user_id", dim=DIM),),
        candidate=(IdFeature(kind="id", column="item_id", dim=DIM),),
        retrieval=RetrievalConfig(negatives="sampled"),  # The small tables must not take every item as a negative.
    )
    model, arrays = build_model(model_config, dataset=even_log(users, items), seed=0)
    return Steps(model, arrays, batch_size=batch_size, accumulator=TrainConfig().accumulator, seed=0)


def tables_of(steps: Steps) -> dict[str, tuple[int, ...]]:
    """Each table's shape."""
    return {name: tuple(table.shape) for name, table in steps.state.tables.items()}


def memory_of(steps: Steps) -> dict[str, int]:
    """What the compiled call allocates for itself and what it updates in place, in bytes."""
    compiled = steps.stepper._run.lower(steps.state, steps.plan(), steps.stepper.arrays).compile()
    analysis = compiled.memory_analysis()
    if analysis is None:
        raise RuntimeError("this backend does not say what a compiled call allocates; run it on a CPU")
    tables = [math.prod(shape) * FLOAT for shape in tables_of(steps).values()]
    return {
        "temporary": int(analysis.temp_size_in_bytes),
        "in_place": int(analysis.alias_size_in_bytes),
        "smallest_table": min(tables),
        "all_tables": sum(tables),
    }


def run(arguments: list[str]) -> dict[str, float]:
    """Time the two in turns and read the compiled program of the large one."""
    parser = argparse.ArgumentParser(prog="run.py step-growth", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="calls on each side (default 9)")
    parser.add_argument("--batch-size", type=int, default=4096)
    options = parser.parse_args(arguments)
    large, small = (sized(users, items, batch_size=options.batch_size) for users, items in (LARGE, SMALL))
    for side in (large, small):
        side.seconds_per_step()  # Compiles.
    pairs = [(large.seconds_per_step(), small.seconds_per_step()) for _ in range(options.rounds)]
    memory = memory_of(large)
    milliseconds = [1000 * statistics.median(side) for side in zip(*pairs, strict=True)]
    print(f"large {milliseconds[0]:.1f} ms a step, small {milliseconds[1]:.1f} ms a step", file=sys.stderr)
    raw = {
        "tables": [tables_of(large), tables_of(small)],
        "batch_size": options.batch_size,
        "seconds": pairs,
        "memory": memory,
    }
    print(f"raw figures: {results.write('step-growth', raw)}")
    _demand_in_place(memory)
    return {"ratio": statistics.median(ours / theirs for ours, theirs in pairs)}


def _demand_in_place(memory: dict[str, int]) -> None:
    if memory["temporary"] >= memory["smallest_table"]:
        raise RuntimeError(
            f"a step allocates {memory['temporary']:,} bytes for itself; a table has {memory['smallest_table']:,}"
        )
    if memory["in_place"] < memory["all_tables"]:
        raise RuntimeError(
            f"a step updates only {memory['in_place']:,} of {memory['all_tables']:,} table bytes in place"
        )
