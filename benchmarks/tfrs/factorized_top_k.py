"""TFRS's evaluation of given embeddings: each line read names a form, each line written is its time and accuracies.

Runs inside the TFRS environment. The npz file holds `query` `[Q, D]`, `candidate` `[I, D]` and the test rows as
`query_row` and `candidate_row`. Everything that TFRS would not repeat from one evaluation to the next (imports,
tracing, building the index) happens before the clock starts; the query rows are served in the tutorials' batches of
4,096.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf  # type: ignore[import-untyped, import-not-found, unused-ignore]
import tensorflow_recommenders as tfrs  # type: ignore[import-untyped, import-not-found, unused-ignore]

KS = (1, 5, 10, 50, 100)
CANDIDATE_BATCH = 128


def streaming(candidate: Any) -> Any:
    """The default: a dataset of candidate batches is walked for every batch of queries."""
    return tfrs.metrics.FactorizedTopK(tf.data.Dataset.from_tensor_slices(candidate).batch(CANDIDATE_BATCH), ks=KS)


def brute_force(candidate: Any) -> Any:
    """The fastest exact form: one matrix product per batch of queries."""
    return tfrs.metrics.FactorizedTopK(tfrs.layers.factorized_top_k.BruteForce(k=max(KS)).index(candidate), ks=KS)


FORMS: dict[str, Callable[[Any], Any]] = {
    "streaming": streaming,
    "brute_force": brute_force,
    "by_id": brute_force,
}
"""`by_id` looks for the item's id among the best, where the default compares scores. The item's own score is computed
twice there, by a sum and by a matrix product; where the two differ in the last bit the item competes with itself."""


class Evaluation:
    """One form, built and traced once, run as often as asked."""

    def __init__(self, form: str, arrays: dict[str, Any], batch_size: int) -> None:
        query, candidate = tf.constant(arrays["query"]), tf.constant(arrays["candidate"])
        self.metric = FORMS[form](candidate)
        rows = (arrays["query_row"], arrays["candidate_row"])
        self.batches = tf.data.Dataset.from_tensor_slices(rows).batch(batch_size).cache()

        @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
        def update(query_row: Any, candidate_row: Any) -> None:
            ids = tf.cast(candidate_row, tf.int32) if form == "by_id" else None
            self.metric.update_state(tf.gather(query, query_row), tf.gather(candidate, candidate_row), ids)

        self.update = update
        for batch in self.batches:  # Fills the cache; tracing needs a full batch and, once, the smaller last one.
            last = batch
        update(*next(iter(self.batches)))
        update(*last)

    def run(self) -> dict[str, Any]:
        """Seconds and accuracies over all rows."""
        self.metric.reset_states()
        begin = time.perf_counter()
        for batch in self.batches:
            self.update(*batch)
        accuracies = [float(value) for value in self.metric.result()]
        seconds = time.perf_counter() - begin
        return {"seconds": seconds, **{f"top{k}": value for k, value in zip(KS, accuracies, strict=True)}}


def main() -> None:
    """Answer the forms named on stdin until it ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("embeddings")
    parser.add_argument("--batch-size", type=int, default=4096)
    options = parser.parse_args()
    with np.load(options.embeddings) as file:
        arrays = dict(file)
    ready: dict[str, Evaluation] = {}
    for line in sys.stdin:
        form = line.strip()
        if form not in ready:
            ready[form] = Evaluation(form, arrays, options.batch_size)
        print(json.dumps({"form": form, **ready[form].run()}), flush=True)


if __name__ == "__main__":
    main()
