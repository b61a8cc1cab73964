"""TFRS on its own ground: the multitask tutorial's model, as published, on a split that both sides read.

Runs inside the TFRS environment (Keras 2), never inside ours. Reads one or more split files (see `write_split` in
`tfrs_parity.py`) and writes a JSON list with one entry per file, in their order.

Source: "Multi-task recommenders", TensorFlow Recommenders, https://www.tensorflow.org/recommenders/examples/multitask.
The one departure: the factorized metric is off while training, where it only costs time.
"""

import argparse
import csv
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf  # type: ignore[import-untyped, import-not-found, unused-ignore]
import tensorflow_recommenders as tfrs  # type: ignore[import-untyped, import-not-found, unused-ignore]

DIM = 32
TEST_BATCH = 4096
CANDIDATE_BATCH = 128


class MovielensModel(tfrs.Model):  # type: ignore[misc]
    """Two id embeddings, a dot product for retrieval and a small network for the rating; one summed loss."""

    def __init__(self, users: list[str], titles: list[str]) -> None:
        super().__init__()
        self.user_model = _embedding(users)
        self.movie_model = _embedding(titles)
        self.rating_model = tf.keras.Sequential(
            [
                tf.keras.layers.Dense(256, activation="relu"),
                tf.keras.layers.Dense(128, activation="relu"),
                tf.keras.layers.Dense(1),
            ]
        )
        self.rating_task = tfrs.tasks.Ranking(
            loss=tf.keras.losses.MeanSquaredError(), metrics=[tf.keras.metrics.RootMeanSquaredError()]
        )
        candidates = tf.data.Dataset.from_tensor_slices(titles).batch(CANDIDATE_BATCH).map(self.movie_model)
        self.retrieval_task = tfrs.tasks.Retrieval(metrics=tfrs.metrics.FactorizedTopK(candidates=candidates))

    def compute_loss(self, features: dict[str, Any], training: bool = False) -> Any:
        """The tutorial's loss with both weights 1: a sum over the batch for retrieval, a mean for the rating."""
        user = self.user_model(features["user_id"])
        movie = self.movie_model(features["title"])
        predicted = self.rating_model(tf.concat([user, movie], axis=1))
        rating_loss = self.rating_task(labels=features["rating"], predictions=predicted)
        return rating_loss + self.retrieval_task(user, movie, compute_metrics=not training)


def _embedding(vocabulary: list[str]) -> Any:
    return tf.keras.Sequential(
        [
            tf.keras.layers.StringLookup(vocabulary=vocabulary, mask_token=None),
            tf.keras.layers.Embedding(len(vocabulary) + 1, DIM),
        ]
    )


def measure(split: Path, *, seed: int, batch_size: int, epochs: int) -> dict[str, Any]:
    """Train on the file's train rows, judge on its test rows.

    Args:
        split: CSV with the columns `user_id`, `title`, `rating` and `part` ("train" or "test").
    """
    with split.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    users, titles = sorted({row["user_id"] for row in rows}), sorted({row["title"] for row in rows})
    train, test = (_dataset([row for row in rows if row["part"] == part]) for part in ("train", "test"))
    tf.keras.utils.set_random_seed(seed)
    model = MovielensModel(users, titles)
    model.compile(optimizer=tf.keras.optimizers.Adagrad(0.1))
    begin = time.perf_counter()
    model.fit(train.shuffle(100_000).batch(batch_size).cache(), epochs=epochs, verbose=0)
    trained = time.perf_counter()
    found = model.evaluate(test.batch(TEST_BATCH).cache(), return_dict=True, verbose=0)
    return {
        "seed": seed,
        "batch_size": batch_size,
        "epochs": epochs,
        "candidates": len(titles),
        "rmse": float(found["root_mean_squared_error"]),
        **{f"top{k}": float(found[f"factorized_top_k/top_{k}_categorical_accuracy"]) for k in (1, 5, 10, 50, 100)},
        "fit_seconds": trained - begin,
        "evaluate_seconds": time.perf_counter() - trained,
    }


def _dataset(rows: list[dict[str, str]]) -> Any:
    columns = {name: np.array([row[name] for row in rows]) for name in ("user_id", "title")}
    return tf.data.Dataset.from_tensor_slices(
        {**columns, "rating": np.array([row["rating"] for row in rows], np.float32)}
    )


def main() -> None:
    """Measure each split file; the position of a file is its seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("splits", type=Path, nargs="+")
    parser.add_argument("--batch-size", type=int, default=8192)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    found = [
        measure(split, seed=seed, batch_size=options.batch_size, epochs=options.epochs)
        for seed, split in enumerate(options.splits)
    ]
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
