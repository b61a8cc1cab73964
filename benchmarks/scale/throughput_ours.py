"""Ours on the large world: id embeddings on both sides and a rating head 256-128-1, trained for so many seconds.

Run by `throughput.py` in a process of its own, so that its peak memory is its own. The clock begins after the first
call, which compiles.
"""

import json
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from scale.given import training_parser
from scale.stepping import Steps

DIM = 64
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


def data_bytes(data: Any) -> int:
    """What the data take as they are given: the log's columns, the ids and their tables."""
    columns = (data.user, data.item, data.timestamp, data.positive, data.part, *data.labels.values())
    ids = (data.user_ids, data.item_ids)
    texts = sum(sys.getsizeof(text) for each in ids for text in each)
    return texts + sum(int(held.nbytes) for held in (*columns, *ids, data.users, data.items))


def main() -> None:
    """Train, write the embeddings and say how many examples a second it was, and the most memory it took."""
    parser = training_parser(__doc__, batch_size=4096)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    model_config, data = config(), dataset(options.folder)  # Importing the model's config chooses Keras' backend.
    from twotower.training.train import build_model

    model, arrays = build_model(model_config, dataset=data, seed=options.seed)
    users, items, catalogue_row = arrays.users, arrays.items, arrays.catalogue_row
    steps = Steps(model, arrays, batch_size=options.batch_size, accumulator="row", seed=options.seed)
    del arrays  # They are on the device.
    examples_s, _ = steps.train(options.seconds)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB
    people = np.searchsorted(np.unique(data.user), np.load(options.folder / "query.npy"))
    asked = {key: values[people] for key, values in users.items()}
    for name, part, inputs in (("query", "query", asked), ("candidate", "candidate", items)):
        found, _ = model.apply(part, steps.state.weights, steps.state.states, inputs, steps.state.tables)
        np.save(options.out / f"{name}.npy", np.asarray(found)[:, : model.dim])
    np.save(options.out / "items.npy", catalogue_row)
    print(json.dumps({"examples_s": examples_s, "peak_gb": peak / 1e9, "data_gb": data_bytes(data) / 1e9}))


if __name__ == "__main__":
    main()
