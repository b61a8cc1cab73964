"""Why an item stands in an answer: what its score would be, had one item of the history not been met."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twotower.model.exported import SCORE, ExportedModel
from twotower.serving.answers.catalogue import Catalogue
from twotower.serving.answers.results import Because

NAMED = 3
"""Items met that are told of each item of an answer."""
MOST_ITEMS = 50
"""Of an answer that are explained by what was met, the first."""
MOST_MET = 50
"""Items met that are tried, the latest: each asks both stages' models again for every item."""


def because(
    model: ExportedModel,
    without: Mapping[str, NDArray[Any]],
    met: list[str],
    *,
    rows: NDArray[np.int64],
    scores: NDArray[np.float32],
    catalogue: Catalogue,
) -> list[tuple[Because, ...]]:
    """The items met that pulled each item of an answer up most.

    The effect of one is by how much the score falls when the query is asked without it. That holds for any tower and
    any head; effects of items that say the same do not add up.

    Args:
        model: Which answered.
        without: The query tower's inputs for `h` queries, each without one item met.
        met: Their `h` ids.
        rows: `[n]` the answer.
        scores: `[n]` or more, its scores with the whole history.
        catalogue: What the answer came from.
    """
    vectors = model.embed_queries(without)
    count, items = len(met), len(rows)
    candidates, trends = catalogue.ranking(rows), catalogue.trends(rows)
    score = model.rank(
        vectors.ranking,
        np.broadcast_to(candidates, (count, *candidates.shape)),
        trends=np.broadcast_to(trends, (count, *trends.shape)),
    )[SCORE]
    effect = scores[:items] - score
    strongest = np.argsort(-effect, axis=0, kind="stable")[:NAMED].T
    named = {place: _named(met[place], catalogue) for place in set(strongest.ravel().tolist())}
    return [
        tuple(
            Because(item_id=named[place][0], title=named[place][1], effect=float(effect[place, item]))
            for place in places
            if effect[place, item] > 0
        )
        for item, places in enumerate(strongest.tolist())
    ]


def _named(item_id: str, catalogue: Catalogue) -> tuple[str, str | None]:
    row = catalogue.row(item_id)
    return item_id, None if row is None else catalogue.title(row)
