"""Candidate embeddings -> an index on disk, chosen by the size of the catalogue and measured against the exact one."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twotower.errors import ArtifactError
from twotower.index.approximate import HnswIndex
from twotower.index.config import IndexConfig
from twotower.index.contract import Index, checked_queries
from twotower.index.exact import ExactIndex

DESCRIPTION = "index.json"
KINDS: dict[str, type[Index]] = {ExactIndex.kind: ExactIndex, HnswIndex.kind: HnswIndex}
"""Every index, by the word for it."""

DEPTHS = (10, 100)
"""The k at which recall is measured."""
TIMED = 200
"""Searches timed one by one."""
ROUNDING = 1e-5
"""Relative difference below which two inner products of the same vectors count as equal."""


def build_index(
    config: IndexConfig, *, embeddings: NDArray[np.float32], queries: NDArray[np.float32], out: Path
) -> dict[str, Any]:
    """Build, measure and save the index that the recipe asks for.

    The approximate index is measured against the exact one, also where the exact one is then taken, so that a reader
    sees what the choice costs; only `kind = "exact"` leaves it out.

    Args:
        config: The recipe's section.
        embeddings: `[I, D]` candidate embeddings by row of the catalogue.
        queries: `[q, D]` query embeddings to measure with, such as those of the test split.
        out: Open directory to write into.

    Returns:
        `kind`, `items`, `dim`, `queries`; with queries also `ms_per_query` (kind -> median of one search
        for the best 100) and `recall` (`{"10": ..., "100": ...}`) of the approximate index, whose `build_seconds` are
        there where it was built.
    """
    exact = ExactIndex.build(embeddings)
    items, dim = exact.embeddings.shape
    queries = checked_queries(queries, 1, dim=dim)
    facts: dict[str, Any] = {"kind": exact.kind, "items": items, "dim": dim, "queries": len(queries)}
    chosen: Index = exact
    built: list[Index] = [exact]
    if config.kind != exact.kind:
        started = time.perf_counter()
        graph = _build_graph(config, exact.embeddings)
        facts["build_seconds"] = time.perf_counter() - started
        built.append(graph)
        chosen = graph if config.kind == graph.kind or items >= config.exact_below else exact
    if len(queries):
        facts["ms_per_query"] = {index.kind: milliseconds_per_query(index, queries) for index in built}
        for other in built[1:]:
            facts["recall"] = {str(k): recall_against(exact, other, queries=queries, k=k) for k in DEPTHS}
    save_index(chosen, out)
    return facts | {"kind": chosen.kind}


def _build_graph(config: IndexConfig, embeddings: NDArray[np.float32]) -> HnswIndex:
    return HnswIndex.build(
        embeddings, links=config.links, build_depth=config.build_depth, search_depth=config.search_depth
    )


def save_index(index: Index, directory: Path) -> None:
    """Write the index and, in `index.json`, the kind that `load_index` goes by."""
    index.save(directory)
    items, dim = index.embeddings.shape
    description = {"kind": index.kind, "items": items, "dim": dim}
    (directory / DESCRIPTION).write_text(json.dumps(description) + "\n", encoding="utf-8")


def load_index(directory: Path) -> Index:
    """Open an index of any kind.

    Raises:
        ArtifactError: no index there, of a kind that this release does not know, or damaged.
    """
    path = directory / DESCRIPTION
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        kind, shape = description["kind"], (description["items"], description["dim"])
        index_class = KINDS[kind]
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise ArtifactError(f"{path}: no index that this release can read ({fault!r}). Build it again.") from fault
    index = index_class.load(directory)
    if index.embeddings.shape != shape:
        raise ArtifactError(f"{path}: says {shape}, the embeddings are {index.embeddings.shape}. Build it again.")
    return index


def recall_against(exact: Index, other: Index, *, queries: NDArray[np.float32], k: int) -> float:
    """The share of the best `k` items that `other` finds, over all of at least one query.

    An item counts when it scores as high as the exact `k`-th: among equals, either choice is right.
    """
    cut = exact.search(queries, k)[1][:, -1:]
    found = other.search(queries, k)[1]
    return float(np.mean(found >= cut - ROUNDING * np.maximum(1.0, np.abs(cut))))


def milliseconds_per_query(index: Index, queries: NDArray[np.float32]) -> float:
    """Median time of one search for the best 100 with a single query, over up to `TIMED` of them."""
    seconds = []
    for row in range(min(TIMED, len(queries))):
        started = time.perf_counter()
        index.search(queries[row : row + 1], max(DEPTHS))
        seconds.append(time.perf_counter() - started)
    return 1e3 * float(np.median(seconds))
