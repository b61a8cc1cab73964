"""One joint model: two towers, the retrieval task and the ranking head, and one weighted loss over both."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax import Array
from numpy.typing import NDArray

from twotower.data.fitted_features import FittedFeatures
from twotower.model.config import MET, ModelConfig
from twotower.model.encoders import build_encoders, table_shapes
from twotower.model.losses import (
    LEFT_OUT,
    binary_cross_entropy,
    sampled_cross_entropy,
    sampled_softmax,
    squared_error,
    weighted_mean,
)
from twotower.model.ranking import RankingHead
from twotower.model.retrieval import retrieval_loss
from twotower.model.towers import BIAS, ONE, Tower

Weights = dict[str, list[Array]]
"""Part ("query", "candidate", "ranking") -> its weights."""
Tables = dict[str, Array]
"""Embedding table by name, `[rows, dim]`."""


class JointModel:
    """Towers and head as Keras layers, with their weights held outside: every method is a pure function of them."""

    def __init__(self, config: ModelConfig, *, features: FittedFeatures, seed: int) -> None:
        """Build the layers and draw their first weights.

        Args:
            config: What to build.
            features: The fitted features of both towers, whose inputs the layers take.
            seed: Decides the first weights and dropout.
        """
        self.config, self.features = config, features
        keras.utils.set_random_seed(seed)
        bias, ranking_dim = config.retrieval.item_bias, config.ranking.dim if config.ranking.labels else 0
        self.dim = config.embedding_dim + bias
        """Width of what the index compares: the embedding, and the bias or the 1 that meets it."""
        self.output_dim = self.dim + ranking_dim
        self.layers: dict[str, keras.layers.Layer] = {
            tower: Tower(
                build_encoders(features, tower=tower),
                config=network,
                embedding_dim=config.embedding_dim,
                ranking_dim=ranking_dim,
                unit_vectors=config.retrieval.unit_vectors,
                beside=beside if bias else "nothing",
                name=f"{tower}_tower",
            )
            for tower, network, beside in (
                ("query", config.query_tower, ONE),
                ("candidate", config.candidate_tower, BIAS),
            )
        }
        if config.ranking.labels:
            self.layers["ranking"] = RankingHead(
                config.ranking, embedding_dim=self.dim, temperature=config.retrieval.temperature
            )
        self.tables = _draw_tables(table_shapes(features), seed=seed)

    def build(
        self, query_inputs: Mapping[str, Any], candidate_inputs: Mapping[str, Any], *, label_means: NDArray[np.float32]
    ) -> None:
        """Make every weight, by calling each layer once on a few rows; predictions begin at the labels' means."""
        query = self.layers["query"](query_inputs, self.tables)
        candidate = self.layers["candidate"](candidate_inputs, self.tables)
        if "ranking" in self.layers:
            rows = min(query.shape[0], candidate.shape[0])
            self.layers["ranking"](query[:rows], candidate[:rows])
            self.layers["ranking"].output_layer.bias.assign(label_means)

    def weights(self) -> Weights:
        """The first trainable weights, by part."""
        return {part: [variable.value for variable in layer.trainable_variables] for part, layer in self.layers.items()}

    def states(self) -> Weights:
        """What layers keep beside weights (random state, running means), by part."""
        return {
            part: [variable.value for variable in layer.non_trainable_variables] for part, layer in self.layers.items()
        }

    def assign(self, weights: Weights, states: Weights) -> None:
        """Put trained weights into the layers, for whoever calls these outside."""
        for part, layer in self.layers.items():
            for variable, value in zip(layer.trainable_variables, weights[part], strict=True):
                variable.assign(value)
            for variable, value in zip(layer.non_trainable_variables, states[part], strict=True):
                variable.assign(value)

    def apply(
        self, part: str, weights: Weights, states: Weights, *arguments: Any, **named: Any
    ) -> tuple[Any, list[Array]]:
        """One layer's output under the weights given, and its states afterwards."""
        output, after = self.layers[part].stateless_call(weights[part], states[part], *arguments, **named)
        return output, after

    def loss(
        self, weights: Weights, tables: Tables, states: Weights, batch: Mapping[str, Any]
    ) -> tuple[Array, tuple[dict[str, Array], Weights]]:
        """The joint loss of one batch; beside it each task's own mean, and the layers' states afterwards.

        Args:
            weights: Trainable weights by part.
            tables: The rows that the batch reads, by table.
            states: The layers' other state by part.
            batch: `query` and `candidate` inputs whose rows point into `tables` (candidates: `B` positives, then the
                uniform negatives), `item` (`[B + N]` which item each candidate is), `labels` `[B, L]`, `positive`
                `[B]`, `probability` `[T]`, and `key`, a random key of the step's own.
        """
        states = dict(states)
        query, states["query"] = self.apply("query", weights, states, batch["query"], tables, training=True)
        candidate, states["candidate"] = self.apply(
            "candidate", weights, states, batch["candidate"], tables, training=True
        )
        losses: dict[str, Array] = {}
        retrieval, logits, in_batch = self._retrieval(query, candidate, batch=batch)
        losses["retrieval"] = weighted_mean(retrieval, batch["positive"])
        total = self.config.retrieval.weight * losses["retrieval"]
        if "ranking" in self.layers:
            ranked, states = self._ranking(weights, states, query, candidate, logits[:, in_batch:], batch=batch)
            for label in self.config.ranking.labels:
                losses[label.name] = ranked[label.name]
                total = total + label.weight * ranked[label.name]
        return total, (losses | {"loss": total}, states)

    def _retrieval(self, query: Array, candidate: Array, *, batch: Mapping[str, Any]) -> tuple[Array, Array, int]:
        """Each query's loss, the logits against the sample, and how many of the sample came from the batch."""
        config, dim, size = self.config.retrieval, self.dim, query.shape[0]
        in_batch = min(config.in_batch_negatives, size)
        item, embedding = batch["item"], candidate[:, :dim]
        loss, logits = retrieval_loss(
            config,
            query=query[:, :dim],
            positive=embedding[:size],
            negative=jnp.concatenate([embedding[:in_batch], embedding[size:]]),
            positive_item=item[:size],
            negative_item=jnp.concatenate([item[:in_batch], item[size:]]),
            probability=batch["probability"],
            in_batch=in_batch,
            items=batch["probability"].shape[0],
        )
        return loss, logits, in_batch

    def _ranking(
        self,
        weights: Weights,
        states: Weights,
        query: Array,
        candidate: Array,
        logits: Array,
        *,
        batch: Mapping[str, Any],
    ) -> tuple[dict[str, Array], Weights]:
        """Each label's mean loss, and the states afterwards; `logits` are those against the uniform negatives."""
        size, labels = query.shape[0], self.config.ranking.labels
        output, after = self.apply("ranking", weights, states, query, candidate[:size], training=True)
        states = states | {"ranking": after}
        losses = {}
        for place, label in enumerate(labels):
            if label.name == MET:
                losses[MET], states = self._met(
                    weights, states, output[:, place], query, candidate, logits, batch=batch
                )
                continue
            truth = batch["labels"][:, place]
            each = (squared_error if label.kind == "regression" else binary_cross_entropy)(output[:, place], truth)
            losses[label.name] = weighted_mean(each, jnp.where(jnp.isnan(truth), 0.0, 1.0))
        return losses, states

    def _met(
        self,
        weights: Weights,
        states: Weights,
        positive_logits: Array,
        query: Array,
        candidate: Array,
        logits: Array,
        *,
        batch: Mapping[str, Any],
    ) -> tuple[Array, Weights]:
        """Cross-entropy of what was met among hard negatives, for the first queries of the batch.

        The share of the uniform draws that retrieval scores highest plays what it would bring of all items. Negatives
        are drawn from that share, each alike, and a positive counts only if it scores as high: both sides are met under
        the same condition, and the order learned is that of the probability to be met among what was retrieved.
        """
        config, size = self.config.ranking, query.shape[0]
        queries = max(size // config.hard_negatives, 1)
        hit = batch["item"][:queries, None] == batch["item"][None, size:]
        hit |= _in_history(batch, queries=queries, size=size)
        logits = jnp.where(hit, LEFT_OUT, jax.lax.stop_gradient(logits[:queries]))
        reach = min(max(round(config.hard_share * logits.shape[1]), config.hard_negatives), logits.shape[1])
        best, hardest = jax.lax.top_k(logits, reach)
        columns = jax.random.permutation(batch["key"], reach)[: config.hard_negatives]
        hardest = hardest[:, columns]
        chosen = candidate[size:][hardest.reshape(-1)]
        repeated = jnp.repeat(query[:queries], config.hard_negatives, axis=0)
        output, after = self.apply("ranking", weights, states, repeated, chosen, training=True)
        place = [label.name for label in config.labels].index(MET)
        negative_logits = output[:, place].reshape(queries, config.hard_negatives)
        left_out = jnp.take_along_axis(hit, hardest, axis=1)
        dim = self.dim
        own = jnp.sum(query[:queries, :dim] * candidate[:queries, :dim], axis=1) / self.config.retrieval.temperature
        weight = batch["positive"][:queries] * jax.lax.stop_gradient(own >= best[:, -1])
        loss = sampled_softmax if config.labels[place].kind == "listwise" else sampled_cross_entropy
        ones = jnp.ones(config.hard_negatives)
        each = loss(positive_logits[:queries], negative_logits, expected_count=ones, hit=left_out)
        return weighted_mean(each, weight), states | {"ranking": after}


def _in_history(batch: Mapping[str, Any], *, queries: int, size: int) -> Array | bool:
    """`[queries, N]` whether a uniform negative stands in the query's history: a server leaves out what was seen."""
    if "history_items" not in batch["query"]:
        return False
    history, drawn = batch["query"]["history_items"][:queries], batch["candidate"]["id_item_id"][size:]
    return jnp.any(history[:, :, None] == drawn[None, None, :], axis=1)


def _draw_tables(shapes: Mapping[str, Sequence[int]], *, seed: int) -> Tables:
    """First embeddings: normal with deviation 0.05; zeros in row 0, which stands for what was never met."""
    tables = {}
    for place, (name, (rows, dim)) in enumerate(sorted(shapes.items())):
        drawn = np.random.default_rng([seed, place]).standard_normal((rows, dim), np.float32) * 0.05
        drawn[0] = 0.0
        tables[name] = jnp.asarray(drawn)
    return tables
