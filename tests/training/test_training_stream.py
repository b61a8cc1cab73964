"""A train part that is longer than `train.memory_rows`: streamed from shards, with the same examples and histories."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twotower.data.asked import asked_of
from twotower.data.batches import TrainingArrays
from twotower.data.examples import Shared
from twotower.data.fitted_features import FittedFeatures, fit_features
from twotower.data.pieces import count_rows
from twotower.data.schema import IdFeature, SequenceFeature
from twotower.data.shards import Shards, deal_users, open_shards
from twotower.data.split import TRAIN, VALIDATION, SplitDataset, load_split
from twotower.errors import RecipeError
from twotower.recipe import Recipe
from twotower.training.progress import Trained, TrainProgress
from twotower.training.supply import SHARDS_AT_ONCE, FromDisk, InMemory
from twotower.training.train import train

MEMORY_ROWS, BATCH = 3_000, 128
STREAMED: dict[str, Any] = {
    "memory_rows": MEMORY_ROWS,
    "batch_size": BATCH,
    "epochs": 2,
    "checkpoint_steps": 5,
    "steps_per_call": 5,
}


class StoppedError(Exception):
    """Stands for the machine going away."""


@pytest.fixture(scope="module")
def dataset(tiny_split: Path) -> SplitDataset:
    return load_split(tiny_split)


@pytest.fixture(scope="module")
def features(tiny_recipe: Recipe, dataset: SplitDataset) -> FittedFeatures:
    return fit_features(tiny_recipe.model.query, tiny_recipe.model.candidate, dataset=dataset)


@pytest.fixture(scope="module")
def shards(dataset: SplitDataset, tmp_path_factory: pytest.TempPathFactory) -> Shards:
    return open_shards(
        tmp_path_factory.mktemp("stream") / "shards", dataset, labels=["rating"], count=3 * SHARDS_AT_ONCE, seed=1
    )


def fit(
    recipe: Recipe,
    dataset: SplitDataset,
    directory: Path,
    *,
    resume: bool = False,
    report: Callable[[TrainProgress], None] = lambda progress: None,
) -> Trained:
    return train(
        replace(recipe.train, **STREAMED),
        model_config=recipe.model,
        dataset=dataset,
        seed=recipe.seed,
        checkpoint=directory / "checkpoint",
        resume=resume,
        report=report,
    )


def meetings(arrays: TrainingArrays, examples: np.ndarray) -> list[tuple[float, ...]]:
    """Each example with its label and all that its history holds, in numbers that do not depend on its place."""
    found = []
    for row in examples.tolist():
        past = slice(arrays.first[row], arrays.end[row])
        history = zip(arrays.history_rows[past].tolist(), arrays.history_seconds[past].tolist(), strict=True)
        whole = int(arrays.last[row] - arrays.first[row])
        scalars = (arrays.user[row], arrays.item[row], arrays.second[row], arrays.snapshot[row], whole)
        found.append(
            (*map(int, scalars), float(arrays.labels[row, 0]), float(arrays.positive[row]), hash(tuple(history)))
        )
    return sorted(found)


def supply_of(
    shards: Shards, dataset: SplitDataset, features: FittedFeatures, *, sequence: SequenceFeature | None = None
) -> FromDisk:
    return FromDisk(shards, shared=Shared.build(dataset, features), batch_size=BATCH, sequence=sequence, seed=1)


@pytest.mark.parametrize("sequence", [None, SequenceFeature(kind="sequence", length=8, blocks=1)])
def test_what_is_compiled_for_ahead_is_as_wide_as_what_comes(
    dataset: SplitDataset, features: FittedFeatures, shards: Shards, sequence: SequenceFeature | None
) -> None:
    whole = TrainingArrays.build(dataset, features, labels=[dataset.labels["rating"]])
    in_memory = InMemory(whole, batch_size=BATCH, sequence=sequence, seed=1)
    from_disk = supply_of(shards, dataset, features, sequence=sequence)
    for supply in (in_memory, from_disk):
        supply.sample()
        for number in range(2):
            for part in supply.epoch(number, step=0):
                given = part.plan.part(0, 3)
                assert [each.shape for each in given] == [each.shape for each in supply.blank(3)]
        assert supply.blank(10**6).steps == part.plan.steps


def test_a_run_on_other_features_of_items_is_another_run(
    dataset: SplitDataset, features: FittedFeatures, shards: Shards
) -> None:
    shared = Shared.build(dataset, features)
    one, same, other = (
        FromDisk(shards, shared=each, batch_size=BATCH, sequence=None, seed=1)
        for each in (shared, Shared.build(dataset, features), replace(shared, probability=shared.probability[::-1]))
    )
    assert one.identity() == same.identity() != other.identity()


def test_too_few_users_for_windows_are_told(dataset: SplitDataset, features: FittedFeatures, shards: Shards) -> None:
    few = replace(shards, rows=(9, *(0,) * (len(shards.rows) - 1)))
    with pytest.raises(RecipeError, match=r"too few users to be read in windows.* Raise it to 9,"):
        supply_of(few, dataset, features)


def test_shards_hold_every_example_once_with_the_history_that_it_has_in_memory(
    dataset: SplitDataset, features: FittedFeatures, shards: Shards
) -> None:
    whole = TrainingArrays.build(dataset, features, labels=[dataset.labels["rating"]])
    shared = Shared.build(dataset, features)
    streamed = []
    for number, size in enumerate(shards.rows):
        part = TrainingArrays.of(shared, shared.examples_of(shards.read(number)))
        streamed += meetings(part, np.arange(size))
    assert sorted(streamed) == meetings(whole, np.arange(len(whole.item)))
    assert max(shards.rows) - min(shards.rows) < 0.1 * np.mean(shards.rows), "each is a fair sample"


@settings(max_examples=50)
@given(rows=st.lists(st.integers(0, 40), min_size=1, max_size=60), count=st.integers(1, 8))
def test_users_are_dealt_out_evenly(rows: list[int], count: int) -> None:
    shard_of = deal_users(np.array(rows), count=count, seed=0)
    users = np.bincount(shard_of, minlength=count)
    held = np.bincount(shard_of, np.array(rows), minlength=count)
    assert users.max() - users.min() <= 1
    assert held.max() - held.min() <= max(rows), "no shard is ahead by more than the busiest user"


def test_an_epoch_takes_no_example_twice_and_leaves_out_less_than_a_batch_and_the_shards_unevenness(
    dataset: SplitDataset, features: FittedFeatures, shards: Shards
) -> None:
    supply = supply_of(shards, dataset, features)
    taken = []
    for part in supply.epoch(0, step=0):
        arrays = jax.device_get(part.arrays)
        rows = part.plan.examples.ravel()
        assert len(np.unique(rows)) == len(rows)
        taken += list(zip(arrays["user"][rows].tolist(), arrays["item"][rows].tolist(), strict=True))
    uneven = max(shards.rows) - min(shards.rows)
    assert len(taken) == supply.steps * BATCH
    assert supply.examples - len(taken) <= 3 * (BATCH - 1 + SHARDS_AT_ONCE * uneven)
    first, second = (np.concatenate([part.plan.examples for part in supply.epoch(epoch, step=0)]) for epoch in (0, 1))
    assert not np.array_equal(first, second), "the next epoch goes another way"


def test_an_epoch_begun_in_the_middle_goes_on_as_the_whole_one_does(
    dataset: SplitDataset, features: FittedFeatures, shards: Shards
) -> None:
    supply = supply_of(shards, dataset, features)
    whole = [(part.plan.examples, jax.device_get(part.arrays)) for part in supply.epoch(1, step=0)]
    steps = len(whole[0][0])
    rest = [(part.plan.examples, jax.device_get(part.arrays)) for part in supply.epoch(1, step=steps + 3)]
    assert [len(examples) for examples, _ in rest] == [steps - 3, steps]
    assert np.array_equal(rest[0][0], whole[1][0][3:])
    for (_, found), (_, expected) in zip(rest, whole[1:], strict=True):
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_sequences_are_read_from_windows_too(tiny_recipe: Recipe, dataset: SplitDataset, shards: Shards) -> None:
    sequence = SequenceFeature(kind="sequence", length=8)
    item = IdFeature(kind="id", column="item_id", dim=8)
    features = fit_features((sequence,), (item,), dataset=dataset)
    supply = supply_of(shards, dataset, features, sequence=sequence)
    for part in supply.epoch(0, step=0):
        real = part.plan.examples >= 0
        arrays = jax.device_get(part.arrays)
        start = np.take_along_axis(part.plan.start, part.plan.window, axis=1)[real]
        rows = part.plan.examples[real]
        assert (start >= arrays["first"][rows]).all()
        assert (arrays["end"][rows] - start <= sequence.length).all()


@pytest.fixture(scope="module")
def reference(tiny_recipe: Recipe, dataset: SplitDataset, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """One streamed training from start to end, without a break."""
    directory = tmp_path_factory.mktemp("reference")
    trained = fit(tiny_recipe, dataset, directory)
    assert not (directory / "checkpoint.shards").exists()
    return trained


def test_a_streamed_training_that_stops_within_a_window_goes_on_to_the_same_weights(
    tiny_recipe: Recipe, dataset: SplitDataset, reference: Trained, tmp_path: Path
) -> None:
    def stop(progress: TrainProgress) -> None:
        if progress.step > progress.steps / 2 + 12:
            raise StoppedError

    with pytest.raises(StoppedError):
        fit(tiny_recipe, dataset, tmp_path, report=stop)
    assert (tmp_path / "checkpoint.shards").is_dir(), "a resumed run need not write them again"
    taken: list[int] = []
    resumed = fit(tiny_recipe, dataset, tmp_path, resume=True, report=lambda progress: taken.append(progress.step))
    assert taken[0] > 5, "the steps before the checkpoint are not taken again"
    for one, other in zip(*(jax.tree.leaves(run.model.tables) for run in (resumed, reference)), strict=True):
        assert np.array_equal(one, other)
    assert [entry["loss"] for entry in resumed.history] == pytest.approx(
        [entry["loss"] for entry in reference.history], rel=1e-6
    )


def test_a_streamed_training_learns_as_one_in_memory(
    tiny_recipe: Recipe, dataset: SplitDataset, reference: Trained
) -> None:
    first, last = reference.history[0], reference.history[-1]
    assert last["retrieval"] < first["retrieval"]
    assert last["validation_recall@100"] > 1.1 * 100 / len(dataset.item_ids)


def test_memory_that_holds_no_window_is_refused(tiny_recipe: Recipe, dataset: SplitDataset, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"train.memory_rows = 100 holds less than 16 batches of 128"):
        train(
            replace(tiny_recipe.train, batch_size=128, memory_rows=100),
            model_config=tiny_recipe.model,
            dataset=dataset,
            seed=1,
            checkpoint=tmp_path / "checkpoint",
            resume=False,
            report=lambda progress: None,
        )


def test_validation_asks_some_users_and_counts_popularity_over_all(dataset: SplitDataset) -> None:
    asked = asked_of(dataset, VALIDATION, most=2_000, seed=1)
    assert 0 < len(asked.user) <= 2_000
    kept = np.isin(dataset.user, np.unique(asked.user))
    assert np.array_equal(asked.timestamp, dataset.timestamp[kept]), "all that they did, in its order"
    assert asked.whole is dataset
    assert asked_of(dataset, VALIDATION, most=len(dataset.user), seed=1) is dataset
    expected = np.bincount(dataset.item[dataset.part == TRAIN], minlength=len(dataset.item_ids))
    assert np.array_equal(count_rows(dataset, TRAIN, by="item"), expected)
