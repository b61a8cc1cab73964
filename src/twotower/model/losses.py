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
    again among the negatives) are left out of it. Its gradient is that of the source's weighted loss, which
    `weighted_softmax` writes out: the weight `1 - P(positive)` is in it already, and must not be put on it again.

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
        "Correcting the LogQ correction", RecSys 2025, https://arxiv.org/abs/2507.09331. There the sample is taken to
        hold no positive, hence Q(d) / (1 - Q(positive)) a draw; here hits are counted as draws and then left out, which
        gives the same expected sum.
    """
    # The logarithm of the sum of exponentials over all items but the positive, estimated from the sample.
    corrected = jnp.where(hit, LEFT_OUT, negative_logits - jnp.log(expected_count)[None, :])
    return jnp.logaddexp(positive_logits, jax.nn.logsumexp(corrected, axis=1)) - positive_logits


def full_softmax(logits: Array, positive_item: Array, *, hit: Array | None = None) -> Array:
    """Cross-entropy of the positive over the whole catalogue: what the sampled losses estimate.

    For catalogues whose logits fit into memory, some 50,000 items.

    Shapes: `B` queries, `I` items.

    Args:
        logits: `[B, I]` logits of every item.
        positive_item: `[B]` column of each query's positive.
        hit: `[B, I]` True where an item is to be left out, such as the user's other positives; the positive itself
            stays in, marked or not. None leaves out nothing.

    Returns:
        `[B]` in nats, not negative.

    Source:
        What it gains over few negatives: Klenitskiy and Vasilev, "Turning dross into gold loss: is BERT4Rec really
        better than SASRec?", RecSys 2023, https://arxiv.org/abs/2309.07602
    """
    positive_logits = jnp.take_along_axis(logits, positive_item[:, None], axis=1)[:, 0]
    if hit is not None:
        is_positive = jnp.arange(logits.shape[1])[None, :] == positive_item[:, None]
        logits = jnp.where(hit & ~is_positive, LEFT_OUT, logits)
    return jax.nn.logsumexp(logits, axis=1) - positive_logits


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


def gbce(positive_logits: Array, negative_logits: Array, *, hit: Array, sampling_rate: float, t: float) -> Array:
    """Binary cross-entropy with the positive's sigmoid to the power beta, which undoes what few negatives do.

    With few negatives plain cross-entropy takes every positive for near certain, and says little about the order at the
    top. At `t = 1` the sigmoid of a logit estimates the probability itself, however few negatives are drawn; at `t = 0`
    the loss is plain binary cross-entropy.

    Shapes: `B` queries, `C` uniformly sampled candidates shared by all of them.

    Args:
        positive_logits: `[B]` logit of each query's positive.
        negative_logits: `[B, C]` logits of the sample, uncorrected.
        hit: `[B, C]` True where the sampled item is to be left out.
        sampling_rate: alpha, in (0, 1]: the share of the items that are not the positive that is drawn,
            `C / (items - 1)`.
        t: In [0, 1]; the source uses .75 with 256 negatives.

    Returns:
        `[B]` in nats, not negative: the sum over the positive and the sample kept, divided by how many these are.

    Source:
        Petrov and Macdonald, "gSASRec: reducing overconfidence in sequential recommendation trained with negative
        sampling", RecSys 2023, https://arxiv.org/abs/2308.07192: beta = alpha (t (1 - 1/alpha) + 1/alpha), which is
        1 - t + t alpha.
    """
    beta = 1.0 - t + t * sampling_rate
    kept = jnp.where(hit, 0.0, 1.0)
    # softplus(-x) is -log sigmoid(x) and softplus(x) is -log(1 - sigmoid(x)); neither overflows.
    against = jnp.sum(kept * jax.nn.softplus(negative_logits), axis=1)
    return (beta * jax.nn.softplus(-positive_logits) + against) / (1.0 + kept.sum(axis=1))


def cosine_contrastive(
    positive_cosine: Array, negative_cosine: Array, *, hit: Array, margin: float, negative_weight: float
) -> Array:
    """Pulls the positive to cosine 1 and pushes away only the negatives whose cosine is above the margin.

    Easy negatives, below the margin, move nothing. Cosines are those of unit vectors, without temperature or bias.

    Shapes: `B` queries, `C` sampled candidates shared by all of them.

    Args:
        positive_cosine: `[B]` cosine of each query and its positive.
        negative_cosine: `[B, C]` cosines with the sample.
        hit: `[B, C]` True where the sampled item is to be left out.
        margin: In [-1, 1]; larger leaves more negatives alone.
        negative_weight: How much the mean over the sample counts against the positive.

    Returns:
        `[B]`, not negative: `(1 - positive) + negative_weight * mean(max(0, negative - margin))`, the mean over the
        sample kept.

    Source:
        Mao et al., "SimpleX: a simple and strong baseline for collaborative filtering", CIKM 2021,
        https://arxiv.org/abs/2109.12613
    """
    kept = jnp.where(hit, 0.0, 1.0)
    beyond = jnp.sum(kept * jnp.maximum(negative_cosine - margin, 0.0), axis=1)
    return 1.0 - positive_cosine + negative_weight * beyond / jnp.maximum(kept.sum(axis=1), 1.0)


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
    return jnp.sum(values * weights) / total_weight(weights)


def total_weight(weights: Array) -> Array:
    """The sum that a weighted mean divides by; above 0 even where all weights are 0."""
    return jnp.maximum(jnp.sum(weights), 1e-9)
