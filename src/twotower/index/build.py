"""Candidate embeddings -> an index on disk, chosen by measurement against the exact one."""

import json
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twotower.errors import ArtifactError
from twotower.index.config import IndexConfig
from twotower.index.contract import Index, checked_queries
from twotower.index.exact import ExactIndex
from twotower.index.graph import HnswIndex
from twotower.index.inverted import IvfIndex
from twotower.index.partitioned import CHOICES, SCANNED, ScannIndex, is_installed
from twotower.index.tune import Listed, kth_score, shares_found, tuned, widest

DESCRIPTION = "index.json"
KINDS: dict[str, type[Index]] = {index.kind: index for index in (ExactIndex, IvfIndex, ScannIndex, HnswIndex)}
"""Every index, by the word for it."""

DEPTHS = (10, 100)
"""The k at which recall is measured, beside the number of candidates."""
TIMED = 200
"""Searches timed one by one."""


def build_index(
    config: IndexConfig,
    *,
    embeddings: NDArray[np.float32],
    queries: NDArray[np.float32],
    candidates: int = 100,
    out: Path,
) -> dict[str, Any]:
    """Build, measure and save the index that the recipe asks for.

    Every other query tunes the approximate index, the rest measure it. Without queries nothing can be measured, and
    `auto` takes the exact one.

    Args:
        config: The recipe's section.
        embeddings: `[I, D]` candidate embeddings by row of the catalogue.
        queries: `[q, D]` query embeddings to tune and measure with, such as those of the test split.
        candidates: How many items retrieval will be asked for.
        out: Open directory to write into.

    Returns:
        `kind`, `items`, `dim`, `queries`, `candidates`; with queries also `ms_per_query` (kind -> median of one search
        for the candidates); where an approximate index was built also its `build_seconds`, and with queries its
        `recall` (`{"10": ..., "100": ..., ...}`).
    """
    exact = ExactIndex.build(embeddings)
    items, dim = exact.embeddings.shape
    queries = checked_queries(queries, 1, dim=dim)
    facts: dict[str, Any] = {"kind": exact.kind, "items": items, "dim": dim}
    facts |= {"queries": len(queries), "candidates": candidates}
    asked = queries[1::2] if len(queries) > 1 else queries
    started = time.perf_counter()
    other = _approximate(config, exact, queries=queries[::2], candidates=candidates)
    if other is not None:
        facts["build_seconds"] = time.perf_counter() - started
    built: list[Index] = [exact] if other is None else [exact, other]
    if len(queries):
        facts["ms_per_query"] = {index.kind: milliseconds_per_query(index, asked, k=candidates) for index in built}
    if other is not None and len(queries):
        facts["recall"] = {
            str(k): recall_against(exact, other, queries=asked, k=k) for k in sorted({*DEPTHS, candidates})
        }
    chosen = _chosen(config, facts, built)
    save_index(chosen, out)
    return facts | {"kind": chosen.kind}


def _approximate(
    config: IndexConfig, exact: ExactIndex, *, queries: NDArray[np.float32], candidates: int
) -> Index | None:
    """The approximate index that is asked for, or that may be worth taking; None for neither."""
    if config.kind == HnswIndex.kind:
        return HnswIndex.build(
            exact.embeddings, links=config.links, build_depth=config.build_depth, search_depth=config.search_depth
        )
    is_small = len(exact.embeddings) < config.exact_below or not len(queries)
    if config.kind == ExactIndex.kind or (config.kind == "auto" and is_small):
        return None
    lists = _lists(config, exact)
    first = next(lists)
    if not len(queries):
        return first
    found = tuned(
        chain((first,), lists),
        exact,
        queries=queries,
        depth=candidates,
        recall=config.recall,
        by_clock=config.kind == "auto",
    )
    return found or (None if config.kind == "auto" else first.reaching(widest(first, depth=candidates)))


def _lists(config: IndexConfig, exact: ExactIndex) -> Iterator[Listed]:
    """The lists to choose from, each made when it is its turn: ScaNN's where `auto` finds it installed."""
    is_worth_it = config.kind == "auto" and len(exact.embeddings) > SCANNED and is_installed()
    if config.kind == ScannIndex.kind or is_worth_it:
        for per_root, seed in CHOICES:
            yield ScannIndex.build(exact.embeddings, per_root=per_root, seed=seed)
    else:
        index = IvfIndex.build(exact.embeddings)
        yield index
        yield index.recoded("nibbles")


def _chosen(config: IndexConfig, facts: dict[str, Any], built: list[Index]) -> Index:
    """The one named; for `auto` the faster one."""
    *_, last = built
    if len(built) == 1 or config.kind == last.kind:
        return last
    return min(built, key=lambda index: float(facts["ms_per_query"][index.kind]))


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
    """The share of the best `k` items that `other` finds, over all of at least one query; see `shares_found`."""
    return float(shares_found(kth_score(exact, queries, k), other, queries=queries, k=k).mean())


def milliseconds_per_query(index: Index, queries: NDArray[np.float32], *, k: int) -> float:
    """Median time of one search for the best `k` with a single query, over up to `TIMED` of them."""
    seconds = []
    for row in range(min(TIMED, len(queries))):
        started = time.perf_counter()
        index.search(queries[row : row + 1], k)
        seconds.append(time.perf_counter() - started)
    return 1e3 * float(np.median(seconds))
