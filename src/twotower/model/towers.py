"""The query tower and the candidate tower: features in, embedding out."""

import importlib
from collections.abc import Sequence
from typing import Any, Literal

import keras
import keras_rs
from keras import ops

from twotower.errors import RecipeError
from twotower.model.config import TowerConfig
from twotower.model.encoders import HistoryPools, Tensors

Beside = Literal["nothing", "one", "bias"]
ONE: Beside = "one"
BIAS: Beside = "bias"
"""What follows the embedding: a candidate's bias and the query's 1 make their inner product add the bias."""


class Tower(keras.layers.Layer):
    """Features -> `[n, embedding_dim (+ 1) + ranking_dim]`.

    The embedding is the sum of what each feature says by itself (a linear map) and what a network makes of all of them
    together. The first `embedding_dim` numbers are the embedding that retrieval compares. The others are read by the
    ranking head alone: room for what must not bend the embeddings, such as how high a user rates.
    """

    def __init__(
        self,
        encoders: Sequence[keras.layers.Layer],
        *,
        config: TowerConfig,
        embedding_dim: int,
        ranking_dim: int,
        unit_vectors: bool,
        beside: Beside,
        name: str,
    ) -> None:
        super().__init__(name=name)
        self.encoders = list(encoders)
        self.embedding_dim, self.unit_vectors, self.beside = embedding_dim, unit_vectors, beside
        self.to_bias = keras.layers.Dense(1, kernel_initializer="zeros", name="bias") if beside == "bias" else None
        is_linear = config.network == "mlp" and not config.layers
        self.network = None if is_linear else build_network(config, section=f"model.{name}")
        self.to_embedding = None if is_linear else keras.layers.Dense(embedding_dim, use_bias=False, name="embedding")
        self.maps = [
            keras.layers.Dense(embedding_dim, use_bias=False, name=f"map_{each.name}") for each in self.encoders
        ]
        self.built = True  # The layers inside build themselves when they are first called.
        self.to_ranking = keras.layers.Dense(ranking_dim, name="ranking") if ranking_dim else None

    def call(self, inputs: Tensors, tables: Tensors) -> Any:
        """Inputs by name, each `[n, ...]`, and tables by name -> `[n, embedding_dim (+ 1) + ranking_dim]`."""
        parts = [encoder(inputs, tables) for encoder in self.encoders]
        features = ops.concatenate(parts, axis=-1)
        embedding = sum(self._straight(place, part) for place, part in enumerate(parts))
        if self.network is not None and self.to_embedding is not None:
            embedding = embedding + self.to_embedding(self.network(features))
        if self.unit_vectors:
            embedding = embedding / ops.sqrt(ops.sum(embedding * embedding, axis=-1, keepdims=True) + 1e-12)
        pieces = [embedding]
        if self.beside == "one":
            pieces.append(ops.ones_like(embedding[:, :1]))
        if self.to_bias is not None:
            pieces.append(self.to_bias(features))
        if self.to_ranking is not None:
            pieces.append(self.to_ranking(features))
        return ops.concatenate(pieces, axis=-1)

    def _straight(self, place: int, part: Any) -> Any:
        """One feature's own share of the embedding: as it is where it has the embedding's width, else a linear map.

        An item's id and a history of such ids then speak of the same space from the first step on.
        """
        encoder = self.encoders[place]
        if isinstance(encoder, HistoryPools) and encoder.dim == self.embedding_dim:
            return encoder.sum_of_pools(part)
        return part if part.shape[-1] == self.embedding_dim else self.maps[place](part)


def build_network(config: TowerConfig, *, section: str) -> keras.layers.Layer:
    """The layers between concatenated features and the last linear map, as the recipe's `section` asks for."""
    if ":" in config.network:
        return _own_layer(config.network, section=section)
    if config.network not in ("mlp", "cross"):
        raise RecipeError(
            f"{section}.network: '{config.network}' is none of mlp, cross, module:Class. Name one of these."
        )
    hidden = [keras.layers.Dense(width, activation="relu") for width in config.layers]
    return Stack(hidden, cross=config.network == "cross")


class Stack(keras.layers.Layer):
    """Layers one after the other; with `cross`, two cross layers over the features first, beside the features."""

    def __init__(self, layers: Sequence[keras.layers.Layer], *, cross: bool) -> None:
        super().__init__(name="network")
        self.layers = list(layers)
        self.crosses = [keras_rs.layers.FeatureCross(projection_dim=32) for _ in range(2)] if cross else []

    def call(self, features: Any) -> Any:
        """`[n, features]` -> `[n, last width]`."""
        crossed = features
        for layer in self.crosses:
            crossed = layer(features, crossed)
        for layer in self.layers:
            crossed = layer(crossed)
        return crossed


def _own_layer(dotted: str, *, section: str) -> keras.layers.Layer:
    module_name, _, class_name = dotted.partition(":")
    try:
        layer_class = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as fault:
        raise RecipeError(f"{section}.network: cannot import '{dotted}' ({fault}). Name it as module:Class.") from fault
    layer = layer_class()
    if not isinstance(layer, keras.layers.Layer):
        raise RecipeError(f"{section}.network: '{dotted}' is no Keras layer. Derive it from keras.layers.Layer.")
    return layer
