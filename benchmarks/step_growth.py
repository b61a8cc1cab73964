"""Does a training step's cost follow the batch, or the tables? The same step on large and on small embedding tables.

Both models have a user id and an item id, 64 wide, with the default tasks around them: once 1,000,000 users and 500,000
items, once 10,000 of each. Batch, negatives and number of interactions are equal. Calls of twenty steps alternate
between the two; the ratio is the median over the pairs. The compiled program is read as well: what it allocates for
itself must be smaller than a table, so that neither a dense gradient nor a copy of a table can hide in it, and the
tables given to it must be updated in place.
"""

import argparse
import statistics
import sys
import time
from typing import Any

import numpy as np
import pyarrow as pa
import results

KEYS = ("ratio",)
DIM = 64
LARGE, SMALL = (1_000_000, 500_000), (10_000, 10_000)
INTERACTIONS = 1_000_000
STEPS = 20
FLOAT = 4
"""Bytes."""


class Steps:
    """A model on tables of one size, ready to step."""

    def __init__(self, users: int, items: int, *, batch_size: int) -> None:
        from twotower.data.schema import IdFeature
        from twotower.model.config import ModelConfig, RetrievalConfig
        from twotower.training.config import TrainConfig
        from twotower.training.step import Stepper
        from twotower.training.train import build_model

        model_config = ModelConfig(
            query=(IdFeature(kind="id", column="user_id", dim=DIM),),
            candidate=(IdFeature(kind="id", column="item_id", dim=DIM),),
            retrieval=RetrievalConfig(negatives="sampled"),  # The small tables must not take every item as a negative.
        )
        train = TrainConfig(batch_size=batch_size)
        model, arrays = build_model(model_config, dataset=_dataset(users, items), seed=0)
        self.stepper = Stepper(
            model,
            arrays,
            optimizer=_adam(train.learning_rate),
            embedding_learning_rate=train.embedding_learning_rate,
            accumulator=train.accumulator,
            decay_steps=0,
            seed=0,
        )
        self.state = self.stepper.start()
        self.tables = {name: tuple(table.shape) for name, table in self.state.tables.items()}
        self.batch_size, self.generator = batch_size, np.random.default_rng(0)

    def seconds_per_step(self) -> float:
        """One compiled call of `STEPS` steps, until its last number is there."""
        import jax

        examples = self._examples()
        begin = time.perf_counter()
        self.state, _ = jax.block_until_ready(self.stepper.run(self.state, examples))
        return (time.perf_counter() - begin) / STEPS

    def memory(self) -> dict[str, int]:
        """What the compiled call allocates for itself and what it updates in place, in bytes."""
        compiled = self.stepper._run.lower(self.state, self._examples(), self.stepper.arrays).compile()
        analysis = compiled.memory_analysis()
        if analysis is None:
            raise RuntimeError("this backend does not say what a compiled call allocates; run it on a CPU")
        tables = [rows * dim * FLOAT for rows, dim in self.tables.values()]
        return {
            "temporary": int(analysis.temp_size_in_bytes),
            "in_place": int(analysis.alias_size_in_bytes),
            "smallest_table": min(tables),
            "all_tables": sum(tables),
        }

    def _examples(self) -> Any:
        from twotower.training.step import Plan

        none = np.zeros((STEPS, 0), np.int32)
        examples = self.generator.integers(0, INTERACTIONS, (STEPS, self.batch_size), dtype=np.int32)
        return Plan(examples, none, none, none)


def run(arguments: list[str]) -> dict[str, float]:
    """Time the two in turns and read the compiled program of the large one."""
    parser = argparse.ArgumentParser(prog="run.py step-growth", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="calls on each side (default 9)")
    parser.add_argument("--batch-size", type=int, default=4096)
    options = parser.parse_args(arguments)
    large, small = (Steps(users, items, batch_size=options.batch_size) for users, items in (LARGE, SMALL))
    for side in (large, small):
        side.seconds_per_step()  # Compiles.
    pairs = [(large.seconds_per_step(), small.seconds_per_step()) for _ in range(options.rounds)]
    memory = large.memory()
    milliseconds = [1000 * statistics.median(side) for side in zip(*pairs, strict=True)]
    print(f"large {milliseconds[0]:.1f} ms a step, small {milliseconds[1]:.1f} ms a step", file=sys.stderr)
    raw = {"tables": [large.tables, small.tables], "batch_size": options.batch_size, "seconds": pairs, "memory": memory}
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


def _adam(learning_rate: float) -> Any:
    import keras  # After twotower, which chooses its backend.

    return keras.optimizers.Adam(learning_rate)


def _dataset(users: int, items: int) -> Any:
    """A train part in which every user and every item occurs, with one interaction a second."""
    from twotower.data.split import SplitDataset

    names = {"user": users, "item": items}
    ids = {name: np.array([f"{row}" for row in range(count)], object) for name, count in names.items()}
    generator = np.random.default_rng(0)
    user, item = (generator.permutation(INTERACTIONS).astype(np.int32) % count for count in names.values())
    return SplitDataset(
        user_ids=ids["user"],
        item_ids=ids["item"],
        users=pa.table({"user_id": pa.array(ids["user"], pa.string())}),
        items=pa.table({"item_id": pa.array(ids["item"], pa.string())}),
        user=user,
        item=item,
        timestamp=np.arange(INTERACTIONS, dtype=np.int64) * 1_000_000,
        positive=np.ones(INTERACTIONS, bool),
        part=np.zeros(INTERACTIONS, np.int8),
        labels={},
        context=pa.table({"none": pa.nulls(INTERACTIONS)}),
        metadata={},
    )
