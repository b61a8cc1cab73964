"""For large catalogues on Linux: lists as in `inverted.py`, but made and read by ScaNN, where that is installed.

Its half-bytes for two numbers each are learned so that large inner products come out right. It keeps the embeddings in
memory, to score the best again: a million items, 64 wide, take 0.3 GB.
"""

import math
import os
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from twotower.errors import ArtifactError, MissingExtraError
from twotower.index.contract import EMBEDDINGS, checked_allowed, checked_embeddings, checked_queries, load_embeddings
from twotower.index.exact import ExactIndex
from twotower.index.reach import Codes, Reach

FOLDER, DATASET, LISTED = "scann", "dataset.npy", "scann_assets.pbtxt"
"""Where ScaNN's files go, and two of them that are left out: the embeddings again, and the list of the files."""
ASSETS = {
    "AH_CENTERS": "ah_codebook.pb",
    "PARTITIONER": "serialized_partitioner.pb",
    "TOKENIZATION_NPY": "datapoint_to_token.npy",
    "AH_DATASET_NPY": "hashed_dataset.npy",
    "DATASET_NPY": f"../{EMBEDDINGS}",
}
"""ScaNN's word for each file that it opens -> where it is. No file says which others are read."""

SCANNED = 30_000
"""Allowed items up to which each is scored, and no list is made; measured as in `inverted.py`."""
FEW = 4
"""Fewer items than so many times those to be scored again are all scored at once."""
SAMPLED_PER_LIST = 64
"""Items of each list that its centre is learned from."""
ANISOTROPY = 0.2
"""From which inner product on, for unit vectors, errors along the embedding count for more: the value that the authors
give in their examples."""
DEPTH = 300
"""The `k` that an index is meant for which nobody has tuned."""


