"""The share of ranking in the final order: the one that serves validation best, unless the recipe says it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from twotower.artifact import read_manifest
from twotower.data.split import TRAIN, VALIDATION, load_split
from twotower.model.exported import DESCRIPTION
from twotower.recipe import Recipe
from twotower.training.order import SHARES, choose_order


def order_in(directory: Path) -> dict[str, float]:
    order: dict[str, float] = json.loads((directory / DESCRIPTION).read_text(encoding="utf-8"))["order"]
    return order


@pytest.fixture
def model(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run / "model", tmp_path / "model"))


def test_the_best_share_on_validation_is_written_into_the_model(tiny_run: Path, model: Path) -> None:
    reached = choose_order(model, load_split(tiny_run / "split"), candidates=50, seed=1)
    assert list(reached) == [f"{share:g}" for share in SHARES]
    assert all(0 < value < 1 for value in reached.values())
    share = float(max(reached, key=lambda each: (reached[each], -float(each))))
    wanted = {"met": share, "retrieval": 1 - share}
    assert order_in(model) == {name: weight for name, weight in wanted.items() if weight}
    assert choose_order(model, load_split(tiny_run / "split"), candidates=50, seed=1) == reached, "whatever stood there"


def test_a_run_tells_what_each_share_reached(tiny_recipe: Recipe, tiny_run: Path, model: Path) -> None:
    candidates = tiny_recipe.model.ranking.candidates
    reached = choose_order(model, load_split(tiny_run / "split"), candidates=candidates, seed=tiny_recipe.seed)
    assert read_manifest(tiny_run / "model", kind="model")["metadata"]["order"] == reached
    assert order_in(tiny_run / "model") == order_in(model)


def test_without_validation_queries_the_order_stays(tiny_run: Path, model: Path) -> None:
    dataset = load_split(tiny_run / "split")
    before = order_in(model)
    nothing = replace(dataset, part=np.where(dataset.part == VALIDATION, TRAIN, dataset.part))
    assert choose_order(model, nothing, candidates=50, seed=1) == {}
    assert order_in(model) == before
