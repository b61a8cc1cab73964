"""What early stopping watches: the model's answers to validation queries, by the same ranks as the final evaluation."""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from twotower.data.batches import QueryArrays
from twotower.data.feature_encoders import SECOND, Inputs
from twotower.data.split import VALIDATION, SplitDataset
from twotower.data.trends import Trends, lookup
from twotower.errors import RecipeError
from twotower.evaluation.baselines import train_popularity
from twotower.evaluation.queries import Queries, labelled, seen_pairs, static, successive
from twotower.evaluation.ranks import blocks, ranks_in_block, seen_items, silence
from twotower.model.joint import JointModel
from twotower.training.config import TrainConfig
from twotower.training.step import TrainState

BLOCK = 1024
"""Queries scored at a time: bounds memory at `BLOCK` x items scores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RatingQueries:
    """Validation interactions whose first regression label is known."""

    place: int
    """The label's place among the ranking head's labels."""
    inputs: Inputs
    item: NDArray[np.int32]
    trends: NDArray[np.float32]
    """`[q, 1, F]` of the items, as known at the moment."""
    label: NDArray[np.float32]


class Validator:
    """Validation queries, put together once and asked after every epoch."""

    def __init__(
        self,
        model: JointModel,
        *,
        queries: Queries,
        inputs: Inputs,
        items: Inputs,
        ratings: RatingQueries | None,
        counts: NDArray[np.float32],
    ) -> None:
        """Keep the queries.

        Args:
            model: The model whose layers answer.
            queries: `q` queries.
            inputs: The query tower's inputs for these.
            items: The candidate tower's inputs for the whole catalogue.
            ratings: What the rating head is asked, if there is one.
            counts: `[I]` positive train interactions of each item.
        """
        self.counts = counts
        self.model, self.queries, self.inputs, self.items, self.ratings = model, queries, inputs, items, ratings
        self.ks = {"recall": 100, "ndcg": 10}
        self._embed = jax.jit(self._apply, static_argnames="part")

    @classmethod
    def build(
        cls, config: TrainConfig, model: JointModel, *, dataset: SplitDataset, trends: Trends, seed: int
    ) -> "Validator | None":
        """Draw the queries: under a split by time each at its own moment, elsewhere one a user.

        Returns:
            None where the validation part asks for nothing that its users had not met: all epochs are then run.

        Raises:
            RecipeError: a metric that there is not.
        """
        is_rated = any(label.kind == "regression" for label in model.config.ranking.labels)
        ks = _metric_k(config.metric, has_ratings=is_rated)
        by_time = dataset.metadata.get("protocol") == "time"
        queries = (successive if by_time else static)(dataset, VALIDATION)
        queries = queries.keep_pairs(~seen_pairs(queries, len(dataset.item_ids)))
        if not len(queries):
            return None
        chosen = np.zeros(len(queries), bool)
        chosen[np.random.default_rng(seed).permutation(len(queries))[: config.validation_queries]] = True
        queries = queries.keep_queries(chosen)
        arrays = QueryArrays.build(dataset, model.features, log=queries.known_positives)
        validator = cls(
            model,
            queries=queries,
            inputs=arrays.inputs(queries.user, queries.timestamp, log_row=queries.log_row),
            items=model.features.candidate_inputs(dataset.items),
            counts=train_popularity(dataset).astype(np.float32),
            ratings=_rating_queries(config, model, dataset=dataset, arrays=arrays, trends=trends, seed=seed),
        )
        if config.metric == "rmse" and validator.ratings is None:
            raise RecipeError(
                "train.metric: 'rmse' needs ratings in the validation part, which holds none. Take ndcg@10."
            )
        validator.ks |= ks
        return validator

    def metrics(self, state: TrainState) -> dict[str, float]:
        """`recall@K` and `ndcg@K` of retrieval, and `rmse` where there is a regression label."""
        dim = self.model.dim
        candidate = self._blockwise("candidate", self.items, state)
        query = self._blockwise("query", self.inputs, state)
        found = self._judge(self._ranks(query[:, :dim], candidate[:, :dim]))
        if self.ratings is not None:
            found["rmse"] = self._rmse(state, candidate)
        return found

    @cached_property
    def popularity(self) -> dict[str, float]:
        """The same metrics of the same queries, answered by what most people took in the train part."""
        ones = np.ones((len(self.queries), 1), np.float32)
        return self._judge(self._ranks(ones, self.counts[:, None]))

    def _judge(self, ranks: NDArray[np.int32]) -> dict[str, float]:
        sizes = np.diff(self.queries.relevant_start)
        owner = self.queries.pair_query()
        found: dict[str, float] = {}
        k = self.ks["recall"]
        found[f"recall@{k}"] = float((np.bincount(owner, ranks <= k, minlength=len(sizes)) / sizes).mean())
        k = self.ks["ndcg"]
        gain = np.bincount(owner, np.where(ranks <= k, 1 / np.log2(ranks + 1.0), 0.0), minlength=len(sizes))
        best = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, k + 2)))])[np.minimum(sizes, k)]
        found[f"ndcg@{k}"] = float((gain / best).mean())
        return found

    def _ranks(self, query: NDArray[np.float32], candidate: NDArray[np.float32]) -> NDArray[np.int32]:
        parts = []
        for start, stop in blocks(len(self.queries), BLOCK):
            block = self.queries.take(start, stop)
            excluded = seen_items(block, items=len(candidate))
            scores = query[start:stop] @ candidate.T
            silence(scores, excluded)
            left = len(candidate) - excluded.count(len(block))
            parts.append(ranks_in_block(scores, block.relevant_start, relevant=block.relevant, candidates=left))
        return np.concatenate(parts)

    def _rmse(self, state: TrainState, candidate: NDArray[np.float32]) -> float:
        ratings = self.ratings
        assert ratings is not None
        query = self._blockwise("query", ratings.inputs, state)
        pairs = {"query": query, "candidate": candidate[ratings.item][:, None], "trends": ratings.trends}
        predicted = self._blockwise("ranking", pairs, state)[:, 0, ratings.place]
        return float(np.sqrt(np.mean(np.square(predicted - ratings.label))))

    def _apply(self, weights: Any, tables: Any, states: Any, inputs: Any, *, part: str) -> Any:
        call = self.model.pure(weights, dict(states))
        if part == "query":
            return self.model.embed_query(call, inputs, tables)
        if part == "ranking":
            return self.model.rank(call, inputs["query"], inputs["candidate"], trends=inputs["trends"])
        return call(part, inputs, tables)

    def _blockwise(self, part: str, inputs: Inputs, state: TrainState) -> NDArray[np.float32]:
        """One layer's output for all rows, computed in blocks of one size so that it is compiled once."""
        total = len(next(iter(inputs.values())))
        parts = []
        for start, stop in blocks(total, BLOCK):
            rows = np.minimum(np.arange(start, start + min(BLOCK, total)), total - 1)
            block = {name: values[rows] for name, values in inputs.items()}
            output = self._embed(state.weights, state.tables, state.states, block, part=part)
            parts.append(np.asarray(output)[: stop - start])
        return np.concatenate(parts)


