"""What a graph looks up is what a server would have worked out; and what cannot be exported is refused in one line."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from twotower import steps
from twotower.artifact import MANIFEST, write_artifact
from twotower.bundle import Bundle
from twotower.cli.main import main
from twotower.recipe import Recipe
from twotower.savedmodel.tables import ARRAYS, FACTS, part_of, write_tables
from twotower.serve_config import RulesConfig, ServeConfig

SECOND = 1_000_000


@pytest.fixture(scope="module")
def bundle(tiny_run: Path) -> Bundle:
    return Bundle.load(tiny_run / "bundle")


@pytest.fixture(scope="module")
def written(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    directory = tmp_path_factory.mktemp("tables")
    write_tables(bundle, directory)
    facts = json.loads((directory / FACTS).read_text(encoding="utf-8"))
    assert facts["users"] == bundle.users["user_id"].to_pylist()
    assert facts["told_days"] in (0.0, 1 / 86_400)
    with np.load(directory / ARRAYS, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def test_every_user_has_the_inputs_that_a_request_would_have(bundle: Bundle, written: dict[str, np.ndarray]) -> None:
    features, log, moment = bundle.model.features, bundle.log, bundle.metadata["last_us"] + SECOND
    items = np.array(bundle.items["item_id"].to_pylist(), object)
    user, found = part_of(written, "user"), part_of(written, "query_input")
    for row, columns in enumerate([*bundle.users.to_pylist(), {}]):
        span = slice(log.start[row], log.start[row + 1]) if columns else slice(0, 0)
        held = bundle.positive[span]
        history = (items[log.item[span][held]].tolist(), log.timestamp[span][held].tolist())
        expected = features.query_inputs(
            columns={name: [value] for name, value in columns.items()},
            timestamp=np.array([moment]),
            history=[history],
        )
        known = slice(user["history_start"][row], user["history_start"][row + 1])
        rows, days = expected.pop("history_items")[0], expected.pop("history_days")[0]
        count = min(len(history[0]), len(rows))
        assert user["history_item"][known].tolist() == rows[:count].tolist()
        assert user["history_days"][known] == pytest.approx(days[:count])
        for key, values in expected.items():
            assert (found[key][min(row, len(found[key]) - 1)] == values[0]).all()
        met = user["seen_item"][user["seen_start"][row] : user["seen_start"][row + 1]]
        assert met.tolist() == log.item[span].tolist()
        assert user["is_told"][row] == bool(columns), "the moment alone tells nothing"


def test_what_is_the_same_for_all_users_stands_once(bundle: Bundle, written: dict[str, np.ndarray]) -> None:
    found = part_of(written, "query_input")
    assert found["timestamp_timestamp"].shape[0] == 1
    assert len(found["id_user_id"]) == bundle.users.num_rows + 1


def test_popular_items_come_by_how_popular_they_are(bundle: Bundle, written: dict[str, np.ndarray]) -> None:
    item = part_of(written, "item")
    assert sorted(item["popular"].tolist()) == list(range(bundle.items.num_rows))
    assert (np.diff(bundle.popularity[item["popular"]]) <= 0).all()
    assert item["popular_score"] == pytest.approx(bundle.popularity[item["popular"]])


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["export", "savedmodel", *map(str, arguments)])


def refusal(*arguments: str | Path) -> str:
    result = invoke(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_a_python_without_tensorflow_is_named_with_what_to_install(tiny_run: Path, tmp_path: Path) -> None:
    told = refusal(tiny_run, "--out", tmp_path / "served")
    assert "tensorflow is not installed there" in told
    assert 'pip install "twotower[tensorflow]"' in told
    assert list((tmp_path / "served").iterdir()) == [], "nothing is half-written"


def test_a_bundle_is_exported_with_no_other_model_than_its_own(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run / "bundle", tmp_path / "bundle")
    told = refusal(tmp_path / "bundle", "--out", tmp_path / "served")
    assert f"{tmp_path / 'model'}: no model there, and a bundle holds no weights" in told
    with write_artifact(tmp_path / "other", kind="model", metadata={"best_epoch": 9}) as out:
        shutil.copytree(tiny_run / "model", out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
    told = refusal(tmp_path / "bundle", "--model", tmp_path / "other", "--out", tmp_path / "served")
    assert "not the model that" in told
    assert "--model" in told


def test_the_model_of_a_bundle_that_the_pipeline_made_is_found_in_the_registry(
    bundle: Bundle, tiny_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_run / "bundle", tmp_path / "bundle")
    (tmp_path / "registry" / "tiny" / "models" / "tiny-of-before").mkdir(parents=True)
    assert "bundle holds no weights" in refusal(tmp_path, "--out", tmp_path / "served")
    shutil.copytree(tiny_run / "model", tmp_path / "registry" / "tiny" / "models" / bundle.id)
    assert "tensorflow is not installed there" in refusal(tmp_path, "--out", tmp_path / "served")


def test_rules_that_a_savedmodel_leaves_out_are_told(tiny_recipe: Recipe, tiny_run: Path, tmp_path: Path) -> None:
    recipe = replace(tiny_recipe, serve=ServeConfig(rules=RulesConfig(diversity=0.2)))
    made = {name: tiny_run / name for name in ("split", "model", "index", "report")}
    steps.bundle(recipe, **made, out=tmp_path / "bundle")
    told = invoke(tmp_path / "bundle", "--model", tiny_run / "model", "--out", tmp_path / "served").stderr
    assert "serve.rules" in told.splitlines()[0]
    assert "tensorflow is not installed there" in told.splitlines()[1]