class ScannIndex:
    """Lists of neighbours in ScaNN; see `contract.Index`.

    Source:
        Guo et al., "Accelerating large-scale inference with anisotropic vector quantization", ICML 2020,
        https://arxiv.org/abs/1908.10396; built by ScaNN.
    """

    kind: ClassVar[str] = "scann"
    codes: ClassVar[Codes] = "scann"

    def __init__(self, embeddings: NDArray[np.float32], searcher: Any, *, reach: Reach) -> None:
        """Hold `[I, D]` embeddings and ScaNN's own object over them; None where they are few enough to score all."""
        self._exact = ExactIndex(embeddings)
        self._searcher = searcher
        self.reach = reach

    @property
    def embeddings(self) -> NDArray[np.float32]:
        """`[I, D]`, by row of the catalogue."""
        return self._exact.embeddings

    @property
    def lists(self) -> int:
        """How many lists there are."""
        return max(1, round(2 * math.sqrt(len(self.embeddings))))

    @classmethod
    def build(cls, embeddings: NDArray[np.float32]) -> Self:
        """Put `[I, D]` embeddings into about `2 sqrt(I)` lists, by all cores.

        A search reads an eighth of them, which is wide enough for most; `tune.tuned` finds what is.

        Raises:
            MissingExtraError: there are more than a few, and ScaNN is not installed.
        """
        checked = checked_embeddings(embeddings)
        index = cls(checked, None, reach=Reach(depth=DEPTH, lists=1, rescored=5 * DEPTH))
        reach = Reach(depth=DEPTH, lists=-(-index.lists // 8), rescored=5 * DEPTH)
        return cls(checked, _built(checked, index.lists) if len(checked) > SCANNED else None, reach=reach)

    def reaching(self, reach: Reach) -> Self:
        """The same lists, searched further or less far."""
        return type(self)(self.embeddings, self._searcher, reach=reach)

    def codes_read(self, queries: NDArray[np.float32], lists: int) -> float:
        """How many items a search of so many lists reads the codes of, about; which ones, ScaNN does not tell."""
        del queries
        return len(self.embeddings) * lists / self.lists

    def search(
        self, queries: NDArray[np.float32], k: int, *, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The rows found and their scores, both `[q, min(k, I')]`; see `contract.Index.search`.

        ScaNN cannot be told what is allowed: so many more are asked for that enough of them should be. A query for
        which they are not, is answered exactly.
        """
        items, dim = self.embeddings.shape
        checked = checked_queries(queries, k, dim=dim)
        places = items if allowed is None else int(np.count_nonzero(checked_allowed(allowed, items=items)))
        if self._searcher is None or places <= min(SCANNED, items - 1):
            return self._exact.search(checked, k, allowed=allowed)
        k = min(k, places)
        is_near = places == items and k <= self.reach.depth
        reach = self.reach if is_near else self.reach.of(k, share=places / items)
        rescored = -(-reach.rescored * items // places)
        if FEW * rescored > items:
            return self._exact.search(checked, k, allowed=allowed)
        rows, scores = np.empty((len(checked), k), np.int64), np.empty((len(checked), k), np.float32)
        lists, most = min(reach.lists, self.lists), k if allowed is None else rescored
        for line, query in enumerate(checked):
            found, scored = self._searcher.search(query, most, rescored, lists)
            if allowed is not None:
                kept = np.flatnonzero(allowed[found])[:k]
                found, scored = found[kept], scored[kept]
            if len(found) < k:
                found, scored = (each[0] for each in self._exact.search(query[None], k, allowed=allowed))
            elif (scored[1:] == scored[:-1]).any():
                order = np.lexsort((found, -scored))
                found, scored = found[order], scored[order]
            rows[line], scores[line] = found, scored
        return rows, scores

    def save(self, directory: Path) -> None:
        """Write `embeddings.npy`, `reach.json` and, where there are lists, ScaNN's files in a folder of their own."""
        self._exact.save(directory)
        self.reach.save(directory)
        if self._searcher is None:
            return
        (directory / FOLDER).mkdir()
        self._searcher.serialize(str(directory / FOLDER), True)
        for name in (DATASET, LISTED):
            (directory / FOLDER / name).unlink()

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Open what `save` wrote. ScaNN keeps a copy of the embeddings in memory.

        Raises:
            ArtifactError: a file is missing or damaged, or the lists are over other embeddings.
            MissingExtraError: there are lists, and ScaNN is not installed.
        """
        embeddings, reach = load_embeddings(directory), Reach.load(directory)
        folder = directory / FOLDER
        if len(embeddings) <= SCANNED and not folder.exists():
            return cls(embeddings, None, reach=reach)
        assets = "".join(f'assets {{ asset_type: {kind} asset_path: "{path}" }}\n' for kind, path in ASSETS.items())
        try:
            searcher = _scann().scann_pybind.ScannNumpy(str(folder), assets)
            listed = len(np.load(folder / ASSETS["AH_DATASET_NPY"], mmap_mode="r", allow_pickle=False))
            if listed != len(embeddings):
                raise ValueError(f"lists of {listed} items over {len(embeddings)} embeddings")
        except (RuntimeError, ValueError) as fault:
            reason = str(fault).splitlines()[0]
            raise ArtifactError(f"{folder}: not readable ({reason}). Build the index again.") from fault
        return cls(embeddings, searcher, reach=reach)


def is_installed() -> bool:
    """Whether ScaNN can be had here."""
    try:
        _scann()
    except MissingExtraError:
        return False
    return True


def _built(embeddings: NDArray[np.float32], lists: int) -> Any:
    """ScaNN's own object: lists by distance, codes for two numbers each, the best scored by the embeddings."""
    builder = _scann().builder(embeddings, DEPTH, "dot_product").set_n_training_threads(os.cpu_count() or 1)
    sampled = min(len(embeddings), SAMPLED_PER_LIST * lists)
    listed = builder.tree(
        num_leaves=lists,
        num_leaves_to_search=-(-lists // 8),
        training_sample_size=sampled,
        random_init=False,  # By k-means++, which begins alike each time.
    )
    coded = listed.score_ah(2, anisotropic_quantization_threshold=ANISOTROPY)
    return coded.reorder(5 * DEPTH).build().searcher


def _scann() -> Any:
    """The part of ScaNN that takes NumPy's arrays."""
    try:
        from scann.scann_ops.py import scann_ops_pybind
    except ImportError as fault:
        raise MissingExtraError(
            'scann is not installed, and an index of kind "scann" needs it: pip install "twotower[scann]" (on Linux), '
            'or build the index again with index.kind = "ivf".'
        ) from fault
    return scann_ops_pybind
