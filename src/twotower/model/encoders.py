"""One Keras layer per kind of feature: numbers from `data/feature_encoders.py` -> a piece of the tower's input.

Embedding tables are handed in by name and are no weights of these layers: the training step differentiates with
respect to the rows that a batch reads, so that a step costs as much as its batch and not as much as its tables.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from twotower.data.feature_encoders import FeatureEncoder, HistoryEncoder
from twotower.data.fitted_features import FittedFeatures
from twotower.data.schema import MultiCategoryFeature, SequenceFeature, TextFeature
from twotower.model.backend import keras, ops
from twotower.model.sequence import IdleTime, SequenceState

Tensors = Mapping[str, Any]


class RowEncoder(keras.layers.Layer):
    """Looks up one row of a table for each query."""

    def __init__(self, key: str, table: str) -> None:
        super().__init__(name=f"row_{key}")
        self.key, self.table = key, table

    def call(self, inputs: Tensors, tables: Tensors) -> Any:
        """`[n]` rows -> `[n, dim]`."""
        return ops.take(tables[self.table], inputs[self.key], axis=0)


class BagEncoder(keras.layers.Layer):
    """The mean or the sum of the rows of several values; zeros where a query has none."""

    def __init__(self, key: str, table: str, *, combiner: str) -> None:
        super().__init__(name=f"{combiner}_{key}")
        self.key, self.table, self.is_mean = key, table, combiner == "mean"

    def call(self, inputs: Tensors, tables: Tensors) -> Any:
        """`[n, length]` rows, padded by -1, -> `[n, dim]`."""
        rows = inputs[self.key]
        valid = ops.expand_dims(ops.cast(rows >= 0, "float32"), -1)
        embedded = ops.take(tables[self.table], ops.maximum(rows, 0), axis=0)
        total = ops.sum(embedded * valid, axis=1)
        return total / ops.maximum(ops.sum(valid, axis=1), 1.0) if self.is_mean else total


class NumberPassage(keras.layers.Layer):
    """Hands on what is a number already."""

    def __init__(self, key: str) -> None:
        super().__init__(name=f"number_{key}")
        self.key = key

    def call(self, inputs: Tensors, tables: Tensors) -> Any:  # noqa: ARG002 - every encoder is called alike
        """`[n, width]` -> the same."""
        return inputs[self.key]


class HistoryPools(keras.layers.Layer):
    """Sums up the last items in several ways at once, by weights that depend on place and age.

    Each pool is a softmax over the places of a learned bias per place less a learned rate times log(1 + days). The
    pools begin between "the newest alone" and "all alike", so that both the last step and the long taste are seen.
    """

    def __init__(self, table: str, *, length: int, pools: int, dim: int) -> None:
        super().__init__(name="history")
        self.table, self.length, self.pools, self.dim = table, length, pools, dim
        decay = np.geomspace(0.5 / length, 2.0, pools)[::-1, None] * -np.arange(length)[None, :]
        self.place_bias = self.add_weight(shape=(pools, length), initializer="zeros", name="place_bias")
        self.place_bias.assign(decay.astype(np.float32))
        self.age_rate = self.add_weight(shape=(pools, 1), initializer="zeros", name="age_rate")
        self.mix = self.add_weight(shape=(pools, dim), initializer="ones", name="mix")

    def call(self, inputs: Tensors, tables: Tensors) -> Any:
        """`[n, length]` rows and days -> `[n, pools * dim + 1]`, the last being log(1 + items) scaled to about 1."""
        rows = inputs["history_items"]
        valid = ops.cast(rows >= 0, "float32")
        age = ops.log1p(ops.maximum(inputs["history_days"], 0.0))
        logits = self.place_bias[None] - self.age_rate[None] * age[:, None, :]
        logits = ops.where(valid[:, None, :] > 0, logits, -1e9)
        weights = ops.softmax(logits, axis=-1) * valid[:, None, :]
        embedded = ops.take(tables[self.table], ops.maximum(rows, 0), axis=0)
        pooled = ops.matmul(weights, embedded)
        count = ops.log1p(ops.sum(valid, axis=1, keepdims=True)) / np.log1p(self.length)
        return ops.concatenate([ops.reshape(pooled, (-1, self.pools * self.dim)), count], axis=-1)

    def sum_of_pools(self, pooled: Any) -> Any:
        """`[n, pools * dim + 1]` as `call` gives it -> `[n, dim]`, the pools summed by learned weights a dimension."""
        return ops.sum(ops.reshape(pooled[:, :-1], (-1, self.pools, self.dim)) * self.mix[None], axis=1)


def table_name(tower: str, key: str) -> str:
    """The embedding table of one feature; a history reads the candidate's `id_item_id`."""
    return f"{tower}_{key}"


ITEM_TABLE = table_name("candidate", "id_item_id")


def build_encoders(features: FittedFeatures, *, tower: str) -> list[keras.layers.Layer]:
    """The layers of one tower ("query" or "candidate"), in the order of the recipe, the history last."""
    chosen = features.query if tower == "query" else features.candidate
    layers = [_layer(encoder, tower) for encoder in chosen]
    if tower == "query" and features.history is not None:
        config = features.history.config
        dim = table_shapes(features)[ITEM_TABLE][1]
        if isinstance(config, SequenceFeature):
            return [*layers, IdleTime(length=config.length), SequenceState(dim=dim)]
        layers.append(HistoryPools(ITEM_TABLE, length=config.length, pools=config.pools, dim=dim))
    return layers


def sequence_of(features: FittedFeatures) -> SequenceFeature | None:
    """How the query tower reads histories in their order; None where it does not."""
    config = features.history.config if features.history else None
    return config if isinstance(config, SequenceFeature) else None


def table_shapes(features: FittedFeatures) -> dict[str, tuple[int, int]]:
    """Table name -> (rows, dim), for every embedding table of both towers."""
    shapes = {}
    for tower, encoders in (("query", features.query), ("candidate", features.candidate)):
        for encoder in encoders:
            if encoder.table_rows is not None:
                shapes[table_name(tower, encoder.key)] = (encoder.table_rows, encoder.config.dim)
    return shapes


def lookups(features: FittedFeatures) -> dict[str, dict[str, str]]:
    """Tower -> input name -> the table whose rows the input holds."""
    found: dict[str, dict[str, str]] = {}
    for tower, encoders in (("query", features.query), ("candidate", features.candidate)):
        keys = [encoder.key for encoder in encoders if encoder.table_rows is not None]
        found[tower] = {key: table_name(tower, key) for key in keys}
    if isinstance(features.history, HistoryEncoder):
        found["query"]["history_items"] = ITEM_TABLE
    return found


def _layer(encoder: FeatureEncoder, tower: str) -> keras.layers.Layer:
    if encoder.table_rows is None:
        return NumberPassage(encoder.key)
    table = table_name(tower, encoder.key)
    match encoder.config:
        case MultiCategoryFeature():
            return BagEncoder(encoder.key, table, combiner=encoder.config.combiner)
        case TextFeature():
            return BagEncoder(encoder.key, table, combiner="mean")
        case _:
            return RowEncoder(encoder.key, table)
