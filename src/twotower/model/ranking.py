"""The ranking head: (query, candidate) -> one logit a label."""

from typing import Any

import keras
import keras_rs
from keras import ops

from twotower.model.config import MET, RankingConfig


class RankingHead(keras.layers.Layer):
    """Reads both towers' outputs, their elementwise product and crosses of all of these; the logits of every label.

    For `met` the retrieval logit is an input that passes the hidden layers by: ranking begins in retrieval's order and
    learns where to leave it.
    """

    def __init__(self, config: RankingConfig, *, embedding_dim: int, temperature: float) -> None:
        super().__init__(name="ranking_head")
        self.embedding_dim, self.temperature = embedding_dim, temperature
        self.hidden = [keras.layers.Dense(width, activation="relu") for width in config.layers]
        self.crosses = [keras_rs.layers.FeatureCross(projection_dim=32) for _ in range(config.cross_layers)]
        self.dropout = keras.layers.Dropout(config.dropout) if config.dropout else None
        self.output_layer = keras.layers.Dense(
            len(config.labels), kernel_initializer=keras.initializers.RandomNormal(0, 0.01)
        )
        passes = [[1.0 if label.name == MET else 0.0 for label in config.labels]]
        self.retrieval_weight = self.add_weight(shape=(1, len(config.labels)), initializer="zeros", name="retrieval")
        self.retrieval_weight.assign(passes)

    def call(self, query: Any, candidate: Any, training: bool = False) -> Any:
        """`[n, R]` and `[n, R]` outputs of the towers -> `[n, L]` logits or predictions."""
        product = query * candidate
        similarity = ops.sum(product[:, : self.embedding_dim], axis=-1, keepdims=True)
        inputs = ops.concatenate([query, candidate, product, similarity], axis=-1)
        if self.dropout is not None:
            inputs = self.dropout(inputs, training=training)
        crossed = inputs
        for layer in self.crosses:
            crossed = layer(inputs, crossed)
        for layer in self.hidden:
            crossed = layer(crossed)
        return self.output_layer(crossed) + self.retrieval_weight * similarity / self.temperature
