"""Two stages as one ranking: exactly the candidates are reordered, and nothing else."""

from collections.abc import Callable
from typing import ClassVar

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from twotower.data.split import SplitDataset
from twotower.evaluation.contest import Arena, Outcome, run, run_two_stage
from twotower.evaluation.queries import Queries, static, successive

Make = Callable[..., SplitDataset]
TRAIN, TEST = 0, 2


class Fixed:
    """Retrieval and ranking scores that are the same for every query."""

    name = "fixed"
    label_kinds: ClassVar[dict[str, str]] = {}

    def __init__(self, retrieval: list[float], ranking: list[float]) -> None:
        self.retrieval, self.ranking = np.array(retrieval, np.float32), np.array(ranking, np.float32)

    def score(self, queries: Queries) -> np.ndarray:
        return np.repeat(self.retrieval[None], len(queries), axis=0)

    def rank(self, queries: Queries, candidates: np.ndarray) -> np.ndarray:
        assert len(candidates) == len(queries)
        return self.ranking[candidates]

    def predict(self, queries: Queries, item: np.ndarray) -> dict[str, np.ndarray]:
        return {}


def arena(items: int, *, candidates: int, exclude_seen: bool = True, scores: int = 1_000) -> Arena:
    return Arena(
        items=items,
        exclude_seen=exclude_seen,
        candidates=candidates,
        list_length=3,
        scores_in_memory=scores,
        progress=None,
    )


def ranks(found: dict[str, Outcome]) -> dict[str, list[int]]:
    return {name: outcome.ranks.tolist() for name, outcome in found.items()}


def one_user(make_dataset: Make, *, seen: list[int], relevant: list[int], items: int) -> Queries:
    rows = [(0, item, 1, TRAIN) for item in seen] + [(0, item, 5, TEST) for item in relevant]
    return static(make_dataset(rows, users=1, items=items))


def test_ranking_reorders_the_candidates_and_leaves_the_rest(make_dataset: Make) -> None:
    queries = one_user(make_dataset, seen=[0], relevant=[2, 3, 5], items=6)
    model = Fixed([9, 5, 4, 3, 2, 1], [0, 1, 3, 2, 9, 9])
    # Without the seen item 0 the candidates are 1, 2, 3; ranking puts 2 first and 3 second; 5 stays fifth.
    found = run_two_stage(model, queries, arena=arena(6, candidates=3))
    assert ranks(found) == {"retrieval": [2, 3, 5], "two_stage": [1, 2, 5], "ceiling": [1, 2, 5]}
    assert found["retrieval"].lists.tolist() == [[1, 2, 3]]
    assert found["two_stage"].lists.tolist() == [[2, 3, 1]]


def test_ties_in_the_ranking_count_against_the_model(make_dataset: Make) -> None:
    queries = one_user(make_dataset, seen=[], relevant=[0], items=4)
    assert ranks(run_two_stage(Fixed([4, 3, 2, 1], [0, 0, 0, 9]), queries, arena=arena(4, candidates=3)))[
        "two_stage"
    ] == [3]


def test_a_tie_on_the_edge_of_the_candidates_counts_as_not_retrieved(make_dataset: Make) -> None:
    queries = one_user(make_dataset, seen=[], relevant=[1], items=4)
    found = run_two_stage(Fixed([4, 3, 3, 1], [0, 9, 9, 9]), queries, arena=arena(4, candidates=2))
    assert ranks(found) == {"retrieval": [3], "two_stage": [3], "ceiling": [3]}


def test_a_ranking_score_that_is_no_number_ranks_last_among_the_candidates(make_dataset: Make) -> None:
    queries = one_user(make_dataset, seen=[], relevant=[0], items=4)
    found = run_two_stage(Fixed([4, 3, 2, 1], [np.nan, 0, 0, 9]), queries, arena=arena(4, candidates=3))
    assert found["two_stage"].ranks.tolist() == [3]
    assert found["two_stage"].nan_scores == 1
    assert found["retrieval"].nan_scores == 0


def test_more_candidates_than_items_rank_all_that_is_left(make_dataset: Make) -> None:
    queries = one_user(make_dataset, seen=[1], relevant=[2], items=3)
    found = run_two_stage(Fixed([3, 2, 1], [0, 9, 5]), queries, arena=arena(3, candidates=100))
    assert ranks(found)["two_stage"] == [1]
    # The seen item never enters a list, which is then shorter than asked for.
    assert found["two_stage"].lists.tolist() == [[2, 0, -1]]


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 7), st.integers(0, 9)), min_size=4, max_size=40),
    st.integers(1, 9),
    st.integers(0, 2**31),
    st.booleans(),
)
def test_stages_agree_with_a_plain_sort(
    make_dataset: Make, rows: list, candidates: int, seed: int, exclude_seen: bool
) -> None:
    dataset = make_dataset([(*row, TEST if row[2] >= 5 else TRAIN) for row in rows], users=3, items=8)
    generator = np.random.default_rng(seed)
    model = Fixed(generator.permutation(8).tolist(), generator.permutation(8).tolist())
    for queries in (successive(dataset), static(dataset)):
        seen = [set() for _ in range(len(queries))]
        first, end = queries.known.before(queries.user, queries.timestamp)
        if exclude_seen:
            seen = [set(queries.known.item[a:b].tolist()) for a, b in zip(first, end, strict=True)]
        countable = [
            item not in seen[query] for query, item in zip(queries.pair_query(), queries.relevant, strict=True)
        ]
        left = [out for place, out in enumerate(seen) if any(np.array(countable)[queries.pair_query() == place])]
        queries = queries.keep_pairs(np.array(countable, bool))
        found = run_two_stage(
            model, queries, arena=arena(8, candidates=candidates, exclude_seen=exclude_seen, scores=9)
        )
        for pair, (query, item) in enumerate(zip(queries.pair_query(), queries.relevant.tolist(), strict=True)):
            order = [row for row in np.argsort(-model.retrieval).tolist() if row not in left[query]]
            top = sorted(order[:candidates], key=lambda row: -model.ranking[row])
            assert found["retrieval"].ranks[pair] == order.index(item) + 1
            assert found["two_stage"].ranks[pair] == [*top, *order[candidates:]].index(item) + 1
            assert found["ceiling"].ranks[pair] <= found["two_stage"].ranks[pair] or len(queries.relevant) > len(left)


def test_blocks_bound_the_memory_and_not_the_result(make_dataset: Make) -> None:
    generator = np.random.default_rng(2)
    rows = [(int(u), int(i), int(t), TEST if t > 6 else TRAIN) for u, i, t in generator.integers(0, 10, (80, 3))]
    queries = static(make_dataset(rows, users=10, items=10))
    model = Fixed(generator.permutation(10).tolist(), [0.0] * 10)
    done: list[tuple[str, int, int]] = []
    small = Arena(
        items=10,
        exclude_seen=False,
        candidates=3,
        list_length=3,
        scores_in_memory=20,
        progress=lambda what, at, total: done.append((what, at, total)),
    )
    one, other = (
        run(model, queries, arena=small),
        run(model, queries, arena=arena(10, candidates=3, exclude_seen=False)),
    )
    assert one.ranks.tolist() == other.ranks.tolist()
    assert one.lists.tolist() == other.lists.tolist()
    assert done[-1] == ("fixed", len(queries), len(queries))
    assert len(done) > 1
