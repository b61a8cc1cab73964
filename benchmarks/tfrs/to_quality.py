"""How good TFRS is after each epoch, and when: the multitask tutorial's model, timed from the start of its process.

Runs inside the TFRS environment. Trains on `train.csv` of a folder, and after each epoch judges itself on `test.csv` by
its own metrics, as the tutorials do with `validation_data`. A line of JSON for each epoch goes to stdout.

TFRS's default accuracy, by score, comes out a little lower than it is (`factorized_top_k.py` says why). So that the
others are not held against too low a mark, accuracy and error are computed once more, exactly and in NumPy; the clock
stands still meanwhile.
"""

import argparse
import csv
import json
import time
from pathlib import Path
from typing import Any

import multitask
import numpy as np
import tensorflow as tf  # type: ignore[import-untyped, import-not-found, unused-ignore]
from numpy.typing import NDArray

K = 100
USERS_AT_A_TIME = 512


def read(path: Path) -> dict[str, NDArray[Any]]:
    """The part's rows as columns: `user_id` and `title` as text, `rating` as a number."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        next(rows)
        user, item, rating, _ = zip(*rows, strict=True)
    return {"user_id": np.array(user), "title": np.array(item), "rating": np.array(rating, np.float32)}


class Clock(tf.keras.callbacks.Callback):  # type: ignore[misc]
    """Notes when an epoch's training and its evaluation end, and what was reached by then."""

    def __init__(self, began: float, judge: "Judge") -> None:
        super().__init__()
        self.began, self.judge = began, judge
        self.trained = self.stood_still = 0.0

    def now(self) -> float:
        """Seconds since the process was started, without those of our own judging."""
        return time.monotonic() - self.began - self.stood_still

    def on_train_begin(self, _logs: Any = None) -> None:
        """Everything is read and built."""
        print(json.dumps({"ready": self.now()}), flush=True)

    def on_test_begin(self, _logs: Any = None) -> None:
        """The epoch's steps are done, its evaluation begins."""
        self.trained = self.now()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """All is done, evaluation too where there is one."""
        evaluated, own = self.now(), f"val_factorized_top_k/top_{K}_categorical_accuracy" in logs
        self.stood_still += time.monotonic() - self.began - self.stood_still - evaluated
        entry = {"epoch": epoch + 1, "trained": self.trained if own else evaluated, "evaluated": evaluated}
        if own:
            entry["own_top100"] = float(logs[f"val_factorized_top_k/top_{K}_categorical_accuracy"])
            entry["own_rmse"] = float(logs["val_root_mean_squared_error"])
        at = time.monotonic()
        entry |= self.judge(self.model)
        self.stood_still += time.monotonic() - at
        print(json.dumps(entry), flush=True)


class Judge:
    """Top-100 accuracy and RMSE of the test rows, from a model's embeddings."""

    def __init__(self, users: list[str], titles: list[str], test: dict[str, NDArray[Any]]) -> None:
        self.users, self.titles, self.test = users, titles, test
        self.user, self.item = np.searchsorted(users, test["user_id"]), np.searchsorted(titles, test["title"])

    def __call__(self, model: Any) -> dict[str, float]:
        """The share of test rows with fewer than 100 other titles at or above their own, and the error of the stars."""
        query = model.user_model(tf.constant(self.users)).numpy()
        candidate = model.movie_model(tf.constant(self.titles)).numpy()
        order, hits = np.argsort(self.user, kind="stable"), 0
        for start in range(0, len(query), USERS_AT_A_TIME):
            scores = query[start : start + USERS_AT_A_TIME] @ candidate.T
            stop = start + len(scores)
            rows = order[np.searchsorted(self.user[order], start) : np.searchsorted(self.user[order], stop)]
            user, item = self.user[rows] - start, self.item[rows]
            # The K-th best bounds from below who is among the best K; an item never competes with itself.
            bound = np.partition(scores, -K, axis=1)[:, -K]
            hits += int((scores[user, item] >= bound[user]).sum())
        pairs = np.concatenate([query[self.user], candidate[self.item]], axis=1)
        predicted = np.asarray(model.rating_model.predict(pairs, batch_size=8192, verbose=0))[:, 0]
        error = predicted - self.test["rating"]
        return {"top100": hits / len(self.user), "rmse": float(np.sqrt(np.mean(np.square(error.astype(np.float64)))))}


def main() -> None:
    """Train, and tell of each epoch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--began", type=float, required=True, help="time.monotonic() when this process was started")
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--without-evaluation", action="store_true", help="leave TFRS's own evaluation out")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    train, test = read(options.folder / "train.csv"), read(options.folder / "test.csv")
    users = np.unique(np.concatenate([train["user_id"], test["user_id"]])).tolist()
    titles = np.unique(np.concatenate([train["title"], test["title"]])).tolist()
    tf.keras.utils.set_random_seed(options.seed)
    model = multitask.MovielensModel(users, titles)
    model.compile(optimizer=tf.keras.optimizers.Adagrad(0.1))
    batches = tf.data.Dataset.from_tensor_slices(train).shuffle(100_000).batch(options.batch_size).cache()
    asked = tf.data.Dataset.from_tensor_slices(test).batch(multitask.TEST_BATCH).cache()
    model.fit(
        batches,
        epochs=options.epochs,
        validation_data=None if options.without_evaluation else asked,
        callbacks=[Clock(options.began, Judge(users, titles, test))],
        verbose=0,
    )


if __name__ == "__main__":
    main()
