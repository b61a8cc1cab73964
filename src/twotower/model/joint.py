"""One joint model: the network of both towers and the ranking head, and one weighted loss over both tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from twotower.data.fitted_features import FittedFeatures
from twotower.model.backend import keras
from twotower.model.blocks import count_blocks, sum_by_blocks
from twotower.model.config import MET, RETRIEVAL, ModelConfig
from twotower.model.encoders import table_shapes
from twotower.model.losses import (
    LEFT_OUT,
    binary_cross_entropy,
    sampled_cross_entropy,
    sampled_softmax,
    squared_error,
    total_weight,
    weighted_mean,
)
from twotower.model.network import Call, Network
from twotower.model.retrieval import Sample, retrieval_loss
from twotower.model.task_weights import static_total, uncertainty_total

Weights = dict[str, list[Array]]
"""Part ("history", "query", "memory", "candidate", "retrieval", "ranking", "tasks") -> its weights."""
Tables = dict[str, Array]
"""Embedding table by name, `[rows, dim]`."""
SHARED = ("history", "query", "candidate")
"""Parts that every task pulls at."""


PIECE = 8_192
"""Rows of a table that are drawn at a time."""


class TaskWeights(keras.layers.Layer):
    """Holds the log-variance of each task, which `uncertainty` learns; nothing is ever called."""

    def __init__(self, tasks: int) -> None:
        super().__init__(name="tasks")
        self.log_variance = self.add_weight(shape=(tasks,), initializer="zeros", name="log_variance")
        self.built = True


class Scored(NamedTuple):
    """What the towers make of one batch of `B` queries."""

    query: Array
    """`[B, R]`."""
    memory: Array | None
    """`[B, M]`."""
    positive: Array
    """`[B, R]` each query's own item."""
    negative: Array
    """`[C, R]` what all queries are compared with."""
    scaled: Array
    """`[B, D]` the queries' embeddings divided by the temperature: their products with others are logits."""
    own_logits: Array
    """`[B]`."""


