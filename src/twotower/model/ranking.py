"""The ranking head: a query beside each of its candidates -> one logit a label."""

from collections.abc import Sequence
from typing import Any

from twotower.model.backend import keras, keras_rs, ops
from twotower.model.config import MET, LabelConfig, RankingConfig
from twotower.model.experts import MixtureOfExperts
from twotower.model.memory import Recall

MEMORY_WIDTH = 16
"""Numbers by which one item of the history and a candidate are compared, a head."""


class RankingHead(keras.layers.Layer):
    """Reads both towers' outputs, their elementwise product, each item of the history, what is popular, and crosses.

    For `met` the retrieval logit is an input that passes the hidden layers by: ranking begins in retrieval's order and
    learns where to leave it.
    """

    def __init__(self, config: RankingConfig, *, embedding_dim: int, memory: int) -> None:
        """Make the layers.

        Args:
            config: What is predicted, and by what.
            embedding_dim: Width of what retrieval compares, with which both towers' outputs begin.
            memory: Items in the query's memory; 0 for none.
        """
        super().__init__(name="ranking_head")
        self.embedding_dim = embedding_dim
        self.recall = Recall(length=memory, heads=config.memory_heads, width=MEMORY_WIDTH) if memory else None
        self.hidden = [keras.layers.Dense(width, activation="relu") for width in config.layers]
        self.crosses = [keras_rs.layers.FeatureCross(projection_dim=32) for _ in range(config.cross_layers)]
        self.dropout = keras.layers.Dropout(config.dropout) if config.dropout else None
        self.experts = (
            MixtureOfExperts(experts=config.experts, width=config.layers[-1], tasks=len(config.labels))
            if config.experts
            else None
        )
        small = keras.initializers.RandomNormal(0, 0.01)
        self.outputs = [
            keras.layers.Dense(1, kernel_initializer=small, name=f"output_{place}")
            for place in range(len(config.labels))
        ]
        self.retrieval_weight = self.add_weight(shape=(len(config.labels),), initializer="zeros", name="retrieval")
        self.retrieval_weight.assign(_passes(config.labels))
        self.built = True  # The layers inside build themselves when they are first called.

    def begin_at(self, means: Sequence[float]) -> None:
        """Let predictions begin at the labels' means."""
        for layer, mean in zip(self.outputs, means, strict=True):
            layer.bias.assign([mean])

    def call(self, query: Any, candidate: Any, beside: dict[str, Any], training: bool = False) -> Any:
        """The logits or predictions of every label, `[B, C, L]`.

        Args:
            query: `[B, R]` output of the query tower.
            candidate: `[B, C, R]` outputs of the candidate tower.
            beside: `logits` `[B, C]` of retrieval; `memory` `[B, M]` and `trends` `[B, C, F]` where the model has them.
            training: Whether dropout acts.
        """
        logits = beside["logits"][..., None]
        widened = query[:, None, :] + ops.zeros_like(candidate)
        parts = [widened, candidate, widened * candidate, logits]
        if self.recall is not None:
            parts.append(self.recall(beside["memory"], candidate[..., : self.embedding_dim], training=training))
        if "trends" in beside:
            parts.append(beside["trends"])
        inputs = ops.concatenate(parts, axis=-1)
        if self.dropout is not None:
            inputs = self.dropout(inputs, training=training)
        crossed = inputs
        for layer in self.crosses:
            crossed = layer(inputs, crossed)
        for layer in self.hidden if self.experts is None else self.hidden[:-1]:
            crossed = layer(crossed)
        if self.experts is None:
            predicted = [layer(crossed) for layer in self.outputs]
        else:
            mixed = self.experts(crossed)
            predicted = [layer(mixed[..., place, :]) for place, layer in enumerate(self.outputs)]
        return ops.concatenate(predicted, axis=-1) + self.retrieval_weight * logits


def _passes(labels: Sequence[LabelConfig]) -> list[float]:
    """Which labels begin in retrieval's order."""
    return [1.0 if label.name == MET else 0.0 for label in labels]
