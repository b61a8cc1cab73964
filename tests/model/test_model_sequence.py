"""The sequence tower: what it learns from all places of a window at once is what a server gets of the last one."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from twotower.data.batches import QueryArrays
from twotower.data.schema import IdFeature, SequenceFeature
from twotower.data.split import TRAIN, load_split
from twotower.model.encoders import ITEM_TABLE, sequence_of
from twotower.model.sequence import WAVES, IdleTime, SequenceEncoder, last_state, waves
from twotower.recipe import Recipe
from twotower.training.plan import Planner
from twotower.training.step import Stepper
from twotower.training.train import build_model

LENGTH, DIM = 6, 8
TABLES = {ITEM_TABLE: jnp.asarray(np.random.default_rng(0).normal(size=(20, DIM)).astype(np.float32))}
ITEMS = np.array([3, 7, 1, 7, 19, 4], np.int32)
DAYS = np.array([0, 0, 0.25, 2, 40, 41], np.float32)  # Quarters, so that a shift by whole days changes no bit.


@pytest.fixture(scope="module")
def encoder() -> SequenceEncoder:
    """One whose every weight matters, those that begin at zero too."""
    keras.utils.set_random_seed(0)
    config = SequenceFeature(kind="sequence", length=LENGTH, blocks=2, heads=2, dropout=0.5)
    made = SequenceEncoder(config, table=ITEM_TABLE, dim=DIM)
    made(ITEMS[None], DAYS[None], TABLES)
    generator = np.random.default_rng(1)
    for weight in made.trainable_variables:
        weight.assign(weight.value + 0.3 * generator.normal(size=weight.shape))
    return made


def known_after(encoder: SequenceEncoder, items: np.ndarray, days: np.ndarray) -> np.ndarray:
    """`[L + 1, dim]` as training reads a window: the oldest first, filled up behind."""
    return np.asarray(encoder(items[None], days[None], TABLES)[0])


def served(encoder: SequenceEncoder, items: np.ndarray, days: np.ndarray) -> np.ndarray:
    """`[dim]` as a server reads a history: the newest first, days before the moment of asking, filled up behind."""
    missing = LENGTH - len(items)
    inputs = {
        "history_items": np.pad(items[::-1], (0, missing), constant_values=-1)[None],
        "history_days": np.pad(100 - days[::-1], (0, missing))[None],
    }
    return np.asarray(last_state(lambda items, days: encoder(items, days, TABLES), inputs)[0])


@pytest.mark.parametrize("met", range(LENGTH + 1))
def test_a_place_of_a_window_is_what_a_server_gets_of_the_history_up_to_it(encoder: SequenceEncoder, met: int) -> None:
    window = known_after(encoder, ITEMS, DAYS)
    assert served(encoder, ITEMS[:met], DAYS[:met]) == pytest.approx(window[met], abs=1e-5)
    assert np.abs(window[met] - np.delete(window, met, axis=0)).max(axis=1).min() > 1e-2, "no place is like another"


def test_an_item_that_training_never_met_is_passed_over_even_as_the_newest(encoder: SequenceEncoder) -> None:
    without = served(encoder, ITEMS[:4], DAYS[:4])
    strange = served(encoder, np.append(ITEMS[:4], -1), np.append(DAYS[:4], 50).astype(np.float32))
    assert strange == pytest.approx(without, abs=1e-5)


def test_what_fills_a_window_up_changes_nothing(encoder: SequenceEncoder) -> None:
    items, days = ITEMS.copy(), DAYS.copy()
    items[4:], days[4:] = -1, 0
    assert known_after(encoder, items, days)[:5] == pytest.approx(known_after(encoder, ITEMS, DAYS)[:5], abs=1e-5)


@pytest.mark.parametrize("place", range(LENGTH))
def test_what_comes_later_changes_nothing_before(encoder: SequenceEncoder, place: int) -> None:
    items, days = ITEMS.copy(), DAYS.copy()
    items[place:], days[place:] = 11, days[place:] + 7
    before, after = known_after(encoder, ITEMS, DAYS), known_after(encoder, items, days)
    np.testing.assert_allclose(after[: place + 1], before[: place + 1], atol=1e-6)
    assert np.abs(after[place + 1 :] - before[place + 1 :]).max(axis=1).min() > 1e-3


def test_only_spans_of_time_count_and_the_order_does(encoder: SequenceEncoder) -> None:
    window = known_after(encoder, ITEMS, DAYS)
    np.testing.assert_allclose(known_after(encoder, ITEMS, DAYS + 365), window, atol=1e-5)
    assert np.abs(known_after(encoder, ITEMS, DAYS * 3)[-1] - window[-1]).max() > 1e-3
    swapped = ITEMS[[1, 0, 2, 3, 4, 5]]
    assert np.abs(known_after(encoder, swapped, DAYS)[-1] - window[-1]).max() > 1e-3


def test_dropout_acts_in_training_alone(encoder: SequenceEncoder) -> None:
    one, other = (encoder(ITEMS[None], DAYS[None], TABLES, training=True) for _ in range(2))
    assert np.abs(np.asarray(one - other)).max() > 0.1
    np.testing.assert_array_equal(known_after(encoder, ITEMS, DAYS), known_after(encoder, ITEMS, DAYS))


def test_waves_are_bumps_over_the_logarithm_of_a_span() -> None:
    # Eight centres from no time to four years of 1,440 minutes a day, the spacing being the width.
    width = np.log1p(4 * 365 * 1440) / 7
    days = np.expm1(np.array([0, 1, 2.5]) * width) / 1440
    found = np.asarray(waves(days.astype(np.float32)))
    assert found.shape == (3, WAVES)
    assert found[0, :3] == pytest.approx(np.exp([0, -1, -4]), abs=1e-4)
    assert found[1, :3] == pytest.approx(np.exp([-1, 0, -1]), abs=1e-4)
    assert found[2, 2] == pytest.approx(found[2, 3], abs=1e-3)
    assert np.asarray(waves(np.float32(-1.0))) == pytest.approx(found[0]), "no span is below none"


def test_idle_time_is_nothing_where_nothing_was_met() -> None:
    inputs = {
        "history_items": np.array([[5, -1], [-1, -1]], np.int32),
        "history_days": np.array([[0, 0], [0, 0]], np.float32),
        "history_count": np.array([1, 0], np.int32),
    }
    found = np.asarray(IdleTime(length=2)(inputs, TABLES))
    assert found[0, 0] == 1
    assert found[0, -1] == pytest.approx(np.log(2) / np.log(3))
    assert found[1].tolist() == [0] * (WAVES + 1)


def test_a_step_asks_its_examples_from_the_places_that_hold_their_histories(
    tiny_recipe: Recipe, tiny_split: Path
) -> None:
    dataset = load_split(tiny_split)
    query = (
        SequenceFeature(kind="sequence", length=10, blocks=1, dropout=0.0),
        IdFeature(kind="id", column="user_id", dim=8),
    )
    model, arrays = build_model(replace(tiny_recipe.model, query=query), dataset=dataset, seed=3)
    generator = np.random.default_rng(0)
    model.tables = {
        name: jnp.asarray(generator.normal(size=table.shape).astype(np.float32)) for name, table in model.tables.items()
    }
    stepper = Stepper(
        model,
        arrays,
        optimizer=keras.optimizers.Adam(),
        embedding_learning_rate=0.1,
        accumulator="row",
        decay_steps=0,
        seed=1,
    )
    sequence = sequence_of(model.features)
    assert sequence is not None
    plan = Planner(arrays, batch_size=128, sequence=sequence, seed=1).epoch(0)
    assert sorted(set(plan.examples[plan.examples >= 0].tolist())) == list(range(len(arrays.item)))
    first = jax.tree.map(lambda values: jnp.asarray(values[0]), plan)
    batch = stepper._gather(first, stepper.arrays, key=jax.random.key(0))
    states = np.asarray(model.layers["history"](batch["windows"]["items"], batch["windows"]["days"], model.tables))
    row, place = (np.asarray(values) for values in batch["window"])

    examples, window = np.asarray(first.examples), np.asarray(first.window)
    is_whole = (examples >= 0) & (np.asarray(first.start)[window] == arrays.first[np.maximum(examples, 0)])
    asked = np.flatnonzero(is_whole)
    assert len(asked) > 20
    assert (place[asked] == 0).any()
    log_row = np.flatnonzero(dataset.part == TRAIN)[examples[asked]]
    given = QueryArrays.build(dataset, model.features, log=dataset.user_log(TRAIN, positives_only=True)).inputs(
        dataset.user[log_row], dataset.timestamp[log_row], log_row=log_row
    )
    expected = last_state(lambda items, days: model.layers["history"](items, days, model.tables), given)
    np.testing.assert_allclose(states[row[asked], place[asked]], np.asarray(expected), atol=1e-4)
    served_count = (given["history_items"] >= 0).sum(axis=1)
    assert np.asarray(batch["query"]["history_count"])[asked].tolist() == served_count.tolist()
