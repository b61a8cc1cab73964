"""The same training step on user tables of any size: only the table differs, not what a batch reads of it."""

import time
from typing import Any

import numpy as np
import pyarrow as pa

DIM, BATCH, STEPS = 64, 4096, 20
PEOPLE, ITEMS = 10_000, 10_000
INTERACTIONS = 1_000_000


class Steps:
    """A model whose user table has so many rows, ready to step.

    The people of the log stand at rows drawn from the whole table. So the log, and all that is gathered for a batch, is
    the same whatever the table's size, and no ids have to be made up for those who never come.
    """

    def __init__(self, rows: int) -> None:
        import jax.numpy as jnp

        from twotower.data.schema import IdFeature
        from twotower.model.config import ModelConfig, RetrievalConfig
        from twotower.training.step import Stepper
        from twotower.training.train import build_model

        user = IdFeature(kind="id", column="user_id", dim=DIM)
        config = ModelConfig(
            query=(user,),
            candidate=(IdFeature(kind="id", column="item_id", dim=DIM),),
            retrieval=RetrievalConfig(negatives="sampled"),
        )
        model, arrays = build_model(config, dataset=_dataset(), seed=0)
        (users,) = arrays.users.values()
        generator = np.random.default_rng(0)
        users[:] = generator.integers(1, rows, size=users.shape)
        (name,) = (name for name in model.tables if "user_id" in name)
        model.tables[name] = jnp.zeros((rows, DIM), jnp.float32)
        self.stepper = Stepper(
            model,
            arrays,
            optimizer=_adam(),
            embedding_learning_rate=0.05,
            accumulator="element",
            decay_steps=0,
            seed=0,
        )
        self.state = self.stepper.start()
        model.tables.clear()  # The state has its own.
        self.generator = generator

    def seconds_per_step(self) -> float:
        """One compiled call of `STEPS` steps, until its last number is there."""
        import jax

        from twotower.training.step import Plan

        none = np.zeros((STEPS, 0), np.int32)
        plan = Plan(self._examples(), none, none, none)
        begin = time.perf_counter()
        self.state, _ = jax.block_until_ready(self.stepper.run(self.state, plan))
        return (time.perf_counter() - begin) / STEPS

    def _examples(self) -> Any:
        return self.generator.integers(0, INTERACTIONS, (STEPS, BATCH), dtype=np.int32)


def _adam() -> Any:
    import keras  # After twotower, which chooses its backend.

    return keras.optimizers.Adam(0.001)


def _dataset() -> Any:
    """A train part in which all come, with one interaction a second."""
    from twotower.data.split import SplitDataset

    generator = np.random.default_rng(0)
    ids = {"user_id": PEOPLE, "item_id": ITEMS}
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
