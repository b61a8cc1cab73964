"""The retrieval task: logits -> loss."""

from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array

from twotower.model.config import RetrievalConfig
from twotower.model.losses import batch_softmax, cosine_contrastive, full_softmax, gbce, sampled_softmax
from twotower.model.sampling import accidental_hits, expected_count

ALL_NEGATIVES_AT_MOST = 50_000
"""Items up to which every one can be a negative at every step."""
AUTO_ALL_AT_MOST = 10_000
"""Items up to which `auto` does so: 1,024 queries then hold 40 MB of logits."""


def takes_all(config: RetrievalConfig, *, items: int) -> bool:
    """Whether every item of the train part is a negative at every step."""
    return config.negatives == "all" or (config.negatives == "auto" and items <= AUTO_ALL_AT_MOST)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What `B` queries are compared with: their own items, and `C` negatives shared by all of them."""

    positive_item: Array
    """`[B]` which item each query's own is."""
    negative_item: Array
    """`[C]` which item each negative is; where all items are negatives, the numbers in their order."""
    seen: Array | None
    """`[B, C]` True where the negative is left out: something else that the user met (`mask_positives`), or what nobody
    had met by then (`mask_absent`); None where neither is asked for."""
    is_all: bool
    """Whether the negatives are all items."""
    in_batch: int
    """How many of the negatives were taken from the batch; they come first."""
    items: int
    """How many items there are to draw from."""
    probability: Array
    """`[items]` chance that one in-batch draw is that item."""

    def hit(self) -> Array:
        """`[B, C]` True where a negative must not count: the query's own item, or another that is left out."""
        own = accidental_hits(self.positive_item, self.negative_item)
        return own if self.seen is None else own | self.seen

    def count(self, item: Array) -> Array:
        """How often each item is expected among the negatives."""
        uniform = self.negative_item.shape[0] - self.in_batch
        return expected_count(self.probability[item], in_batch=self.in_batch, uniform=uniform, items=self.items)


def retrieval_loss(config: RetrievalConfig, *, positive: Array, negative: Array, sample: Sample) -> Array:
    """Each query's loss `[B]`.

    Args:
        config: The task's settings.
        positive: `[B]` logit of each query's own item; for `cosine_contrastive` the cosine.
        negative: `[B, C]` logits of the negatives, likewise.
        sample: What they belong to.
    """
    if config.loss == "gbce":
        rate = min(negative.shape[1] / max(sample.items - 1, 1), 1.0)
        return gbce(positive, negative, hit=sample.hit(), sampling_rate=rate, t=config.gbce_t)
    if config.loss == "cosine_contrastive":
        return cosine_contrastive(
            positive, negative, hit=sample.hit(), margin=config.margin, negative_weight=config.negative_weight
        )
    if sample.is_all:
        return full_softmax(negative, sample.positive_item, hit=sample.seen)
    if config.correction == "none":
        ones = jnp.ones(negative.shape[1], jnp.float32)
        return sampled_softmax(positive, negative, expected_count=ones, hit=sample.hit())
    counts = sample.count(sample.negative_item)
    if config.correction == "batch":
        own = sample.count(sample.positive_item)
        return batch_softmax(positive, negative, positive_count=own, expected_count=counts, hit=sample.hit())
    return sampled_softmax(positive, negative, expected_count=counts, hit=sample.hit())
