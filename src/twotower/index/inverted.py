"""For catalogues too large to score in full: items in lists of neighbours, a few of which are read for a query.

What is read are short codes of the embeddings; the best of them are scored again by the embeddings themselves, which
stay on disk. A million items, 64 wide, take 25 to 85 MB of memory.
"""

from pathlib import Path
from typing import Any, ClassVar, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from twotower.errors import ArtifactError
from twotower.index.contract import EMBEDDINGS, checked_allowed, checked_embeddings, checked_queries, load_embeddings
from twotower.index.exact import ExactIndex, best
from twotower.index.reach import Codes, Reach
from twotower.index.selector import selector

LISTS = "lists.faiss"

PADDED_TO: dict[Codes, int] = {"bytes": 16, "nibbles": 2}
"""The width is a multiple of it: what a register takes, or what shares a code."""

FEWEST = 1024
"""Embeddings that the codes are learned from, at least; where there are fewer, some count more than once."""
CODED_SAMPLE = 65_536
"""And at most; as many are coded at once."""
PER_LIST = 40
"""Items in a list on average, at least."""
SAMPLED_PER_LIST = 64
"""Items of each list that its centre is learned from."""
ROUNDS = 10
"""Of moving the centres."""
SEED = 1234
"""Of the samples: an index depends on the embeddings alone."""
DEPTH = 300
"""The `k` that an index is meant for which nobody has tuned."""
SCANNED = 30_000
"""Allowed items up to which each is scored. Measured at a million items, 64 wide, on one core, for the best 400:
scoring 20,000 takes .8 ms, 30,000 1.6 ms, 50,000 3.6 ms; a search among the last two 1.8 and 1.1 ms."""
FEW = 4
"""Fewer items than so many times those to be scored again are all scored at once."""


