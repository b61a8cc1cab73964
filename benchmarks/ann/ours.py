"""twotower's indexes behind the calls of `libraries.py`: what `auto` builds for a recall, and the exact one."""

import json
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from ann.libraries import K, Ladders, Search, Setting
from twotower.index.build import build_index, load_index, save_index
from twotower.index.config import IndexConfig
from twotower.index.contract import Index
from twotower.index.exact import ExactIndex

FACTS = "facts.json"


class Auto:
    """What the recipe's `index.kind = "auto"` makes; it tunes itself, so that there is nothing left to tell."""

    ladders: Ladders = (({},),)
    _index: Index

    def __init__(self, recall: float, queries: NDArray[np.float32]) -> None:
        """`[q, D]` queries to tune with."""
        self._recall, self._queries = recall, queries

    def build(self, embeddings: NDArray[np.float32], threads: int) -> None:
        """Nothing yet: the package builds, tunes, measures and writes in one go."""
        faiss.omp_set_num_threads(threads)
        self._embeddings = embeddings

    def save(self, directory: Path) -> None:
        """As the step `index` does."""
        facts = build_index(
            IndexConfig(recall=self._recall),
            embeddings=self._embeddings,
            queries=np.repeat(self._queries, 2, axis=0),  # Every other one tunes: so all do, as they do for the peers.
            candidates=K,
            out=directory,
        )
        (directory / FACTS).write_text(json.dumps(facts), encoding="utf-8")

    def load(self, directory: Path) -> None:
        """As the server does."""
        self._index = load_index(directory)

    def search(self, setting: Setting) -> Search:
        """As the server does, but for one query."""
        del setting
        return lambda query: self._index.search(query[None], K)[0][0]


class Exact(Auto):
    """Every item is scored."""

    def save(self, directory: Path) -> None:
        """The embeddings."""
        save_index(ExactIndex.build(self._embeddings), directory)


def facts(directory: Path) -> dict[str, Any]:
    """What `build_index` told of an index that was saved."""
    told: dict[str, Any] = json.loads((directory / FACTS).read_text(encoding="utf-8"))
    return told
