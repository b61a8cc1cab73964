"""Negatives, and how often each item is expected among them."""

import jax
import jax.numpy as jnp
from jax import Array


def draw_uniform(key: Array, count: int, *, items: int) -> Array:
    """`[count]` places in the items table, each equally likely, with replacement."""
    return jax.random.randint(key, (count,), 0, items, dtype=jnp.int32)


def expected_count(probability: Array, *, in_batch: int, uniform: int, items: int) -> Array:
    """How often an item is expected among the negatives of one step.

    Args:
        probability: `[C]` chance that one in-batch draw is this item.
        in_batch: Negatives taken from the batch.
        uniform: Negatives drawn uniformly beside them.
        items: Items that the uniform draws choose from.

    Source:
        Mixed negative sampling: Yang et al., WWW 2020, https://doi.org/10.1145/3366424.3386195; as an expected count
        rather than as a share, so that the sampled sum estimates the whole sum.
    """
    return in_batch * probability + uniform / items


def accidental_hits(positive: Array, negative: Array) -> Array:
    """`[B, C]` True where a sampled item is the query's own positive.

    Args:
        positive: `[B]` item of each query.
        negative: `[C]` sampled items.
    """
    return positive[:, None] == negative[None, :]
