"""The whole path on a tiny world: what it writes, what it does not write again, and each step of the pipeline alone."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twotower import steps
from twotower.artifact import fingerprint, read_manifest, verify, write_artifact
from twotower.data.config import FilesConfig, PrepareConfig
from twotower.errors import ArtifactError, DataError, RecipeError, TrainingError
from twotower.evaluation.config import GateConfig
from twotower.made_from import KIND_OF
from twotower.recipe import Recipe
from twotower.release.summary import Outcome


def test_a_run_writes_every_directory_and_judges_both_stages(tiny_run: Path) -> None:
    for step in steps.VERBS:
        verify(tiny_run / KIND_OF[step], kind=KIND_OF[step])
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


LOG = "user_id,item_id,timestamp\nann,a,1700000000\nbob,b,1700000001\n"
FILES = Recipe(name="shop", prepare=PrepareConfig(source="files", files=FilesConfig(interactions="log.csv")))


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder with a log of two rows."""
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "log.csv").write_text(LOG, encoding="utf-8")
    return tmp_path / "shop"


def model_with(folder: Path, name: str, *, metric: str, validation: float | None) -> Path:
    with write_artifact(folder / name, kind="model", metadata={"metric": metric, "validation": validation}) as out:
        (out / "recipe.toml").write_text(f'name = "{name}"\n', encoding="utf-8")
        (out / "vocabularies").mkdir()
        (out / "vocabularies" / "items.parquet").write_text(name, encoding="utf-8")
    return folder / name


@pytest.mark.parametrize(
    ("metric", "reached", "best"),
    [
        ("ndcg@10", [0.2], 0),
        ("ndcg@10", [0.2, 0.4, 0.3], 1),
        ("ndcg@10", [0.2, 0.4, 0.4], 1),
        # An error is the better the smaller it is.
        ("rmse", [0.9, 1.1, 0.8], 2),
        ("rmse", [0.9, 0.9], 0),
        ("recall@100", [0.0, -0.0, 1e-9], 2),
    ],
)
def test_the_best_of_several_models_goes_on(tmp_path: Path, metric: str, reached: list[float], best: int) -> None:
    models = [model_with(tmp_path, f"m{n}", metric=metric, validation=value) for n, value in enumerate(reached)]
    assert steps.choose(models, out=tmp_path / "best") == f'name = "m{best}"\n'
    assert verify(tmp_path / "best", kind="model") == read_manifest(models[best], kind="model")
    assert fingerprint(tmp_path / "best") == fingerprint(models[best])


def test_a_single_model_goes_on_whatever_it_reached(tmp_path: Path) -> None:
    steps.choose([model_with(tmp_path, "only", metric="ndcg@10", validation=None)], out=tmp_path / "best")
    assert read_manifest(tmp_path / "best", kind="model")["metadata"]["validation"] is None


@pytest.mark.parametrize(
    ("others", "told"),
    [
        ([("rmse", 0.9)], "2 models with ndcg@10 and rmse cannot be compared"),
        ([("ndcg@20", 0.9)], "2 models with ndcg@10 and ndcg@20 cannot be compared"),
        ([("ndcg@10", None)], "2 models with ndcg@10 cannot be compared. Give the split a validation part"),
    ],
)
def test_models_that_cannot_be_compared_are_refused(
    tmp_path: Path, others: list[tuple[str, float | None]], told: str
) -> None:
    models = [model_with(tmp_path, "first", metric="ndcg@10", validation=0.1)]
    models += [model_with(tmp_path, f"m{n}", metric=m, validation=v) for n, (m, v) in enumerate(others)]
    with pytest.raises(TrainingError) as fault:
        steps.choose(models, out=tmp_path / "best")
    assert told in str(fault.value)
    assert not (tmp_path / "best").exists()


