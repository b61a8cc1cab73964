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


def mixed_probability(probability: Array, *, in_batch: int, uniform: int, items: int) -> Array:
    """The chance that one negative, picked from batch and uniform draws together, is this item.

    Arguments and source as in `expected_count`: Q*(j) = (B Q(j) + B' / |I|) / (B + B').
    """
    return expected_count(probability, in_batch=in_batch, uniform=uniform, items=items) / (in_batch + uniform)


def accidental_hits(positive: Array, negative: Array) -> Array:
    """`[B, C]` True where a sampled item is the query's own positive.

    Args:
        positive: `[B]` item of each query.
        negative: `[C]` sampled items.
    """
    return positive[:, None] == negative[None, :]


def user_positive_hits(history_rows: Array, negative_rows: Array) -> Array:
    """`[B, C]` True where a sampled item is one that the query's user met: no negative for that user.

    Never holds more than its result: one place of all histories is compared at a time.

    Args:
        history_rows: `[B, L]` rows of what each user met, padded with -1.
        negative_rows: `[C]` rows of the sampled items, not negative.
    """

    def with_place(place: Array, hit: Array) -> Array:
        return hit | (history_rows[:, place, None] == negative_rows[None, :])

    nothing = jnp.zeros((history_rows.shape[0], negative_rows.shape[0]), bool)
    hit: Array = jax.lax.fori_loop(0, history_rows.shape[1], with_place, nothing)
    return hit
