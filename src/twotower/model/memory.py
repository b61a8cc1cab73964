"""What ranking remembers of a history, item by item, so that a candidate can be compared with each of them."""

from typing import Any

import numpy as np

from twotower.model.backend import keras, ops


class HistoryMemory(keras.layers.Layer):
    """The newest items as keys, each with a weight by place and age: what a query hands to ranking.

    Retrieval has room for one vector a query; the second stage can afford to look at each item of the history beside
    each candidate, as attention towards the candidate does (Zhou et al., "Deep interest network", KDD 2018,
    https://doi.org/10.1145/3219819.3219823).
    """

    def __init__(self, table: str, *, length: int, heads: int, width: int) -> None:
        super().__init__(name="memory")
        self.table, self.length, self.heads, self.width = table, length, heads, width
        self.project = keras.layers.Dense(heads * width, use_bias=False, name="keys")
        decay = np.geomspace(1.0, 0.02, heads)[:, None] * -np.arange(length)[None, :]
        self.place_bias = self.add_weight(shape=(heads, length), initializer="zeros", name="place_bias")
        self.place_bias.assign(decay.astype(np.float32))
        self.age_rate = self.add_weight(shape=(heads, 1), initializer="zeros", name="age_rate")
        self.built = True

    @property
    def size(self) -> int:
        """Numbers a query: a key and a weight for each item and head."""
        return self.length * self.heads * (self.width + 1)

    def call(self, inputs: Any, tables: Any) -> Any:
        """`[n, >= length]` rows and days, the newest first -> `[n, size]`; weights are logarithms."""
        rows = inputs["history_items"][:, : self.length]
        age = ops.log1p(ops.maximum(inputs["history_days"][:, : self.length], 0.0))
        # What embeds the items is learned elsewhere: a gradient of a batch's memories on the table costs half a step.
        keys = self.project(ops.stop_gradient(ops.take(tables[self.table], ops.maximum(rows, 0), axis=0)))
        weights = self.place_bias[None] - self.age_rate[None] * age[:, None, :]
        weights = ops.where(rows[:, None, :] >= 0, weights, -1e9)
        flat = (-1, self.length * self.heads * self.width)
        return ops.concatenate([ops.reshape(keys, flat), ops.reshape(weights, (-1, self.heads * self.length))], axis=-1)


class Recall(keras.layers.Layer):
    """A candidate beside the memory: how near it is to what was met, in `2 * heads` numbers."""

    def __init__(self, *, length: int, heads: int, width: int) -> None:
        super().__init__(name="recall")
        self.length, self.heads, self.width = length, heads, width
        self.project = keras.layers.Dense(heads * width, use_bias=False, name="candidate")

    def call(self, memory: Any, candidate: Any, training: bool = False) -> Any:
        """`[B, size]` and `[B, C, R]` -> `[B, C, 2 * heads]`; `training` changes how, not what.

        For each head the mean of the products with the keys, weighted by place and age, and the logarithm of the
        weighted mean of their exponentials, which follows the nearest item.
        """
        keys, logarithms = ops.split(memory, [self.length * self.heads * self.width], axis=-1)
        keys = ops.reshape(keys, (-1, self.length, self.heads, self.width))
        logarithms = ops.reshape(logarithms, (-1, self.heads, self.length))
        known = ops.cast(logarithms > -1e8, "float32")
        top = ops.max(logarithms, axis=-1, keepdims=True)
        weights = ops.exp(logarithms - top) * known
        weights = weights / ops.maximum(ops.sum(weights, axis=-1, keepdims=True), 1e-9)
        projected = self.project(candidate)
        projected = ops.reshape(projected, (*ops.shape(projected)[:2], self.heads, self.width))
        products = _products(projected, keys, few=training)
        mean = ops.sum(products * weights[:, :, None], axis=-1)
        raised = ops.sum(weights[:, :, None] * ops.exp(ops.clip(products, -20.0, 20.0)), axis=-1)
        nearest = ops.where(raised > 0, ops.log(ops.maximum(raised, 1e-9)), 0.0)
        return ops.transpose(ops.concatenate([mean, nearest], axis=1), (0, 2, 1))


def _products(candidate: Any, keys: Any, *, few: bool) -> Any:
    """`[B, C, heads, width]` and `[B, length, heads, width]` -> `[B, heads, C, length]`.

    Training has many queries with few candidates: thousands of tiny matrix products, which XLA does one by one, where
    a multiplication and a sum take a fifth of the time. With a hundred candidates a query that would need the memory.
    """
    if few:
        keys, candidate = ops.transpose(keys, (0, 2, 1, 3)), ops.transpose(candidate, (0, 2, 1, 3))
        return ops.sum(candidate[:, :, :, None] * keys[:, :, None], axis=-1)
    return ops.matmul(ops.transpose(candidate, (0, 2, 1, 3)), ops.transpose(keys, (0, 2, 3, 1)))
