"""The graph that a SavedModel holds: ids in, both stages, ids out. Runs in a process of its own, on TensorFlow.

`python -m twotower.savedmodel.build MODEL TABLES OUT`, with KERAS_BACKEND=tensorflow. Keras is imported before anything
of `twotower.model`, which would else choose JAX for it.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from twotower.data.feature_encoders import PADDING
from twotower.data.fitted_features import FittedFeatures
from twotower.errors import ArtifactError, TwotowerError
from twotower.model.config import RETRIEVAL
from twotower.model.encoders import lookups
from twotower.model.network import WEIGHTS, Network
from twotower.recipe import read_recipe
from twotower.savedmodel.tables import ARRAYS, CHECKED, FACTS, REFUSED, Arrays, part_of

SIGNATURE = "recommend"
EMBEDDED_AT_ONCE = 8192
"""Items that go through the candidate tower together, which bounds memory."""
CHECKED_AT_MOST = 256
"""Users and items whose numbers are handed back, to be compared with the bundle's."""
INFINITY = float("inf")
LOWEST = float(np.finfo(np.float32).min)
"""The score of a place that holds no item: JSON knows no infinity."""


class Recommender(tf.Module):
    """Answers as a server does by default, from variables and lookup tables alone: `U` users, `I` items."""

    def __init__(self, network: Network, *, tables: Arrays, arrays: Arrays, facts: Mapping[str, Any]) -> None:
        """Take everything that answering needs into the module, where saving finds it.

        Args:
            network: The layers, which hold their weights.
            tables: The query tower's embedding tables.
            arrays: As `write_tables` wrote them, and `item/candidate` `[I, R]`.
            facts: Likewise.
        """
        super().__init__(name="recommender")
        self.network, self.items, self.candidates = network, len(facts["items"]), facts["candidates"]
        self.order, self.temperature, self.told_days = facts["order"], facts["temperature"], facts["told_days"]
        history = network.features.history
        self.length = history.config.length if history is not None else 0
        self.layer_weights = [variable.value for layer in network.layers.values() for variable in layer.variables]
        self.tables = {name: _constant(table) for name, table in tables.items()}
        self.inputs, self.user, self.item = (
            {name: _constant(values) for name, values in part_of(arrays, part).items()}
            for part in ("query_input", "user", "item")
        )
        self.embedding = _constant(arrays["item/candidate"][:, : network.dim])
        self.item_id = _constant(np.array(facts["items"], object))
        self.user_row = _lookup(facts["users"], missing=len(facts["users"]))
        self.item_row = _lookup(facts["items"], missing=PADDING)

    def recommend(self, user_id: Any, history: Any, k: Any) -> dict[str, Any]:
        """The best items for `q` queries.

        Args:
            user_id: `[q]`; one that the bundle does not know, such as "", stands for somebody unknown.
            history: `[q, h]` ids of items met besides, oldest first; "" pads.
            k: `[]` how many items.

        Returns:
            `item_ids` and `scores` `[q, n]`, best first, `n` being the most that any query gets; who gets fewer has ""
            in the places left. `fallback` `[q]`: "" or "popular".
        """
        tf.debugging.assert_positive(k, message="k: ask for at least one item")
        user, told = self.user_row.lookup(user_id), self._told(history)
        left_out = self._left_out(user, told)
        inputs, is_told = self.query_inputs(user, told)
        query = self.network.embed_query(self.network.call_layers, inputs, self.tables)
        by_model = self._by_model(query, left_out, k)
        # Not worked out where nobody needs it.
        popular = tf.cond(tf.reduce_all(is_told), lambda: by_model, lambda: self._by_popularity(left_out, k))
        rows, scores = (tf.where(is_told[:, None], *each) for each in zip(by_model, popular, strict=True))
        count = tf.minimum(k, self.items - tf.reduce_sum(tf.cast(left_out, tf.int32), axis=1))
        width = tf.reduce_max(tf.concat([count, [0]], axis=0))
        holds = tf.range(width)[None] < count[:, None]
        return {
            "item_ids": tf.where(holds, tf.gather(self.item_id, rows[:, :width]), ""),
            "scores": tf.where(holds, scores[:, :width], LOWEST),
            "fallback": tf.where(is_told, "", "popular"),
        }

    def query_inputs(self, user: Any, told: Any) -> tuple[dict[str, Any], Any]:
        """The query tower's inputs of user rows `[q]` and ragged catalogue rows `[q, ...]`, and who is told by them."""
        is_told = tf.gather(self.user["is_told"], user)
        inputs = {
            key: tf.gather(values, tf.zeros_like(user) if values.shape[0] == 1 else user)
            for key, values in self.inputs.items()
        }
        if self.length:
            items = told.with_flat_values(tf.gather(self.item["history_row"], told.flat_values))
            days = told.with_flat_values(tf.fill(tf.shape(told.flat_values), self.told_days))
            items = tf.concat([items, self._of_user("history", "item", user)], axis=1)
            days = tf.concat([days, self._of_user("history", "days", user)], axis=1)
            shape = [None, self.length]
            inputs["history_items"] = items[:, : self.length].to_tensor(PADDING, shape=shape)
            inputs["history_days"] = days[:, : self.length].to_tensor(0.0, shape=shape)
            is_told |= tf.reduce_any(inputs["history_items"] >= 0, axis=1)
        return inputs, is_told

    def score(self, query: Any, rows: Any, products: Any) -> Any:
        """`[q, n]` the final scores of catalogue rows, whose inner products with the queries are known."""
        score = tf.zeros_like(products)
        if weight := self.order.get(RETRIEVAL, 0.0):
            score += np.float32(weight / self.temperature) * products
        if labels := self.network.config.ranking.labels:
            candidate, trends = tf.gather(self.item["candidate"], rows), tf.gather(self.item["trends"], rows)
            logits = self.network.rank(self.network.call_layers, query, candidate, trends=trends)
            score += tf.linalg.matvec(logits, np.array([self.order.get(each.name, 0.0) for each in labels], np.float32))
        return score

    def _told(self, history: Any) -> Any:
        """Ragged `[q, ...]` catalogue rows of a told history, newest first; ids of no item are passed over."""
        newest_first = tf.reverse(history, axis=[1])
        rows = tf.where(newest_first == "", PADDING, self.item_row.lookup(newest_first))
        return tf.ragged.boolean_mask(rows, rows != PADDING)

    def _left_out(self, user: Any, told: Any) -> Any:
        """`[q, I]` what each query's user has met."""
        seen = tf.concat([self._of_user("seen", "item", user), told], axis=1)
        places = tf.stack([tf.cast(seen.value_rowids(), tf.int32), seen.flat_values], axis=1)
        nothing = tf.zeros([tf.shape(user)[0], self.items], tf.bool)
        return tf.tensor_scatter_nd_update(nothing, places, tf.ones_like(seen.flat_values, tf.bool))

    def _of_user(self, what: str, column: str, user: Any) -> Any:
        """Ragged `[q, ...]` a column of what stands side by side for each user."""
        values, start = self.user[f"{what}_{column}"], self.user[f"{what}_start"]
        places = tf.ragged.range(tf.gather(start, user), tf.gather(start, user + 1))
        return places.with_flat_values(tf.gather(values, places.flat_values))

    def _by_model(self, query: Any, left_out: Any, k: Any) -> tuple[Any, Any]:
        """`[q, min(k, I)]` rows and scores: retrieval, then ranking. Equal scores keep retrieval's order."""
        products = tf.matmul(query[:, : self.network.dim], self.embedding, transpose_b=True)
        depth = tf.minimum(tf.maximum(k, self.candidates), self.items)
        found = tf.math.top_k(tf.where(left_out, -INFINITY, products), depth)
        is_held = tf.math.is_finite(found.values)
        score = self.score(query, found.indices, tf.where(is_held, found.values, 0.0))
        score = tf.where(is_held & ~tf.math.is_nan(score), score, -INFINITY)
        best = tf.math.top_k(score, tf.minimum(k, self.items))
        return tf.gather(found.indices, best.indices, batch_dims=1), best.values

    def _by_popularity(self, left_out: Any, k: Any) -> tuple[Any, Any]:
        """`[q, min(k, I)]` the most popular rows that are not left out, and how popular they are."""
        ahead = tf.range(self.items, 0, -1)
        key = tf.where(tf.gather(left_out, self.item["popular"], axis=1), 0, ahead)
        places = tf.math.top_k(key, tf.minimum(k, self.items)).indices
        return tf.gather(self.item["popular"], places), tf.gather(self.item["popular_score"], places)


