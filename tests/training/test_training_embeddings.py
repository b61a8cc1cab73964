"""Sparse tables against the same steps done densely."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from twotower.training.embeddings import Accumulator, adagrad, localise, new_accumulator

ROWS, DIM = 50, 3
TABLE = jnp.asarray(np.random.default_rng(0).normal(size=(ROWS, DIM)).astype(np.float32))
IDS = npst.arrays(np.int32, (2, 3), elements=st.integers(-1, ROWS - 1))


def weights(ids: np.ndarray) -> jax.Array:
    """A loss weight for each place, so that equal ids get different gradients."""
    return jnp.arange(1, ids.size + 1, dtype=jnp.float32).reshape(ids.shape)


def loss(values: jax.Array, ids: jax.Array) -> jax.Array:
    rows = jnp.where((ids >= 0)[..., None], values[jnp.maximum(ids, 0)], 0.0)
    return jnp.sum(weights(np.zeros(ids.shape))[..., None] * jnp.square(rows))


@settings(max_examples=40)
@given(IDS, st.sampled_from(["row", "element"]))
def test_two_sparse_steps_equal_dense_adagrad(ids: np.ndarray, kind: Accumulator) -> None:
    table, accumulator = TABLE, new_accumulator(TABLE, kind)
    dense, dense_sum = np.asarray(TABLE, np.float64), np.zeros((ROWS, 1 if kind == "row" else DIM))
    for _ in range(2):
        local = localise(table, {"ids": jnp.asarray(ids)})
        assert local.rows is not None
        assert local.values.shape[0] == ids.size, "what a step touches is bounded by its batch, not by the table"
        gradient = jax.grad(loss)(local.values, local.inputs["ids"])
        table, accumulator = adagrad(table, accumulator, local=local, gradient=gradient, learning_rate=0.1)
        whole = np.asarray(jax.grad(loss)(jnp.asarray(dense, jnp.float32), jnp.asarray(ids)), np.float64)
        square = whole**2
        dense_sum = dense_sum + (square.mean(axis=1, keepdims=True) if kind == "row" else square)
        dense = dense - 0.1 * whole / np.sqrt(np.where(dense_sum > 0, dense_sum, 1.0))
    assert np.allclose(table, dense, atol=1e-5)


def test_a_small_table_is_taken_whole_and_learns_the_same() -> None:
    ids = jnp.asarray(np.array([[1, 4, 1, -1]], np.int32))
    small = TABLE[:6]
    local = localise(small, {"ids": ids})
    assert local.rows is None
    gradient = jax.grad(loss)(local.values, local.inputs["ids"])
    after, _ = adagrad(small, new_accumulator(small, "element"), local=local, gradient=gradient, learning_rate=0.1)
    moved = np.flatnonzero(np.any(np.asarray(after != small), axis=1))
    assert moved.tolist() == [1, 4]
    # From an empty accumulator a first step is the learning rate in the direction of the gradient's sign.
    assert np.abs(np.asarray(after - small)[moved]).ravel() == pytest.approx(0.1, rel=1e-4)


def test_inputs_that_share_a_table_share_its_rows() -> None:
    local = localise(TABLE, {"history": jnp.array([[7, -1]]), "item": jnp.array([7, 9])})
    assert local.inputs["history"][0, 0] == local.inputs["item"][0]
    assert local.inputs["history"][0, 1] == -1
    assert np.array_equal(local.values[local.inputs["item"][1]], TABLE[9])
