"""The retrieval task: embeddings -> logits -> loss."""

import jax.numpy as jnp
from jax import Array

from twotower.model.config import RetrievalConfig
from twotower.model.losses import batch_softmax, sampled_softmax
from twotower.model.sampling import accidental_hits, expected_count


def retrieval_logits(query: Array, candidate: Array, *, temperature: float) -> Array:
    """`[B, C]` dot products of `[B, D]` queries and `[C, D]` candidates over the temperature."""
    return query @ candidate.T / temperature


def retrieval_loss(
    config: RetrievalConfig,
    *,
    query: Array,
    positive: Array,
    negative: Array,
    positive_item: Array,
    negative_item: Array,
    probability: Array,
    in_batch: int,
    items: int,
) -> tuple[Array, Array]:
    """Each query's loss `[B]`, and its logits against the sample `[B, C]` for whoever wants hard negatives.

    Args:
        config: The task's settings.
        query: `[B, D]` query embeddings.
        positive: `[B, D]` embedding of each query's own item.
        negative: `[C, D]` embeddings of the shared sample, the `in_batch` from the batch first.
        positive_item: `[B]` which item each positive is.
        negative_item: `[C]` which item each sampled one is.
        probability: `[items]` chance that one in-batch draw is that item.
        in_batch: How many of the sample were taken from the batch.
        items: How many items the uniform draws choose from.
    """
    positive_logits = jnp.sum(query * positive, axis=1) / config.temperature
    logits = retrieval_logits(query, negative, temperature=config.temperature)
    hit = accidental_hits(positive_item, negative_item)
    uniform = negative_item.shape[0] - in_batch
    if config.correction == "none":
        ones = jnp.ones(negative_item.shape, jnp.float32)
        return sampled_softmax(positive_logits, logits, expected_count=ones, hit=hit), logits

    def count(item: Array) -> Array:
        return expected_count(probability[item], in_batch=in_batch, uniform=uniform, items=items)

    if config.correction == "batch":
        counts = {"positive_count": count(positive_item), "expected_count": count(negative_item)}
        return batch_softmax(positive_logits, logits, hit=hit, **counts), logits
    return sampled_softmax(positive_logits, logits, expected_count=count(negative_item), hit=hit), logits
