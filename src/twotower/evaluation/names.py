"""What contenders and metrics are called, for a reader."""

CHAMPION = "champion"
"""The contender that answers users now; no baseline."""
TRAINED_ALONE = "retrieval_trained_alone"
"""The contender that learned retrieval and nothing else, by the joint model's recipe; no baseline."""
LABEL_METRICS = {"regression": "rmse", "binary": "log_loss"}
"""Kind of label -> the metric by which its predictions are judged first. Of both less is better."""
NAMES = {
    "two_stage": "Model, both stages",
    "retrieval": "Model, retrieval alone",
    "ceiling": "Ceiling of the candidates",
    "popularity": "Popularity",
    "recent_popularity": "Recent popularity",
    "item_knn": "Item-kNN",
    "ease": "EASE",
    "ials": "iALS",
    "markov": "Markov chains",
    "champion": "Champion (answers now)",
    "retrieval_trained_alone": "Retrieval, trained alone",
    "oracle": "Oracle (best possible)",
}
LABEL_BASELINES = {"train mean": "Mean of the train part", "bias_only": "User and item bias"}
"""What predicts a label beside the model."""


def metric_name(metric: str) -> str:
    """`ndcg@10` as a reader knows it."""
    name, _, k = metric.partition("@")
    known = {"ndcg": "NDCG", "mrr": "MRR", "map": "MAP", "hit_rate": "Hit rate", "recall": "Recall"}
    known |= {"rmse": "RMSE", "log_loss": "Log loss"}
    shown = known.get(name, name)
    return f"{shown}@{k}" if k else shown


def lead_metrics(ks: tuple[int, ...]) -> tuple[str, ...]:
    """The metrics that come first in the report: quality of the top, and what retrieval brings in all."""
    k = lead_k(ks)
    return (f"ndcg@{k}", f"recall@{max(ks)}", f"hit_rate@{k}", f"mrr@{k}")


def lead_k(ks: tuple[int, ...]) -> int:
    """The cut-off that leads: 10, or the first of those asked for."""
    return 10 if 10 in ks else min(ks)
