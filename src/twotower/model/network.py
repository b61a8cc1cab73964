"""The layers of the joint model and how they answer, in Keras' words alone: every backend of Keras can run them."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twotower.data.fitted_features import FittedFeatures
from twotower.data.trends import TREND_FEATURES
from twotower.errors import ArtifactError
from twotower.model.backend import keras, ops
from twotower.model.config import ModelConfig
from twotower.model.encoders import ITEM_TABLE, build_encoders, sequence_of, table_shapes
from twotower.model.memory import HistoryMemory
from twotower.model.ranking import MEMORY_WIDTH, RankingHead
from twotower.model.sequence import SequenceEncoder, last_state
from twotower.model.towers import BIAS, ONE, Tower

Call = Callable[..., Any]
"""Part, then its arguments -> its output."""
WEIGHTS = "weights.npz"
"""Of a model directory: `table/NAME`, `PART/NNN` what training moved and `state/PART/NNN` what layers keep beside."""


class Temperature(keras.layers.Layer):
    """Divides the logits by a number that training may move; its logarithm is the weight, so it stays above 0."""

    def __init__(self, *, learned: bool) -> None:
        super().__init__(name="retrieval")
        self.logarithm = self.add_weight(shape=(), initializer="zeros", trainable=learned, name="log_temperature")
        self.built = True

    def begin_at(self, temperature: float) -> None:
        """What to divide by before anything is learned."""
        self.logarithm.assign(np.log(temperature))

    def call(self, products: Any) -> Any:
        """Inner products of embeddings -> logits, of any shape."""
        return products * ops.exp(-self.logarithm)


class Network:
    """Towers and head as Keras layers, by the name of their part; embedding tables are handed in."""

    def __init__(self, config: ModelConfig, *, features: FittedFeatures) -> None:
        """Make the layers; their weights come into being when they are first called.

        Args:
            config: What to build.
            features: The fitted features of both towers, whose inputs the layers take.
        """
        self.config, self.features = config, features
        has_ranking = bool(config.ranking.labels)
        bias, ranking_dim = config.retrieval.item_bias, config.ranking.dim if has_ranking else 0
        self.dim = config.embedding_dim + bias
        """Width of what the index compares: the embedding, and the bias or the 1 that meets it."""
        self.output_dim = self.dim + ranking_dim
        """Width of a tower's whole output, without the query's memory."""
        self.memory_length = min(config.ranking.memory, features.history.config.length) if features.history else 0
        self.memory_length *= has_ranking
        self.layers: dict[str, keras.layers.Layer] = {}
        if (sequence := sequence_of(features)) is not None:
            dim = table_shapes(features)[ITEM_TABLE][1]
            self.layers["history"] = SequenceEncoder(sequence, table=ITEM_TABLE, dim=dim)
        for tower, network, beside in (
            ("query", config.query_tower, ONE),
            ("candidate", config.candidate_tower, BIAS),
        ):
            self.layers[tower] = Tower(
                build_encoders(features, tower=tower),
                config=network,
                embedding_dim=config.embedding_dim,
                ranking_dim=ranking_dim,
                unit_vectors=config.retrieval.unit_vectors,
                beside=beside if bias else "nothing",
                name=f"{tower}_tower",
            )
        self.layers["retrieval"] = Temperature(learned=config.retrieval.learn_temperature)
        if self.memory_length:
            self.layers["memory"] = HistoryMemory(
                ITEM_TABLE, length=self.memory_length, heads=config.ranking.memory_heads, width=MEMORY_WIDTH
            )
        if has_ranking:
            self.layers["ranking"] = RankingHead(config.ranking, embedding_dim=self.dim, memory=self.memory_length)

    def call_once(
        self, query_inputs: Mapping[str, Any], candidate_inputs: Mapping[str, Any], tables: Mapping[str, Any]
    ) -> None:
        """Make every weight, by calling each layer once on a row."""
        query = self.embed_query(self.call_layers, query_inputs, tables)
        candidate = self.layers["candidate"](candidate_inputs, tables)
        if "ranking" in self.layers:
            trends = np.zeros((1, 1, TREND_FEATURES), np.float32)
            self.rank(self.call_layers, query[:1], candidate[:1][None], trends=trends)

    def assign_stored(self, stored: Mapping[str, NDArray[Any]]) -> None:
        """Put the dense weights and states of a model directory into the layers, which have been called once.

        Raises:
            ArtifactError: they are those of other layers.
        """
        for part, layer in self.layers.items():
            for before, variables in (
                (part, layer.trainable_variables),
                (f"state/{part}", layer.non_trainable_variables),
            ):
                for place, variable in enumerate(variables):
                    value = stored.get(f"{before}/{place:03d}")
                    if value is None or value.shape != tuple(variable.shape):
                        raise ArtifactError(f"{WEIGHTS}: does not hold {before}/{place:03d}. Train the model again.")
                    variable.assign(value)

    def call_layers(self, part: str, *arguments: Any, **named: Any) -> Any:
        """One layer's output by the weights that it holds itself."""
        return self.layers[part](*arguments, **named)

    def embed_query(self, call: Call, inputs: Mapping[str, Any], tables: Mapping[str, Any]) -> Any:
        """`[n, R + M]` the query tower's output and then the memory, from inputs as a server has them.

        Args:
            call: Calls a layer by the name of its part.
            inputs: `[n, ...]` by name, the history newest first.
            tables: By name.
        """
        given = dict(inputs)
        if "history" in self.layers:
            given["history_count"] = ops.sum(ops.cast(given["history_items"] >= 0, "int32"), axis=1)
            given["history_state"] = last_state(lambda items, days: call("history", items, days, tables), given)
        query = call("query", given, tables)
        if not self.memory_length:
            return query
        return ops.concatenate([query, call("memory", given, tables)], axis=-1)

    def rank(self, call: Call, query: Any, candidate: Any, *, trends: Any) -> Any:
        """The ranking head's output, `[B, C, L]`.

        Args:
            call: Calls a layer by the name of its part.
            query: `[B, R + M]` as `embed_query` gives it.
            candidate: `[B, C, R]` outputs of the candidate tower.
            trends: `[B, C, F]`; not read by a model without.
        """
        tower, memory = query[:, : self.output_dim], query[:, self.output_dim :]
        products = ops.sum(tower[:, None, : self.dim] * candidate[..., : self.dim], axis=-1)
        return call("ranking", tower, candidate, self.beside(memory, self.to_logits(call, products), trends))

    def to_logits(self, call: Call, products: Any) -> Any:
        """Inner products of embeddings -> retrieval's logits; cosines stay what they are where the loss wants them."""
        is_cosine = self.config.retrieval.loss == "cosine_contrastive"
        return products if is_cosine else call("retrieval", products)

    def beside(self, memory: Any, logits: Any, trends: Any) -> dict[str, Any]:
        """What the head reads beside both towers' outputs; what this model does not have is left out."""
        given = {"logits": logits}
        if self.memory_length:
            given["memory"] = memory
        if self.config.ranking.trends:
            given["trends"] = trends
        return given

    def temperature(self) -> float:
        """What retrieval's inner products are divided by, by the weights that the layers hold."""
        is_cosine = self.config.retrieval.loss == "cosine_contrastive"
        return 1.0 if is_cosine else float(np.exp(self.layers["retrieval"].logarithm.value))
