"""An answer on rows -> the same in words: ids, titles, what brought each item, and notes on what was passed over."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twotower.model.exported import ExportedModel
from twotower.serving.answers.answering import Answered
from twotower.serving.answers.asking import Id
from twotower.serving.answers.catalogue import Catalogue
from twotower.serving.answers.explaining import MOST_ITEMS, because
from twotower.serving.answers.results import Because, Bringer, Explanation, RecommendedItem

NAMED = 3
"""Unknown ids that a note names."""


def rows_of(catalogue: Catalogue, item_ids: Iterable[Id]) -> tuple[NDArray[np.int64], list[str]]:
    """The rows of the ids of items that can come, and the other ids."""
    rows, unknown = [], []
    for item_id in item_ids:
        row = catalogue.row(text := str(item_id))
        if row is None or not catalogue.can_come(row):
            unknown.append(text)
        else:
            rows.append(row)
    return np.array(rows, np.int64), unknown


def in_words(answered: Answered, catalogue: Catalogue) -> tuple[RecommendedItem, ...]:
    """The answer to the first query."""
    found, ranked = answered.found, answered.ranked
    count = int(found.count[0])
    rows, scores = found.row[0, :count].tolist(), found.score[0, :count].tolist()
    titles = catalogue.titles(found.row[0, :count])
    if ranked is not None:
        ranks = [rank if rank <= answered.retrieved else None for rank in ranked.retrieval_rank[0, :count].tolist()]
        similar = ranked.retrieval_score[0, :count].tolist()
        labels = [(name, each[0, :count].tolist()) for name, each in ranked.labels.items()]
    elif answered.fallback == "retrieval":
        ranks, similar, labels = list(range(1, count + 1)), scores, []
    else:
        ranks, similar, labels = [None] * count, [None] * count, []
    return tuple(
        RecommendedItem(
            item_id=catalogue.id(row),
            title=titles[place],
            rank=place + 1,
            score=scores[place],
            retrieval_rank=ranks[place],
            retrieval_score=similar[place],
            labels={name: values[place] for name, values in labels},
        )
        for place, row in enumerate(rows)
    )


def explained(
    items: tuple[RecommendedItem, ...],
    answered: Answered,
    *,
    model: ExportedModel,
    without: Mapping[str, NDArray[Any]],
    met: list[str],
    catalogue: Catalogue,
) -> tuple[RecommendedItem, ...]:
    """The items with what brought them and what pulled them up.

    Args:
        items: The answer in words.
        answered: The same on rows.
        model: Which answered.
        without: The query tower's inputs for `h` queries, each without one item met.
        met: Their `h` ids.
        catalogue: What the answer came from.
    """
    rows = answered.found.row[0, : len(items)]
    pulled: list[tuple[Because, ...]] = [()] * len(items)
    if met and answered.ranked is not None:
        pulled[:MOST_ITEMS] = because(
            model, without, met, rows=rows[:MOST_ITEMS], scores=answered.found.score[0], catalogue=catalogue
        )
    rules = answered.rules or ((),) * len(items)
    told = []
    for place, (item, row, reasons) in enumerate(zip(items, rows.tolist(), pulled, strict=True)):
        source = _source(row, answered, is_pinned=bool(answered.is_pinned[place]), catalogue=catalogue)
        why = Explanation(source=source, because=reasons, rules=rules[place])
        told.append(replace(item, explanation=why))
    return tuple(told)


def passed_over(where: str, unknown: list[str]) -> list[str]:
    """A note about ids that the catalogue does not hold, where there are any."""
    return [f"{where}: not in the catalogue, passed over: {named(unknown)}"] if unknown else []


def named(ids: list[str]) -> str:
    """The first of some ids, and how many more there are."""
    more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
    return ", ".join(f"'{each}'" for each in ids[:NAMED]) + more


def _source(row: int, answered: Answered, *, is_pinned: bool, catalogue: Catalogue) -> Bringer:
    """What brought an item."""
    if is_pinned:
        return "pinned"
    if catalogue.is_new(row):
        return "new"
    return "popular" if answered.fallback == "popular" else "index"
