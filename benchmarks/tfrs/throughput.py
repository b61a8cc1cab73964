"""TFRS on the large world: the multitask tutorial's model at 64 dims, trained for so many seconds.

Runs inside the TFRS environment. Reads `user.npy`, `item.npy` and `rating.npy` of a folder and trains by batches of
4,096, each query against all items of its batch, with the tutorial's optimizer and its `tf.data` pipeline. The clock
begins after the first step, which compiles. Writes the embeddings of the queries' users and of all items.

Source: "Multi-task recommenders", TensorFlow Recommenders, https://www.tensorflow.org/recommenders/examples/multitask.
The factorized metric is left out: it is off in training anyway, and evaluation is the same code for both sides.
"""

import argparse
import contextlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf  # type: ignore[import-untyped, import-not-found, unused-ignore]
import tensorflow_recommenders as tfrs  # type: ignore[import-untyped, import-not-found, unused-ignore]

DIM = 64
AT_A_TIME = 10_000


class Model(tfrs.Model):  # type: ignore[misc]
    """Two id embeddings, a dot product for retrieval and a small network for the rating; one summed loss."""

    def __init__(self, users: int, items: int) -> None:
        super().__init__()
        self.user_model, self.movie_model = _embedding(users), _embedding(items)
        dense, relu = tf.keras.layers.Dense, "relu"
        self.rating_model = tf.keras.Sequential([dense(256, relu), dense(128, relu), dense(1)])
        self.rating_task = tfrs.tasks.Ranking(
            loss=tf.keras.losses.MeanSquaredError(), metrics=[tf.keras.metrics.RootMeanSquaredError()]
        )
        self.retrieval_task = tfrs.tasks.Retrieval()

    def compute_loss(self, features: dict[str, Any], training: bool = False) -> Any:
        """The tutorial's loss with both weights 1."""
        user, movie = self.user_model(features["user_id"]), self.movie_model(features["title"])
        predicted = self.rating_model(tf.concat([user, movie], axis=1))
        rating_loss = self.rating_task(labels=features["rating"], predictions=predicted)
        return rating_loss + self.retrieval_task(user, movie, compute_metrics=not training)


class Clock(tf.keras.callbacks.Callback):  # type: ignore[misc]
    """Ends training when its seconds are over."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds, self.began, self.took, self.steps = seconds, 0.0, 0.0, 0

    def on_train_batch_end(self, _batch: int, _logs: Any = None) -> None:
        """Begin after the first step; count all others."""
        if not self.began:
            self.began = time.perf_counter()
            return
        self.steps += 1
        self.took = time.perf_counter() - self.began
        if self.took >= self.seconds:
            raise StopIteration


def _embedding(count: int) -> Any:
    lookup = tf.keras.layers.StringLookup(vocabulary=np.arange(count).astype(str), mask_token=None)
    return tf.keras.Sequential([lookup, tf.keras.layers.Embedding(count + 1, DIM)])


def _embed(model: Any, rows: Any) -> Any:
    parts = (rows[start : start + AT_A_TIME] for start in range(0, len(rows), AT_A_TIME))
    return np.concatenate([model(tf.constant(part.astype(str))).numpy() for part in parts])


def main() -> None:
    """Train, write the embeddings and say how many examples a second it was."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    world = {name: np.load(options.folder / f"{name}.npy") for name in ("user", "item", "rating", "query")}
    users, items = json.loads((options.folder / "sizes.json").read_text(encoding="utf-8"))
    tf.keras.utils.set_random_seed(options.seed)
    model = Model(users, items)
    model.compile(optimizer=tf.keras.optimizers.Adagrad(0.1))
    columns = {"user_id": world["user"].astype(str), "title": world["item"].astype(str), "rating": world["rating"]}
    data = tf.data.Dataset.from_tensor_slices(columns)
    clock = Clock(options.seconds)
    batches = data.shuffle(100_000).batch(options.batch_size).cache()
    with contextlib.suppress(StopIteration):
        model.fit(batches, epochs=10**6, verbose=0, callbacks=[clock])
    np.save(options.out / "query.npy", _embed(model.user_model, world["query"]))
    np.save(options.out / "candidate.npy", _embed(model.movie_model, np.arange(items)))
    np.save(options.out / "items.npy", np.arange(items))
    print(json.dumps({"examples_s": clock.steps * options.batch_size / clock.took, "seconds": clock.took}))


if __name__ == "__main__":
    main()
