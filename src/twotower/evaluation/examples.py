"""A few real users, for the eye: what they had met, what was retrieved for them, and how ranking reordered it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from twotower.data.split import SplitDataset
from twotower.evaluation.contenders import TwoStageContender
from twotower.evaluation.contest import Arena, score_block
from twotower.evaluation.queries import Queries
from twotower.evaluation.ranks import LOWEST, top_items

HISTORY = 8
"""Items of a history that are shown."""
TAKEN = 5
"""A user who took fewer items in the test part shows little; preferred are those who took as many."""


def examples(
    model: TwoStageContender, dataset: SplitDataset, *, queries: Queries, arena: Arena, count: int, seed: int
) -> list[dict[str, Any]]:
    """Users drawn at random, not picked for a good result: all but one with a history, one without if there is one.

    Args:
        queries: Of the static protocol, so that all of a user's test items are relevant at once.
    """
    first, end = queries.known_positives.before(queries.user, queries.timestamp)
    generator = np.random.default_rng(seed)
    telling = np.diff(queries.relevant_start) >= TAKEN
    chosen: list[int] = []
    for group, wanted in ((end > first, count - 1), (end == first, 1 if count else 0)):
        drawn = generator.permutation(np.flatnonzero(group))
        chosen += drawn[np.argsort(~telling[drawn], kind="stable")][: max(wanted, 0)].tolist()
    return [_example(model, dataset, query=queries.take(place, place + 1), arena=arena) for place in chosen]


def titles(dataset: SplitDataset) -> NDArray[np.object_]:
    """`[I]` what a reader calls each item: its title, or its id where it has none."""
    column = dataset.metadata.get("title_column")
    if not column or column not in dataset.items.column_names:
        return dataset.item_ids
    given = dataset.items.column(column).to_pylist()
    named = [title if title else item for title, item in zip(given, dataset.item_ids, strict=True)]
    return np.array([str(name) for name in named], dtype=object)


def _example(model: TwoStageContender, dataset: SplitDataset, *, query: Queries, arena: Arena) -> dict[str, Any]:
    scores, _, _ = score_block(model, query, arena=arena)
    candidates = top_items(scores, arena.candidates)
    candidates = candidates[:, scores[0, candidates[0]] > LOWEST]
    final = np.nan_to_num(model.rank(query, candidates)[0], nan=-np.inf)
    order = np.argsort(-final, kind="stable")
    names, relevant = titles(dataset), set(query.relevant.tolist())
    final_rank = np.empty(len(order), np.int64)
    final_rank[order] = np.arange(1, len(order) + 1)

    def row(place: int) -> dict[str, Any]:
        item = int(candidates[0, place])
        return {
            "item_id": str(dataset.item_ids[item]),
            "title": str(names[item]),
            "retrieval_rank": int(place) + 1,
            "final_rank": int(final_rank[place]),
            "relevant": item in relevant,
        }

    first, end = query.known_positives.before(query.user, query.timestamp)
    past = query.known_positives.item[max(first[0], end[0] - HISTORY) : end[0]][::-1]
    return {
        "user_id": str(dataset.user_ids[query.user[0]]),
        "history_length": int(end[0] - first[0]),
        "history": [str(names[item]) for item in past],
        "relevant_items": len(relevant),
        "candidates": len(order),
        "relevant_among_candidates": len(relevant & set(candidates[0].tolist())),
        "retrieved": [row(place) for place in range(min(arena.list_length, len(order)))],
        "ranked": [row(place) for place in order[: arena.list_length].tolist()],
    }
