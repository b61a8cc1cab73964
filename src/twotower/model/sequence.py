"""A history read in its order: a causal transformer whose attention knows distance and time, never the place itself.

As only differences count, a window may begin anywhere in a history: training reads every position of a window at once,
a server the last one alone, by the same weights.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from twotower.data.schema import SequenceFeature
from twotower.model.backend import keras, ops

WAVES = 8
"""Numbers that tell a span of time: bumps over its logarithm, from a minute to years."""
MINUTES = 1_440.0
"""Minutes in a day."""


class SequenceEncoder(keras.layers.Layer):
    """Items in their order -> what is known after each of them.

    Blocks of self-attention in the manner of SASRec (Kang and McAuley, ICDM 2018, https://arxiv.org/abs/1808.09781),
    normalised before each part, with a learned bias for each distance instead of embedded places, and one that falls
    with the logarithm of the time between two items, as time-aware successors have it (Li et al., "Time interval aware
    self-attention", WSDM 2020, https://doi.org/10.1145/3336191.3371786).
    """

    def __init__(self, config: SequenceFeature, *, table: str, dim: int) -> None:
        super().__init__(name="history")
        self.config, self.table, self.dim = config, table, dim
        self.norm_in = keras.layers.LayerNormalization(name="norm_in")
        self.gap = keras.layers.Dense(dim, use_bias=False, name="gap")
        self.dropout = keras.layers.Dropout(config.dropout)
        self.blocks = [
            Block(dim, heads=config.heads, length=config.length, dropout=config.dropout, name=f"block_{number}")
            for number in range(config.blocks)
        ]
        self.norm_out = keras.layers.LayerNormalization(name="norm_out")
        self.nothing = self.add_weight(shape=(1, 1, dim), initializer="zeros", name="nothing")
        self.built = True  # The layers inside build themselves when they are first called.

    def call(self, items: Any, days: Any, tables: Any, training: bool = False) -> Any:
        """What is known after each place, and before the first.

        Args:
            items: `[n, L]` rows of the item table, the oldest first; -1 where there is none.
            days: `[n, L]` days since some moment of each row's own, not descending.
            tables: Embedding tables by name.
            training: Whether dropout acts.

        Returns:
            `[n, L + 1, dim]`: place 0 holds what stands for no history at all, place `p + 1` what is known after `p`.
        """
        valid = items >= 0
        embedded = ops.take(tables[self.table], ops.maximum(items, 0), axis=0)
        before = ops.concatenate([days[:, :1], days[:, :-1]], axis=1)
        state = self.norm_in(embedded) + self.gap(waves(days - before))
        state = self.dropout(state, training=training)
        length = self.config.length
        causal = np.tril(np.ones((length, length), bool))
        allowed = ops.logical_and(causal[None], valid[:, None, :])
        passed = ops.log1p(MINUTES * ops.maximum(days[:, :, None] - days[:, None, :], 0.0))
        for block in self.blocks:
            state = block(state, allowed, passed, training=training)
        state = self.norm_out(state)
        nothing = ops.broadcast_to(self.nothing, (ops.shape(state)[0], 1, self.dim))
        return ops.concatenate([nothing, state], axis=1)


def last_state(read: Callable[[Any, Any], Any], inputs: Mapping[str, Any]) -> Any:
    """`[n, dim]` what is known after the newest known item, from inputs as a server has them: the newest first.

    An item that training never met stands in the history as -1, like what pads, but with its own age.

    Args:
        read: Calls a `SequenceEncoder` on items and days.
        inputs: Hold `history_items` and `history_days`, `[n, L]`.
    """
    items, days = inputs["history_items"], inputs["history_days"]
    known = items >= 0
    oldest = ops.max(days, axis=1, keepdims=True)
    passed = ops.where(ops.logical_or(known, days > 0), oldest - days, 0.0)
    states = read(ops.flip(items, axis=1), ops.flip(passed, axis=1))
    newest = ops.argmax(ops.cast(known, "int32"), axis=1)[:, None] == np.arange(items.shape[1])[None]
    chosen = ops.cast(ops.logical_and(newest, known), "float32")
    nothing = 1.0 - ops.max(chosen, axis=1, keepdims=True)
    return ops.sum(states[:, 1:] * ops.flip(chosen, axis=1)[..., None], axis=1) + nothing * states[:, 0]


class Block(keras.layers.Layer):
    """Causal self-attention, then two dense layers, each added to what came in."""

    def __init__(self, dim: int, *, heads: int, length: int, dropout: float, name: str) -> None:
        super().__init__(name=name)
        self.dim, self.heads = dim, heads
        self.norm, self.norm_dense = (keras.layers.LayerNormalization(name=f"norm_{part}") for part in ("a", "d"))
        self.project = keras.layers.Dense(3 * dim, use_bias=False, name="query_key_value")
        self.join = keras.layers.Dense(dim, name="join")
        self.widen = keras.layers.Dense(2 * dim, activation="gelu", name="widen")
        self.narrow = keras.layers.Dense(dim, name="narrow")
        self.dropout = keras.layers.Dropout(dropout)
        self.distance_bias = self.add_weight(shape=(heads, length), initializer="zeros", name="distance_bias")
        self.time_rate = self.add_weight(shape=(heads, 1, 1), initializer="zeros", name="time_rate")
        distance = np.arange(length)[:, None] - np.arange(length)[None, :]
        self.distance = np.maximum(distance, 0).astype(np.int32)
        self.built = True

    def call(self, state: Any, allowed: Any, passed: Any, training: bool = False) -> Any:
        """`[n, L, dim]` -> the same.

        Args:
            state: What is known so far of each place.
            allowed: `[n, L, L]` whether the first place may look at the second.
            passed: `[n, L, L]` log1p of the minutes between them.
            training: Whether dropout acts.
        """
        state = state + self.dropout(self._attend(self.norm(state), allowed, passed), training=training)
        widened = self.widen(self.norm_dense(state))
        return state + self.dropout(self.narrow(widened), training=training)

    def _attend(self, state: Any, allowed: Any, passed: Any) -> Any:
        length, width = self.distance.shape[0], self.dim // self.heads
        split = ops.reshape(self.project(state), (-1, length, 3, self.heads, width))
        query, key, value = (ops.transpose(split[:, :, part], (0, 2, 1, 3)) for part in range(3))
        logits = ops.matmul(query, ops.transpose(key, (0, 1, 3, 2))) / np.sqrt(width)
        logits = logits + ops.take(self.distance_bias, self.distance, axis=1)[None]
        logits = logits - self.time_rate[None] * passed[:, None]
        weights = ops.softmax(ops.where(allowed[:, None], logits, -1e9), axis=-1)
        read = ops.transpose(ops.matmul(weights, value), (0, 2, 1, 3))
        return self.join(ops.reshape(read, (-1, length, self.dim)))


class IdleTime(keras.layers.Layer):
    """How long ago the newest item of the history was, and how many items it holds."""

    def __init__(self, *, length: int) -> None:
        super().__init__(name="idle_time")
        self.length = length

    def call(self, inputs: Any, tables: Any) -> Any:  # noqa: ARG002 - every encoder is called alike
        """`[n, WAVES + 1]`; zeros where there is no history."""
        known = ops.cast(inputs["history_count"] > 0, "float32")[:, None]
        count = ops.log1p(ops.cast(inputs["history_count"], "float32"))[:, None] / np.log1p(self.length)
        return ops.concatenate([waves(inputs["history_days"][:, 0]) * known, count], axis=-1)


class SequenceState(keras.layers.Layer):
    """Hands on what the sequence encoder knows at the query's moment."""

    def __init__(self, *, dim: int) -> None:
        super().__init__(name="sequence_state")
        self.dim = dim

    def call(self, inputs: Any, tables: Any) -> Any:  # noqa: ARG002 - every encoder is called alike
        """`[n, dim]` as it is."""
        return inputs["history_state"]


def waves(days: Any) -> Any:
    """`[...]` spans in days -> `[..., WAVES]` bumps over log1p of the minutes, evenly from 0 to four years."""
    centres = np.linspace(0.0, np.log1p(4 * 365 * MINUTES), WAVES).astype(np.float32)
    width = float(centres[1])
    logarithm = ops.log1p(MINUTES * ops.maximum(days, 0.0))[..., None]
    return ops.exp(-ops.square((logarithm - centres) / width))
