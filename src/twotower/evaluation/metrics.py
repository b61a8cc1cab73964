"""What is measured: pure functions of ranks, of predictions and of lists. `q` queries, `r` relevant pairs.

NaN rule: ranks are never NaN (a score that is no number ranks last, see `ranks`); a label that is missing is left out
before these functions are called; a prediction that is no number makes its metric NaN, and is told apart by `count`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """The ranks of the relevant items, query by query."""

    ranks: NDArray[np.int32]
    """`[r]` from 1, ascending within a query."""
    start: NDArray[np.int64]
    """`[q + 1]` first pair of each query; every query has at least one."""
    query: NDArray[np.int64]
    """`[r]` the query of each pair."""

    @classmethod
    def of(cls, ranks: NDArray[np.int32], start: NDArray[np.int64]) -> "Ranked":
        """Sort the ranks of each query."""
        query = np.repeat(np.arange(len(start) - 1), np.diff(start))
        return cls(ranks=ranks[np.lexsort((ranks, query))], start=start, query=query)

    @property
    def relevant(self) -> NDArray[np.int64]:
        """`[q]` relevant items of each query."""
        return np.diff(self.start)

    def total(self, values: NDArray[Any]) -> Values:
        """`[q]` the sum of `[r]` values over each query."""
        return np.bincount(self.query, weights=values, minlength=len(self.start) - 1).astype(np.float64)


def query_metrics(ranks: NDArray[np.int32], start: NDArray[np.int64], *, ks: tuple[int, ...]) -> dict[str, Values]:
    """Every retrieval metric per query: `"recall@10" -> [q]`.

    Args:
        ranks: `[r]` ranks from 1, grouped by query.
        start: `[q + 1]` first pair of each query; every query has at least one.
        ks: Cut-offs.
    """
    ranked = Ranked.of(ranks, start)
    return {f"{name}@{k}": metric(ranked, k) for k in ks for name, metric in METRICS.items()}


def recall(ranked: Ranked, k: int) -> Values:
    """`[q]` share of a query's relevant items within the first `k`."""
    share: Values = ranked.total(ranked.ranks <= k) / ranked.relevant
    return share


def hit_rate(ranked: Ranked, k: int) -> Values:
    """`[q]` 1 where a relevant item stands within the first `k`, else 0."""
    return (ranked.ranks[ranked.start[:-1]] <= k).astype(np.float64)


def ndcg(ranked: Ranked, k: int) -> Values:
    """`[q]` discounted gain within the first `k`, over the best that any order could reach."""
    gain = np.where(ranked.ranks <= k, 1.0 / np.log2(1.0 + ranked.ranks), 0.0)
    best = np.cumsum(1.0 / np.log2(2.0 + np.arange(k)))[np.minimum(ranked.relevant, k) - 1]
    share: Values = ranked.total(gain) / best
    return share


def reciprocal_rank(ranked: Ranked, k: int) -> Values:
    """`[q]` 1 / rank of the first relevant item, 0 beyond `k`."""
    first = ranked.ranks[ranked.start[:-1]]
    return np.where(first <= k, 1.0 / first, 0.0)


def average_precision(ranked: Ranked, k: int) -> Values:
    """`[q]` precision at each relevant item within the first `k`, over all relevant items (trec_eval's map_cut)."""
    found = np.arange(len(ranked.ranks)) - ranked.start[ranked.query] + 1
    precision = np.where(ranked.ranks <= k, found / ranked.ranks, 0.0)
    share: Values = ranked.total(precision) / ranked.relevant
    return share


METRICS: dict[str, Callable[[Ranked, int], Values]] = {
    "recall": recall,
    "hit_rate": hit_rate,
    "ndcg": ndcg,
    "mrr": reciprocal_rank,
    "map": average_precision,
}
"""What the report's table holds; a new metric joins by one line."""


def top_k_categorical_accuracy(ranks: NDArray[np.int32], count: NDArray[np.int32], *, k: int) -> float:
    """TFRS's FactorizedTopK: the share of test interactions whose own item is within the first `k`.

    The other relevant items of the same user compete with it, unlike in a metric that looks at a query as a whole.

    Args:
        count: `[r]` test interactions behind each pair.
    """
    return float(count[ranks <= k].sum() / count.sum()) if len(ranks) else float("nan")


def regression(predicted: Values, actual: Values) -> dict[str, float]:
    """RMSE and MAE, in the units of the label."""
    error = predicted - actual
    return {"rmse": float(np.sqrt(np.mean(error**2))), "mae": float(np.mean(np.abs(error)))}


def binary(probability: Values, actual: Values) -> dict[str, float]:
    """AUC and log loss (nats) of a probability; AUC is NaN where all labels are equal."""
    return {"auc": auc(probability, actual), "log_loss": float(np.mean(log_losses(probability, actual)))}


