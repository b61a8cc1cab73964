"""Implicit matrix factorisation by alternating least squares: the classic of collaborative filtering, well regularised.

A user's factors are solved from the history alone, so that new users and histories that advance need no retraining.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from twotower.evaluation.baselines import faded_histories
from twotower.evaluation.queries import Queries
from twotower.evaluation.ranks import blocks

BLOCK = 256
"""Systems of equations held at a time."""

Factors = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Penalty:
    """What keeps the factors from fitting what was met and nothing else."""

    unobserved: float
    """Weight of every (user, item) pair's pull towards 0; a pair that was met weighs 1."""
    l2: float
    """Weight of a row's squared factors, times the weight of all pairs that the row is in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ials:
    """Factors of the items, for which each query's own are solved when it asks."""

    items: Factors
    """`[I, D]`."""
    penalty: Penalty
    decay: float = 1.0
    """What an item counts for with each step that it is older than the latest; 1 forgets nothing."""
    name: str = "ials"

    def score(self, queries: Queries) -> Factors:
        # Many ask again before anything is added to their history: each history is solved once.
        _, end = queries.known_positives.before(queries.user, queries.timestamp)
        fresh = np.ones(len(queries), bool)
        fresh[1:] = (queries.user[1:] != queries.user[:-1]) | (end[1:] != end[:-1])
        histories = faded_histories(queries, items=len(self.items), decay=self.decay)
        solved = best_rows(histories[np.flatnonzero(fresh)], self.items, penalty=self.penalty)
        scores: Factors = solved[np.cumsum(fresh) - 1] @ self.items.T
        return scores


def ials(matrix: sparse.csr_array, *, dim: int, penalty: Penalty, sweeps: int, seed: int) -> Ials:
    """Factors `w` of users and `h` of items with `w . h` near 1 for what was met, and small elsewhere.

    Minimises the sum of `(w . h - 1)^2` over what was met, plus `unobserved` times the sum of `(w . h)^2` over all
    pairs, plus `l2` times each row's squares, these scaled by the weight of all pairs that the row is in.

    Args:
        matrix: `[U, I]` of zeros and ones.
        sweeps: How often both sides are solved in turn.

    Source:
        Hu, Koren and Volinsky, "Collaborative filtering for implicit feedback datasets", ICDM 2008,
        https://doi.org/10.1109/ICDM.2008.22; regularised as in Rendle, Krichene, Zhang and Koren, "Revisiting the
        performance of iALS on item recommendation benchmarks", RecSys 2022, https://doi.org/10.1145/3523227.3548486
    """
    transposed = matrix.T.tocsr()
    generator = np.random.default_rng(seed)
    items = (generator.standard_normal((matrix.shape[1], dim)) * 0.1 / np.sqrt(dim)).astype(np.float32)
    for _ in range(sweeps):
        users = best_rows(matrix, items, penalty=penalty)
        items = best_rows(transposed, users, penalty=penalty)
    return Ials(items=items, penalty=penalty)


def best_rows(weights: sparse.csr_array, fixed: Factors, *, penalty: Penalty) -> Factors:
    """`[n, D]` the factors of each row that minimise the loss while those of the other side stay.

    Args:
        weights: `[n, m]` what each pair that was met weighs.
        fixed: `[m, D]` the factors of the other side.
    """
    found = np.empty((weights.shape[0], fixed.shape[1]), np.float32)
    own = np.arange(fixed.shape[1])
    # The systems are small: a library's threads would cost more than they bring.
    with threadpool_limits(limits=1, user_api="blas"):
        everything = np.float32(penalty.unobserved) * (fixed.T @ fixed)
        for start, stop in blocks(len(found), BLOCK):
            edges = list(itertools.pairwise(weights.indptr[start : stop + 1].tolist()))
            met = [(weights.data[first:end], fixed[weights.indices[first:end]]) for first, end in edges]
            system = np.stack([(held * weight[:, None]).T @ held for weight, held in met]) + everything
            total = np.array([weight.sum() for weight, _ in met]) + penalty.unobserved * len(fixed)
            system[:, own, own] += (penalty.l2 * total[:, None]).astype(np.float32)
            target = np.stack([weight @ held for weight, held in met])
            found[start:stop] = np.linalg.solve(system, target[:, :, None])[:, :, 0]
    return found