def _metric_k(metric: str, *, has_ratings: bool) -> dict[str, int]:
    if found := re.fullmatch(r"(recall|ndcg)@([1-9]\d*)", metric):
        return {found[1]: int(found[2])}
    if metric == "rmse" and has_ratings:
        return {}
    raise RecipeError(
        f"train.metric: '{metric}' cannot be watched. Take recall@K, ndcg@K, or rmse where model.ranking has a "
        "regression label."
    )


def _rating_queries(
    config: TrainConfig,
    model: JointModel,
    *,
    dataset: SplitDataset,
    arrays: QueryArrays,
    trends: Trends,
    seed: int,
) -> RatingQueries | None:
    for place, label in enumerate(model.config.ranking.labels):
        if label.kind != "regression":
            continue
        truth = dataset.labels[label.name]
        rows = np.flatnonzero((dataset.part == VALIDATION) & ~np.isnan(truth))
        if not len(rows):
            return None
        rows = np.sort(np.random.default_rng(seed).permutation(rows)[: config.validation_queries])
        asked = labelled(dataset, rows)
        return RatingQueries(
            place=place,
            inputs=arrays.inputs(asked.user, asked.timestamp, log_row=asked.log_row),
            item=asked.relevant,
            trends=lookup(np, trends.arrays, trends.snapshot_at(asked.timestamp // SECOND), asked.relevant[:, None]),
            label=truth[asked.log_row],
        )
    return None
