"""Sparse embedding tables: a step reads the rows of its batch, and only those rows are updated.

Tables stay outside automatic differentiation. `localise` gathers the rows that a batch names into a small table of
its own; the loss is differentiated with respect to that one, which adds the gradients of equal ids up; `adagrad`
scatters the update back. The cost of a step follows the batch, never the table.

Equal ids find each other without being sorted: each writes its place in the batch into `owner`, one number for each row
of the table, and reads back whose stands there. What earlier steps have left is lower than any place of this step.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from jax import Array

from twotower.errors import RecipeError

Accumulator = Literal["row", "element"]


@dataclass(frozen=True, slots=True)
class LocalRows:
    """The rows of one table that a batch reads."""

    rows: Array | None
    """`[u]` their places in the table, each row once, the table's length elsewhere; None where the table is taken
    whole."""
    values: Array
    """`[u, dim]` what stands there."""
    inputs: dict[str, Array]
    """The batch's own inputs, now pointing into `values`; -1 still pads."""
    owner: Array
    """`[rows]` of the table, for the next step."""


def new_owner(table: Array) -> Array:
    """What `localise` takes at its first step: no row is anybody's."""
    return jnp.full(table.shape[0], -1, jnp.int32)


def localise(table: Array, inputs: Mapping[str, Array], *, owner: Array, step: int | Array) -> LocalRows:
    """Gather what the inputs name from a table.

    A table with fewer rows than twice the ids in the batch is taken whole: its cost is bounded by the batch anyway.

    Args:
        table: `[rows, dim]`.
        inputs: Arrays of row numbers, of any shape, -1 for padding; the same shapes at each step.
        owner: As the step before has left it, or `new_owner`.
        step: Steps since `new_owner`; with this and the ids of a batch multiplied below 2^31.
    """
    count = sum(ids.size for ids in inputs.values())
    if table.shape[0] <= 2 * count:
        return LocalRows(None, table, dict(inputs), owner)
    flat = jnp.concatenate([ids.reshape(-1) for ids in inputs.values()])
    padding, own, before = flat < 0, jnp.arange(count, dtype=jnp.int32), step * count
    flat = jnp.maximum(flat, 0)
    # The highest place, not just any: devices that hold the same numbers have to agree.
    owner = owner.at[flat].max(before + own)
    place = owner[flat] - before
    rows = jnp.where(place == own, flat, table.shape[0])
    values, place = table[flat], jnp.where(padding, -1, place)
    local, offset = {}, 0
    for name, ids in inputs.items():
        local[name] = place[offset : offset + ids.size].reshape(ids.shape)
        offset += ids.size
    return LocalRows(rows, values, local, owner)


def localise_all(
    tables: Mapping[str, Array],
    batch: Mapping[str, dict[str, Array]],
    *,
    lookups: Mapping[str, Mapping[str, str]],
    owners: Mapping[str, Array],
    step: int | Array,
    steps: int,
) -> dict[str, LocalRows]:
    """Gather every table's rows, and let the batch's inputs point into these instead.

    Args:
        tables: By name.
        batch: Group of inputs -> input -> row numbers; what `lookups` names is replaced.
        lookups: Group of inputs -> input -> the table whose rows it holds.
        owners: By table, as for `localise`.
        step: As for `localise`.
        steps: One more than the largest `step`.

    Raises:
        RecipeError: so many ids in so many steps cannot be told apart.
    """
    found = {}
    for name, table in tables.items():
        uses = [(group, key) for group, keys in lookups.items() for key, used in keys.items() if used == name]
        ids = {f"{group}/{key}": batch[group][key] for group, key in uses}
        if steps * sum(each.size for each in ids.values()) >= 2**31:
            raise RecipeError(
                f"train.steps_per_call: in {steps:,} steps a batch's ids of {name} are more than can be counted. Take "
                "fewer."
            )
        local = localise(table, ids, owner=owners[name], step=step)
        for group, key in uses:
            batch[group][key] = local.inputs[f"{group}/{key}"]
        found[name] = local
    return found


def new_accumulator(table: Array, kind: Accumulator) -> Array:
    """Zeros for the sums of squared gradients: one per row, or one per element."""
    return jnp.zeros((table.shape[0], 1) if kind == "row" else table.shape, jnp.float32)


def adagrad(
    table: Array, accumulator: Array, *, local: LocalRows, gradient: Array, learning_rate: float | Array
) -> tuple[Array, Array]:
    """The table and its accumulator after one Adagrad step on the rows of `local`.

    Args:
        table: `[rows, dim]`.
        accumulator: `[rows, 1]` (row-wise: mean square of the row's gradient) or `[rows, dim]` (per element).
        local: What the batch read.
        gradient: `[u, dim]` with respect to `local.values`.
        learning_rate: Step size; a first step moves each element by about this much.

    Source:
        Duchi et al., JMLR 12 (2011) 2121-2159; row-wise as in Mudigere et al., ISCA 2022,
        https://arxiv.org/abs/2104.05158
    """
    square = jnp.square(gradient)
    if accumulator.shape[1] == 1:
        square = jnp.mean(square, axis=1, keepdims=True)
    if local.rows is None:
        after = accumulator + square
        return table - learning_rate * gradient * _inverse_root(after), after
    after = accumulator.at[local.rows].get(mode="fill", fill_value=0.0) + square
    step = -learning_rate * gradient * _inverse_root(after)
    # Set, not added to: reading and then adding to the same rows makes XLA copy the whole accumulator at each step.
    return table.at[local.rows].add(step, mode="drop"), accumulator.at[local.rows].set(after, mode="drop")


def _inverse_root(accumulated: Array) -> Array:
    """`1 / sqrt(a)`, 0 where nothing was accumulated: a row that no example named stays as it is."""
    return jnp.where(accumulated > 0, 1.0 / jnp.sqrt(jnp.maximum(accumulated, 1e-30)), 0.0)
