"""The trained model as a server runs it: three ONNX graphs and the fitted features; no Keras, no JAX.

Evaluation, index and server all answer through this class, so that what was judged is what is served.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from twotower.data.fitted_features import FittedFeatures
from twotower.errors import ArtifactError
from twotower.model.calibrated import Calibration
from twotower.model.config import RETRIEVAL
from twotower.model.graph_file import refuse_other_files

QUERY_GRAPH, CANDIDATE_GRAPH, RANKING_GRAPH = "query_tower.onnx", "candidate_tower.onnx", "ranking.onnx"
DESCRIPTION = "model.json"
SCORE = "score"
"""The key under which `rank` answers what candidates are ordered by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerOutput:
    """What a tower says of `n` queries or candidates."""

    whole: NDArray[np.float32]
    """`[n, R]` the embedding, then what only the ranking head reads; of a query also its memory."""
    dim: int

    @property
    def embedding(self) -> NDArray[np.float32]:
        """`[n, D]` what the index compares by inner product."""
        return self.whole[:, : self.dim]

    @property
    def ranking(self) -> NDArray[np.float32]:
        """`[n, R]`, of queries `[n, R + M]`: what the ranking head takes."""
        return self.whole


class ExportedModel:
    """Both towers and the ranking head, run by ONNX Runtime; safe to call from several threads."""

    def __init__(self, directory: Path, *, threads: int = 0) -> None:
        """Read a model directory, or the `model/` of a bundle.

        Args:
            directory: Where `model.json` stands.
            threads: Threads within one call; 0 leaves it to ONNX Runtime.

        Raises:
            ArtifactError: a file is missing, is no graph that ONNX Runtime can run, or leads to other files.
        """
        try:
            description = json.loads((directory / DESCRIPTION).read_text(encoding="utf-8"))
            self.embedding_dim: int = description["embedding_dim"]
            """Width of what the index compares, the bias among it."""
            self.item_bias: bool = description["item_bias"]
            """Whether an embedding's last number is the item's bias."""
            self.temperature: float = description["temperature"]
            self.labels: dict[str, str] = description["labels"]
            """Label -> "regression", "binary" or "listwise", in the order of the head's outputs."""
            self.order: dict[str, float] = description["order"]
            """Label, or `retrieval` for stage 1's own logit -> weight in the final score."""
            self.trend_block: int = description["trend_block"]
            """Interactions in a block of the trends that ranking reads; 0 where it reads none."""
            self.calibration: dict[str, Calibration] = {
                label: Calibration.from_json(content) for label, content in description.get("calibration", {}).items()
            }
            """Label -> the map from what the head predicts to what is told."""
        except (OSError, ValueError, LookupError, TypeError) as fault:
            raise ArtifactError(
                f"{directory / DESCRIPTION}: not readable ({fault!r}). Train the model again."
            ) from fault
        self.features = FittedFeatures.load(directory)
        self.graphs = tuple(
            directory / name for name in (QUERY_GRAPH, CANDIDATE_GRAPH, *([RANKING_GRAPH] if self.labels else []))
        )
        """The files of the towers and, where there are labels, of the ranking head."""
        self._query, self._candidate, *rest = (_session(graph, threads=threads) for graph in self.graphs)
        self._ranking = rest[0] if rest else None

    @classmethod
    def load(cls, directory: Path) -> "ExportedModel":
        """Read a model directory, or the `model/` of a bundle."""
        return cls(directory)

    def embed_queries(self, inputs: Mapping[str, NDArray[Any]]) -> TowerOutput:
        """The query tower's output for `n` queries, from inputs as `FittedFeatures.query_inputs` makes them."""
        return TowerOutput(whole=_run(self._query, inputs), dim=self.embedding_dim)

    def embed_candidates(self, inputs: Mapping[str, NDArray[Any]]) -> TowerOutput:
        """The candidate tower's output for `n` items, from `FittedFeatures.candidate_inputs`."""
        return TowerOutput(whole=_run(self._candidate, inputs), dim=self.embedding_dim)

    def rank(
        self,
        query: NDArray[np.float32],
        candidate: NDArray[np.float32],
        *,
        trends: NDArray[np.float32] | None,
    ) -> dict[str, NDArray[np.float32]]:
        """What `rank_raw` answers, with labels calibrated; the score, and so the order, is the same."""
        answer = self.rank_raw(query, candidate, trends=trends)
        return {
            name: self.calibration[name].apply(values) if name in self.calibration else values
            for name, values in answer.items()
        }

    def rank_raw(
        self,
        query: NDArray[np.float32],
        candidate: NDArray[np.float32],
        *,
        trends: NDArray[np.float32] | None,
    ) -> dict[str, NDArray[np.float32]]:
        """Score each query's candidates, each by itself: no candidate's score depends on the others.

        Args:
            query: `[B, R + M]` as `TowerOutput.ranking`.
            candidate: `[B, C, R]` likewise.
            trends: `[B, C, F]` popularity and age of the candidates at the query's moment; not read where
                `trend_block` is 0.

        Returns:
            `score` `[B, C]`, by which candidates are ordered, and for each label `[B, C]` the value (regression),
            probability (binary) or logit (listwise) predicted.
        """
        answer: dict[str, NDArray[np.float32]] = {}
        score = np.zeros(candidate.shape[:2], np.float32)
        if weight := self.order.get(RETRIEVAL, 0.0):
            score += np.float32(weight / self.temperature) * self._similarity(query, candidate)
        if self._ranking is None:
            return {SCORE: score}
        inputs: dict[str, Any] = {"query": query, "candidate": candidate, "trends": trends}
        logits = _run(self._ranking, inputs)
        for place, (label, kind) in enumerate(self.labels.items()):
            answer[label] = _sigmoid(logits[:, :, place]) if kind == "binary" else logits[:, :, place]
            score += np.float32(self.order.get(label, 0.0)) * logits[:, :, place]
        return answer | {SCORE: score}

    def _similarity(self, query: NDArray[np.float32], candidate: NDArray[np.float32]) -> NDArray[np.float32]:
        dim = self.embedding_dim
        return np.asarray(np.einsum("bd,bcd->bc", query[:, :dim], candidate[:, :, :dim]), np.float32)


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)), np.float32)


def _session(path: Path, *, threads: int) -> onnxruntime.InferenceSession:
    if not path.is_file():
        raise ArtifactError(f"{path}: missing. Train the model again.")
    content = path.read_bytes()
    refuse_other_files(path, content)  # ONNX Runtime would follow them from wherever the server was started.
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as fault:  # ONNX Runtime has an exception of its own for each kind of broken graph, none public.
        raise ArtifactError(f"{path}: no graph that ONNX Runtime can run ({fault}). Train the model again.") from fault


def _run(session: onnxruntime.InferenceSession, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    wanted = {entry.name: inputs[entry.name] for entry in session.get_inputs()}
    return np.asarray(session.run(None, wanted)[0], np.float32)
