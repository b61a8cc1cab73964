"""For catalogues too large to score in full: a navigable graph of neighbours (HNSW), searched greedily."""

from pathlib import Path
from typing import Any, ClassVar, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from twotower.errors import ArtifactError
from twotower.index.contract import EMBEDDINGS, checked_allowed, checked_embeddings, checked_queries, load_embeddings
from twotower.index.exact import ExactIndex
from twotower.index.selector import selector

GRAPH = "graph.faiss"

SCANNED_SHARE = 0.1
"""Share of the items up to which each of those allowed is scored: the graph leads past all the others."""


class HnswIndex:
    """A graph over the embeddings by inner product; see `contract.Index`.

    Source:
        Malkov and Yashunin, "Efficient and robust approximate nearest neighbor search using Hierarchical Navigable
        Small World graphs", TPAMI 2020, https://doi.org/10.1109/TPAMI.2018.2889473; built by faiss.
    """

    kind: ClassVar[str] = "hnsw"

    def __init__(self, embeddings: NDArray[np.float32], graph: Any) -> None:
        """Hold `[I, D]` embeddings and the faiss `IndexHNSWFlat` over them."""
        self._exact = ExactIndex(embeddings)
        self._graph = graph

    @property
    def embeddings(self) -> NDArray[np.float32]:
        """`[I, D]`, by row of the catalogue."""
        return self._exact.embeddings

    @classmethod
    def build(
        cls, embeddings: NDArray[np.float32], *, links: int = 32, build_depth: int = 100, search_depth: int = 256
    ) -> Self:
        """Link each of `[I, D]` embeddings to its neighbours.

        Args:
            embeddings: `[I, D]`, by row of the catalogue.
            links: Neighbours per item; more find more and take more memory.
            build_depth: Candidates weighed when an item is linked.
            search_depth: Candidates weighed per search, at least; kept in the graph.
        """
        checked = checked_embeddings(embeddings)
        graph = faiss.IndexHNSWFlat(checked.shape[1], links, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = build_depth
        graph.hnsw.efSearch = search_depth
        graph.add(checked)
        return cls(checked, graph)

    def search(
        self, queries: NDArray[np.float32], k: int, *, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The rows found and their scores, both `[q, min(k, I')]`; see `contract.Index.search`.

        A query for which the graph leads to fewer than `k` items is answered exactly.
        """
        items, dim = self.embeddings.shape
        checked = checked_queries(queries, k, dim=dim)
        places = items if allowed is None else int(np.count_nonzero(checked_allowed(allowed, items=items)))
        if places <= SCANNED_SHARE * items:
            return self._exact.search(checked, k, allowed=allowed)
        k = min(k, places)
        depth = int(np.ceil(max(k, self._graph.hnsw.efSearch) * items / places))
        settings = faiss.SearchParametersHNSW(efSearch=depth, sel=selector(allowed))  # type: ignore[attr-defined]  # missing in faiss's stubs
        scores, rows = self._graph.search(checked, k, params=settings)
        lines, order = np.arange(len(rows))[:, None], np.lexsort((rows, -scores), axis=1)
        rows, scores = rows[lines, order], scores[lines, order]
        if len(short := np.flatnonzero((rows < 0).any(axis=1))):
            rows[short], scores[short] = self._exact.search(checked[short], k, allowed=allowed)
        return rows, scores

    def save(self, directory: Path) -> None:
        """Write `embeddings.npy` and `graph.faiss`; the graph file holds links only, not the embeddings again."""
        self._exact.save(directory)
        path = str(directory / GRAPH)
        faiss.write_index(self._graph, path, faiss.IO_FLAG_SKIP_STORAGE)  # type: ignore[call-overload]  # as above

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Open what `save` wrote. faiss keeps a copy of the embeddings in memory."""
        embeddings = load_embeddings(directory)
        path = directory / GRAPH
        try:
            graph = faiss.read_index(str(path), faiss.IO_FLAG_SKIP_STORAGE)
        except RuntimeError as fault:
            reason = str(fault).splitlines()[0]
            raise ArtifactError(f"{path}: not readable ({reason}). Build the index again.") from fault
        if not isinstance(graph, faiss.IndexHNSWFlat) or (graph.ntotal, graph.d) != embeddings.shape:
            raise ArtifactError(f"{path}: not a graph over {directory / EMBEDDINGS}. Build the index again.")
        graph.storage = faiss.IndexFlatIP(graph.d)
        graph.storage.add(np.ascontiguousarray(embeddings))
        graph.own_fields = True
        return cls(embeddings, graph)
