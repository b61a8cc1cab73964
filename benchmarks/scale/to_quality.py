"""How good ours is after each epoch, and when: the twin of `tfrs/to_quality.py`, a process that tells by lines of JSON.

The package's own steps and functions, from the two CSV files to a trained model: `prepare`, `split`, then the
training's `Run`, epoch by epoch, as `twotower train` has it. After each epoch the model answers all test rows, by the
package's exact ranks and by its ranking head.
"""

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twotower.data.split import SplitDataset
    from twotower.training.run import Run

RECIPE = Path(__file__).with_name("time_to_quality.toml")
K = 100
ROWS = 10_000
"""Test rows that go through the ranking head at a time."""


class Judge:
    """Top-100 accuracy and RMSE of the test rows; what it compiles, it compiles once."""

    def __init__(self, run: "Run", dataset: "SplitDataset") -> None:
        import jax
        import numpy as np

        from twotower.data.batches import QueryArrays
        from twotower.data.split import TEST, TRAIN

        rows = np.flatnonzero(dataset.part == TEST)
        self.user, self.item = dataset.user[rows].astype(np.int64), dataset.item[rows].astype(np.int64)
        self.rating = dataset.labels["rating"][rows]
        self.model = run.model
        users = np.arange(len(dataset.user_ids), dtype=np.int32)
        arrays = QueryArrays.build(dataset, self.model.features, log=dataset.user_log(TRAIN, positives_only=True))
        self.query = arrays.inputs(users, np.zeros(len(users), np.int64), log_row=np.full(len(users), -1))
        self.candidate = self.model.features.candidate_inputs(dataset.items)
        self._embed, self._rank = jax.jit(self._embedded), jax.jit(self._ranked)

    def __call__(self, state: Any) -> dict[str, float]:
        """Nothing excluded, all items ranked; ties count against the model."""
        import numpy as np

        from twotower.evaluation.metrics import top_k_categorical_accuracy
        from twotower.evaluation.ranks import embedding_ranks

        query, candidate = self._embed(state.weights, state.tables, state.states, self.query, self.candidate)
        query, candidate = np.asarray(query), np.asarray(candidate)
        dim = self.model.dim
        ranks = embedding_ranks(query[:, :dim], candidate[:, :dim], pair_user=self.user, pair_item=self.item)
        predicted = np.empty(len(self.rating), np.float32)
        for start in range(0, len(predicted), ROWS):
            # The last block goes back into the one before, so that all are of one size.
            first = max(0, min(start, len(predicted) - ROWS))
            block = slice(first, first + ROWS)
            predicted[block] = self._rank(
                state.weights, state.states, query[self.user[block]], candidate[self.item[block]]
            )
        error = (predicted - self.rating).astype(np.float64)
        once = np.ones(len(self.user), np.int32)
        return {
            "top100": top_k_categorical_accuracy(ranks, once, k=K),
            "rmse": float(np.sqrt(np.mean(np.square(error)))),
        }

    def _embedded(self, weights: Any, tables: Any, states: Any, query: Any, candidate: Any) -> tuple[Any, Any]:
        call = self.model.pure(weights, dict(states))
        return self.model.embed_query(call, query, tables), call("candidate", candidate, tables)

    def _ranked(self, weights: Any, states: Any, query: Any, candidate: Any) -> Any:
        call = self.model.pure(weights, dict(states))
        return self.model.rank(call, query, candidate[:, None], trends=None)[:, 0, 0]


def main() -> None:
    """From the files to the last epoch; what is written lies beside them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="with train.csv and test.csv")
    parser.add_argument("--out", type=Path, required=True, help="an empty folder for what the steps write")
    parser.add_argument("--began", type=float, required=True, help="time.monotonic() when this process was started")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="overrides the recipe")
    options = parser.parse_args()

    from twotower import steps
    from twotower.recipe import load_recipe

    told = dict(text.split("=", 1) for text in options.set)
    recipe = load_recipe(RECIPE, {"prepare.data_dir": str(options.folder), **told})
    steps.prepare(recipe, out=options.out / "prepared")
    steps.split(recipe, prepared=options.out / "prepared", out=options.out / "split")
    prepared = time.monotonic() - options.began

    from twotower.data.split import load_split
    from twotower.training.compiled import keep_compiled
    from twotower.training.train import open_run

    keep_compiled()
    dataset = load_split(options.out / "split")
    run, _ = open_run(
        recipe.train,
        model_config=recipe.model,
        dataset=dataset,
        seed=recipe.seed,
        checkpoint=options.out / "checkpoint",
        report=lambda _: None,
    )
    print(json.dumps({"ready": time.monotonic() - options.began, "prepared": prepared}), flush=True)
    judge = None
    while run.wants_more():
        run.epoch()
        trained = time.monotonic() - options.began
        judge = judge or Judge(run, dataset)
        found = judge(run.state)
        entry = {"epoch": len(run.history), "trained": trained, "evaluated": time.monotonic() - options.began}
        print(json.dumps(entry | found), flush=True)


if __name__ == "__main__":
    main()
