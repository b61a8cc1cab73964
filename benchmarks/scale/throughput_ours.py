"""Ours on the large world: id embeddings on both sides and a rating head 256-128-1, trained for so many seconds.

Run by `throughput.py` in a process of its own, so that its peak memory is its own. The clock begins after the first
call, which compiles.
"""

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

DIM, STEPS = 64, 20
KIB = 1024


def dataset(folder: Path) -> Any:
    """The interactions as a train part, in the order of chance in which they stand."""
    from twotower.data.split import SplitDataset

    user, item = (np.load(folder / f"{name}.npy") for name in ("user", "item"))
    sizes = json.loads((folder / "sizes.json").read_text(encoding="utf-8"))
    ids = [pa.array(np.arange(count)).cast(pa.string()) for count in sizes]
    names = [each.to_numpy(zero_copy_only=False) for each in ids]
    return SplitDataset(
        user_ids=names[0],
        item_ids=names[1],
        users=pa.table({"user_id": ids[0]}),
        items=pa.table({"item_id": ids[1]}),
        user=user,
        item=item,
        timestamp=np.arange(len(user), dtype=np.int64),
        positive=np.ones(len(user), bool),
        part=np.zeros(len(user), np.int8),
        labels={"rating": np.load(folder / "rating.npy")},
        context=pa.table({"none": pa.nulls(len(user))}),
        metadata={},
    )


def config() -> Any:
    """512 negatives of the batch and 512 uniform ones, shared; the rating as the tutorial predicts it."""
    from twotower.data.schema import IdFeature
    from twotower.model.config import LabelConfig, ModelConfig, RankingConfig, RetrievalConfig, TowerConfig

    return ModelConfig(
        query=(IdFeature(kind="id", column="user_id", dim=DIM),),
        candidate=(IdFeature(kind="id", column="item_id", dim=DIM),),
        embedding_dim=DIM,
        query_tower=TowerConfig(),
        retrieval=RetrievalConfig(negatives="sampled"),
        ranking=RankingConfig(
            labels=(LabelConfig(name="rating", kind="regression"),),
            layers=(256, 128),
            cross_layers=0,
            dim=0,
            memory=0,
            trends=False,
        ),
    )


def main() -> None:
    """Train, write the embeddings and say how many examples a second it was, and the most memory it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    model_config, data = config(), dataset(options.folder)  # Importing the model's config chooses Keras' backend.
    from twotower.training.step import Plan, Stepper
    from twotower.training.train import build_model

    model, arrays = build_model(model_config, dataset=data, seed=options.seed)
    import jax
    import keras

    stepper = Stepper(
        model,
        arrays,
        optimizer=keras.optimizers.Adam(0.001),
        embedding_learning_rate=0.05,
        accumulator="row",
        decay_steps=0,
        seed=options.seed,
    )
    state = stepper.start()
    generator, none = np.random.default_rng(options.seed), np.zeros((STEPS, 0), np.int32)
    order = generator.permutation(len(arrays.item)).astype(np.int32)
    began, steps, took = 0.0, 0, 0.0
    while took < options.seconds:
        places = np.arange(steps * options.batch_size, (steps + STEPS) * options.batch_size) % len(order)
        plan = Plan(order[places].reshape(STEPS, options.batch_size), none, none, none)
        state, _ = jax.block_until_ready(stepper.run(state, plan))
        steps += STEPS
        took = time.perf_counter() - began if began else 0.0
        began = began or time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB
    kept = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves((stepper.arrays, data.user, data.item)))
    people = np.searchsorted(np.unique(data.user), np.load(options.folder / "query.npy"))
    asked = {key: values[people] for key, values in arrays.users.items()}
    for name, part, inputs in (("query", "query", asked), ("candidate", "candidate", arrays.items)):
        found, _ = model.apply(part, state.weights, state.states, inputs, state.tables)
        np.save(options.out / f"{name}.npy", np.asarray(found)[:, : model.dim])
    np.save(options.out / "items.npy", arrays.catalogue_row)
    examples = (steps - STEPS) * options.batch_size
    print(json.dumps({"examples_s": examples / took, "seconds": took, "peak_gb": peak / 1e9, "data_gb": kept / 1e9}))


if __name__ == "__main__":
    main()
