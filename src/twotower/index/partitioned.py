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
from twotower.index.huge_pages import in_huge_pages
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
CHOICES = ((1.0, 1), (2.8, 2), (1.0, 2))
"""Numbers of lists, as multiples of `sqrt(I)`, and seeds to choose from. At a million items, 64 wide, trained ones
take least time in few lists, clustered ones a third of the time in 2.8 times as many. Two seeds, because codes come out
well or badly by chance: of eleven over trained embeddings, three missed twice as many of the best hundred among 300
scored again."""
SAMPLED_PER_ROOT = 250
"""Items that the centres are learned from, as a multiple of `sqrt(I)`."""
FEWEST_SAMPLED = 1
"""A centre with fewer of these begins anew elsewhere. ScaNN's own 50 leave hardly one at rest that is learned from 64:
eight times as many lists had to be read of clustered embeddings."""
CENTRES_ANISOTROPY = 4.0
"""How much more an error along an embedding counts when its centre is placed. Half as many lists then hold 99% of the
best hundred of clustered embeddings, and a tenth to a fifth fewer those of trained ones; 2, 4 and 8 are alike."""
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

    def __init__(self, embeddings: NDArray[np.float32], searcher: Any, *, lists: int, reach: Reach) -> None:
        """Hold `[I, D]` embeddings and ScaNN's own object over them; None where they are few enough to score all."""
        self._exact = ExactIndex(embeddings)
        self._searcher = searcher
        self.lists = lists
        self.reach = reach
        items, self._dim = embeddings.shape
        self._one = (1, self._dim)
        is_worth_it = searcher is not None and FEW * reach.rescored <= items and reach.lists <= lists
        self._near = reach.depth if is_worth_it else 0
        """The largest `k` for which the lists are read as the reach has it."""

    @property
    def embeddings(self) -> NDArray[np.float32]:
        """`[I, D]`, by row of the catalogue."""
        return self._exact.embeddings

    @classmethod
    def build(
        cls, embeddings: NDArray[np.float32], *, per_root: float = CHOICES[0][0], seed: int = CHOICES[0][1]
    ) -> Self:
        """Put `[I, D]` embeddings into about `per_root * sqrt(I)` lists, by all cores.

        A search reads an eighth of them, which is wide enough for most; `tune.tuned` finds what is. The seed decides
        the first centres and the codes. Equal embeddings and seeds give an equal index, unless many items have the same
        embedding: of 900 builds with every item there twice, 5 settled on other centres.

        Raises:
            MissingExtraError: there are more than a few, and ScaNN is not installed.
        """
        checked = checked_embeddings(embeddings)
        lists = max(1, round(per_root * math.sqrt(len(checked))))
        reach = Reach(depth=DEPTH, lists=-(-lists // 8), rescored=5 * DEPTH)
        return cls(
            checked, _built(checked, lists, seed=seed) if len(checked) > SCANNED else None, lists=lists, reach=reach
        )

    def reaching(self, reach: Reach) -> Self:
        """The same lists, searched further or less far."""
        return type(self)(self.embeddings, self._searcher, lists=self.lists, reach=reach)

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
        if allowed is None and 0 < k <= self._near and queries.shape == self._one and queries.dtype == np.float32:
            # As a server asks, which feels every line: what is not as usual goes the long way.
            query = np.ascontiguousarray(queries[0])
            if math.isfinite(query.dot(query)):
                found, scored = self._searcher.search(query, k, self.reach.rescored, self.reach.lists)
                if len(found) == k:
                    return found.astype(np.int64)[None], scored[None]
        checked = checked_queries(queries, k, dim=self._dim)
        items = len(self.embeddings)
        places = items if allowed is None else int(np.count_nonzero(checked_allowed(allowed, items=items)))
        if self._searcher is None or places <= min(SCANNED, items - 1):
            return self._exact.search(checked, k, allowed=allowed)
        k = min(k, places)
        is_near = places == items and k <= self.reach.depth
        reach = self.reach if is_near else self.reach.of(k, share=places / items)
        rescored = -(-reach.rescored * items // places)
        if FEW * rescored > items:
            return self._exact.search(checked, k, allowed=allowed)
        reach = Reach(depth=k, lists=min(reach.lists, self.lists), rescored=rescored)
        rows, scores = np.empty((len(checked), k), np.int64), np.empty((len(checked), k), np.float32)
        for line, query in enumerate(checked):
            rows[line], scores[line] = self._found(query, k, reach=reach, allowed=allowed)
        return rows, scores

    def _found(
        self, query: NDArray[np.float32], k: int, *, reach: Reach, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.integer[Any]], NDArray[np.float32]]:
        """The best `k` for one query. Of items that score alike, ScaNN puts the first row first, as all indexes do."""
        most = k if allowed is None else reach.rescored
        found, scored = self._searcher.search(query, most, reach.rescored, reach.lists)
        if allowed is not None:
            kept = np.flatnonzero(allowed[found])[:k]
            found, scored = found[kept], scored[kept]
        if len(found) < k:
            rows, scores = self._exact.search(query[None], k, allowed=allowed)
            return rows[0], scores[0]
        return found, scored

    def save(self, directory: Path) -> None:
        """Write `embeddings.npy`, `reach.json` and, where there are lists, ScaNN's files in a folder of their own."""
        self._exact.save(directory)
        self.reach.save(directory)
        if self._searcher is None:
            return
        (directory / FOLDER).mkdir()
        self._searcher.serialize(str(directory / FOLDER), True)
        _put_in_order(directory / FOLDER)
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
            return cls(embeddings, None, lists=reach.lists, reach=reach)
        assets = "".join(f'assets {{ asset_type: {kind} asset_path: "{path}" }}\n' for kind, path in ASSETS.items())
        try:
            with in_huge_pages():
                searcher = _scann(f"{folder}: ").scann_pybind.ScannNumpy(str(folder), assets)
            listed = len(np.load(folder / ASSETS["AH_DATASET_NPY"], mmap_mode="r", allow_pickle=False))
            if listed != len(embeddings):
                raise ValueError(f"lists of {listed} items over {len(embeddings)} embeddings")
            lists = 1 + int(np.load(folder / ASSETS["TOKENIZATION_NPY"], mmap_mode="r", allow_pickle=False).max())
        except (RuntimeError, ValueError) as fault:
            reason = str(fault).splitlines()[0]
            raise ArtifactError(f"{folder}: not readable ({reason}). Build the index again.") from fault
        return cls(embeddings, searcher, lists=lists, reach=reach)


def is_installed() -> bool:
    """Whether ScaNN can be had here."""
    try:
        _scann()
    except MissingExtraError:
        return False
    return True


def _built(embeddings: NDArray[np.float32], lists: int, *, seed: int) -> Any:
    """ScaNN's own object: lists by distance, codes for two numbers each, the best scored by the embeddings."""
    builder = _scann().builder(embeddings, DEPTH, "dot_product")
    sampled = min(len(embeddings), round(SAMPLED_PER_ROOT * math.sqrt(len(embeddings))))
    listed = builder.tree(
        num_leaves=lists,
        num_leaves_to_search=-(-lists // 8),
        training_sample_size=sampled,
        min_partition_size=FEWEST_SAMPLED,
        avq=CENTRES_ANISOTROPY,
    )
    coded = listed.score_ah(2, anisotropic_quantization_threshold=ANISOTROPY).reorder(5 * DEPTH)
    config = coded.create_config()
    for part in ("partitioning {", "asymmetric_hash {"):  # The builder has no argument for it.
        config = config.replace(part, f"{part} clustering_seed: {seed}")
    with in_huge_pages():
        return _scann().create_searcher(embeddings, config, len(os.sched_getaffinity(0))).searcher


def _put_in_order(folder: Path) -> None:
    """Number the lists by their centres: ScaNN numbers them by chance, so equal ones would be written unlike."""
    from scann.partitioning.partitioner_pb2 import SerializedPartitioner

    partitioner = SerializedPartitioner()
    partitioner.ParseFromString((folder / ASSETS["PARTITIONER"]).read_bytes())
    root = partitioner.kmeans.kmeans_tree.root
    centres = [list(centre.dimension) for centre in root.centers]
    order = sorted(range(len(centres)), key=centres.__getitem__)
    for centre, place in zip(root.centers, order, strict=True):
        centre.dimension[:] = centres[place]
    (folder / ASSETS["PARTITIONER"]).write_bytes(partitioner.SerializeToString(deterministic=True))
    numbers = np.empty(len(order), np.int32)
    numbers[order] = np.arange(len(order))
    path = folder / ASSETS["TOKENIZATION_NPY"]
    np.save(path, numbers[np.load(path, allow_pickle=False)], allow_pickle=False)


def _scann(where: str = "") -> Any:
    """The part of ScaNN that takes NumPy's arrays; a fault begins with where it is needed."""
    try:
        from scann.scann_ops.py import scann_ops_pybind
    except ImportError as fault:
        raise MissingExtraError(
            f'{where}scann is not installed, and an index of kind "scann" needs it: pip install "twotower[scann]" (on '
            'Linux), or build the index again with index.kind = "ivf".'
        ) from fault
    return scann_ops_pybind
