"""What a rating prediction has to beat: the mean, and how far the user and the item usually are from it."""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twotower.data.split import TRAIN, VALIDATION, SplitDataset

Values = NDArray[np.float64]
RIDGES = (1.0, 5.0, 25.0)
"""Tried for users and for items; with all pairs of them, as many settings as the other baselines choose from."""
SWEEPS = 10
"""Alternating ridge regression settles to four digits in fewer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BiasOnly:
    """The label's mean, plus what a user gives above it, plus what an item gets above it."""

    mean: float
    user_bias: Values
    """`[U]`; 0 for users without a row."""
    item_bias: Values
    """`[I]`."""

    def predict(self, user: NDArray[np.int32], item: NDArray[np.int32]) -> Values:
        return self.mean + self.user_bias[user] + self.item_bias[item]


def bias_only(
    dataset: SplitDataset, values: Values, *, rows: NDArray[np.int64], user_ridge: float, item_ridge: float
) -> BiasOnly:
    """Fit the biases.

    Args:
        values: `[n]` the label of every interaction.
        rows: Those to learn from; none of them without a label.
        user_ridge: Rows of the mean added to each user, which pulls those with few rows to it; above 0.
        item_ridge: The same for items.

    Source:
        Koren, "Factor in the neighbors: scalable and accurate collaborative filtering", ACM TKDD 2010,
        https://doi.org/10.1145/1644873.1644874, section 2.1
    """
    user, item, label = dataset.user[rows], dataset.item[rows], values[rows]
    users, items, mean = len(dataset.user_ids), len(dataset.item_ids), float(label.mean())
    user_bias, item_bias = np.zeros(users), np.zeros(items)
    user_rows, item_rows = np.bincount(user, minlength=users), np.bincount(item, minlength=items)
    for _ in range(SWEEPS):
        rest = label - mean - user_bias[user]
        item_bias = np.bincount(item, weights=rest, minlength=items) / (item_rows + item_ridge)
        rest = label - mean - item_bias[item]
        user_bias = np.bincount(user, weights=rest, minlength=users) / (user_rows + user_ridge)
    return BiasOnly(mean=mean, user_bias=user_bias, item_bias=item_bias)


def tuned_bias_only(dataset: SplitDataset, values: Values) -> tuple[BiasOnly, dict[str, Any]]:
    """The biases learned from the train part, with the ridges that have the least error on the validation part.

    Returns: the biases, and `settings` and `validation` as for the report's other baselines.
    """
    train, judge = (np.flatnonzero((dataset.part == part) & ~np.isnan(values)) for part in (TRAIN, VALIDATION))
    choices = [{"user_ridge": user, "item_ridge": item} for user, item in itertools.product(RIDGES, RIDGES)]
    if not len(judge):
        middle = choices[len(choices) // 2]
        return bias_only(dataset, values, rows=train, **middle), {"settings": middle, "validation": None}
    tried: list[dict[str, Any]] = []
    for settings in choices:
        model = bias_only(dataset, values, rows=train, **settings)
        error = model.predict(dataset.user[judge], dataset.item[judge]) - values[judge]
        tried.append({"settings": settings, "value": float(np.sqrt((error**2).mean()))})
    best = min(tried, key=lambda one: one["value"])
    facts = {"metric": "rmse", "rows": len(judge), "value": best["value"], "tried": tried}
    chosen = bias_only(dataset, values, rows=train, **best["settings"])
    return chosen, {"settings": best["settings"], "validation": facts}
