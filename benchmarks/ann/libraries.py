"""Each peer behind the same few calls, with the settings that its own documentation starts from.

What a search may be told, which decides how much it finds and how long it takes, lies in `ladders`: each is a row of
settings of which every next one finds more, and takes longer.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
Search = Callable[[NDArray[np.float32]], Rows]
"""`[D]` one query -> `[K]` the rows found."""
Setting = dict[str, int]
Ladders = tuple[tuple[Setting, ...], ...]
K = 100
LINKS, BUILD_DEPTH = 32, 128
"""Of every graph: the same for each library that builds one."""
REORDERED = (1.25, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 10, 12, 16, 20)
"""Items scored again, as multiples of K."""
DEPTHS = tuple(round(K * 2 ** (step / 8)) for step in range(51))
"""Candidates weighed by a graph's search: 100 to 7,600, in steps as small as those that ours is tuned by."""
LEAVES = tuple(sorted({round(2 ** (step / 8)) for step in range(8, 81)}))
"""Lists read: 2 to 1,024, in steps as small."""


class Library(Protocol):
    """An index of one library; made by `build` or by `load`."""

    ladders: Ladders

    def build(self, embeddings: NDArray[np.float32], threads: int) -> None:
        """Take in `[I, D]` embeddings, compared by inner product."""

    def save(self, directory: Path) -> None:
        """Write what `load` needs into an open directory."""

    def load(self, directory: Path) -> None:
        """Open what was saved, as a server would."""

    def search(self, setting: Setting) -> Search:
        """A search for the best K by one thread."""


def lists_for(items: int, *, per_root: float = 2.0) -> int:
    """How many lists so many items lie in."""
    return max(1, round(per_root * math.sqrt(items)))


class Faiss:
    """What all indexes of faiss share."""

    ladders: Ladders = (({},),)
    _index: Any

    def save(self, directory: Path) -> None:
        """One file."""
        import faiss

        faiss.write_index(self._index, str(directory / "faiss"))

    def load(self, directory: Path) -> None:
        """Likewise."""
        import faiss

        self._index = faiss.read_index(str(directory / "faiss"))
        faiss.omp_set_num_threads(1)

    def search(self, setting: Setting) -> Search:
        """`setting` is what `_told` puts into the index."""
        self._told(setting)
        return lambda query: np.asarray(self._index.search(query[None], K)[1][0])

    def _told(self, setting: Setting) -> None:
        del setting  # An exact index has none.


class FaissFlat(Faiss):
    """Exact."""

    def build(self, embeddings: NDArray[np.float32], threads: int) -> None:
        """A copy."""
        import faiss

        faiss.omp_set_num_threads(threads)
        self._index = faiss.IndexFlatIP(embeddings.shape[1])
        self._index.add(embeddings)


class FaissIvf(Faiss):
    """Lists of whole embeddings."""

    ladders: Ladders = (tuple({"nprobe": each} for each in LEAVES),)

    def build(self, embeddings: NDArray[np.float32], threads: int) -> None:
        """As many lists as ours has."""
        import faiss

        faiss.omp_set_num_threads(threads)
        items, dim = embeddings.shape
        self._quantizer = faiss.IndexFlatIP(dim)
        self._index = faiss.IndexIVFFlat(self._quantizer, dim, lists_for(items), faiss.METRIC_INNER_PRODUCT)
        self._index.train(embeddings)
        self._index.add(embeddings)

    def _told(self, setting: Setting) -> None:
        self._index.nprobe = setting["nprobe"]


