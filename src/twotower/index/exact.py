"""The standard: every item is scored, nothing is missed."""

from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from twotower.index.contract import EMBEDDINGS, checked_embeddings, checked_queries, load_embeddings

GROUP = 16
"""Items of which one maximum is taken on the way to the best of all."""
BLOCK_SCORES = 1 << 22
"""Scores held at once, which bounds memory: 16 MiB of float32."""


class ExactIndex:
    """Inner products with all embeddings; see `contract.Index`."""

    kind: ClassVar[str] = "exact"

    def __init__(self, embeddings: NDArray[np.float32]) -> None:
        """Hold `[I, D]` finite float32 embeddings; `build` and `load` make sure of that."""
        self._embeddings = embeddings

    @property
    def embeddings(self) -> NDArray[np.float32]:
        """`[I, D]`, by row of the catalogue."""
        return self._embeddings

    @classmethod
    def build(cls, embeddings: NDArray[np.float32]) -> Self:
        """An index over `[I, D]` embeddings."""
        return cls(checked_embeddings(embeddings))

    def search(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The best rows and their scores, both `[q, min(k, I)]`; see `contract.Index.search`."""
        items, dim = self._embeddings.shape
        checked = checked_queries(queries, k, dim=dim)
        k = min(k, items)
        rows = np.empty((len(checked), k), np.int64)
        scores = np.empty((len(checked), k), np.float32)
        step = max(1, BLOCK_SCORES // items)
        for start in range(0, len(checked), step):
            block = slice(start, start + step)
            rows[block], scores[block] = best(checked[block] @ self._embeddings.T, k)
        return rows, scores

    def save(self, directory: Path) -> None:
        """Write `embeddings.npy`."""
        np.save(directory / EMBEDDINGS, self._embeddings, allow_pickle=False)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Open `embeddings.npy`, memory-mapped."""
        return cls(load_embeddings(directory))


def best(scores: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The columns of the `k` highest scores per row, best first and equal ones by column, with those scores.

    All that reach a cut at or below the `k`-th highest are sorted; nothing depends on how equal scores would fall on
    the two sides of a partition.

    Args:
        scores: `[q, I]`, no NaN.
        k: At most `I`.
    """
    cut = _cut(scores, k)
    columns = np.empty((len(scores), k), np.int64)
    kept = np.empty((len(scores), k), np.float32)
    for line, row in enumerate(scores):
        reaching = np.flatnonzero(row >= cut[line])
        order = np.argsort(-row[reaching], kind="stable")[:k]
        columns[line] = reaching[order]
        kept[line] = row[columns[line]]
    return columns, kept


def _cut(scores: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """`[q]` a value that at least `k` scores of each row reach, and few more.

    With many items, the `k`-th highest among the maxima of small groups is such a value: each of those maxima is an
    item of its own. It is found several times as fast as the `k`-th highest of all.
    """
    items = scores.shape[1]
    groups = items // GROUP
    if groups < 2 * k:
        return np.asarray(np.partition(scores, items - k, axis=1)[:, items - k], np.float32)
    maxima = scores[:, :groups].copy()
    for start in range(groups, groups * GROUP, groups):
        np.maximum(maxima, scores[:, start : start + groups], out=maxima)
    return np.asarray(np.partition(maxima, groups - k, axis=1)[:, groups - k], np.float32)
