"""For whom and for what a model works: groups of users, of histories and of items."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twotower.data.split import TRAIN, SplitDataset
from twotower.evaluation.baselines import train_popularity
from twotower.evaluation.metrics import head_items
from twotower.evaluation.queries import Queries


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A part of the relevant pairs; metrics over it drop the other pairs and the queries left without any."""

    group: str
    name: str
    meaning: str
    pairs: NDArray[np.bool_]
    """`[r]`."""


def segments(dataset: SplitDataset, queries: Queries) -> list[Segment]:
    """Users met in training or not, histories by length, items met in training or not, popular items and the rest."""
    popularity = train_popularity(dataset)
    per_user = np.bincount(dataset.user[(dataset.part == TRAIN) & dataset.positive], minlength=len(dataset.user_ids))
    usual = int(np.median(per_user[per_user > 0])) if per_user.any() else 1
    first, end = queries.known_positives.before(queries.user, queries.timestamp)
    query = queries.pair_query()
    warm, length = (per_user[queries.user] > 0)[query], (end - first)[query]
    met, head = (popularity > 0)[queries.relevant], head_items(popularity)[queries.relevant]
    rows = [
        ("users", "warm users", "have interactions in the train part", warm),
        ("users", "cold users", "have none in the train part", ~warm),
        ("history", "new", "no history at the moment of asking", length == 0),
        ("history", "light", f"shorter than {usual} items, the median of training", (length > 0) & (length < usual)),
        ("history", "heavy", f"{usual} items or more", length >= usual),
        ("items", "warm items", "were met in the train part", met),
        ("items", "cold items", "were not met in the train part", ~met),
        ("popularity", "head items", "the fewest items with half of the train interactions", head),
        ("popularity", "tail items", "all other items", ~head),
    ]
    return [Segment(group=group, name=name, meaning=meaning, pairs=pairs) for group, name, meaning, pairs in rows]
