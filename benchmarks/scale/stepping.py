"""Compiled training steps without a run around them: what several benchmarks time."""

import time
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

STEPS = 20
"""Steps of a compiled call."""
INTERACTIONS = 1_000_000
"""Of `even_log`."""


class Steps:
    """A model's steps, one compiled call after the other."""

    def __init__(self, model: Any, arrays: Any, *, batch_size: int, accumulator: str, seed: int) -> None:
        """Take `TrainingArrays`; who keeps neither these nor the model has all of it once from the first call on."""
        import keras  # After twotower, which chooses its backend.

        from twotower.training.step import Stepper

        self.stepper = Stepper(
            model,
            arrays,
            optimizer=keras.optimizers.Adam(0.001),
            embedding_learning_rate=0.05,
            accumulator=accumulator,
            decay_steps=0,
            seed=seed,
        )
        self.batch_size, self.examples, self.taken = batch_size, len(arrays.item), 0
        self.order = np.arange(self.examples, dtype=np.int32)
        np.random.default_rng(seed).shuffle(self.order)

    @cached_property
    def state(self) -> Any:
        """Of the training; begun, as a run begins it, when it is first asked for."""
        self.stepper.compile(self.plan()).result()
        return self.stepper.start()

    def plan(self) -> Any:
        """What the next call takes: examples in an order of chance, over and over."""
        from twotower.training.step import Plan

        places = np.arange(self.taken, self.taken + STEPS * self.batch_size) % self.examples
        none = np.zeros((STEPS, 0), np.int32)
        return Plan(self.order[places].reshape(STEPS, self.batch_size), none, none, none)

    def call(self) -> Any:
        """Begin `STEPS` steps; the loss of each, once they are taken, as `[STEPS]`."""
        self.state, losses = self.stepper.run(self.state, self.plan())
        self.taken += STEPS * self.batch_size
        return losses["loss"]

    def seconds_per_step(self) -> float:
        """Of one call."""
        began = time.perf_counter()
        np.asarray(self.call())
        return (time.perf_counter() - began) / STEPS

    def train(self, seconds: float) -> tuple[float, float]:
        """Train for so long after a first call, which compiles; examples a second, and the last step's loss.

        As in a run, a call is begun before the losses of the one before it are read.
        """
        np.asarray(self.call())
        began, before = time.perf_counter(), self.taken
        losses = self.call()
        while time.perf_counter() - began < seconds:
            last, losses = losses, self.call()
            np.asarray(last)
        loss = float(np.asarray(losses)[-1])
        return (self.taken - before) / (time.perf_counter() - began), loss


def even_log(users: int, items: int) -> Any:
    """A train part in which every user and every item occurs, with one interaction a second."""
    from twotower.data.split import SplitDataset

    generator = np.random.default_rng(0)
    ids = {"user_id": users, "item_id": items}
    tables = {name: pa.table({name: pa.array(np.arange(count)).cast(pa.string())}) for name, count in ids.items()}
    user, item = (generator.permutation(INTERACTIONS).astype(np.int32) % count for count in ids.values())
    return SplitDataset(
        user_ids=np.array(tables["user_id"]["user_id"].to_pylist(), object),
        item_ids=np.array(tables["item_id"]["item_id"].to_pylist(), object),
        users=tables["user_id"],
        items=tables["item_id"],
        user=user,
        item=item,
        timestamp=np.arange(INTERACTIONS, dtype=np.int64) * 1_000_000,
        positive=np.ones(INTERACTIONS, bool),
        part=np.zeros(INTERACTIONS, np.int8),
        labels={},
        context=pa.table({}),
        metadata={},
    )
