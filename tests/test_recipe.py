"""Recipes: read, overridden, refused."""

from pathlib import Path

import pytest

from twotower.errors import RecipeError
from twotower.recipe import Recipe, builtin_recipes, load_recipe, recipe_toml


@pytest.mark.parametrize("name", builtin_recipes())
def test_every_recipe_that_comes_with_the_package_reads_and_survives_being_written(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    (tmp_path / "again.toml").write_text(recipe_toml(recipe))
    assert load_recipe(tmp_path / "again.toml") == recipe


def test_the_environment_overrides_the_file_and_the_call_overrides_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWOTOWER__TRAIN__EPOCHS", "7")
    monkeypatch.setenv("TWOTOWER__PREPARE__POSITIVES", "rating >= 4")
    recipe = load_recipe("simulated", {"train.epochs": "3", "prepare.simulated.users": 10})
    assert (recipe.train.epochs, recipe.prepare.positives, recipe.prepare.simulated.users) == (3, "rating >= 4", 10)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[train]\nepoch = 3", "unknown key 'train.epoch'"),
        ("[train]\nepochs = 0", r"train.epochs: Input should be greater than 0 \(found 0\)"),
        ("[train]\nepochs = many", "not TOML"),
        ('[[model.query]]\nkind = "smell"', "model.query.0"),
        ('[[model.query]]\nkind = "history"\nbuckets = 3', "unknown key 'model.query.0.history.buckets'"),
    ],
)
def test_a_fault_is_one_line_that_names_file_and_key(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=told) as fault:
        load_recipe(path)
    assert str(fault.value).startswith(str(path))
    assert "\n" not in str(fault.value)


def test_a_recipe_that_does_not_exist_is_told_with_those_that_do() -> None:
    with pytest.raises(RecipeError, match=r"nowhere.toml: no such file.*simulated"):
        load_recipe("nowhere.toml")


def test_the_default_is_the_simulated_world() -> None:
    assert load_recipe() == load_recipe("simulated") != Recipe()
