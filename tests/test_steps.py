"""The whole path on a tiny world: what it writes, and what it does not write again."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from twotower import steps
from twotower.artifact import verify
from twotower.errors import ArtifactError
from twotower.recipe import Recipe


def test_a_run_writes_every_directory_and_judges_both_stages(tiny_run: Path) -> None:
    for step in steps.VERBS:
        verify(tiny_run / steps.KIND_OF[step], kind=steps.KIND_OF[step])
    report = json.loads((tiny_run / "bundle" / "report" / "report.json").read_text())
    main = report["protocols"][report["main_protocol"]]["contenders"]
    assert {
        "retrieval",
        "two_stage",
        "ceiling",
        "popularity",
        "recent_popularity",
        "item_knn",
        "ease",
        "oracle",
    } <= set(main)
    assert main["two_stage"]["metrics"]["ndcg@10"] <= main["ceiling"]["metrics"]["ndcg@10"]
    assert report["index"]["kind"] == "exact"
    assert len(report["training"]) == 2


def test_a_second_run_does_nothing_and_a_changed_setting_only_what_follows(
    tiny_run: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(tiny_run, copy)
    assert [ran.step for ran in steps.run(tiny_recipe, out=copy) if ran.is_fresh] == []
    changed = replace(tiny_recipe, evaluate=replace(tiny_recipe.evaluate, ks=(10, 20)))
    assert [ran.step for ran in steps.run(changed, out=copy) if ran.is_fresh] == ["evaluate", "bundle"]


def test_a_damaged_directory_is_made_again(tiny_run: Path, tiny_recipe: Recipe, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(tiny_run, copy)
    index = copy / "index" / "embeddings.npy"
    index.write_bytes(index.read_bytes()[:-1] + b"?")
    assert [ran.step for ran in steps.run(tiny_recipe, out=copy) if ran.is_fresh] == ["index"]


def test_a_step_given_another_steps_directory_says_so(tiny_run: Path, tiny_recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds a 'prepared' directory, not a 'split' one"):
        steps.train(tiny_recipe, split=tiny_run / "prepared", out=tmp_path / "model")
    with pytest.raises(ArtifactError, match="not a model directory"):
        steps.evaluate(tiny_recipe, split=tiny_run / "split", model=tmp_path, out=tmp_path / "report")