def build(model: Path, tables: Path, out: Path) -> None:
    """Write the SavedModel, and into `tables` what a sample of users and items came to (`checked.npz`).

    Args:
        model: What `train` wrote.
        tables: What `write_tables` wrote.
        out: An open directory.
    """
    features = FittedFeatures.load(model)
    network = Network(read_recipe((model / "recipe.toml").read_text(encoding="utf-8")).model, features=features)
    if not (model / WEIGHTS).is_file():
        raise ArtifactError(f"{model}: kept without its {WEIGHTS}. Name a directory that `train` wrote.")
    arrays, stored = _read(tables / ARRAYS), _read(model / WEIGHTS)
    embeddings = part_of(stored, "table")
    users, items = part_of(arrays, "query_input"), part_of(arrays, "candidate_input")
    one_user, one_item = ({key: values[:1] for key, values in inputs.items()} for inputs in (users, items))
    network.call_once(one_user | _no_history(features), one_item, embeddings)
    network.assign_stored(stored)
    read = {name: embeddings[name] for name in set(lookups(features)["query"].values())}
    recommender = Recommender(
        network,
        tables=read,
        arrays={**arrays, "item/candidate": _candidates(network, items, embeddings)},
        facts=json.loads((tables / FACTS).read_text(encoding="utf-8")),
    )
    np.savez(tables / CHECKED, allow_pickle=False, **_sample(recommender))
    _save(recommender, out)