def log_losses(probability: Values, actual: Values) -> Values:
    """`[n]` log loss of each row, in nats."""
    clipped = np.clip(probability, 1e-7, 1 - 1e-7)
    return np.asarray(-(actual * np.log(clipped) + (1 - actual) * np.log1p(-clipped)))


def auc(score: Values, actual: Values) -> float:
    """The chance that a positive scores above a negative; a tie counts as half."""
    positives = int((actual > 0).sum())
    negatives = len(actual) - positives
    if positives == 0 or negatives == 0 or np.isnan(score).any():
        return float("nan")
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    middle_rank = np.cumsum(counts) - (counts - 1) / 2
    total = middle_rank[inverse][actual > 0].sum()
    return float((total - positives * (positives + 1) / 2) / (positives * negatives))


def confusion(score: Values, actual: Values, *, threshold: float) -> list[list[int]]:
    """Rows by what is true (no, yes), columns by what the score says (below the threshold, or not)."""
    said, true = score >= threshold, actual > 0
    return [
        [int((~true & ~said).sum()), int((~true & said).sum())],
        [int((true & ~said).sum()), int((true & said).sum())],
    ]


def roc(score: Values, actual: Values, *, points: int = 50) -> dict[str, list[float]]:
    """The receiver operating characteristic at up to `points` thresholds, the strictest first.

    A tie is one point: no order among equals is made up. Empty where all labels are equal.

    Returns: `threshold`, `false_positive_rate` and `true_positive_rate`.
    """
    positives = int((actual > 0).sum())
    negatives = len(actual) - positives
    if not positives or not negatives or np.isnan(score).any():
        return {"threshold": [], "false_positive_rate": [], "true_positive_rate": []}
    values, inverse = np.unique(score, return_inverse=True)
    hits = np.bincount(inverse, weights=actual > 0, minlength=len(values))[::-1].cumsum()
    alarms = np.bincount(inverse, weights=actual <= 0, minlength=len(values))[::-1].cumsum()
    kept = np.unique(np.linspace(0, len(values) - 1, min(points, len(values))).round().astype(int))
    return {
        "threshold": values[::-1][kept].tolist(),
        "false_positive_rate": (alarms[kept] / negatives).tolist(),
        "true_positive_rate": (hits[kept] / positives).tolist(),
    }


def calibration(predicted: Values, actual: Values, *, bins: int = 10) -> list[dict[str, float]]:
    """What was predicted against what came, in bins of equal size: on the diagonal it can be taken literally.

    A bin's `predicted` and `actual` are means over its `count` rows.
    """
    order = np.argsort(predicted, kind="stable")
    return [
        {
            "predicted": float(predicted[rows].mean()),
            "actual": float(actual[rows].mean()),
            "count": len(rows),
        }
        for rows in np.array_split(order, bins)
        if len(rows)
    ]


def calibration_error(curve: list[dict[str, float]]) -> float:
    """The mean distance between predicted and actual over the bins, weighted by their size."""
    total = sum(point["count"] for point in curve)
    return sum(abs(point["predicted"] - point["actual"]) * point["count"] for point in curve) / total


def list_metrics(
    lists: NDArray[np.int32], popularity: NDArray[np.int64], *, head: NDArray[np.bool_], chosen: NDArray[np.int32]
) -> dict[str, Any]:
    """Beyond accuracy: how much of the catalogue is shown, how surprising it is, and how far it leans on the popular.

    Args:
        lists: `[q, k]` item rows shown; -1 where fewer were left.
        popularity: `[I]` positive train interactions of each item.
        head: `[I]` whether an item belongs to the most popular ones.
        chosen: `[r]` item rows that users really took: the yardstick of the lean.
    """
    shown = lists[lists >= 0]
    if not len(shown):
        return {}
    # One added to each count: an item that training never met has a finite surprise.
    information = -np.log2((popularity + 1) / (popularity.sum() + len(popularity)))
    usual = float(popularity[chosen].mean()) if len(chosen) else float("nan")
    return {
        "k": lists.shape[1],
        "coverage": len(np.unique(shown)) / len(popularity),
        "novelty_bits": float(information[shown].mean()),
        "popularity_ratio": float(popularity[shown].mean()) / usual if usual > 0 else None,
        "head_share": float(head[shown].mean()),
        "head_share_of_choices": float(head[chosen].mean()) if len(chosen) else None,
    }


def head_items(popularity: NDArray[np.int64], *, share: float = 0.5) -> NDArray[np.bool_]:
    """`[I]` the fewest items that together hold at least `share` of the interactions."""
    order = np.argsort(-popularity, kind="stable")
    before = np.cumsum(popularity[order]) - popularity[order]
    head = np.zeros(len(popularity), bool)
    head[order[(before < share * popularity.sum()) & (popularity[order] > 0)]] = True
    return head
