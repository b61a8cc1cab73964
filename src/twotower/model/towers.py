"""The query tower and the candidate tower: features in, embedding out."""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from twotower.errors import RecipeError
from twotower.model.backend import keras, keras_rs, ops
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

    def call(self, inputs: Tensors, tables: Tensors, training: bool = False) -> Any:
        """Inputs by name, each `[n, ...]`, and tables by name -> `[n, embedding_dim (+ 1) + ranking_dim]`.

        With `training`, a layer of the user's own acts as in training.
        """
        parts = [encoder(inputs, tables) for encoder in self.encoders]
        features = ops.concatenate(parts, axis=-1)
        embedding = sum(self._straight(place, part) for place, part in enumerate(parts))
        if self.network is not None and self.to_embedding is not None:
            embedding = embedding + self.to_embedding(self.network(features, training=training))
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
    first: keras.layers.Layer | None = None
    if ":" in config.network:
        first = _own_layer(config.network, section=section)
    elif config.network == "cross":
        first = Crosses()
    elif config.network != "mlp":
        raise RecipeError(
            f"{section}.network: '{config.network}' is none of mlp, cross, module:Class. Name one of these."
        )
    return Stack(first, [keras.layers.Dense(width, activation="relu") for width in config.layers])


class Stack(keras.layers.Layer):
    """A first layer of any kind, if there is one, and then the hidden layers."""

    def __init__(self, first: keras.layers.Layer | None, hidden: Sequence[keras.layers.Layer]) -> None:
        super().__init__(name="network")
        self.first, self.hidden = first, list(hidden)

    def call(self, features: Any, training: bool = False) -> Any:
        """`[n, features]` -> `[n, last width]`. Keras keeps `training` from a layer that does not ask for it."""
        output = features if self.first is None else self.first(features, training=training)
        for layer in self.hidden:
            output = layer(output)
        return output


class Crosses(keras.layers.Layer):
    """Two cross layers: products of the features with themselves and with these products."""

    def __init__(self) -> None:
        super().__init__(name="crosses")
        self.layers = [keras_rs.layers.FeatureCross(projection_dim=32) for _ in range(2)]

    def call(self, features: Any) -> Any:
        """`[n, features]` -> the same shape."""
        crossed = features
        for layer in self.layers:
            crossed = layer(features, crossed)
        return crossed


def _own_layer(dotted: str, *, section: str) -> keras.layers.Layer:
    """The user's layer; modules of the working directory can be named as well as installed ones."""
    module_name, _, class_name = dotted.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        layer = getattr(importlib.import_module(module_name), class_name)()
    except (ImportError, AttributeError, TypeError, ValueError) as fault:
        raise RecipeError(
            f"{section}.network: cannot make '{dotted}' ({fault}). "
            "Name a Keras layer as module:Class that needs no arguments."
        ) from fault
    if not isinstance(layer, keras.layers.Layer):
        raise RecipeError(f"{section}.network: '{dotted}' is no Keras layer. Derive it from keras.layers.Layer.")
    return layer
