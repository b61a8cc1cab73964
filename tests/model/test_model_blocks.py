"""The retrieval loss by blocks of queries: equal to the whole, whatever the loss, and in the memory of a block."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twotower.model.blocks import count_blocks, sum_by_blocks
from twotower.model.config import RetrievalConfig
from twotower.model.retrieval import Sample, retrieval_loss

QUERIES, NEGATIVES, DIM = 11, 7, 4
LOSSES: list[dict[str, Any]] = [
    {"correction": "sampled"},
    {"correction": "batch"},
    {"correction": "none"},
    {"loss": "gbce"},
    {"loss": "cosine_contrastive"},
    {"negatives": "all"},
]


def block_loss(config: RetrievalConfig) -> Callable[..., jax.Array]:
    """A weighted sum over the queries given, some items of which are left out."""

    def loss(rows: Any, negative: jax.Array, of_rows: Any, facts: Any) -> jax.Array:
        own, query = rows
        item, weight, seen = of_rows
        sample = Sample(
            positive_item=item,
            negative_item=facts,
            seen=seen,
            is_all=config.negatives == "all",
            in_batch=3,
            items=NEGATIVES,
            probability=jnp.full(NEGATIVES, 1 / NEGATIVES),
        )
        return jnp.sum(weight * retrieval_loss(config, positive=own, negative=query @ negative.T, sample=sample))

    return loss


def drawn(seed: int) -> tuple[Any, ...]:
    generator = np.random.default_rng(seed)
    own, query, negative = (
        jnp.asarray(generator.normal(size=shape), jnp.float32)
        for shape in ((QUERIES,), (QUERIES, DIM), (NEGATIVES, DIM))
    )
    item = jnp.asarray(generator.integers(0, NEGATIVES, QUERIES))
    weight = jnp.asarray(generator.integers(0, 2, QUERIES), jnp.float32)
    seen = jnp.asarray(generator.random((QUERIES, NEGATIVES)) < 0.3)
    return (own, query), negative, (item, weight, seen), jnp.arange(NEGATIVES)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 99), st.sampled_from(LOSSES), st.sampled_from([1, 3, QUERIES]))
def test_blocks_add_up_to_the_whole(seed: int, chosen: dict[str, Any], blocks: int) -> None:
    rows, negative, row_facts, facts = drawn(seed)
    loss = block_loss(RetrievalConfig(**chosen))
    whole = jax.value_and_grad(loss, argnums=(0, 1))(rows, negative, row_facts, facts)

    def halved(rows: Any, negative: jax.Array) -> jax.Array:
        return 0.5 * sum_by_blocks(loss, blocks, rows, negative, row_facts, facts)

    found = jax.value_and_grad(halved, argnums=(0, 1))(rows, negative)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(found), strict=True):
        assert np.asarray(other) == pytest.approx(0.5 * np.asarray(one), rel=1e-5, abs=1e-6)


def test_few_logits_are_one_block_and_no_block_is_empty() -> None:
    assert count_blocks(64, 1_000) == 1
    assert 1 < count_blocks(4_096, 10_000) <= 4_096
    assert count_blocks(3, 10**9) == 3


def test_a_step_holds_the_logits_of_a_block_alone() -> None:
    queries, negatives, dim = 8_192, 100_000, 64

    def loss(rows: jax.Array, negative: jax.Array, weight: jax.Array, facts: None) -> jax.Array:
        return jnp.sum(weight * jax.nn.logsumexp(rows @ negative.T, axis=1))

    def mean(rows: jax.Array, negative: jax.Array, weight: jax.Array) -> jax.Array:
        return sum_by_blocks(loss, count_blocks(queries, negatives), rows, negative, weight, None) / queries

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((queries, dim), (negatives, dim), (queries,))]
    analysis = jax.jit(jax.grad(mean, argnums=(0, 1))).lower(*shapes).compile().memory_analysis()
    if analysis is None:
        pytest.skip("this backend does not say what a compiled call allocates")
    # All logits would be 3.3 GB; a few arrays like the negatives' gradient, of 26 MB, are what it may take.
    assert analysis.temp_size_in_bytes < 5 * negatives * dim * 4