def test_no_model_and_a_damaged_one_cannot_be_chosen(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no model was given"):
        steps.choose([], out=tmp_path / "best")
    model = model_with(tmp_path, "bad", metric="ndcg@10", validation=0.1)
    (model / "recipe.toml").write_text("another", encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"recipe\.toml: damaged"):
        steps.choose([model], out=tmp_path / "best")


def test_fetched_tables_are_prepared_where_the_source_is_gone(shop: Path, tmp_path: Path) -> None:
    raw, prepared = tmp_path / "raw", tmp_path / "prepared"
    steps.fetch(FILES, data=str(shop), out=raw)
    before = steps.locate(FILES, data=str(shop))
    assert verify(raw, kind="raw")["metadata"]["interactions"] == 2
    shutil.rmtree(shop)
    steps.prepare(FILES, raw=raw, out=prepared)
    assert read_manifest(prepared, kind="prepared")["metadata"]["counts"]["interactions"] == 2
    shop.mkdir()
    (shop / "log.csv").write_text(LOG.replace("bob", "cid"), encoding="utf-8")
    assert steps.locate(FILES, data=str(shop)) != before


def test_faults_of_fetched_tables_name_what_the_user_named(shop: Path, tmp_path: Path) -> None:
    (shop / "log.csv").write_text(LOG.replace("1700000001", "soon"), encoding="utf-8")
    steps.fetch(FILES, data=str(shop / "log.csv"), out=tmp_path / "raw")
    with pytest.raises(DataError) as fault:
        steps.prepare(FILES, raw=tmp_path / "raw", out=tmp_path / "prepared")
    assert str(fault.value).startswith(f"{shop / 'log.csv'}: timestamp of row 2 is 'soon'")


def test_data_for_a_simulated_world_is_refused(tiny_recipe: Recipe, shop: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="the recipe's data is simulated, so no data is read"):
        steps.fetch(tiny_recipe, data=str(shop), out=tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def test_a_profile_tells_the_faults_that_stop_the_preparation(shop: Path, tmp_path: Path) -> None:
    out = tmp_path / "profile"
    recipe = replace(FILES, prepare=replace(FILES.prepare, data_dir=str(shop)))
    assert steps.validate(recipe, out=out) == ()
    assert "Nothing in the way of training" in (out / "profile.html").read_text(encoding="utf-8")
    (shop / "log.csv").write_text("user_id,item_id,timestamp\nann,a,soon\nann,,1700000001\n", encoding="utf-8")
    faults = steps.validate(recipe, out=out)
    assert len(faults) == 3
    assert "\n" not in "".join(faults)
    with pytest.raises(DataError) as fault:
        steps.prepare(recipe, out=tmp_path / "prepared")
    assert str(fault.value) == faults[0]
    verify(out, kind="profile")
    assert "3 faults to mend" in (out / "profile.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("margin", "promoted"), [(-1.0, True), (0.9, False)])
def test_the_gate_writes_what_it_decided(
    tiny_run: Path, tiny_recipe: Recipe, tmp_path: Path, margin: float, promoted: bool
) -> None:
    recipe = replace(tiny_recipe, gate=GateConfig(margin=margin))
    verdict = steps.gate(
        recipe, report=tiny_run / "report", index=tiny_run / "index", champion="v0", out=tmp_path / "gate"
    )
    assert verdict.promoted is promoted
    metadata = verify(tmp_path / "gate", kind="gate")["metadata"]
    assert (metadata["promoted"], metadata["reason"], metadata["champion"]) == (promoted, verdict.reason, "v0")
    content = json.loads((tmp_path / "gate" / "gate.json").read_text(encoding="utf-8"))
    assert [check["passed"] for check in content["checks"]] == [promoted, True]
    card = (tmp_path / "gate" / "card.md").read_text(encoding="utf-8")
    assert card.startswith("# Promoted: tiny" if promoted else "# Refused: tiny")


def test_a_bundle_is_judged_as_the_model_in_it(tiny_run: Path, tiny_recipe: Recipe, tmp_path: Path) -> None:
    brief = replace(tiny_recipe.evaluate, baselines=("popularity",), max_queries=100, bootstrap=20, examples=0)
    recipe = replace(tiny_recipe, evaluate=brief)
    split, model, out = tiny_run / "split", tiny_run / "model", tmp_path / "report"
    steps.evaluate(recipe, split=split, model=model, champion=tiny_run / "bundle", out=out)
    report = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    against = [row for row in report["protocols"]["successive"]["differences"] if row["minus"] == "champion"]
    assert {row["metric"] for row in against} == set(report["lead_metrics"])
    assert all((row["value"], row["interval"]) == (0, [0, 0]) for row in against)
    verdict = steps.gate(recipe, report=tmp_path / "report", index=tiny_run / "index", out=tmp_path / "gate")
    assert "beats Champion (answers now), beyond the 95% interval: +0.0000" in verdict.reason
    with pytest.raises(ArtifactError, match="holds a 'model' directory, not a 'bundle' one"):
        steps.evaluate(recipe, split=split, model=model, champion=model, out=out)


def test_a_registered_bundle_is_deployed_and_becomes_the_champion(
    tiny_run: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    registry, bundle, model = str(tmp_path / "registry"), tiny_run / "bundle", tiny_run / "model"
    assert steps.champion(tiny_recipe, registry=registry, model=model) == ("", "")
    version = steps.register(tiny_recipe, bundle=bundle, model=model, registry=registry)
    target = tmp_path / "deployed"
    deployed = steps.deploy(tiny_recipe, version=version, registry=registry, to=str(target))
    assert (deployed.version, deployed.model, deployed.sequence) == (version, fingerprint(model), 1)
    assert fingerprint(target) == fingerprint(bundle)
    assert steps.champion(tiny_recipe, registry=registry, model=model) == ("", ""), "a model is not its own rival"
    other = model_with(tmp_path, "other", metric="ndcg@10", validation=0.1)
    assert steps.champion(tiny_recipe, registry=registry, model=other) == (version, "")
    steps.summarize(Outcome(run="r", name="tiny", state="SUCCEEDED"), registry=registry, out=tmp_path / "summary")
    assert json.loads((tmp_path / "summary" / "summary.json").read_text(encoding="utf-8"))["champion"] == version


def test_a_version_that_cannot_be_put_in_place_does_not_become_the_champion(
    tiny_run: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    registry = str(tmp_path / "registry")
    version = steps.register(tiny_recipe, bundle=tiny_run / "bundle", model=tiny_run / "model", registry=registry)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear", encoding="utf-8")
    with pytest.raises(ArtifactError, match="was not written by twotower"):
        steps.deploy(tiny_recipe, version=version, registry=registry, to=str(tmp_path / "mine"))
    assert not (tmp_path / "registry" / "tiny" / "champion.json").exists()


def test_a_candidate_that_was_held_against_another_champion_is_put_nowhere(
    tiny_run: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    registry = str(tmp_path / "registry")
    version = steps.register(tiny_recipe, bundle=tiny_run / "bundle", model=tiny_run / "model", registry=registry)
    other = model_with(tmp_path, "other", metric="ndcg@10", validation=0.1)
    with write_artifact(tmp_path / "rival", kind="bundle", metadata={"name": "tiny", "model_fingerprint": "r"}):
        pass
    rival = steps.register(tiny_recipe, bundle=tmp_path / "rival", model=other, registry=registry)
    steps.deploy(tiny_recipe, version=rival, registry=registry, champion="")
    with pytest.raises(ArtifactError, match=f"{rival} was promoted since {version} was held against nothing"):
        steps.deploy(tiny_recipe, version=version, registry=registry, champion="", to=str(tmp_path / "answers"))
    assert not (tmp_path / "answers").exists()
    assert steps.deploy(tiny_recipe, version=version, registry=registry, champion=rival).previous == rival


@pytest.fixture(scope="module")
def joined_recipe(tiny_recipe: Recipe) -> Recipe:
    """The tiny recipe, with models of one task each."""
    brief = replace(tiny_recipe.evaluate, baselines=("popularity",), bootstrap=50, examples=0)
    return replace(tiny_recipe, train=replace(tiny_recipe.train, single_tasks=True), evaluate=brief)


@pytest.fixture(scope="module")
def joined_lines() -> list[str]:
    """What training told, an epoch a line."""
    return []


@pytest.fixture(scope="module")
def joined_model(
    joined_recipe: Recipe, tiny_run: Path, joined_lines: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The joint model of the tiny recipe, with models of one task each below it."""

    def watch(progress: Any) -> None:
        if progress.validation is not None:
            joined_lines.append(progress.line())

    out = tmp_path_factory.mktemp("joined") / "model"
    steps.train(joined_recipe, split=tiny_run / "split", out=out, watch=watch)
    assert [path.name for path in out.parent.iterdir()] == ["model"], "no checkpoint is left"
    return out


@pytest.fixture(scope="module")
def joined_report(joined_recipe: Recipe, tiny_run: Path, joined_model: Path) -> dict[str, Any]:
    """The report of that model."""
    return report_of(joined_recipe, tiny_run, joined_model, out=joined_model.parent / "report")


def report_of(recipe: Recipe, run: Path, model: Path, *, out: Path) -> dict[str, Any]:
    steps.evaluate(recipe, split=run / "split", model=model, out=out)
    found: dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return found


def weights_of(model: Path) -> dict[str, np.ndarray]:
    with np.load(model / "weights.npz") as stored:
        return {name: stored[name] for name in stored.files}


def equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_models_of_one_task_lie_below_the_joint_one_as_models(
    joined_model: Path, tiny_run: Path, joined_lines: list[str]
) -> None:
    manifest = verify(joined_model, kind="model")
    assert manifest["metadata"]["single_tasks"] == [
        {"task": "retrieval", "directory": "single/retrieval"},
        {"task": "rating", "directory": "single/rating"},
    ]
    for task, metric in (("retrieval", "ndcg@10"), ("rating", "rmse")):
        place = f"single/{task}"
        assert {f"{place}/manifest.json", f"{place}/query_tower.onnx", f"{place}/weights.npz"} <= set(manifest["files"])
        assert verify(joined_model / place, kind="model")["metadata"]["metric"] == metric
    assert equal(weights_of(joined_model), weights_of(tiny_run / "model")), "the joint one is as it is without them"
    assert [line.partition("  ")[0] for line in joined_lines] == [
        *(["joint"] * 2),
        *(["retrieval alone"] * 2),
        *(["rating alone"] * 2),
    ]
    losses = [set(re.findall(r"  (retrieval|met|rating) ", line)) for line in joined_lines[::2]]
    assert losses == [{"retrieval", "met", "rating"}, {"retrieval"}, {"rating"}]


def test_retrieval_alone_is_the_model_of_a_recipe_without_labels(
    joined_model: Path, tiny_run: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    ranking = replace(tiny_recipe.model.ranking, labels=())
    recipe = replace(tiny_recipe, model=replace(tiny_recipe.model, ranking=ranking))
    steps.train(recipe, split=tiny_run / "split", out=tmp_path / "model")
    alone = weights_of(joined_model / "single" / "retrieval")
    assert equal(alone, weights_of(tmp_path / "model"))
    joint, rating = weights_of(joined_model), weights_of(joined_model / "single" / "rating")
    for name in ("table/candidate_id_item_id", "query/000"):
        assert not np.array_equal(alone[name], joint[name][: len(alone[name])])
        assert not np.array_equal(rating[name], joint[name])


def test_the_report_sets_each_task_beside_the_model_that_learned_it_alone(
    joined_model: Path, joined_report: dict[str, Any], joined_recipe: Recipe, tiny_run: Path, tmp_path: Path
) -> None:
    retrieval, rating = (
        report_of(joined_recipe, tiny_run, joined_model / "single" / task, out=tmp_path / task)
        for task in ("retrieval", "rating")
    )
    for name, protocol in joined_report["protocols"].items():
        itself = retrieval["protocols"][name]["contenders"]["retrieval"]
        assert protocol["contenders"]["retrieval_trained_alone"]["metrics"] == pytest.approx(itself["metrics"])
    beside = joined_report["labels"]["rating"]["trained_alone"]["metrics"]
    assert beside == pytest.approx(rating["labels"]["rating"]["metrics"])
    found = {(row["task"], row["metric"]): row for row in joined_report["joining"]["rows"]}
    assert {task for task, _ in found} == {"retrieval", "rating"}
    assert found["rating", "rmse"]["alone"] == pytest.approx(rating["labels"]["rating"]["metrics"]["rmse"])
    assert found["retrieval", "ndcg@10"]["alone"] == pytest.approx(retrieval["headline"]["retrieval_ndcg"])
    assert all(row["difference"] != 0 for row in found.values()), "joining does something"
    first, *_ = notes = joined_report["joining"]["notes"]
    assert re.fullmatch(r"joint: epoch [12] of 2, the best by validation ndcg@10\.", first)
    assert any(re.fullmatch(r"rating alone: epoch [12] of 2, the best by validation rmse\.", note) for note in notes)
    for report in (retrieval, rating):
        assert "joining" not in report


def test_a_training_that_stops_in_its_last_model_does_not_train_the_others_again(
    joined_recipe: Recipe, tiny_run: Path, joined_model: Path, tmp_path: Path
) -> None:
    told: list[str] = []

    def stop(progress: Any) -> None:
        if progress.model == "rating alone" and progress.epoch == 2:
            raise KeyboardInterrupt

    out = tmp_path / "model"
    with pytest.raises(KeyboardInterrupt):
        steps.train(joined_recipe, split=tiny_run / "split", out=out, watch=stop)
    assert not out.exists()
    resume = {"split": tiny_run / "split", "out": out, "resume": True}
    steps.train(joined_recipe, **resume, watch=lambda progress: told.append(f"{progress.model} {progress.epoch}"))
    assert set(told) == {"rating alone 2"}
    assert fingerprint(out) == fingerprint(joined_model)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_models_of_one_task_go_with_the_chosen_one_and_into_no_bundle(
    joined_model: Path, joined_recipe: Recipe, tiny_run: Path, tmp_path: Path
) -> None:
    steps.choose([joined_model], out=tmp_path / "best")
    assert fingerprint(tmp_path / "best") == fingerprint(joined_model)
    verify(tmp_path / "best", kind="model")
    verify(tmp_path / "best" / "single" / "rating", kind="model")
    read = {"split": tiny_run / "split", "model": joined_model, "report": tiny_run / "report"}
    steps.bundle(joined_recipe, **read, index=tiny_run / "index", out=tmp_path / "bundle")
    assert not [path for path in (tmp_path / "bundle").rglob("*") if "single" in path.name]


def test_every_model_begins_where_its_own_kind_ended(
    joined_model: Path, joined_recipe: Recipe, tiny_run: Path, tmp_path: Path
) -> None:
    recipe = replace(joined_recipe, train=replace(joined_recipe.train, epochs=1))
    split = tiny_run / "split"
    with pytest.raises(TrainingError, match="holds no model of 'retrieval' alone, so the joint model alone would"):
        steps.train(recipe, split=split, out=tmp_path / "model", warm_start=tiny_run / "model")
    steps.train(recipe, split=split, out=tmp_path / "model", warm_start=joined_model)
    for place in (".", "single/retrieval", "single/rating"):
        first = json.loads((joined_model / place / "history.json").read_text(encoding="utf-8"))[0]["loss"]
        second = json.loads((tmp_path / "model" / place / "history.json").read_text(encoding="utf-8"))[0]["loss"]
        assert second < first
        assert read_manifest(tmp_path / "model" / place, kind="model")["metadata"]["carried_over"]["new_rows"] == 0