def _no_history(features: FittedFeatures) -> dict[str, NDArray[Any]]:
    """The inputs of one empty history; none where no history is read."""
    if features.history is None:
        return {}
    return dict(features.history.encode([([], [])], np.zeros(1, np.int64)))


def _save(recommender: Recommender, out: Path) -> None:
    asked = [
        tf.TensorSpec([None], tf.string, "user_id"),
        tf.TensorSpec([None, None], tf.string, "history"),
        tf.TensorSpec([], tf.int32, "k"),
    ]
    answer = tf.function(recommender.recommend, input_signature=asked)
    tf.saved_model.save(recommender, str(out), signatures={SIGNATURE: answer, "serving_default": answer})


def _candidates(network: Network, inputs: Arrays, tables: Arrays) -> NDArray[np.float32]:
    """`[I, R]` the candidate tower's output for every item."""
    count = len(next(iter(inputs.values())))
    parts = []
    for start in range(0, count, EMBEDDED_AT_ONCE):
        block = {key: values[start : start + EMBEDDED_AT_ONCE] for key, values in inputs.items()}
        parts.append(np.asarray(network.layers["candidate"](block, tables)))
    return np.concatenate(parts)


def _sample(recommender: Recommender) -> dict[str, NDArray[Any]]:
    """Inputs and outputs of the query tower, and scores of some items, for users spread over all, the unknown last."""
    network, unknown = recommender.network, recommender.user["is_told"].shape[0] - 1
    user = tf.constant(np.unique(np.linspace(0, unknown, CHECKED_AT_MOST).astype(np.int32)))
    nothing = tf.RaggedTensor.from_row_lengths(tf.constant([], tf.int32), tf.zeros_like(user, tf.int64))
    inputs, _ = recommender.query_inputs(user, nothing)
    query = network.embed_query(network.call_layers, inputs, recommender.tables)
    rows = tf.repeat(tf.range(min(recommender.items, CHECKED_AT_MOST))[None], tf.shape(user)[0], axis=0)
    candidate = tf.gather(recommender.item["candidate"], rows)
    products = tf.einsum("qd,qcd->qc", query[:, : network.dim], candidate[:, :, : network.dim])
    sample = {
        "query": query,
        "score": recommender.score(query, rows, products),
        "candidate": recommender.item["candidate"],
    }
    return {name: np.asarray(value) for name, value in sample.items()} | {
        f"inputs/{key}": np.asarray(values) for key, values in inputs.items()
    }


def _read(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def _constant(values: NDArray[Any]) -> Any:
    """A variable, not a constant of the graph: a graph may be no larger than 2 GB."""
    return tf.Variable(values, trainable=False, dtype=tf.string if values.dtype == object else None)


def _lookup(ids: list[str], *, missing: int) -> Any:
    """Id -> row."""
    keys = tf.constant(ids, tf.string, shape=[len(ids)])
    rows = tf.lookup.KeyValueTensorInitializer(keys, tf.range(len(ids)))
    return tf.lookup.StaticHashTable(rows, default_value=missing)


if __name__ == "__main__":
    if keras.backend.backend() != "tensorflow":
        sys.exit(f"KERAS_BACKEND is {keras.backend.backend()}, not tensorflow.")
    try:
        build(*(Path(argument) for argument in sys.argv[1:]))
    except TwotowerError as fault:
        sys.stderr.write(f"{fault}\n")
        sys.exit(REFUSED)
