"""The box of baselines: what each of them must do, and how its settings are chosen."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest

from twotower.data.pieces import narrowed
from twotower.data.split import SplitDataset
from twotower.evaluation import metrics, tuning
from twotower.evaluation.config import Baseline, EvaluateConfig
from twotower.evaluation.contest import Arena, answerable, run
from twotower.evaluation.names import NAMES
from twotower.evaluation.queries import Queries, static, successive

Make = Callable[..., SplitDataset]
USERS, ITEMS = 12, 20
SMALL = EvaluateConfig(ials_dims=(2, 3, 4), knn_neighbours=(3, 5, 9))
ALL = pytest.mark.parametrize("name", tuning.BOX)
ARENA = Arena(items=ITEMS, exclude_seen=True, candidates=5, list_length=3, scores_in_memory=10_000, progress=None)


@pytest.fixture
def dataset(make_dataset: Make) -> SplitDataset:
    generator = np.random.default_rng(0)
    rows = [(int(generator.integers(USERS - 2)), int(generator.integers(ITEMS)), second, 0) for second in range(120)]
    rows = [(user, item, second, 0 if second < 80 else 1 if second < 100 else 2) for user, item, second, _ in rows]
    # The last user but one meets something for the first time in the test part, and the last asks with nothing at all.
    rows += [(USERS - 2, 3, 121, 2), (USERS - 2, 4, 122, 2), (USERS - 1, 5, 123, 2)]
    return make_dataset(rows, users=USERS, items=ITEMS)


def tuned(
    dataset: SplitDataset, name: Any, config: EvaluateConfig = SMALL, *, protocol: str = "successive"
) -> tuning.Tuned:
    (found,) = tuning.tune(replace(config, baselines=(name,)), dataset, arena=ARENA, seed=1)
    return found[protocol]


def test_the_recipe_knows_every_baseline_of_the_box_and_each_has_a_name() -> None:
    assert tuple(tuning.BOX) == get_args(Baseline) == EvaluateConfig().baselines
    assert set(tuning.BOX) <= set(NAMES)


def test_every_baseline_that_can_be_tuned_has_the_same_budget() -> None:
    grids = {name: baseline.grid(EvaluateConfig()) for name, baseline in tuning.BOX.items()}
    sizes = {name: int(np.prod([len(values) for values in grid.values()])) for name, grid in grids.items() if grid}
    assert sizes == dict.fromkeys(sizes, 9)
    assert set(tuning.BOX) - set(sizes) == {"popularity"}


@ALL
def test_a_baseline_scores_every_item_of_every_query_with_numbers(dataset: SplitDataset, name: str) -> None:
    contender = tuned(dataset, name).contender
    assert contender.name == name
    for queries in (successive(dataset), static(dataset)):
        scores = contender.score(queries)
        assert scores.shape == (len(queries), ITEMS)
        assert scores.dtype == np.float32
        assert np.isfinite(scores).all()


@ALL
def test_a_baseline_orders_the_catalogue_for_whoever_has_no_history(dataset: SplitDataset, name: str) -> None:
    queries = successive(dataset)
    last = queries.take(len(queries) - 1, len(queries))
    assert last.user.tolist() == [USERS - 1]
    for someone in (last, replace(last, user=np.array([-1], np.int32))):
        scores = tuned(dataset, name).contender.score(someone)
        assert np.isfinite(scores).all()
        assert len(np.unique(scores)) > 1


@ALL
def test_a_baseline_gives_the_same_scores_again_and_query_by_query(dataset: SplitDataset, name: str) -> None:
    one, other = (tuned(dataset, name).contender for _ in range(2))
    queries = successive(dataset)
    together = one.score(queries)
    assert together.tolist() == other.score(queries).tolist()
    alone = np.concatenate([one.score(queries.take(place, place + 1)) for place in range(len(queries))])
    np.testing.assert_allclose(together, alone, atol=1e-5)


@ALL
def test_a_baseline_learns_nothing_from_the_test_part_but_what_was_known_by_then(
    dataset: SplitDataset, name: str
) -> None:
    queries = successive(dataset)
    later = dataset.timestamp > queries.timestamp[0]
    changed = replace(dataset, item=np.where(later, (dataset.item + 7) % ITEMS, dataset.item).astype(np.int32))
    scores, after = (
        tuning.known_in("successive", tuned(data, name).contender, dataset=data).score(successive(data).take(0, 1))
        for data in (dataset, changed)
    )
    assert scores.tolist() == after.tolist()


@ALL
def test_a_baseline_learns_from_the_whole_log_where_only_some_users_are_asked(dataset: SplitDataset, name: str) -> None:
    some = narrowed(dataset, np.arange(USERS) < 3)
    one = EvaluateConfig(
        knn_neighbours=(5,),
        ease_l2=(5.0,),
        ials_dims=(3,),
        markov_windows=(2,),
        recent_windows=(30,),
        history_decay=(0.9,),
    )
    queries = successive(some)
    scores, expected = (tuned(data, name, one).contender.score(queries) for data in (some, dataset))
    assert scores.tolist() == expected.tolist()


@pytest.mark.parametrize(("protocol", "ask"), [("successive", successive), ("static", static)])
@ALL
def test_the_chosen_settings_are_the_best_on_the_validation_queries_of_the_protocol(
    dataset: SplitDataset, name: str, protocol: str, ask: Callable[[SplitDataset, int], Queries]
) -> None:
    found = tuned(dataset, name, protocol=protocol)
    if found.validation is None:
        assert found.settings == {}
        assert found.note == ""
        return
    tried = found.validation["tried"]
    best = max(tried, key=lambda one: one["value"])
    assert (found.settings, found.validation["value"]) == (best["settings"], best["value"])
    # Asked again, the contender that takes part reaches what its settings are said to reach.
    queries, _ = answerable(ask(dataset, 1), arena=ARENA)
    contender = tuning.known_in(protocol, found.contender, dataset=dataset, part=1)
    ranks = run(contender, queries, arena=ARENA).ranks
    ndcg = metrics.query_metrics(ranks, queries.relevant_start, ks=(10,))["ndcg@10"].mean()
    assert ndcg == pytest.approx(best["value"])
    assert f"the best of {len(tried)} by ndcg@10 on {len(queries)} {protocol} queries" in found.note


def test_without_a_validation_part_the_middle_settings_stand_and_a_note_says_so(make_dataset: Make) -> None:
    dataset = make_dataset([(0, 0, 1, 0), (0, 1, 2, 0), (1, 0, 3, 2)], users=2, items=ITEMS)
    found = tuned(dataset, "markov")
    assert found.settings == {"window": 5, "decay": 0.85}
    assert found.validation is None
    assert "no validation part" in found.note


def test_a_single_setting_is_taken_as_the_recipe_gives_it(dataset: SplitDataset) -> None:
    found = tuned(dataset, "ease", replace(SMALL, ease_l2=(7.0,), history_decay=(1.0,)))
    assert found.settings == {"l2": 7.0, "decay": 1.0}
    assert "given by the recipe" in found.note


def test_ease_is_left_out_of_a_large_catalogue(dataset: SplitDataset) -> None:
    assert list(tuning.tune(replace(SMALL, baselines=("ease",), ease_max_items=5), dataset, arena=ARENA, seed=1)) == []
