"""What a bundle answered when it was made: a server that opens it must get the same, or the bundle is not what it was.

A few queries stand in the bundle as the query tower's own inputs, with the embeddings, the items that retrieval brings
and the scores of both stages. They meet what no hash and no look at a file can tell: graphs that run, but say something
else, and parts that are whole, but not of one another.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from twotower.data.feature_encoders import SECOND, Inputs
from twotower.data.fitted_features import FittedFeatures
from twotower.data.pieces import count_rows
from twotower.data.split import TEST, TRAIN, VALIDATION, SplitDataset
from twotower.errors import ArtifactError
from twotower.index.build import recall_against
from twotower.index.contract import Index
from twotower.index.exact import ExactIndex
from twotower.model.exported import CANDIDATE_GRAPH, QUERY_GRAPH, RANKING_GRAPH, ExportedModel

GOLDEN = "golden.json"
KNOWN_USERS = 4
"""Users asked about; nobody at all comes last."""
ITEMS = 20
"""Items answered to each query."""
TOLERANCE = 1e-4
"""Relative and absolute difference that another machine's rounding may make."""
LOST = 0.1
"""Share of the best items that an approximate index may miss beyond what it missed before, for the same reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What answers: `I` items."""

    directory: Path
    """Where the bundle's files lie, to be named in a refusal."""
    model: ExportedModel
    index: Index
    candidates: NDArray[np.float32]
    """`[I, R]`"""
    trends: NDArray[np.float32]
    """`[I, F]`"""
    items: pa.Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """To `q` queries, `n` items each."""

    embedding: NDArray[np.float32]
    """`[q, D]`"""
    row: NDArray[np.int64]
    """`[q, n]` catalogue rows, best first by retrieval."""
    item_id: list[list[str]]
    """`[q, n]`"""
    retrieval: NDArray[np.float32]
    """`[q, n]` scores of stage 1."""
    ranking: dict[str, NDArray[np.float32]]
    """`score` of stage 2 and every label -> `[q, n]`."""
    recall: float
    """The share of these items that the bundle's own index finds."""


def write_golden(dataset: SplitDataset, parts: Parts) -> None:
    """Ask about a few users and about nobody, and keep the answers as `golden.json`.

    Raises:
        ArtifactError: an answer is no number.
    """
    inputs = _queries(dataset, parts.model.features)
    answers = _answer(inputs, parts)
    content = {
        "inputs": {name: {"dtype": str(values.dtype), "values": values.tolist()} for name, values in inputs.items()},
        "embedding": answers.embedding.tolist(),
        "row": answers.row.tolist(),
        "item_id": answers.item_id,
        "retrieval": answers.retrieval.tolist(),
        "ranking": {name: values.tolist() for name, values in answers.ranking.items()},
        "recall": answers.recall,
    }
    (parts.directory / GOLDEN).write_text(json.dumps(content) + "\n", encoding="utf-8")


def refuse_other_answers(parts: Parts) -> None:
    """Ask what `golden.json` asks.

    Raises:
        ArtifactError: something cannot be run or answers otherwise; the message names the file that is to blame.
    """
    inputs, expected = _read(parts.directory / GOLDEN, items=parts.items.num_rows)
    found = _answer(inputs, parts, rows=expected.row)
    _compare(parts.directory / "model" / QUERY_GRAPH, found.embedding, expected.embedding, what="embedding")
    if found.item_id != expected.item_id:
        raise ArtifactError(
            f"{parts.directory / 'items.parquet'}: holds other items, or in another order, than {GOLDEN} names. "
            "Build the bundle again."
        )
    _compare(parts.directory / "index" / "embeddings.npy", found.retrieval, expected.retrieval, what="score")
    ranking = parts.directory / "model" / (RANKING_GRAPH if parts.model.labels else "model.json")
    if found.ranking.keys() != expected.ranking.keys():
        raise ArtifactError(f"{ranking}: predicts {sorted(found.ranking)}, {GOLDEN} {sorted(expected.ranking)}.")
    for name, values in expected.ranking.items():
        _compare(ranking, found.ranking[name], values, what=name)
    if found.recall < expected.recall - LOST:
        raise ArtifactError(
            f"{parts.directory / 'index'}: finds {found.recall:.0%} of the best items, when the bundle was made "
            f"{expected.recall:.0%}. Build the index again."
        )


