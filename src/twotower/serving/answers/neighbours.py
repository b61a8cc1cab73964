"""An item -> the items most like it."""

import numpy as np
from numpy.typing import NDArray

from twotower.errors import RequestError
from twotower.index.exact import best
from twotower.serving.answers.catalogue import Catalogue
from twotower.serving.answers.results import SimilarItem, SimilarItems


def neighbours(
    catalogue: Catalogue,
    item_id: str,
    *,
    k: int,
    excluded: NDArray[np.int64],
    allowed: NDArray[np.bool_] | None,
) -> SimilarItems:
    """The `k` items whose candidate embeddings point where this item's does, by cosine.

    Args:
        catalogue: What can come.
        item_id: Whose neighbours; itself never comes. Where the model can read nothing of it, none do.
        k: How many.
        excluded: Rows that must not come.
        allowed: By row; None allows all.

    Raises:
        RequestError: the item is not in the catalogue.
    """
    row = catalogue.row(item_id)
    if row is None or not catalogue.can_come(row):
        raise RequestError(f"Item '{item_id}' is not in the catalogue of {len(catalogue)}. Name another.")
    title, bundle = catalogue.title(row), catalogue.bundle.id
    if catalogue.says_nothing(row):
        return SimilarItems(item_id=item_id, title=title, items=(), bundle=bundle)
    cosine = catalogue.cosine(row)
    cosine[catalogue.gone] = -np.inf
    cosine[[row, *excluded]] = -np.inf
    if allowed is not None:
        cosine[~allowed] = -np.inf
    rows, scores = best(cosine[None, :], min(k, len(cosine)))
    chosen = [(place, near) for place, near in enumerate(rows[0].tolist()) if scores[0, place] > -np.inf]
    items = tuple(
        SimilarItem(
            item_id=catalogue.id(near), title=catalogue.title(near), rank=place + 1, score=float(scores[0, place])
        )
        for place, near in chosen
    )
    return SimilarItems(item_id=item_id, title=title, items=items, bundle=bundle)
