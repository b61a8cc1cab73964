"""What people take next after what they took last: the baseline to beat wherever the order of a history matters."""

import numpy as np
import scipy.sparse as sparse

from twotower.data.histories import UserLog
from twotower.evaluation.baselines import ItemWeights


def markov(log: UserLog, *, items: int, window: int, shrinkage: float) -> ItemWeights:
    """A mixture of first-order Markov chains, one from each item of the history; with a `decay` the last ones count.

    The weight from item `i` to item `j` estimates the chance of `j` after `i`: their share of the transitions from `i`,
    pulled to 0 where there are few.

    Args:
        log: Positive train interactions.
        items: Items in the catalogue.
        window: Steps of one user within which an item counts as following; `d` steps count for `1 / d`.
        shrinkage: Transitions added to what left each item.

    Source:
        Rendle, Freudenthaler and Schmidt-Thieme, "Factorizing personalized Markov chains for next-basket
        recommendation", WWW 2010, https://doi.org/10.1145/1772690.1772773, whose chain is not factorised here
    """
    counts = count_transitions(log, items=items, window=window)
    scale = counts.sum(axis=1) + shrinkage
    share = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)
    return ItemWeights(name="markov", weights=(sparse.diags_array(share) @ counts).tocsr().astype(np.float32))


def count_transitions(log: UserLog, *, items: int, window: int) -> sparse.csr_array:
    """`[I, I]` how often the item of the row was followed by that of the column; see `markov`."""
    owner = np.repeat(np.arange(len(log.start) - 1), np.diff(log.start))
    found = sparse.csr_array((items, items), dtype=np.float64)
    for distance in range(1, min(window, len(owner) - 1) + 1):
        same = owner[distance:] == owner[:-distance]
        pairs = (log.item[:-distance][same], log.item[distance:][same])
        found = found + sparse.csr_array((np.full(len(pairs[0]), 1.0 / distance), pairs), shape=(items, items))
    return found.tocsr()