class FaissHnsw(Faiss):
    """A graph."""

    ladders: Ladders = (tuple({"efSearch": each} for each in DEPTHS),)

    def build(self, embeddings: NDArray[np.float32], threads: int) -> None:
        """With whole embeddings."""
        import faiss

        faiss.omp_set_num_threads(threads)
        self._index = faiss.IndexHNSWFlat(embeddings.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
        self._index.hnsw.efConstruction = BUILD_DEPTH
        self._index.add(embeddings)

    def _told(self, setting: Setting) -> None:
        self._index.hnsw.efSearch = setting["efSearch"]


class Hnswlib:
    """A graph."""

    ladders: Ladders = (tuple({"ef": each} for each in DEPTHS),)
    _index: Any

    def build(self, embeddings: NDArray[np.float32], threads: int) -> None:
        """With whole embeddings."""
        import hnswlib

        items, self._dim = embeddings.shape
        self._index = hnswlib.Index("ip", self._dim)
        self._index.init_index(items, M=LINKS, ef_construction=BUILD_DEPTH)
        self._index.add_items(embeddings, num_threads=threads)

    def save(self, directory: Path) -> None:
        """The file does not say how wide it is."""
        self._index.save_index(str(directory / "hnswlib"))
        np.save(directory / "dim.npy", self._dim)

    def load(self, directory: Path) -> None:
        """Into memory."""
        import hnswlib

        self._index = hnswlib.Index("ip", int(np.load(directory / "dim.npy")))
        self._index.load_index(str(directory / "hnswlib"))

    def search(self, setting: Setting) -> Search:
        """`ef` candidates are weighed."""
        self._index.set_ef(setting["ef"])
        return lambda query: np.asarray(self._index.knn_query(query, K, num_threads=1)[0][0].astype(np.int64))


class Usearch:
    """A graph."""

    ladders: Ladders = (tuple({"expansion": each} for each in DEPTHS),)
    _index: Any

    def build(self, embeddings: NDArray[np.float32], threads: int) -> None:
        """With whole embeddings."""
        from usearch.index import Index

        items, dim = embeddings.shape
        self._index = Index(ndim=dim, metric="ip", dtype="f32", connectivity=LINKS, expansion_add=BUILD_DEPTH)
        self._index.add(np.arange(items), embeddings, threads=threads)

    def save(self, directory: Path) -> None:
        """One file."""
        self._index.save(str(directory / "usearch"))

    def load(self, directory: Path) -> None:
        """Into memory: as a mapped file it answers more slowly."""
        from usearch.index import Index

        self._index = Index.restore(str(directory / "usearch"))

    def search(self, setting: Setting) -> Search:
        """`expansion` candidates are weighed."""
        self._index.expansion_search = setting["expansion"]
        return lambda query: np.asarray(self._index.search(query, K, threads=1).keys.astype(np.int64))


class Scann:
    """Lists of half-bytes, each for two numbers, learned with its anisotropic loss; the best scored again.

    What its documentation leaves open is left at its defaults: how the lists' centres are learned, and from how many.
    """

    per_root: ClassVar[float] = 2.0
    """Lists, as a multiple of the root of the number of items; its examples have 2,000 of them for 1.2 million."""
    ladders: Ladders = tuple(
        tuple({"reorder": round(times * K), "leaves": each} for each in LEAVES) for times in REORDERED
    )
    _index: Any

    def build(self, embeddings: NDArray[np.float32], threads: int) -> None:
        """As its documentation builds it."""
        builder = self._tree(embeddings, threads)
        self._index = builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(2 * K).build()

    def save(self, directory: Path) -> None:
        """Several files."""
        self._index.serialize(str(directory))

    def load(self, directory: Path) -> None:
        """Into memory."""
        import scann

        self._index = scann.scann_ops_pybind.load_searcher(str(directory))

    def search(self, setting: Setting) -> Search:
        """The best `reorder` items of the nearest `leaves` are scored again."""
        reorder, leaves = setting["reorder"], setting["leaves"]
        return lambda query: np.asarray(
            self._index.search(
                query, final_num_neighbors=K, pre_reorder_num_neighbors=reorder, leaves_to_search=leaves
            )[0].astype(np.int64)
        )

    def _tree(self, embeddings: NDArray[np.float32], threads: int) -> Any:
        import scann

        builder = scann.scann_ops_pybind.builder(embeddings, K, "dot_product").set_n_training_threads(threads)
        lists = lists_for(len(embeddings), per_root=self.per_root)
        sampled = min(len(embeddings), 250_000)
        return builder.tree(num_leaves=lists, num_leaves_to_search=lists // 16 + 1, training_sample_size=sampled)


class ScannRoot(Scann):
    """As `Scann`, in as many lists as the root of the number of items: what its documentation calls roughly right."""

    per_root = 1.0


class ScannBytes(Scann):
    """Lists of bytes, nothing scored again."""

    ladders: Ladders = (tuple({"reorder": K, "leaves": each} for each in LEAVES),)

    def build(self, embeddings: NDArray[np.float32], threads: int) -> None:
        """As its documentation builds it."""
        self._index = self._tree(embeddings, threads).score_brute_force(quantize=True).build()


class ScannExact(Scann):
    """Exact."""

    ladders: Ladders = (({},),)

    def build(self, embeddings: NDArray[np.float32], threads: int) -> None:
        """A copy."""
        import scann

        builder = scann.scann_ops_pybind.builder(embeddings, K, "dot_product").set_n_training_threads(threads)
        self._index = builder.score_brute_force().build()

    def search(self, setting: Setting) -> Search:
        """Nothing can be told."""
        del setting
        return lambda query: np.asarray(self._index.search(query, final_num_neighbors=K)[0].astype(np.int64))


EXACT: dict[str, type[Library]] = {"faiss flat": FaissFlat, "scann exact": ScannExact}
APPROXIMATE: dict[str, type[Library]] = {
    "faiss ivf": FaissIvf,
    "faiss hnsw": FaissHnsw,
    "scann": Scann,
    "scann root": ScannRoot,
    "scann bytes": ScannBytes,
    "usearch": Usearch,
    "hnswlib": Hnswlib,
}