class IvfIndex:
    """Lists of neighbours, read by inner product; see `contract.Index`.

    faiss is asked one query at a time. It then starts no thread of its own, which would spin on a core that somebody
    else may need, and a query gets the same answer alone as among others.

    Source:
        Jegou, Douze and Schmid, "Product quantization for nearest neighbor search", TPAMI 2011,
        https://doi.org/10.1109/TPAMI.2010.57; codes that are read within registers: Andre, Kermarrec and Le Scouarnec,
        "Quicker ADC", TPAMI 2021, https://doi.org/10.1109/TPAMI.2019.2952606; built by faiss.
    """

    kind: ClassVar[str] = "ivf"

    def __init__(self, embeddings: NDArray[np.float32], lists: Any, *, reach: Reach) -> None:
        """Hold `[I, D]` embeddings and the faiss index over them, as `build` and `load` make it."""
        self._exact = ExactIndex(embeddings)
        self._lists = lists
        self.reach = reach

    @property
    def embeddings(self) -> NDArray[np.float32]:
        """`[I, D]`, by row of the catalogue."""
        return self._exact.embeddings

    @property
    def lists(self) -> int:
        """How many lists there are."""
        return int(self._lists.nlist)

    @property
    def codes(self) -> Codes:
        """What the lists hold."""
        return "bytes" if isinstance(self._lists, faiss.IndexIVFScalarQuantizer) else "nibbles"

    @classmethod
    def build(cls, embeddings: NDArray[np.float32]) -> Self:
        """Put `[I, D]` embeddings into about `2 sqrt(I)` lists of bytes, of which a search reads an eighth and more.

        That is wide enough for most; `tune.tuned` finds what is.
        """
        checked = checked_embeddings(embeddings)
        items = len(checked)
        count = max(1, min(round(2 * items**0.5), items // PER_LIST))
        lists = min(count, count // 8 + -(-count * 6 * DEPTH // items))
        lists_of_bytes = _coded(checked, _centres(checked, count), codes="bytes")
        return cls(checked, lists_of_bytes, reach=Reach(depth=DEPTH, lists=lists, rescored=2 * DEPTH))

    def recoded(self, codes: Codes) -> Self:
        """The same lists, holding other codes."""
        centres = self._lists.quantizer.reconstruct_n(0, self.lists)[:, : self.embeddings.shape[1]]
        return type(self)(self.embeddings, _coded(self.embeddings, centres, codes=codes), reach=self.reach)

    def reaching(self, reach: Reach) -> Self:
        """The same lists, searched further or less far."""
        return type(self)(self.embeddings, self._lists, reach=reach)

    def codes_read(self, queries: NDArray[np.float32], lists: int) -> float:
        """How many items a search of so many lists reads the codes of, on average over `[q, D]` queries."""
        sizes = np.array([self._lists.invlists.list_size(place) for place in range(self.lists)])
        _, nearest = self._lists.quantizer.search(_padded(queries, self._lists.d), lists)
        return float(sizes[nearest].sum(axis=1).mean())

    def search(
        self, queries: NDArray[np.float32], k: int, *, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The rows found and their scores, both `[q, min(k, I')]`; see `contract.Index.search`.

        Every allowed item is scored where these are few, in all or beside those asked for. All lists are read for a
        query whose nearest ones hold fewer than `k` of them.
        """
        items, dim = self.embeddings.shape
        checked = checked_queries(queries, k, dim=dim)
        places = items if allowed is None else int(np.count_nonzero(checked_allowed(allowed, items=items)))
        if places <= min(SCANNED, items - 1):
            return self._exact.search(checked, k, allowed=allowed)
        k = min(k, places)
        reach = self.reach.of(k, share=places / items)
        if FEW * reach.rescored > places:
            return self._exact.search(checked, k, allowed=allowed)
        bits = selector(allowed)
        rows, scores = np.empty((len(checked), k), np.int64), np.empty((len(checked), k), np.float32)
        for line, query in enumerate(checked):
            found = self._found(query, lists=reach.lists, most=reach.rescored, bits=bits)
            if len(found) < k:  # The nearest lists hold little that is allowed.
                found = self._found(query, lists=self.lists, most=reach.rescored, bits=bits)
            columns, scored = best((np.take(self.embeddings, found, axis=0) @ query)[None, :], k)
            rows[line], scores[line] = found[columns[0]], scored[0]
        return rows, scores

    def _found(self, query: NDArray[np.float32], *, lists: int, most: int, bits: Any) -> NDArray[np.int64]:
        """The rows, ascending, of the best by code in the nearest lists."""
        settings = faiss.SearchParametersIVF(nprobe=min(lists, self.lists), sel=bits)  # type: ignore[call-arg]  # not so in faiss's stubs
        rows = self._lists.search(_padded(query[None, :], self._lists.d), most, params=settings)[1][0]
        return np.sort(rows[rows >= 0])

    def save(self, directory: Path) -> None:
        """Write `embeddings.npy`, `lists.faiss` with the codes, and `reach.json`."""
        self._exact.save(directory)
        faiss.write_index(self._lists, str(directory / LISTS))
        self.reach.save(directory)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Open what `save` wrote. The codes are read into memory, the embeddings stay on disk."""
        embeddings = load_embeddings(directory)
        path = directory / LISTS
        try:
            lists = faiss.read_index(str(path))
        except RuntimeError as fault:
            reason = str(fault).splitlines()[0]
            raise ArtifactError(f"{path}: not readable ({reason}). Build the index again.") from fault
        index = cls(embeddings, lists, reach=Reach.load(directory))
        if not _is_over(lists, embeddings):
            raise ArtifactError(f"{path}: not lists over {directory / EMBEDDINGS}. Build the index again.")
        return index


def _centres(embeddings: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """`[count, D]` the middles of the lists, by distance: the longest embeddings would else gather all others."""
    trained = faiss.Kmeans(
        embeddings.shape[1], count, niter=ROUNDS, seed=SEED, max_points_per_centroid=SAMPLED_PER_LIST
    )
    trained.train(_sample(embeddings, max(FEWEST, SAMPLED_PER_LIST * count)))
    return np.asarray(trained.centroids, np.float32)


def _coded(embeddings: NDArray[np.float32], centres: NDArray[np.float32], *, codes: Codes) -> Any:
    """The faiss index with each item in the list of the nearest centre."""
    width = -(-embeddings.shape[1] // PADDED_TO[codes]) * PADDED_TO[codes]
    by_product, by_distance = faiss.IndexFlatIP(width), faiss.IndexFlatL2(width)
    for quantizer in (by_product, by_distance):
        quantizer.add(_padded(centres, width))
    common = (by_product, width, len(centres))
    if codes == "bytes":
        eight_bits = faiss.ScalarQuantizer.QT_8bit
        index: Any = faiss.IndexIVFScalarQuantizer(*common, eight_bits, faiss.METRIC_INNER_PRODUCT)
    else:
        index = faiss.IndexIVFPQFastScan(*common, width // 2, 4, faiss.METRIC_INNER_PRODUCT)
    index.by_residual = True
    index.quantizer = by_distance
    index.train(_padded(_sample(embeddings, CODED_SAMPLE), width))
    for start in range(0, len(embeddings), CODED_SAMPLE):
        index.add(_padded(embeddings[start : start + CODED_SAMPLE], width))
    index.quantizer = by_product  # The index holds on to this one since it was made.
    return index


def _sample(embeddings: NDArray[np.float32], most: int) -> NDArray[np.float32]:
    """At most so many of the embeddings, and at least `FEWEST`."""
    chosen = np.random.default_rng(SEED).permutation(len(embeddings))[:most]
    return embeddings[np.resize(chosen, max(FEWEST, len(chosen)))]


def _padded(vectors: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """`[n, width]` with zeros behind, which change no inner product."""
    padded = np.zeros((len(vectors), width), np.float32)
    padded[:, : vectors.shape[1]] = vectors
    return padded


def _is_over(lists: Any, embeddings: NDArray[np.float32]) -> bool:
    """Whether a faiss index is one that `_coded` made of embeddings of this shape."""
    if not isinstance(lists, faiss.IndexIVFScalarQuantizer | faiss.IndexIVFPQFastScan):
        return False
    items, dim = embeddings.shape
    is_close = 0 <= lists.d - dim < max(PADDED_TO.values())
    return bool(is_close and lists.ntotal == items and lists.quantizer.ntotal == lists.nlist)
