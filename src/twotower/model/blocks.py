"""A sum over queries by blocks of them: memory follows the block, and nothing is computed twice.

A loss over `B` queries and `C` negatives needs `[B, C]` logits, and plain differentiation keeps several arrays of that
size from the way forward to the way back. Here a block's loss and its gradient are taken at once, so that a block's
logits are gone, or still in the processor's cache, when the next block begins.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

BlockLoss = Callable[[Any, Any, Any, Any], Array]
"""(a block's rows, what all share, a block's facts, common facts) -> the sum of its queries' losses, `[]`."""
CPU_BYTES, OTHER_BYTES = 1 << 20, 256 << 20
"""Logits of a block: what the caches of a CPU hold; elsewhere enough to keep the device busy."""


def count_blocks(queries: int, negatives: int) -> int:
    """How many blocks a batch is cut into, one where its logits are few."""
    room = CPU_BYTES if jax.default_backend() == "cpu" else OTHER_BYTES
    return min(-(-queries * negatives * 4 // room), queries)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def sum_by_blocks(loss: BlockLoss, blocks: int, rows: Any, shared: Any, row_facts: Any, facts: Any) -> Array:
    """The sum of every query's loss, `[]`, differentiable once with respect to `rows` and `shared`.

    Args:
        loss: A block's sum; closes over nothing that is traced. Rows of zeros fill the last block up, and must count 0.
        blocks: How many to make of the `B` queries, at least 1.
        rows: Arrays `[B, ...]` of numbers that are learned from.
        shared: Arrays of any shape that are learned from.
        row_facts: Arrays `[B, ...]` without a gradient.
        facts: Arrays of any shape without a gradient.
    """
    return _with_gradient(loss, blocks, rows, shared, row_facts, facts)[0]


def _with_gradient(
    loss: BlockLoss, blocks: int, rows: Any, shared: Any, row_facts: Any, facts: Any
) -> tuple[Array, tuple[Any, Any]]:
    differentiated = jax.value_and_grad(loss, argnums=(0, 1))
    if blocks == 1:
        total, gradients = differentiated(rows, shared, row_facts, facts)
        return total, gradients

    def add_block(so_far: tuple[Array, Any], block: tuple[Any, Any]) -> tuple[tuple[Array, Any], Any]:
        total, (of_rows, of_shared) = differentiated(block[0], shared, block[1], facts)
        return jax.tree.map(jnp.add, so_far, (total, of_shared)), of_rows

    nothing = jnp.zeros(()), jax.tree.map(jnp.zeros_like, shared)
    cut = jax.tree.map(partial(_cut, blocks=blocks), (rows, row_facts))
    (total, of_shared), of_rows = jax.lax.scan(add_block, nothing, cut)
    return total, (jax.tree.map(_put_together, of_rows, rows), of_shared)


def _multiply(loss: BlockLoss, blocks: int, gradients: tuple[Any, Any], cotangent: Array) -> tuple[Any, ...]:  # noqa: ARG001 - custom_vjp's form
    of_rows, of_shared = jax.tree.map(lambda gradient: gradient * cotangent, gradients)
    return of_rows, of_shared, None, None


sum_by_blocks.defvjp(_with_gradient, _multiply)


def _cut(values: Array, *, blocks: int) -> Array:
    """`[B, ...]` -> `[blocks, n, ...]`: each block has every so manieth query, hence a share of every device's."""
    missing = -values.shape[0] % blocks
    filled = jnp.pad(values, [(0, missing)] + [(0, 0)] * (values.ndim - 1))
    return jnp.swapaxes(filled.reshape(-1, blocks, *values.shape[1:]), 0, 1)


def _put_together(cut: Array, like: Array) -> Array:
    """What `_cut` has cut, without what filled it up."""
    return jnp.swapaxes(cut, 0, 1).reshape(-1, *like.shape[1:])[: like.shape[0]]
