"""The same training step on user tables of any size: only the table differs, not what a batch reads of it."""

import numpy as np

from scale.stepping import Steps, even_log

DIM, BATCH = 64, 4096
PEOPLE, ITEMS = 1_000_000, 10_000


def steps_on(rows: int) -> Steps:
    """The steps of a model whose user table has so many rows.

    The million people of the log stand at rows drawn from the whole table, so that a large table is read as far apart
    as it is in memory. The log, and all that is gathered for a batch, is the same whatever the table's size, and no ids
    have to be made up for those who never come.
    """
    import jax.numpy as jnp

    from twotower.data.schema import IdFeature
    from twotower.model.config import ModelConfig, RetrievalConfig
    from twotower.training.train import build_model

    user = IdFeature(kind="id", column="user_id", dim=DIM)
    config = ModelConfig(
        query=(user,),
        candidate=(IdFeature(kind="id", column="item_id", dim=DIM),),
        retrieval=RetrievalConfig(negatives="sampled"),
    )
    model, arrays = build_model(config, dataset=even_log(PEOPLE, ITEMS), seed=0)
    (users,) = arrays.users.values()
    users[:] = np.random.default_rng(0).integers(1, rows, size=users.shape)
    (name,) = (name for name in model.tables if "user_id" in name)
    model.tables[name] = jnp.zeros((rows, DIM), jnp.float32)
    return Steps(model, arrays, batch_size=BATCH, accumulator="element", seed=0)
