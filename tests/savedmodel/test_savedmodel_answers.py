"""What TensorFlow answers from a SavedModel is what we answer from the bundle."""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import twotower
from twotower import steps
from twotower.artifact import verify
from twotower.recipe import load_recipe

pytestmark = pytest.mark.tensorflow

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TINY = ROOT / "tests" / "tiny.toml"
VARIANTS: dict[str, dict[str, Any]] = {
    "every kind": {},
    "sequence": {
        "model.query": [
            {"kind": "sequence", "length": 10, "blocks": 2, "heads": 2},
            {"kind": "number", "column": "age"},
        ],
        "model.query_tower.network": "own_layer:Normalised",
        "model.retrieval.learn_temperature": True,
        "model.ranking.labels": [{"name": "met", "kind": "binary"}, {"name": "rating", "kind": "regression"}],
        "model.ranking.experts": 3,
        "model.ranking.trends": False,
        "model.task_weights": "uncertainty",
    },
    "retrieval alone": {
        "model.query": [
            {"kind": "id", "column": "user_id", "dim": 8},
            {"kind": "category", "column": "region", "dim": 4},
        ],
        "model.ranking.labels": [],
        "model.retrieval.item_bias": False,
        "model.retrieval.loss": "cosine_contrastive",
    },
}
"""What is set over the tiny recipe, so that every layer is in one of them."""
TOLERANCE = 1e-5
Query = tuple[str, list[str]]


@dataclass(frozen=True)
class Exported:
    """A run and its SavedModel."""

    run: Path
    saved: Path
    python: Path

    def ask(self, requests: Sequence[dict[str, Any]], folder: Path) -> dict[str, Any]:
        """What a process that has nothing but TensorFlow gets."""
        (folder / "requests.json").write_text(json.dumps(requests), encoding="utf-8")
        script, files = HERE / "plain_tensorflow.py", (folder / "requests.json", folder / "answers.json")
        command = [self.python, "-I", script, self.saved, *files]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        answers: dict[str, Any] = json.loads((folder / "answers.json").read_text(encoding="utf-8"))
        return answers


def export(run: Path, out: Path, *, python: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "twotower", "export", "savedmodel", run, "--out", out, "--python", python]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")} | variables
    return subprocess.run(command, env=environment, cwd=HERE, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def exported_as(tmp_path_factory: pytest.TempPathFactory, tensorflow_python: Path) -> Callable[[str], Exported]:
    """Trains a variant and exports it, once."""

    @functools.cache
    def make(variant: str) -> Exported:
        directory = tmp_path_factory.mktemp("exported")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(HERE)  # Where own_layer.py lies.
            for _ in steps.run(load_recipe(TINY, VARIANTS[variant]), out=directory / "run"):
                pass
        done = export(directory / "run", directory / "served", python=tensorflow_python)
        assert done.returncode == 0, done.stderr
        saved = Path(done.stdout.strip())
        assert saved == directory / "served" / "1"
        return Exported(run=directory / "run", saved=saved, python=tensorflow_python)

    return make


@pytest.fixture(scope="module", params=VARIANTS)
def exported(request: pytest.FixtureRequest, exported_as: Callable[[str], Exported]) -> Exported:
    return exported_as(request.param)


def queries(exported: Exported) -> list[Query]:
    """Every user of the bundle; histories of 1 to 14 items for nobody and for users; nobody at all, and a stranger."""
    bundle = twotower.load(exported.run / "bundle").bundle
    users, items = bundle.users["user_id"].to_pylist(), bundle.items["item_id"].to_pylist()
    generator = np.random.default_rng(5)
    histories = [generator.choice(items, length, replace=False).tolist() for length in generator.integers(1, 15, 60)]
    known = generator.choice(users, len(histories)).tolist()
    asked: list[Query] = [(user, []) for user in users]
    asked += [("", history) for history in histories] + list(zip(known, histories, strict=True))
    return [*asked, ("", []), ("nobody", []), ("nobody", [items[3], "of no item", items[3], items[7]])]


def test_ids_and_scores_are_ours_for_every_user_and_every_history(exported: Exported, tmp_path: Path) -> None:
    ours, asked = twotower.load(exported.run / "bundle"), queries(exported)
    assert len(asked) > 400
    request = {"user_id": [user for user, _ in asked], "history": [history for _, history in asked], "k": 10}
    content = exported.ask([request], tmp_path)
    (answer,) = content["answers"]
    assert content["default"] == answer, "the default signature is the same"
    others = 0
    for (user, history), item_ids, scores, fallback in zip(
        asked, answer["item_ids"], answer["scores"], answer["fallback"], strict=True
    ):
        expected = ours.recommend(user or None, history=history, k=10)
        assert fallback == (expected.fallback or "")
        given = {item.item_id: item.score for item in expected.items}
        assert len(set(item_ids)) == len(given) == 10
        # Where two items score alike, either may come first; each has the score that we give it.
        assert np.abs(
            [given.get(item_id, expected.items[-1].score) for item_id in item_ids] - np.array(scores)
        ).max() <= (TOLERANCE)
        others += item_ids != list(given)
    assert others <= len(asked) // 100


def test_a_graph_holds_no_python_and_says_what_it_takes(exported: Exported, tmp_path: Path) -> None:
    content = exported.ask([{"user_id": [""], "history": [[]], "k": 1}], tmp_path)
    assert content["signatures"] == ["recommend", "serving_default"]
    assert content["inputs"] == ["history", "k", "user_id"]
    assert [operation for operation in content["operations"] if "Py" in operation] == []
    verify(exported.saved, kind="savedmodel")


def test_places_that_are_left_hold_no_item_and_a_k_below_one_is_refused(exported: Exported, tmp_path: Path) -> None:
    bundle = twotower.load(exported.run / "bundle").bundle
    users, items = bundle.users["user_id"].to_pylist(), bundle.items["item_id"].to_pylist()
    request = {"user_id": ["", users[0]], "history": [["", items[0], ""], []], "k": 10_000}
    whole, none, nobody = exported.ask([request, request | {"k": 0}, {"user_id": [], "history": [], "k": 3}], tmp_path)[
        "answers"
    ]
    seen = {items[row] for row in bundle.log.item[bundle.log.start[0] : bundle.log.start[1]]}
    assert set(whole["item_ids"][0]) == set(items) - {items[0]}
    assert set(whole["item_ids"][1]) - {""} == set(items) - seen
    left = len(items) - len(seen)
    assert whole["item_ids"][1][left:] == [""] * (len(items) - 1 - left)
    assert max(whole["scores"][1][left:]) < -3e38 < min(whole["scores"][1][:left])
    assert "ask for at least one item" in none["refused"]
    assert nobody == {"item_ids": [], "scores": [], "fallback": []}


def test_a_layer_that_says_something_else_on_tensorflow_is_refused(
    exported_as: Callable[[str], Exported], tmp_path: Path
) -> None:
    first = exported_as("sequence")
    done = export(first.run, tmp_path / "served", python=first.python, FACTOR="2")
    assert done.returncode == 2
    assert "TensorFlow's query differs from the bundle's by up to" in done.stderr
    assert list((tmp_path / "served").iterdir()) == []


def test_a_second_export_is_a_version_beside_the_first(exported_as: Callable[[str], Exported]) -> None:
    first = exported_as("every kind")
    done = export(first.run, first.saved.parent, python=first.python)
    assert Path(done.stdout.strip()) == first.saved.parent / "2", done.stderr
    assert sorted(path.name for path in first.saved.parent.iterdir()) == ["1", "2"]
