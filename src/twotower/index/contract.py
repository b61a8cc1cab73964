"""What every index promises, and the checks that all of them share.

A new index is a class with these members, one line in `build.KINDS` and one line in the contract test.
"""

import math
from pathlib import Path
from typing import ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from twotower.errors import ArtifactError, RequestError

EMBEDDINGS = "embeddings.npy"


class Index(Protocol):
    """`I` candidate embeddings of width `D`, searched by inner product. Searches may run in several threads at once."""

    kind: ClassVar[str]
    """The word for it in a recipe and in `index.json`."""

    @property
    def embeddings(self) -> NDArray[np.float32]:
        """`[I, D]` what the candidate tower gave; the position is the item's row in the catalogue."""

    @classmethod
    def build(cls, embeddings: NDArray[np.float32]) -> Self:
        """An index over `[I, D]` embeddings, with the settings that the class holds for best."""

    def search(
        self, queries: NDArray[np.float32], k: int, *, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The best rows for `[q, D]` queries and their scores, both `[q, min(k, I')]`, best first; equal scores by row.

        `I'` is how many items are allowed: however few these are, nothing else comes, and so many do.

        Args:
            queries: The query embeddings.
            k: How many rows to bring.
            allowed: `[I]` the rows that may come; None for all.

        Raises:
            RequestError: queries of another width, a NaN or infinite query, `k` below 1, or a mask of another shape.
        """

    def save(self, directory: Path) -> None:
        """Write what `load` reads into an open directory."""

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Open what `save` wrote; the embeddings stay on disk until they are read."""


def checked_queries(queries: NDArray[np.float32], k: int, *, dim: int) -> NDArray[np.float32]:
    """The queries as contiguous float32 `[q, dim]`, ready for any index.

    Raises:
        RequestError: another shape, a NaN or infinite value, or `k` below 1.
    """
    if k < 1:
        raise RequestError(f"search: k is {k}. Ask for at least one item.")
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise RequestError(f"search: queries have shape {queries.shape}, the index holds embeddings of width {dim}.")
    checked = np.ascontiguousarray(queries, np.float32)
    if not math.isfinite(np.vdot(checked, checked)) and not (finite := np.isfinite(checked)).all():
        # The first is NaN or infinite where a value is, or where they are huge, and takes a third of the second's time.
        wrong = int(np.argmin(finite.all(axis=1)))
        raise RequestError(f"search: query {wrong} holds NaN or infinite values. Look at the features behind it.")
    return checked


def checked_allowed(allowed: NDArray[np.bool_], *, items: int) -> NDArray[np.bool_]:
    """The mask, of truth values `[items]`.

    Raises:
        RequestError: another shape or type.
    """
    if allowed.shape != (items,) or allowed.dtype != np.bool_:
        raise RequestError(
            f"search: allowed is {allowed.dtype} of shape {allowed.shape}, the index holds {items} items. Give a truth "
            "value for each."
        )
    return allowed


def checked_embeddings(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """The embeddings as contiguous float32 `[I, D]`, every value finite and `I` at least 1.

    Raises:
        ArtifactError: another shape, no row, or a NaN or infinite value.
    """
    if embeddings.ndim != 2 or 0 in embeddings.shape:
        raise ArtifactError(f"index: embeddings have shape {embeddings.shape}, expected [items, width] with items.")
    checked = np.ascontiguousarray(embeddings, np.float32)
    if len(wrong := np.flatnonzero(~np.isfinite(checked).all(axis=1))):
        raise ArtifactError(
            f"index: {len(wrong)} embeddings hold NaN or infinite values (first: row {wrong[0]}). "
            "Train the model again."
        )
    return checked


def load_embeddings(directory: Path) -> NDArray[np.float32]:
    """The `[I, D]` embeddings of a saved index, memory-mapped.

    Raises:
        ArtifactError: the file is missing or no such array.
    """
    path = directory / EMBEDDINGS
    try:
        embeddings: NDArray[np.float32] = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError) as fault:
        raise ArtifactError(f"{path}: not readable ({fault}). Build the index again.") from fault
    if embeddings.ndim != 2 or embeddings.dtype != np.float32:
        raise ArtifactError(f"{path}: holds {embeddings.dtype} {embeddings.shape}, expected float32 [items, width].")
    return embeddings
