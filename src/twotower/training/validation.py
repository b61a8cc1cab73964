"""What early stopping watches: the model's answers to validation queries, by the same ranks as the final evaluation."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
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
from twotower.evaluation.metrics import binary
from twotower.evaluation.names import LABEL_METRICS
from twotower.evaluation.queries import Queries, labelled, seen_pairs, static, successive
from twotower.evaluation.ranks import blocks, ranks_in_block, seen_items, silence
from twotower.model.config import MET, RETRIEVAL, LabelConfig
from twotower.model.joint import JointModel
from twotower.training.config import TrainConfig
from twotower.training.distributed import agree, everywhere
from twotower.training.step import TrainState

BLOCK = 1024
"""Rows that go through a layer at a time, and queries scored at a time at most."""
SCORES = 32_000_000
"""Scores held at a time: 128 MB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelQueries:
    """Validation interactions whose label is known: the first regression label's, or the first binary one's."""

    place: int
    """The label's place among the ranking head's labels."""
    kind: str
    """"regression" or "binary"."""
    inputs: Inputs
    item: NDArray[np.int32]
    trends: NDArray[np.float32]
    """`[q, 1, F]` of the items, as known at the moment; no numbers where the model reads none."""
    label: NDArray[np.float32]


class Validator:
    """Validation queries, put together once and asked after every epoch."""

    def __init__(
        self,
        model: JointModel,
        *,
        queries: Queries | None,
        inputs: Inputs,
        items: Inputs,
        labels: dict[str, LabelQueries],
        counts: NDArray[np.float32],
    ) -> None:
        """Keep the queries.

        Args:
            model: The model whose layers answer.
            queries: `q` queries to retrieve for; None where retrieval is not asked.
            inputs: The query tower's inputs for these.
            items: The candidate tower's inputs for the whole catalogue.
            labels: Metric -> what the ranking head is asked.
            counts: `[I]` positive train interactions of each item.
        """
        self.counts = counts
        self.model, self.queries, self.inputs, self.items, self.labels = model, queries, inputs, items, labels
        self.ks = {"recall": 100, "ndcg": 10}
        self._embed = jax.jit(self._apply, static_argnames="part", out_shardings=everywhere())

    @classmethod
    def build(
        cls, config: TrainConfig, model: JointModel, *, dataset: SplitDataset, trends: Trends | None, seed: int
    ) -> "Validator | None":
        """Draw the queries: under a split by time each at its own moment, elsewhere one a user.

        Returns:
            None where the validation part asks for nothing that its users had not met: all epochs are then run. So it
            is where a label is watched and there is no validation part.

        Raises:
            RecipeError: a metric that there is not, or one of what nothing trains.
        """
        of_labels = label_metrics(model.config.ranking.labels)
        ks = _metric_k(config.metric, of_labels=of_labels)
        _refuse_untrained(config.metric, model.config.tasks(), of_labels=of_labels)
        by_time = dataset.metadata.get("protocol") == "time"
        asked = (successive if by_time else static)(dataset, VALIDATION)
        arrays = QueryArrays.build(dataset, model.features, log=asked.known_positives)
        labels: dict[str, LabelQueries] = {}
        for metric, place in of_labels.items():
            found = _label_queries(config, model, place=place, dataset=dataset, arrays=arrays, trends=trends, seed=seed)
            labels |= {} if found is None else {metric: found}
        if config.metric in of_labels:
            if not (dataset.part == VALIDATION).any():
                return None
            _refuse_unlabelled(config.metric, labels, label=model.config.ranking.labels[of_labels[config.metric]])
        # A model of one label alone retrieves nothing worth asking for.
        retrieves = RETRIEVAL in model.tasks or config.metric not in of_labels
        queries = _unmet(asked, dataset=dataset, most=config.validation_queries, seed=seed) if retrieves else None
        if queries is None and config.metric not in of_labels:
            return None
        validator = cls(
            model,
            queries=queries,
            inputs={} if queries is None else arrays.inputs(queries.user, queries.timestamp, log_row=queries.log_row),
            items=model.features.candidate_inputs(dataset.items),
            counts=train_popularity(dataset).astype(np.float32),
            labels=labels,
        )
        validator.ks |= ks
        return validator

    def metrics(self, state: TrainState) -> dict[str, float]:
        """`recall@K` and `ndcg@K` of retrieval; `rmse` and `log_loss` of the first labels that have them."""
        dim = self.model.dim
        candidate = self._blockwise("candidate", self.items, state)
        found: dict[str, float] = {}
        if self.queries is not None:
            query = self._blockwise("query", self.inputs, state)
            found |= agree(partial(self._retrieval, query[:, :dim], candidate[:, :dim]))
        of_labels = {metric: self._label_metric(asked, state, candidate) for metric, asked in self.labels.items()}
        found |= agree(lambda: of_labels)
        return found

    def _retrieval(self, query: NDArray[np.float32], candidate: NDArray[np.float32]) -> dict[str, float]:
        assert self.queries is not None
        return self._judge(self.queries, self._ranks(self.queries, query, candidate))

    @cached_property
    def popularity(self) -> dict[str, float]:
        """The same metrics of the same queries, answered by what most people took in the train part."""
        if self.queries is None:
            return {}
        ones = np.ones((len(self.queries), 1), np.float32)
        return self._judge(self.queries, self._ranks(self.queries, ones, self.counts[:, None]))

    def _judge(self, queries: Queries, ranks: NDArray[np.int32]) -> dict[str, float]:
        sizes = np.diff(queries.relevant_start)
        owner = queries.pair_query()
        found: dict[str, float] = {}
        k = self.ks["recall"]
        found[f"recall@{k}"] = float((np.bincount(owner, ranks <= k, minlength=len(sizes)) / sizes).mean())
        k = self.ks["ndcg"]
        gain = np.bincount(owner, np.where(ranks <= k, 1 / np.log2(ranks + 1.0), 0.0), minlength=len(sizes))
        best = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, k + 2)))])[np.minimum(sizes, k)]
        found[f"ndcg@{k}"] = float((gain / best).mean())
        return found

    def _ranks(self, queries: Queries, query: NDArray[np.float32], candidate: NDArray[np.float32]) -> NDArray[np.int32]:
        parts = []
        for start, stop in blocks(len(queries), max(1, min(BLOCK, SCORES // len(candidate)))):
            block = queries.take(start, stop)
            excluded = seen_items(block, items=len(candidate))
            scores = query[start:stop] @ candidate.T
            silence(scores, excluded)
            left = len(candidate) - excluded.count(len(block))
            parts.append(ranks_in_block(scores, block.relevant_start, relevant=block.relevant, candidates=left))
        return np.concatenate(parts)

    def _label_metric(self, asked: LabelQueries, state: TrainState, candidate: NDArray[np.float32]) -> float:
        query = self._blockwise("query", asked.inputs, state)
        pairs = {"query": query, "candidate": candidate[asked.item][:, None], "trends": asked.trends}
        predicted = self._blockwise("ranking", pairs, state)[:, 0, asked.place]
        if asked.kind == "regression":
            return float(np.sqrt(np.mean(np.square(predicted - asked.label))))
        probability = 0.5 * (1.0 + np.tanh(0.5 * predicted.astype(np.float64)))
        return binary(probability, asked.label.astype(np.float64))["log_loss"]

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


def label_metrics(labels: Sequence[LabelConfig]) -> dict[str, int]:
    """Metric that may be watched -> the place of the label that it is about: the first one of its kind."""
    found: dict[str, int] = {}
    for place, label in enumerate(labels):
        if label.name != MET:
            found.setdefault(LABEL_METRICS[label.kind], place)
    return found


def _metric_k(metric: str, *, of_labels: Collection[str]) -> dict[str, int]:
    if found := re.fullmatch(r"(recall|ndcg)@([1-9]\d*)", metric):
        return {found[1]: int(found[2])}
    if metric in of_labels:
        return {}
    raise RecipeError(
        f"train.metric: '{metric}' cannot be watched. Take recall@K, ndcg@K, or, where model.ranking has such a label, "
        "rmse (regression) or log_loss (binary)."
    )


def _refuse_untrained(metric: str, tasks: Mapping[str, float], *, of_labels: Collection[str]) -> None:
    if metric not in of_labels and not (tasks.get(RETRIEVAL) or tasks.get(MET)):
        raise RecipeError(
            f"train.metric: '{metric}' judges retrieval, which nothing trains at model.retrieval.weight = 0. "
            f"Take {' or '.join(of_labels)}, or give it a weight."
        )


def _refuse_unlabelled(metric: str, found: Collection[str], *, label: LabelConfig) -> None:
    if metric not in found:
        raise RecipeError(
            f"train.metric: '{metric}' needs '{label.name}' in the validation part, which holds none. Take ndcg@10."
        )


def _unmet(asked: Queries, *, dataset: SplitDataset, most: int, seed: int) -> Queries | None:
    """At most so many of the queries, drawn by chance, for what their users had not met; None where there are none."""
    queries = asked.keep_pairs(~seen_pairs(asked, len(dataset.item_ids)))
    if not len(queries):
        return None
    chosen = np.zeros(len(queries), bool)
    chosen[np.random.default_rng(seed).permutation(len(queries))[:most]] = True
    return queries.keep_queries(chosen)


def _label_queries(
    config: TrainConfig,
    model: JointModel,
    *,
    place: int,
    dataset: SplitDataset,
    arrays: QueryArrays,
    trends: Trends | None,
    seed: int,
) -> LabelQueries | None:
    label = model.config.ranking.labels[place]
    truth = dataset.labels[label.name]
    rows = np.flatnonzero((dataset.part == VALIDATION) & ~np.isnan(truth))
    if not len(rows):
        return None
    rows = np.sort(np.random.default_rng(seed).permutation(rows)[: config.validation_queries])
    asked = labelled(dataset, rows)
    return LabelQueries(
        place=place,
        kind=label.kind,
        inputs=arrays.inputs(asked.user, asked.timestamp, log_row=asked.log_row),
        item=asked.relevant,
        trends=_fortunes(trends, asked),
        label=truth[asked.log_row],
    )


def _fortunes(trends: Trends | None, asked: Queries) -> NDArray[np.float32]:
    if trends is None:
        return np.zeros((len(asked), 1, 0), np.float32)
    return np.asarray(lookup(np, trends.arrays, trends.snapshot_at(asked.timestamp // SECOND), asked.relevant[:, None]))
