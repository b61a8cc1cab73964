"""How much ranking has a say in the final order, where the recipe leaves that open: what serves validation best."""

import json
from pathlib import Path

import numpy as np

from twotower.data.split import VALIDATION, SplitDataset
from twotower.evaluation.contest import Arena, answerable, run_two_stage, sampled
from twotower.evaluation.metrics import query_metrics
from twotower.evaluation.model_contender import ModelContender
from twotower.evaluation.queries import static, successive
from twotower.model.config import MET, RETRIEVAL
from twotower.model.exported import DESCRIPTION, ExportedModel

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of `met` that are tried; the rest is retrieval's logit, which estimates the same."""
QUERIES = 2_000
"""Validation queries asked: enough to tell a quarter from a half, in a second or two each."""
K = 10
SCORES = 8_000_000
"""Scores held at a time."""


def choose_order(directory: Path, dataset: SplitDataset, *, candidates: int, seed: int) -> dict[str, float]:
    """Try several shares of `met` on the validation part, and write the best into the model's description.

    Args:
        directory: A model directory that `export_model` wrote and nothing has sealed yet; `met` is one of its labels.
        dataset: The data set that the model was trained on.
        candidates: Items that retrieval hands to ranking.
        seed: Of the queries drawn.

    Returns: Share -> NDCG@10 of both stages; empty where the validation part asks nothing, and nothing is changed.
    """
    items = len(dataset.item_ids)
    arena = Arena(
        items=items,
        exclude_seen=True,
        candidates=candidates,
        list_length=0,
        scores_in_memory=SCORES,
        progress=None,
    )
    by_time = dataset.metadata.get("protocol") == "time"
    queries, _ = answerable((successive if by_time else static)(dataset, VALIDATION), arena=arena)
    queries = sampled(queries, QUERIES, seed=seed)
    if not len(queries):
        return {}
    model = ExportedModel.load(directory)
    contender = ModelContender(model, dataset=dataset)
    reached: dict[float, float] = {}
    for share in SHARES:
        model.order = _order(share)
        ranks = run_two_stage(contender, queries, arena=arena)["two_stage"].ranks
        reached[share] = float(np.mean(query_metrics(ranks, queries.relevant_start, ks=(K,))[f"ndcg@{K}"]))
    best = max(reached, key=lambda share: (reached[share], -share))
    description = json.loads((directory / DESCRIPTION).read_text(encoding="utf-8"))
    description["order"] = _order(best)
    (directory / DESCRIPTION).write_text(json.dumps(description, indent=1), encoding="utf-8")
    return {f"{share:g}": value for share, value in reached.items()}


def _order(share: float) -> dict[str, float]:
    return {name: weight for name, weight in ((MET, share), (RETRIEVAL, 1.0 - share)) if weight}