class JointModel(Network):
    """The network with its weights held outside, as training needs it: every method is a pure function of them."""

    def __init__(self, config: ModelConfig, *, features: FittedFeatures, items: int, seed: int) -> None:
        """Build the layers and draw their first weights.

        Args:
            config: What to build.
            features: The fitted features of both towers, whose inputs the layers take.
            items: How many the train part has.
            seed: Decides the first weights and dropout.
        """
        keras.utils.set_random_seed(seed)
        super().__init__(config, features=features)
        self.tasks = tuple(config.tasks())
        self.has_negatives = RETRIEVAL in self.tasks or MET in self.tasks
        """Whether any task asks of more than what was met."""
        self.kinds = {RETRIEVAL: "listwise"} | {label.name: label.kind for label in config.ranking.labels}
        """Task -> the kind of its loss."""
        if config.task_weights == "uncertainty":
            self.layers["tasks"] = TaskWeights(len(self.tasks))
        self.layers["retrieval"].begin_at(config.retrieval.first_temperature(items=items))
        self.seed = seed

    @cached_property
    def tables(self) -> Tables:
        """The first embeddings, drawn when they are first asked for: whoever compiles before has that memory free."""
        return _draw_tables(table_shapes(self.features), seed=self.seed)

    def table_structs(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The tables' shapes, for what is traced before they are drawn."""
        drawn = {name: table.shape for name, table in self.__dict__.get("tables", {}).items()}
        shapes = drawn or table_shapes(self.features)
        return {name: jax.ShapeDtypeStruct(tuple(shape), jnp.float32) for name, shape in sorted(shapes.items())}

    def build(
        self, query_inputs: Mapping[str, Any], candidate_inputs: Mapping[str, Any], *, label_means: NDArray[np.float32]
    ) -> None:
        """Make every weight; predictions begin at the labels' means."""
        if any(":" in tower.network for tower in (self.config.query_tower, self.config.candidate_tower)):
            # A layer of the user's own may do more in its first call than ask for weights.
            self.call_once(query_inputs, candidate_inputs, self.tables)
        else:
            # Traced, not run, as each operation of a call is a program to compile. Keras then draws the weights.
            with keras.StatelessScope():
                jax.eval_shape(self.call_once, query_inputs, candidate_inputs, self.table_structs())
        if "ranking" in self.layers:
            self.layers["ranking"].begin_at(label_means.tolist())

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

    def pure(self, weights: Weights, states: Weights, **always: Any) -> Call:
        """Calls a layer under the weights given; what it leaves in `states` replaces what was there."""

        def call(part: str, *arguments: Any, **named: Any) -> Any:
            output, states[part] = self.apply(part, weights, states, *arguments, **named, **always)
            return output

        return call

    def loss(
        self, weights: Weights, tables: Tables, states: Weights, batch: Mapping[str, Any]
    ) -> tuple[Array, tuple[dict[str, Array], Weights]]:
        """The joint loss of one batch; beside it each task's own mean, and the layers' states afterwards.

        Args:
            weights: Trainable weights by part.
            tables: The rows that the batch reads, by table.
            states: The layers' other state by part.
            batch: `query` and `candidate` inputs whose rows point into `tables` (candidates: all items, or `B`
                positives and then the uniform negatives), `item` (`[B]`, or `[B + N]` which item each candidate is),
                `labels` `[B, L]`, `positive` `[B]`, `probability` `[T]`, `task_weights` in the order of `tasks`, `key`,
                a random key of the step's own, `is_all`, `met` as `_seen` takes it, `second` and `appeared` as
                `_absent` does, `trends` `[B, F]` and `trend_of` where ranking reads them; `windows` and `window` where
                the query tower reads sequences.
        """
        states = dict(states)
        call = self.pure(weights, states)
        scored, sample = self._score(call, tables, batch)
        losses: dict[str, Array] = {}
        if RETRIEVAL in self.tasks:
            losses[RETRIEVAL] = self._retrieval(scored, sample, batch=batch)
        if "ranking" in self.layers:
            losses |= self._ranking(call, scored, sample, batch=batch)
        if self.config.task_weights == "uncertainty":
            variances = dict(zip(self.tasks, weights["tasks"][0], strict=True))
            total = uncertainty_total(losses, variances, kinds=self.kinds)
        else:
            total = static_total(losses, dict(zip(self.tasks, batch["task_weights"], strict=True)))
        return total, (losses | {"loss": total}, states)

    def _score(self, call: Call, tables: Tables, batch: Mapping[str, Any]) -> tuple[Scored, Sample]:
        """Both towers' outputs, and the logit of each query's own item."""
        inputs, size = dict(batch["query"]), batch["labels"].shape[0]
        if "history" in self.layers:
            windows, (row, place) = batch["windows"], batch["window"]
            known = call("history", windows["items"], windows["days"], tables, training=True)
            inputs["history_state"] = known[row, place]
        query = call("query", inputs, tables, training=True)
        memory = call("memory", inputs, tables) if self.memory_length else None
        candidate = call("candidate", batch["candidate"], tables, training=True)
        items, item = batch["probability"].shape[0], batch["item"]
        is_all = batch["is_all"]
        in_batch = 0 if is_all else min(self.config.retrieval.in_batch_negatives, size)
        if is_all:
            negative, negative_item, positive = candidate, jnp.arange(items), candidate[item]
        else:
            negative = jnp.concatenate([candidate[:in_batch], candidate[size:]])
            negative_item, positive = jnp.concatenate([item[:in_batch], item[size:]]), candidate[:size]
        dim = self.dim
        scaled = self.to_logits(call, query[:, :dim])
        own = jnp.sum(scaled * positive[:, :dim], axis=1)
        sample = Sample(
            positive_item=item[:size],
            negative_item=negative_item,
            seen=None,
            is_all=is_all,
            in_batch=in_batch,
            items=items,
            probability=batch["probability"],
        )
        return Scored(query, memory, positive, negative, scaled, own), sample

    def _retrieval(self, scored: Scored, sample: Sample, *, batch: Mapping[str, Any]) -> Array:
        """The mean loss over the batch's positives, by blocks of queries."""
        config, weight = self.config.retrieval, batch["positive"]
        row_facts = {"positive_item": sample.positive_item, "weight": weight}
        facts = {"negative_item": sample.negative_item, "probability": sample.probability}
        if config.mask_positives:
            row_facts["met"] = batch["met"]
            facts["columns"] = _columns(batch, sample.negative_item)
        if config.mask_absent:
            row_facts["second"], facts["appeared"] = batch["second"], batch["appeared"]

        def block_loss(rows: tuple[Array, Array], negative: Array, of_rows: dict[str, Array], of_all: Any) -> Array:
            own, scaled = rows
            names = {name: of_all[name] for name in ("negative_item", "probability")}
            block = replace(sample, positive_item=of_rows["positive_item"], **names)
            block = replace(block, seen=self._left_out(of_rows | of_all, block.negative_item))
            each = retrieval_loss(config, positive=own, negative=scaled @ negative, sample=block)
            return jnp.sum(each * of_rows["weight"])

        blocks = count_blocks(len(weight), len(sample.negative_item))
        # Transposed once, here: the gradient of `[C, D]` in every block takes a CPU three times as long as of `[D, C]`.
        rows, negative = (scored.own_logits, scored.scaled), scored.negative[:, : self.dim].T
        total = sum_by_blocks(block_loss, blocks, rows, negative, row_facts, facts)
        return total / total_weight(weight)

    def _left_out(self, batch: Mapping[str, Any], items: Array) -> Array | None:
        """`[B, C]` which of the negatives retrieval leaves out; None for none."""
        config = self.config.retrieval
        seen = _seen(batch["met"], items, columns=batch["columns"]) if config.mask_positives else None
        if not config.mask_absent:
            return seen
        absent = _absent(batch, items)
        return absent if seen is None else seen | absent

    def _ranking(self, call: Call, scored: Scored, sample: Sample, *, batch: Mapping[str, Any]) -> dict[str, Array]:
        """Each label's mean loss."""
        losses, labels = {}, self.config.ranking.labels
        columns = [(place, label) for place, label in enumerate(labels) if label.name != MET]
        if columns:
            trends = batch["trends"][:, None] if self.config.ranking.trends else None
            beside = self.beside(scored.memory, scored.own_logits[:, None], trends)
            output = call("ranking", scored.query, scored.positive[:, None], beside, training=True)[:, 0]
        for place, label in columns:
            truth = batch["labels"][:, place]
            each = (squared_error if label.kind == "regression" else binary_cross_entropy)(output[:, place], truth)
            losses[label.name] = weighted_mean(each, jnp.where(jnp.isnan(truth), 0.0, 1.0))
        if len(columns) < len(labels):
            losses[MET] = self._met(call, scored, sample, batch=batch)
        return {label.name: losses[label.name] for label in labels}

    def _met(self, call: Call, scored: Scored, sample: Sample, *, batch: Mapping[str, Any]) -> Array:
        """Cross-entropy of what was met among what retrieval brings, for the first queries of the batch.

        Retrieval brings the items that it scores highest and that the user has not met. Negatives are drawn from those,
        each alike, and a positive counts only if it is one of them: both sides are met under the same condition, and
        the order learned is that of the probability to be met among what was retrieved, which is what a server asks.
        """
        config, size = self.config.ranking, scored.query.shape[0]
        queries = max(round(size * config.met_queries), 1)
        first = sample.in_batch  # Draws from the batch come by popularity: uniform ones stand for all items.
        items = sample.negative_item[first:]
        hit = sample.positive_item[:queries, None] == items[None, :]
        hit |= _seen(batch["met"][:queries], items, columns=_columns(batch, items))
        if self.config.retrieval.mask_absent:
            hit |= _absent(batch, items)[:queries]
        scaled, negative = scored.scaled[:queries], scored.negative[first:]
        logits = jax.lax.stop_gradient(scaled) @ jax.lax.stop_gradient(negative[:, : self.dim]).T
        logits = jnp.where(hit, LEFT_OUT, logits)
        reach = _reach(config.candidates, drawn=logits.shape[1], items=sample.items, least=config.hard_negatives)
        best, hardest = jax.lax.top_k(logits, reach)
        columns = jax.random.permutation(batch["key"], reach)[: config.hard_negatives]
        hardest = hardest[:, columns]
        chosen = jnp.concatenate([scored.positive[:queries, None], negative[hardest]], axis=1)
        chosen_logits = jnp.sum(scaled[:, None] * chosen[..., : self.dim], axis=-1)
        chosen_items = jnp.concatenate([sample.positive_item[:queries, None], items[hardest]], axis=1)
        beside = self.beside(
            None if scored.memory is None else scored.memory[:queries],
            chosen_logits,
            batch["trend_of"](jax.lax.optimization_barrier(chosen_items)) if config.trends else None,
        )
        output = call("ranking", scored.query[:queries], chosen, beside, training=True)
        place = [label.name for label in config.labels].index(MET)
        output = output[:, :, place]
        left_out = jnp.take_along_axis(hit, hardest, axis=1)
        weight = batch["positive"][:queries] * jax.lax.stop_gradient(scored.own_logits[:queries] >= best[:, -1])
        loss = sampled_softmax if config.labels[place].kind == "listwise" else sampled_cross_entropy
        each = loss(output[:, 0], output[:, 1:], expected_count=jnp.ones(hardest.shape[1]), hit=left_out)
        return weighted_mean(each, weight)


def _reach(candidates: int, *, drawn: int, items: int, least: int) -> int:
    """How many of the items drawn play what retrieval brings of all."""
    share = candidates if drawn == items else round(candidates / items * drawn)
    return min(max(share, least), drawn)


def _absent(batch: Mapping[str, Any], items: Array) -> Array:
    """`[B, C]` whether nobody had met the item by the query's moment: it could not have been chosen.

    Args:
        batch: Holds `second` `[B]` and `appeared` `[T]`, on one clock.
        items: `[C]`.
    """
    absent: Array = batch["appeared"][items][None, :] > batch["second"][:, None]
    return absent


def _columns(batch: Mapping[str, Any], items: Array) -> Array:
    """`[T + 1]` each item's column among those asked about; all others, and what pads (-1), have the last."""
    drawn = items.shape[0]
    column = jnp.full(batch["probability"].shape[0] + 1, drawn, jnp.int32)
    return column.at[items].set(jnp.arange(drawn, dtype=jnp.int32))


def _seen(met: Array, items: Array, *, columns: Array) -> Array:
    """`[B, C]` whether the user had met each item: a server leaves out what was seen.

    Args:
        met: `[B, L]` items that the user met, -1 where fewer; empty where nothing tells.
        items: `[C]`.
        columns: Of these items, as `_columns` tells.
    """
    # One column more than there are items, for what was not asked about; none reads it.
    marked = jnp.zeros((met.shape[0], items.shape[0] + 1), bool)
    marked = marked.at[jnp.arange(met.shape[0])[:, None], columns[met]].set(True)
    return marked[:, columns[items]]


def _draw_tables(shapes: Mapping[str, Sequence[int]], *, seed: int) -> Tables:
    """First embeddings: normal with deviation 0.05; zeros in row 0, which stands for what was never met."""
    tables = {}
    for place, (name, (rows, dim)) in enumerate(sorted(shapes.items())):
        generator = np.random.default_rng([seed, place])
        # Piece by piece into its place, as a table may be most of the memory.
        for start in range(0, rows, PIECE):
            drawn = generator.standard_normal((min(PIECE, rows - start), dim), np.float32)
            drawn *= np.float32(0.05)
            if not start:
                drawn[0] = 0.0
                tables[name] = jnp.asarray(drawn) if rows <= PIECE else jnp.zeros((rows, dim), jnp.float32)
            if rows > PIECE:
                tables[name] = _put(tables[name], drawn, start)
    return tables


@partial(jax.jit, donate_argnums=0)
def _put(table: Array, part: Array, start: int) -> Array:
    """The table with `part` from the row `start` on, in its own memory."""
    return jax.lax.dynamic_update_slice(table, part, (start, 0))
