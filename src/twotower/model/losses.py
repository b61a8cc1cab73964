"""Losses as pure functions on JAX arrays; each returns one value a query, so that the caller may weigh and average."""

import jax
import jax.numpy as jnp
from jax import Array

LEFT_OUT = -1e9
"""A logit whose exponential is 0 in float32, and whose gradient stays a number."""


def sampled_softmax(positive_logits: Array, negative_logits: Array, *, expected_count: Array, hit: Array) -> Array:
    """Cross-entropy of the positive against all items, estimated from a sample of them.

    The positive stands uncorrected and apart from the sample. Each sampled item counts `1 / expected_count` times, so
    that the sum over the sample estimates the sum over all other items without bias; accidental hits (the positive met
    again among the negatives) are left out of it.

    Shapes: `B` queries, `C` sampled candidates shared by all of them.

    Args:
        positive_logits: `[B]` logit of each query's positive.
        negative_logits: `[B, C]` logits of the sample.
        expected_count: `[C]` how often the item is expected in such a sample, above 0.
        hit: `[B, C]` True where the sampled item is to be left out.

    Returns:
        `[B]` in nats, not negative.

    Source:
        Importance-sampled softmax with the positive left uncorrected and out of the sample: Khrylchenko et al.,
        "Correcting the LogQ correction", RecSys 2025, https://arxiv.org/abs/2507.09331 (without its weights).
    """
    corrected = jnp.where(hit, LEFT_OUT, negative_logits - jnp.log(expected_count)[None, :])
    everything = jnp.logaddexp(positive_logits, jax.nn.logsumexp(corrected, axis=1))
    return everything - positive_logits


def batch_softmax(
    positive_logits: Array, negative_logits: Array, *, positive_count: Array, expected_count: Array, hit: Array
) -> Array:
    """Cross-entropy over the positive and the sample, with the log-probability correction on both.

    Shapes and arguments as in `sampled_softmax`; `positive_count` is `[B]`, the expected count of each positive. With
    every count at 1 it is the plain in-batch softmax, which learns to avoid what is popular.

    Source:
        Yi et al., "Sampling-bias-corrected neural modeling for large corpus item recommendations", RecSys 2019,
        https://doi.org/10.1145/3298689.3346996
    """
    return sampled_softmax(
        positive_logits - jnp.log(positive_count), negative_logits, expected_count=expected_count, hit=hit
    )


def sampled_cross_entropy(
    positive_logits: Array, negative_logits: Array, *, expected_count: Array, hit: Array
) -> Array:
    """Binary cross-entropy of the positive as 1 and each sampled item as 0, as a mean over all of these.

    Shapes and arguments as in `sampled_softmax`: a sampled item counts `1 / expected_count` times, a hit not at all.
    """
    weights = jnp.where(hit, 0.0, 1.0 / expected_count[None, :])
    against = jnp.sum(weights * binary_cross_entropy(negative_logits, jnp.zeros_like(negative_logits)), axis=1)
    return (binary_cross_entropy(positive_logits, jnp.ones_like(positive_logits)) + against) / (
        1.0 + weights.sum(axis=1)
    )


def squared_error(prediction: Array, label: Array) -> Array:
    """`(prediction - label)^2`, 0 where the label is NaN."""
    return jnp.where(jnp.isnan(label), 0.0, jnp.square(prediction - jnp.nan_to_num(label)))


def binary_cross_entropy(logits: Array, label: Array) -> Array:
    """Cross-entropy in nats of labels in [0, 1] against logits, 0 where the label is NaN.

    Source:
        The form that does not overflow: max(x, 0) - x y + log(1 + exp(-|x|)).
    """
    known = jnp.nan_to_num(label)
    loss = jnp.maximum(logits, 0.0) - logits * known + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    return jnp.where(jnp.isnan(label), 0.0, loss)


def weighted_mean(values: Array, weights: Array) -> Array:
    """The mean under weights; 0 where all weights are 0, so that an empty batch moves nothing."""
    return jnp.sum(values * weights) / jnp.maximum(jnp.sum(weights), 1e-9)
