"""The search space is checked before any trial, and gives recipes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twotower.errors import RecipeError
from twotower.recipe import Recipe, load_recipe, read_recipe, recipe_toml
from twotower.tune_config import TuneConfig
from twotower.tuning.space import Dimension, known_settings, settled, space_of, with_values

SMALL = Path(__file__).with_name("small.toml")


def with_space(text: str) -> Recipe:
    return load_recipe(f"[tune.space]\n{text}\n")


def fault(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        space_of(with_space(text))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_space_of_a_recipe_says_type_bounds_and_choices() -> None:
    rate, temperature, optimizer = space_of(load_recipe(SMALL))
    assert rate == Dimension(key="train.embedding_learning_rate", low=0.005, high=0.5, log=True)
    assert (temperature.low, temperature.high, temperature.step) == (0.05, 0.85, 0.1)
    assert optimizer.choices == {"adam": "adam", "sgd": "sgd"}


def test_what_the_catalogues_size_decides_is_looked_for_around_its_number() -> None:
    recipe = load_recipe("\n")
    few, many = (settled(recipe, items=items) for items in (10, 1_000_000))
    assert known_settings(recipe) == known_settings(few)
    (around,) = (each for each in space_of(many) if each.key == "model.retrieval.temperature")
    own = known_settings(many)[around.key]
    assert own == pytest.approx(1 / np.log(1_000_000))
    assert (around.low, around.high) == (own / 4, own * 4)


def test_the_greatest_value_is_one_that_the_steps_reach() -> None:
    (dimension,) = space_of(with_space('"train.learning_rate" = {low = 0.1, high = 0.45, step = 0.1}'))
    assert dimension.high == 0.4


def test_keys_without_quotes_are_the_same_space() -> None:
    plain = with_space("train.epochs = {low = 1, high = 5}\nmodel.query_tower.layers = {choices = [[64], [128, 64]]}")
    epochs, layers = space_of(plain)
    assert (epochs.key, epochs.whole, epochs.value(3.0)) == ("train.epochs", True, 3)
    assert layers.choices == {"[64]": [64], "[128,64]": [128, 64]}
    assert read_recipe(recipe_toml(plain)) == plain


def test_a_space_can_be_named_on_the_command_line() -> None:
    recipe = load_recipe(SMALL, {"tune.space.train.epochs": "{low = 1, high = 2}"})
    assert "train.epochs" in [each.key for each in space_of(recipe)]


@pytest.mark.parametrize(
    ("space", "told"),
    [
        ('"train.embeding_learning_rate" = {low = 1, high = 2}', "nearest is 'train.embedding_learning_rate'"),
        ('"temperature" = {low = 1, high = 2}', "nearest is 'model.retrieval.temperature'"),
        ('"evaluate.candidates" = {low = 1, high = 2}', "cannot be tuned: trials share their data and their judge"),
        ('"train.metric" = {choices = ["ndcg@10", "rmse"]}', "is what trials are judged by"),
        ('"train.single_tasks" = {choices = [true, false]}', "changes nothing of a trial"),
        ('"train.learning_rate" = {low = 0.1}', "needs low and high"),
        ('"train.learning_rate" = {low = 0.2, high = 0.1}', "low = 0.2 is not below high = 0.1"),
        ('"train.learning_rate" = {low = 0, high = 0.1, log = true}', "log = true needs low above 0"),
        ('"train.learning_rate" = {low = 0.1, high = 1, log = true, step = 0.1}', "log and step do not go together"),
        ('"train.learning_rate" = {low = 0.1, high = 1, step = 2}', "step = 2 is longer than"),
        ('"train.epochs" = {low = 1.5, high = 4}', "it takes whole numbers"),
        ('"train.optimizer" = {low = 1, high = 4}', "is no number (now adam)"),
        ('"train.epochs" = {choices = [3, 3]}', "not two or more different ones"),
        ('"train.epochs" = {choices = [3, 4], low = 1}', "has choices, which need no low"),
        (
            '"train.optimizer" = {choices = ["adam", "adagard"]}',
            "tune.space: train.optimizer = adagard: train.optimizer",
        ),
        ('"model.ranking.dropout" = {low = 0, high = 1}', "tune.space: model.ranking.dropout = 1.0"),
    ],
)
def test_a_space_that_cannot_be_is_told_in_one_line(space: str, told: str) -> None:
    assert told in fault(space)


def test_an_unknown_word_in_a_range_is_named() -> None:
    with pytest.raises(RecipeError, match=r"unknown key 'tune.space.train.epochs.hihg'"):
        with_space('"train.epochs" = {low = 1, hihg = 3}')


def test_a_recipe_without_a_space_gets_one_around_its_own_settings() -> None:
    recipe = load_recipe("[train]\nbatch_size = 2048\nlearning_rate = 0.004\n")
    assert recipe.tune == TuneConfig()
    found = {each.key: each for each in space_of(recipe)}
    assert (found["train.learning_rate"].low, found["train.learning_rate"].high) == (0.0005, 0.032)
    assert found["train.batch_size"].choices == {"1024": 1024, "2048": 2048, "4096": 4096}
    known = known_settings(recipe)
    assert all(each.tried(known[each.key]) is not None for each in found.values()), "the recipe itself can be tried"
    for each in found.values():
        for edge in each.edges():
            with_values(recipe, {each.key: edge}, where="edge")


def test_a_value_is_tried_only_where_bounds_and_steps_reach_it() -> None:
    stepped = Dimension(key="train.epochs", low=2, high=8, step=3, whole=True)
    assert [stepped.tried(value) for value in (1, 2, 5, 6, 8, 11, "2")] == [None, 2, 5, None, 8, None, None]


@settings(max_examples=20)
@given(st.integers(1, 50), st.floats(1e-6, 1e3), st.sampled_from(["adam", "sgd", "lion"]))
def test_values_go_into_the_recipe_and_nothing_else_does(epochs: int, rate: float, optimizer: str) -> None:
    recipe = load_recipe(SMALL)
    values: dict[str, Any] = {"train.epochs": epochs, "train.learning_rate": rate, "train.optimizer": optimizer}
    changed = with_values(recipe, values, where="test")
    known = known_settings(changed)
    assert {key: known[key] for key in values} == values
    same = {key: value for key, value in known.items() if key not in values}
    assert same == {key: value for key, value in known_settings(recipe).items() if key not in values}
    assert changed.tune == TuneConfig()
    assert read_recipe(recipe_toml(changed)) == changed
