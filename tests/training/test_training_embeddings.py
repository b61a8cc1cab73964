"""Sparse tables against the same steps done densely."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from twotower.errors import RecipeError
from twotower.training.embeddings import Accumulator, adagrad, localise, localise_all, new_accumulator, new_owner

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
    owner = new_owner(table)
    for step in range(2):
        local = localise(table, {"ids": jnp.asarray(ids)}, owner=owner, step=step)
        owner = local.owner
        assert local.rows is not None
        assert local.values.shape[0] == ids.size, "what a step touches is bounded by its batch, not by the table"
        gradient = jax.grad(loss)(local.values, local.inputs["ids"])
        table, accumulator = adagrad(table, accumulator, local=local, gradient=gradient, learning_rate=0.1)
        whole = np.asarray(jax.grad(loss)(jnp.asarray(dense, jnp.float32), jnp.asarray(ids)), np.float64)
        square = whole**2
        dense_sum = dense_sum + (square.mean(axis=1, keepdims=True) if kind == "row" else square)
        dense = dense - 0.1 * whole / np.sqrt(np.where(dense_sum > 0, dense_sum, 1.0))
    assert np.allclose(table, dense, atol=1e-5)


def test_more_ids_than_can_be_told_apart_are_refused() -> None:
    lookup, batch = {"query": {"ids": "users"}}, {"query": {"ids": jnp.zeros((3, 2), jnp.int32)}}
    with pytest.raises(RecipeError, match=r"train\.steps_per_call: in 357,913,942 steps a batch's ids of users"):
        localise_all(
            {"users": TABLE}, batch, lookups=lookup, owners={"users": new_owner(TABLE)}, step=0, steps=357_913_942
        )


def test_a_small_table_is_taken_whole_and_learns_the_same() -> None:
    ids = jnp.asarray(np.array([[1, 4, 1, -1]], np.int32))
    small = TABLE[:6]
    local = localise(small, {"ids": ids}, owner=new_owner(small), step=0)
    assert local.rows is None
    gradient = jax.grad(loss)(local.values, local.inputs["ids"])
    after, _ = adagrad(small, new_accumulator(small, "element"), local=local, gradient=gradient, learning_rate=0.1)
    moved = np.flatnonzero(np.any(np.asarray(after != small), axis=1))
    assert moved.tolist() == [1, 4]
    # From an empty accumulator a first step is the learning rate in the direction of the gradient's sign.
    assert np.abs(np.asarray(after - small)[moved]).ravel() == pytest.approx(0.1, rel=1e-4)


def test_inputs_that_share_a_table_share_its_rows() -> None:
    inputs = {"history": jnp.array([[7, -1]]), "item": jnp.array([7, 9])}
    local = localise(TABLE, inputs, owner=new_owner(TABLE), step=0)
    assert local.inputs["history"][0, 0] == local.inputs["item"][0]
    assert local.inputs["history"][0, 1] == -1
    assert np.array_equal(local.values[local.inputs["item"][1]], TABLE[9])


@settings(max_examples=40, deadline=None)
@given(st.lists(npst.arrays(np.int32, 6, elements=st.integers(-1, 4)), min_size=1, max_size=3))
def test_each_row_has_one_place_whatever_steps_came_before(batches: list[np.ndarray]) -> None:
    owner = new_owner(TABLE)
    for step, ids in enumerate(batches):
        local = localise(TABLE, {"ids": jnp.asarray(ids)}, owner=owner, step=step)
        owner = local.owner
        found = np.asarray(local.inputs["ids"])
        assert np.array_equal(found < 0, ids < 0)
        assert local.rows is not None
        rows = np.asarray(local.rows)
        assert np.array_equal(rows[found[ids >= 0]], ids[ids >= 0]), "every id points to the one place of its row"
        # What pads counts as row 0, which then may have a place though no id names it.
        assert sorted(rows[rows < ROWS]) == sorted(np.unique(np.maximum(ids, 0)))
