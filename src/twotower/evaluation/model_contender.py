"""The trained model as a contender: the exported graphs answer, the same that a server runs."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twotower.data.batches import QueryArrays
from twotower.data.feature_encoders import SECOND, Inputs
from twotower.data.histories import UserLog
from twotower.data.pieces import trends_of
from twotower.data.split import SplitDataset
from twotower.data.trends import Trends, lookup
from twotower.evaluation.queries import Queries
from twotower.evaluation.ranks import blocks
from twotower.model.exported import SCORE, ExportedModel, TowerOutput

BLOCK = 4096
"""Rows that go through a graph at a time: bounds memory, not the result."""
PAIRS = 100_000
"""(query, candidate) pairs that go through the ranking head at a time."""


class ModelContender:
    """Both stages of one exported model, asked about one data set."""

    name = "model"

    def __init__(self, model: ExportedModel, *, dataset: SplitDataset) -> None:
        """Embed the whole catalogue.

        Args:
            model: What `train` wrote.
            dataset: The data set that the queries come from.
        """
        self.model, self.dataset = model, dataset
        self.candidates = in_blocks(model.embed_candidates, model.features.candidate_inputs(dataset.items))
        self.label_kinds = {label: kind for label, kind in model.labels.items() if label in dataset.labels}
        self._arrays: tuple[UserLog, QueryArrays] | None = None
        self._fortunes: tuple[tuple[int, ...], Trends] | None = None
        self._last: tuple[Queries, TowerOutput] | None = None

    def missing_columns(self) -> list[str]:
        """Columns that the model reads and the data does not have: it is asked with missing values there."""
        features, data = self.model.features, self.dataset
        there = {"timestamp", *data.users.column_names, *data.context.column_names}
        query = [encoder.column for encoder in features.query if encoder.column not in there]
        items = data.items.column_names
        return query + [encoder.column for encoder in features.candidate if encoder.column not in items]

    def score(self, queries: Queries) -> NDArray[np.float32]:
        """`[q, I]` what retrieval orders by."""
        return self.embed(queries).embedding @ self.candidates.embedding.T

    def rank(self, queries: Queries, candidates: NDArray[np.int32]) -> NDArray[np.float32]:
        """`[q, C]` the final score of each candidate (item rows)."""
        parts = [answer[SCORE] for answer in self._answers(queries, candidates)]
        return np.concatenate(parts) if parts else np.zeros(candidates.shape, np.float32)

    def predict(self, queries: Queries, item: NDArray[np.int32]) -> dict[str, NDArray[np.float32]]:
        """Label -> `[q]` predicted value, or probability, of one item (row) per query, before calibration."""
        parts = list(self._answers(queries, item[:, None]))
        return {label: np.concatenate([part[label][:, 0] for part in parts]) for label in self.label_kinds}

    def _answers(self, queries: Queries, candidates: NDArray[np.int32]) -> Iterator[dict[str, NDArray[np.float32]]]:
        """The ranking head's answers, some queries at a time."""
        whole = self.embed(queries).ranking
        size = max(PAIRS // max(candidates.shape[1], 1), 1)
        for start, stop in blocks(len(whole), size):
            asked = candidates[start:stop]
            yield self.model.rank_raw(
                whole[start:stop],
                self.candidates.ranking[asked],
                trends=self._trends(queries.known_parts, queries.timestamp[start:stop], asked),
            )

    def _trends(
        self, known: tuple[int, ...], timestamp: NDArray[np.int64], candidates: NDArray[np.int32]
    ) -> NDArray[np.float32] | None:
        """`[q, C, F]` how popular and how old the candidates were at each moment; None for a model that asks not."""
        if not self.model.trend_block:
            return None
        if self._fortunes is None or self._fortunes[0] != known:
            whole = self.dataset.whole or self.dataset
            self._fortunes = (known, trends_of(whole, *known, block=self.model.trend_block))
        trends = self._fortunes[1]
        return np.asarray(lookup(np, trends.arrays, trends.snapshot_at(timestamp // SECOND), candidates))

    def embed(self, queries: Queries) -> TowerOutput:
        """The query tower's output; the stages ask about the same block one after the other, so the last is kept."""
        if self._last is None or self._last[0] is not queries:
            arrays = self._arrays_for(queries.known_positives)
            inputs = arrays.inputs(queries.user, queries.timestamp, log_row=queries.log_row)
            self._last = (queries, in_blocks(self.model.embed_queries, inputs))
        return self._last[1]

    def _arrays_for(self, log: UserLog) -> QueryArrays:
        if self._arrays is None or self._arrays[0] is not log:
            self._arrays = (log, QueryArrays.build(self.dataset, self.model.features, log=log))
        return self._arrays[1]


def in_blocks(embed: Callable[[Inputs], TowerOutput], inputs: Inputs) -> TowerOutput:
    """One tower's output for any number of rows, `BLOCK` at a time."""
    total = len(next(iter(inputs.values())))
    parts: list[Any] = []
    for start, stop in blocks(total, BLOCK):
        parts.append(embed({name: values[start:stop] for name, values in inputs.items()}))
    return TowerOutput(whole=np.concatenate([part.whole for part in parts]), dim=parts[0].dim)
