"""Items and queries to search with: trained ones, and clustered ones of any number.

A world is a folder of `items.npy` `[I, D]`, `tune.npy` and `test.npy` `[q, D]`, and `tune-cut.npy` and `test-cut.npy`:
the exact K-th score of each query.
"""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ann.libraries import K
from twotower.bundle import Bundle
from twotower.index.contract import checked_embeddings
from twotower.index.exact import ExactIndex
from twotower.index.tune import kth_score
from twotower.serving.load.measuring import query_embeddings

DIM = 64
CLUSTERS = 2_000
WITHIN = 0.7
"""How far items lie from the middle of their cluster, as a share of how far the middles lie from each other."""
BLOCK = 1_000_000


def trained(bundle: Path, out: Path, *, queries: int) -> None:
    """The embeddings of a bundle, and those of its users."""
    opened = Bundle.load(bundle)
    asked = query_embeddings(opened, count=2 * queries, users="uniform", seed=0)
    (out / "items.npy").symlink_to(bundle / "index" / "embeddings.npy")
    _write_queries(asked, out)


def clustered(items: int, out: Path, *, queries: int, seed: int = 7) -> None:
    """Unit vectors about centres, in a space whose directions matter less and less, as those of trained towers do."""
    generator = np.random.default_rng(seed)
    spread = np.arange(1, DIM + 1) ** -0.5
    centres = generator.normal(size=(CLUSTERS, DIM)) * spread

    def drawn(count: int) -> NDArray[np.float32]:
        within = generator.standard_normal((count, DIM), np.float32) * (WITHIN * spread).astype(np.float32)
        points = centres[generator.integers(CLUSTERS, size=count)].astype(np.float32) + within
        return np.asarray(points / np.linalg.norm(points, axis=1, keepdims=True), np.float32)

    written = np.lib.format.open_memmap(out / "items.npy", mode="w+", dtype=np.float32, shape=(items, DIM))
    for start in range(0, items, BLOCK):
        written[start : start + BLOCK] = drawn(min(BLOCK, items - start))
    written.flush()
    _write_queries(drawn(2 * queries), out)


def _write_queries(queries: NDArray[np.float32], out: Path) -> None:
    """Every other query tunes, the rest judge."""
    exact = ExactIndex(checked_embeddings(np.load(out / "items.npy", mmap_mode="r")))
    for part, taken in (("tune", queries[::2]), ("test", queries[1::2])):
        np.save(out / f"{part}.npy", np.ascontiguousarray(taken))
        np.save(out / f"{part}-cut.npy", kth_score(exact, taken, K))


def shares_found(world: Path, part: str, rows: list[list[int]]) -> NDArray[np.float64]:
    """`[q]` the share of the exact best K among the rows found; an item as high as the K-th counts, whichever it is."""
    items = np.load(world / "items.npy", mmap_mode="r")
    queries, cuts = np.load(world / f"{part}.npy"), np.load(world / f"{part}-cut.npy")
    lowest = cuts - 1e-5 * np.maximum(1.0, np.abs(cuts))
    shares = np.empty(len(rows))
    for line, found in enumerate(rows):
        unique = np.unique([row for row in found if row >= 0]).astype(np.int64)
        shares[line] = np.count_nonzero(items[unique] @ queries[line] >= lowest[line]) / K
    return shares


def limited(threads: int) -> dict[str, str]:
    """The variables that hold every library's threads down to so many."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return {**os.environ, **dict.fromkeys(names, str(threads))}
