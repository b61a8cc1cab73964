"""The whole path by its commands, on a tiny world, and the questions that its bundle answers."""

import json
import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from twotower.cli.main import main

RECIPE = """
name = "tiny"
seed = 7

[prepare.simulated]
users = 120
items = 80
interactions = 3000
clusters = 4

[model]
query = [{ kind = "history", length = 5 }]
candidate = [{ kind = "id", column = "item_id", dim = 16 }]
embedding_dim = 16

[model.query_tower]
layers = [16]

[model.ranking]
labels = [{ name = "met", kind = "binary" }, { name = "rating", kind = "regression" }]
layers = [16]

[train]
epochs = 1
batch_size = 250
steps_per_call = 5

[evaluate]
bootstrap = 20
baselines = ["popularity"]
candidates = 20
"""
STEPS = ("prepare", "split", "train", "evaluate", "index", "bundle")


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory in which every step was called by its own command."""
    path = tmp_path_factory.mktemp("path")
    before = Path.cwd()
    os.chdir(path)
    try:
        Path("tiny.toml").write_text(RECIPE, encoding="utf-8")
        run = "runs/tiny"
        split, model = ("--split", f"{run}/split"), ("--model", f"{run}/model")
        sealed = ("--index", f"{run}/index", "--report", f"{run}/report")
        for step, inputs, out in (
            ("prepare", (), "prepared"),
            ("split", ("--prepared", f"{run}/prepared"), "split"),
            ("train", split, "model"),
            ("evaluate", (*split, *model), "report"),
            ("index", (*split, *model), "index"),
            ("bundle", (*split, *model, *sealed), "bundle"),
        ):
            result = call(step, "tiny.toml", *inputs, "--out", f"{run}/{out}")
            assert (result.exit_code, result.stdout) == (0, f"{run}/{out}\n".replace("/", os.sep)), result.stderr
    finally:
        os.chdir(before)
    return path


@pytest.fixture
def at_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def fresh_steps(result: Result) -> list[str]:
    told = [line.split() for line in result.stderr.splitlines()]
    return [words[0] for words in told if words and words[0] in STEPS and "up to date" not in " ".join(words)]


@pytest.mark.usefixtures("at_home")
def test_a_run_leaves_out_what_the_steps_commands_made_and_shows_the_result() -> None:
    result = call("run", "tiny.toml")
    assert result.exit_code == 0, result.stderr
    assert fresh_steps(result) == []
    for expected in ("Successive evaluation", "Model, both stages", "Popularity", "Recommendations for user"):
        assert expected in result.stdout
    next_command = next(line for line in result.stdout.splitlines() if line.startswith("Ask it:"))
    answer = call(*next_command.partition("twotower ")[2].split())
    assert answer.exit_code == 0, answer.stderr


@pytest.mark.usefixtures("at_home")
def test_a_changed_setting_makes_anew_only_what_depends_on_it() -> None:
    copy = "runs/copy"
    shutil.copytree("runs/tiny", copy)
    result = call("run", "tiny.toml", "--out", copy, "--set", "evaluate.bootstrap=10")
    assert result.exit_code == 0, result.stderr
    assert fresh_steps(result) == ["evaluate", "bundle"]


@pytest.mark.usefixtures("at_home")
def test_the_newest_bundle_answers_where_none_is_named() -> None:
    result = call("recommend", "--user", "3", "-k", "4", "--json")
    answer = json.loads(result.stdout)
    assert "Answering from runs" in result.stderr
    assert [item["rank"] for item in answer["items"]] == [1, 2, 3, 4]
    assert answer["fallback"] is None


@pytest.mark.usefixtures("at_home")
def test_an_excluded_item_does_not_come() -> None:
    first = json.loads(call("recommend", "runs/tiny/bundle", "--user", "3", "--json").stdout)["items"][0]["item_id"]
    answer = json.loads(call("recommend", "runs/tiny/bundle", "--user", "3", "--exclude", first, "--json").stdout)
    assert first not in [item["item_id"] for item in answer["items"]]


@pytest.mark.usefixtures("at_home")
def test_a_history_serves_somebody_unknown_and_nothing_gets_the_popular_fallback() -> None:
    by_history = json.loads(call("recommend", "runs/tiny/bundle", "--history", "1,2", "--json").stdout)
    assert by_history["fallback"] is None
    assert {"1", "2"} & {item["item_id"] for item in by_history["items"]} == set()
    anybody = call("recommend", "runs/tiny/bundle")
    assert "(fallback: popular)" in anybody.stdout


@pytest.mark.usefixtures("at_home")
def test_a_batch_is_written_as_parquet() -> None:
    Path("users.csv").write_text("user_id,age\n3,20\n007,30\n3,20\n", encoding="utf-8")
    result = call("recommend", "runs/tiny/bundle", "--users", "users.csv", "--output", "answers.parquet", "-k", "2")
    assert (result.exit_code, result.stdout) == (0, "answers.parquet\n")
    table = pq.read_table("answers.parquet")
    assert table.column_names == ["user_id", "item_id", "score", "rank"]
    assert table["user_id"].to_pylist() == ["3", "3", "007", "007"]
    assert table["rank"].to_pylist() == [1, 2, 1, 2]


@pytest.mark.usefixtures("at_home")
def test_a_batch_without_a_user_column_is_refused() -> None:
    Path("strange.csv").write_text("who\n3\n", encoding="utf-8")
    result = call("recommend", "runs/tiny/bundle", "--users", "strange.csv", "--output", "none.parquet")
    assert result.exit_code == 2
    assert result.stderr == "Error: strange.csv: no column 'user_id'; there are who. Name one so.\n"
    assert call("recommend", "runs/tiny/bundle", "--users", "strange.csv").exit_code == 2


@pytest.mark.usefixtures("at_home")
def test_neighbours_are_found_and_an_unknown_item_is_refused() -> None:
    met = json.loads(call("recommend", "runs/tiny/bundle", "-k", "1", "--json").stdout)["items"][0]["item_id"]
    near = json.loads(call("similar", "runs/tiny/bundle", "--item", met, "-k", "3", "--json").stdout)
    assert [item["rank"] for item in near["items"]] == [1, 2, 3]
    assert met not in [item["item_id"] for item in near["items"]]
    assert "Similar to" in call("similar", "--item", met).stdout
    refused = call("similar", "runs/tiny/bundle", "--item", "none")
    assert refused.exit_code == 2
    assert "'none'" in refused.stderr


@pytest.mark.usefixtures("at_home")
def test_validate_tells_figures_and_ends_with_2_where_there_is_a_fault() -> None:
    good = call("validate", "tiny.toml")
    assert good.exit_code == 0
    assert "faults: none" in good.stdout
    Path("one.csv").write_text("user_id,item_id,timestamp\n1,2,3\n1,3,4\n", encoding="utf-8")
    bad = call("validate", "--set", "prepare.source=files", "--set", "prepare.files.interactions=one.csv")
    assert bad.exit_code == 2
    assert "only one user" in bad.stdout


def test_without_a_bundle_the_next_step_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("recommend", "--user", "3")
    assert result.exit_code == 2
    assert result.stderr == "Error: No bundle named, and none in runs/. Name one, or make one: twotower run.\n"


def test_a_directory_of_another_kind_is_refused_by_name(at_home: Path) -> None:
    result = call("split", "tiny.toml", "--prepared", "runs/tiny/model", "--out", "runs/other")
    assert result.exit_code == 2
    assert "runs/tiny/model" in result.stderr.replace(os.sep, "/")
    assert not (at_home / "runs" / "other").exists()
