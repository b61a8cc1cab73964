"""The whole pipeline under kfp's local runner, on a simulated world: every branch, for real."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from local_runs import SMALL, logged, run, states

import twotower
from twotower import artifact
from twotower.pipeline.local import LocalRun
from twotower.recipe import recipe_toml
from twotower.release.registry import Registry
from twotower.steps import STEPS


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipeline") / "small"


@pytest.fixture(scope="module")
def first(home: Path) -> LocalRun:
    """A run that the gate promotes; the tests that follow go on from it."""
    return run(home)


def test_every_step_runs_and_what_was_promoted_answers(home: Path, first: LocalRun) -> None:
    assert states(first) == dict.fromkeys(STEPS, "done")
    champion = Registry(address=str(home / "registry"), name="small").champion()
    assert champion is not None
    answer = twotower.load(home / "bundle").recommend("11", k=3)
    assert len(answer.items) == 3
    assert answer.bundle == champion.version


def test_the_ui_gets_metrics_curves_pages_and_cards(first: LocalRun) -> None:
    metrics = logged(first, "evaluate", "metrics")
    assert 0 < metrics["popularity_ndcg_at_10"] < metrics["two_stage_ndcg_at_10"] < 1
    curve = logged(first, "evaluate", "curve")
    names = [each["displayName"] for each in curve["confusionMatrix"]["annotationSpecs"]]
    assert names == ["rating up to it", "rating above 3.58"]
    counted = [sum(row["row"]) for row in curve["confusionMatrix"]["rows"]]
    report = json.loads((first.outputs["evaluate"]["report"] / "report.json").read_text(encoding="utf-8"))
    assert sum(counted) == report["labels"]["rating"]["rows"]
    alarms = [point["falsePositiveRate"] for point in curve["confidenceMetrics"]]
    assert alarms == sorted(alarms)
    assert (len(alarms), alarms[-1]) == (50, 1)
    assert first.outputs["evaluate"]["page"].read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert "Nothing in the way of training" in first.outputs["validate"]["page"].read_text(encoding="utf-8")
    assert first.outputs["gate"]["card"].read_text(encoding="utf-8").startswith("# Promoted: small")
    assert "answers" in first.outputs["smoke-test"]["card"].read_text(encoding="utf-8")
    assert "SUCCEEDED" in first.outputs["summarize"]["card"].read_text(encoding="utf-8")
    assert logged(first, "split", "parts")["protocol"] == "time"


def test_a_second_run_is_all_cache_hits_and_changes_nothing(home: Path, first: LocalRun) -> None:
    before = (home / "registry" / "small" / "champion.json").read_bytes()
    second = run(home)
    assert second.all_cached
    assert not first.all_cached
    assert (home / "registry" / "small" / "champion.json").read_bytes() == before
    assert second.outputs["evaluate"]["report"] == first.outputs["evaluate"]["report"]


def test_a_refused_candidate_ends_well_and_changes_nothing_that_is_deployed(home: Path, first: LocalRun) -> None:
    before = artifact.fingerprint(home / "bundle")
    refused = run(home, recipe=recipe_toml(replace(SMALL, gate=replace(SMALL.gate, margin=0.9))))
    ran = states(refused)
    assert ran["gate"] == ran["summarize"] == "done"
    assert ran["evaluate"] == ran["train"] == "cached"
    assert not {"bundle", "smoke_test", "register", "deploy"} & set(ran)
    assert "**failed** | NDCG@10 beats Popularity by more than 0.9" in refused.outputs["gate"]["card"].read_text()
    assert artifact.fingerprint(home / "bundle") == before
    assert Registry(address=str(home / "registry"), name="small").versions() == [
        twotower.load(home / "bundle").bundle.id
    ]


def test_of_two_variants_with_the_champions_weights_the_better_goes_on_and_has_to_beat_it(
    home: Path, first: LocalRun
) -> None:
    version = twotower.load(home / "bundle").bundle.id
    variants = [{"train.epochs": 1}, {"train.epochs": 2, "train.learning_rate": 0.002}]
    seen = run(home, variants=variants, warm_start=True)
    assert [end.state for end in seen.ends if end.task == "train"] == ["done", "done"]
    chosen = artifact.read_manifest(Path(seen.outputs["choose"]["best"]), kind="model")["metadata"]
    folders = sorted((home / "pipeline").glob("twotower-*"))[-1].rglob("model/manifest.json")
    reached = [json.loads(path.read_text(encoding="utf-8"))["metadata"]["validation"] for path in folders]
    assert len(reached) == 2
    assert chosen["validation"] == max(reached)
    carried = chosen["carried_over"]
    assert carried["new_rows"] == 0
    assert carried["rows"] > 300
    assert carried["parts"] == ["query", "candidate", "memory", "ranking"]
    card = seen.outputs["gate"]["card"].read_text(encoding="utf-8")
    assert f"held against: `{version}`" in card
    assert "beats Champion (answers now), beyond the 95% interval" in card


def test_what_was_rolled_back_is_not_promoted_again_by_a_run(home: Path, first: LocalRun) -> None:
    registry = Registry(address=str(home / "registry"), name="small")
    before = registry.champion()
    assert before is not None
    copy = home.parent / "rolled-back"
    shutil.copytree(home, copy, ignore=shutil.ignore_patterns(".lock"))
    record = copy / "registry" / "small" / "champion.json"
    # The model that the same recipe makes again; the champion may by now be one that began with its weights.
    model = artifact.fingerprint(Path(first.outputs["choose"]["best"]))
    left = json.loads(record.read_text(encoding="utf-8")) | {"withdrawn": {model: before.version}}
    record.write_text(json.dumps(left | {"version": "other", "model": "another"}), encoding="utf-8")
    other = copy / "registry" / "small" / "versions"
    shutil.copytree(other / before.version, other / "other")
    again = run(copy)
    assert "deploy" not in states(again)
    assert f"{before.version} was rolled back" in again.outputs["gate"]["card"].read_text(encoding="utf-8")