def _queries(dataset: SplitDataset, features: FittedFeatures) -> Inputs:
    """The query tower's inputs, a second after the end of the log."""
    met = np.flatnonzero(count_rows(dataset, TRAIN, VALIDATION, TEST, by="user", positives_only=True))
    places = np.linspace(0, len(met) - 1, min(KNOWN_USERS, len(met))).astype(np.int64)
    users = met[places].tolist()
    asked = pa.array([*users, None], pa.int64())
    read = {encoder.column for encoder in features.query} & set(dataset.users.column_names)
    length = features.history.config.length if features.history else 1
    histories: list[tuple[list[str], list[int]]] = []
    for user in users:
        own = np.flatnonzero((dataset.user == user) & dataset.positive)[-length:]
        histories.append((dataset.item_ids[dataset.item[own]].tolist(), dataset.timestamp[own].tolist()))
    return features.query_inputs(
        columns={name: dataset.users[name].take(asked) for name in sorted(read)},
        timestamp=np.full(len(asked), int(dataset.timestamp[-1]) + SECOND, np.int64),
        history=[*histories, ([], [])],
    )


def _answer(inputs: Inputs, parts: Parts, *, rows: NDArray[np.int64] | None = None) -> Answers:
    """The answers of both stages, for the items at `rows`; by default for those that retrieval brings."""
    model, directory = parts.model, parts.directory / "model"
    with _blaming(directory / QUERY_GRAPH):
        query = model.embed_queries(inputs)
        _refuse_no_number(directory / QUERY_GRAPH, query.whole)
    exact = ExactIndex(parts.index.embeddings)
    with _blaming(parts.directory / "index"):
        if rows is None:
            rows = exact.search(query.embedding, ITEMS)[0]
        recall = recall_against(exact, parts.index, queries=query.embedding, k=rows.shape[1])
        retrieval = np.einsum("qd,qnd->qn", query.embedding, parts.index.embeddings[rows])
    _refuse_other_candidates(rows, parts)
    with _blaming(directory / RANKING_GRAPH):
        ranking = model.rank(query.ranking, parts.candidates[rows], trends=parts.trends[rows])
        for values in ranking.values():
            _refuse_no_number(directory / RANKING_GRAPH, values)
    ids = parts.items["item_id"].take(pa.array(rows.ravel())).to_pylist()
    width = rows.shape[1]
    return Answers(
        embedding=query.embedding,
        row=rows,
        item_id=[ids[start : start + width] for start in range(0, len(ids), width)],
        retrieval=np.asarray(retrieval, np.float32),
        ranking=ranking,
        recall=recall,
    )


def _refuse_other_candidates(rows: NDArray[np.int64], parts: Parts) -> None:
    """The candidate tower, given the items' features, must say what the bundle holds of them."""
    path, some = parts.directory / "model" / CANDIDATE_GRAPH, np.unique(rows)
    with _blaming(path):
        items = parts.items.take(pa.array(some))
        found = parts.model.embed_candidates(parts.model.features.candidate_inputs(items))
    _refuse_no_number(path, found.whole)
    _compare(path, found.whole, parts.candidates[some], what="what candidates.npy holds")
    _compare(path, found.embedding, parts.index.embeddings[some], what="what the index holds")


def _read(path: Path, *, items: int) -> tuple[Inputs, Answers]:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        inputs = {name: np.array(one["values"], one["dtype"]) for name, one in told["inputs"].items()}
        answers = Answers(
            embedding=np.array(told["embedding"], np.float32),
            row=np.array(told["row"], np.int64),
            item_id=told["item_id"],
            retrieval=np.array(told["retrieval"], np.float32),
            ranking={name: np.array(values, np.float32) for name, values in told["ranking"].items()},
            recall=float(told["recall"]),
        )
        if answers.row.ndim != 2 or not answers.row.size or answers.row.min() < 0 or answers.row.max() >= items:
            raise ValueError(f"rows of shape {answers.row.shape} that are not all among {items} items")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError) as fault:
        raise ArtifactError(f"{path}: not readable ({fault!r:.200}). Build the bundle again.") from fault
    return inputs, answers


@contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """What fails on the bundle's own content is the fault of a file; ONNX Runtime's exceptions are not public."""
    try:
        yield
    except ArtifactError:
        raise
    except Exception as fault:
        reason = " ".join(str(fault).split())[:200]
        raise ArtifactError(
            f"{path}: does not fit the rest of the bundle ({reason}). Build the bundle again."
        ) from fault


def _refuse_no_number(path: Path, values: NDArray[np.float32]) -> None:
    if not np.isfinite(values).all():
        raise ArtifactError(f"{path}: answers NaN or infinity to {GOLDEN}'s queries. Train the model again.")


def _compare(path: Path, found: NDArray[np.float32], expected: NDArray[np.float32], *, what: str) -> None:
    if found.shape != expected.shape:
        raise ArtifactError(
            f"{path}: {what} of shape {found.shape}, expected {expected.shape}. Build the bundle again."
        )
    differs = ~np.isclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE)
    if differs.any():
        first = tuple(np.argwhere(differs)[0])
        raise ArtifactError(
            f"{path}: {what} is {found[first]:.6g} where the bundle was made with {expected[first]:.6g} "
            f"({np.count_nonzero(differs)} of {differs.size} differ). Build the bundle again."
        )
