"""The whole path on a tiny world: what it writes, what it does not write again, and each step of the pipeline alone."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

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
