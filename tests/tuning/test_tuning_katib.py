"""The Experiment for a cluster: valid, and what its pods run is what we train."""

import json
import math
import os
import re
import shlex
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from click.testing import CliRunner

from twotower.artifact import write_artifact
from twotower.cli import progress
from twotower.cli.main import main
from twotower.errors import RecipeError
from twotower.recipe import Recipe, load_recipe
from twotower.training.progress import TrainProgress
from twotower.tune_config import TuneConfig
from twotower.tuning import katib
from twotower.tuning.katib import Trials, experiment, experiment_yaml

HERE = Path(__file__).parent
SMALL = HERE / "small.toml"
SCHEMA = json.loads((HERE / "katib_experiment.json").read_text(encoding="utf-8"))
SPEC = Trials(image="twotower-pipeline:1", namespace="kubeflow", split="s3://bucket/a split", trials=12, at_a_time=3)


def valid(manifest: dict[str, Any]) -> dict[str, Any]:
    jsonschema.validate(manifest, SCHEMA, cls=jsonschema.Draft202012Validator)
    return manifest


def small(**settings: Any) -> Recipe:
    return load_recipe(SMALL, {key.replace("__", "."): value for key, value in settings.items()})


def job_with(manifest: dict[str, Any], values: dict[str, str]) -> dict[str, Any]:
    """The trial's Job as Katib makes it: values into the text, by what the trial parameters refer to."""
    template = manifest["spec"]["trialTemplate"]
    text = json.dumps(template["trialSpec"])
    for parameter in template["trialParameters"]:
        text = text.replace(f"${{trialParameters.{parameter['name']}}}", values[parameter["reference"]])
    assert "trialParameters" not in text
    job: dict[str, Any] = json.loads(text)
    return job | {"metadata": {"name": "small-tune-abc", "namespace": "kubeflow"}}


def test_the_experiment_has_katibs_fields_and_the_recipes_space() -> None:
    body = valid(experiment(small(), SPEC))["spec"]
    assert body["objective"]["objectiveMetricName"] == "ndcg@10"
    assert body["objective"]["type"] == "maximize"
    assert body["parameters"] == [
        {
            "name": "train.embedding_learning_rate",
            "parameterType": "double",
            "feasibleSpace": {"min": "0.005", "max": "0.5", "distribution": "logUniform"},
        },
        {
            "name": "model.retrieval.temperature",
            "parameterType": "double",
            "feasibleSpace": {"min": "0.05", "max": "0.85", "step": "0.1", "distribution": "uniform"},
        },
        {"name": "train.optimizer", "parameterType": "categorical", "feasibleSpace": {"list": ["adam", "sgd"]}},
    ]
    assert body["earlyStopping"]["algorithmName"] == "medianstop"
    assert (body["maxTrialCount"], body["parallelTrialCount"]) == (12, 3)


def test_a_field_that_katib_does_not_have_is_refused_by_the_schema() -> None:
    manifest = experiment(small(), SPEC)
    manifest["spec"]["maxTrials"] = 3
    with pytest.raises(jsonschema.ValidationError, match="maxTrials"):
        valid(manifest)


def test_an_error_is_minimized_and_whole_numbers_stay_whole() -> None:
    recipe = small(train__metric="rmse", tune__space__train__epochs="{low = 1, high = 5}")
    body = valid(experiment(recipe, SPEC))["spec"]
    assert body["objective"]["type"] == "minimize"
    assert body["parameters"][-1] == {
        "name": "train.epochs",
        "parameterType": "int",
        "feasibleSpace": {"min": "1", "max": "5", "distribution": "uniform"},
    }


def test_a_trials_job_is_valid_and_its_shell_gives_our_command_the_recipe_and_the_values(tmp_path: Path) -> None:
    spec = Trials(
        image="twotower-pipeline:1", namespace="kubeflow", split="s3://bucket/a split", trials=2, at_a_time=1,
        requests={"cpu": "1", "memory": "2Gi"}, limits={"memory": "4Gi"}, env={"AWS_REGION": "here"},
        secret_env={"AWS_ACCESS_KEY_ID": ("store", "accesskey", True)}, service_account="runner",
        node_selector={"disk": "fast"}, tolerations=[{"key": "gpu", "operator": "Exists"}], image_pull_secrets=["pull"],
    )  # fmt: skip
    recipe = small(tune__space__model__query_tower__layers="{choices = [[64], [128, 64]]}")
    values = {
        "train.embedding_learning_rate": "0.0123",
        "model.retrieval.temperature": "0.25",
        "train.optimizer": "sgd",
        "model.query_tower.layers": "[128,64]",
    }
    job = job_with(yaml.safe_load(experiment_yaml(recipe, spec)), values)
    kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    stand_in = tmp_path / "twotower"
    stand_in.write_text('#!/bin/sh\nfor each in "$@"; do printf "%s\\0" "$each"; done\n', encoding="utf-8")
    stand_in.chmod(0o755)
    environment = {each["name"]: each["value"] for each in container["env"] if "value" in each}
    path = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    # As Katib's webhook does it: the words joined, and the output taken from outside.
    joined = " ".join([*container["args"], "&& echo completed"])
    ran = subprocess.run([*container["command"], joined], env=environment | path, capture_output=True, check=True)
    verb, text, *options = ran.stdout.decode().removesuffix("completed\n").split("\0")[:-1]
    assert verb == "train"
    assert options[:4] == ["--split", "s3://bucket/a split", "--out", katib.MODEL]
    settings = dict(each.split("=", 1) for each in options[4:] if each != "--set")
    trained = load_recipe(text, settings)
    assert trained.train.embedding_learning_rate == 0.0123
    assert trained.train.optimizer == "sgd"
    assert trained.model.query_tower.layers == (128, 64)
    assert trained.tune == TuneConfig()
    assert trained.prepare == recipe.prepare


def test_the_filter_finds_the_metric_in_a_line_of_progress(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (found,) = experiment(small(), SPEC)["spec"]["metricsCollectorSpec"]["source"]["filter"]["metricsFormat"]
    assert ";" not in found, "Katib joins filters by it"
    monkeypatch.setenv(katib.LOG_TIME, "1")
    assert progress.LOG_TIME == katib.LOG_TIME
    told = TrainProgress(
        epoch=2, epochs=3, step=10, steps=20, examples_per_second=1234.5, losses={"loss": 2.5, "retrieval": 2.4},
        validation={"recall@100": 0.5, "ndcg@10": 0.0812},
    )  # fmt: skip
    with progress.watching() as watch:
        watch(told)
    line = capsys.readouterr().err
    assert [each[:2] for each in re.findall(found, line)] == [("ndcg@10", "0.0812")]
    moment, _, rest = line.partition(" ")
    assert datetime.fromisoformat(moment).tzinfo is not None
    assert rest.startswith("epoch 2/3")


def test_what_katib_cannot_do_is_told() -> None:
    with pytest.raises(RecipeError, match="Katib ends trials early by the median alone"):
        experiment(small(tune__pruner="hyperband"), SPEC)
    assert "earlyStopping" not in valid(experiment(small(tune__pruner="none"), SPEC))["spec"]
    network = "tune__space__model__query_tower__network"
    with pytest.raises(RecipeError, match="writes values into a command as they are"):
        experiment(small(**{network: """{choices = ["mlp", "a'b"]}"""}), SPEC)


def test_without_a_space_the_temperature_is_looked_for_around_that_of_the_splits_items(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('name = "large"\n', encoding="utf-8")
    with write_artifact(tmp_path / "split", kind="split", metadata={"counts": {"train_items": 1_000_000}}):
        pass
    to = tmp_path / "experiment.yaml"
    command = ["tune", str(tmp_path / "recipe.toml"), "--katib", str(to), "--split"]
    answer = CliRunner().invoke(main, [*command, str(tmp_path / "split")])
    assert answer.exit_code == 0, answer.output
    parameters = valid(yaml.safe_load(to.read_text(encoding="utf-8")))["spec"]["parameters"]
    (space,) = (each["feasibleSpace"] for each in parameters if each["name"] == "model.retrieval.temperature")
    own = 1 / math.log(1_000_000)
    assert [float(space[end]) for end in ("min", "max")] == pytest.approx([own / 4, own * 4])

    unread = CliRunner().invoke(main, [*command, str(tmp_path / "nowhere")])
    assert unread.exit_code == 2
    (line,) = unread.stderr.splitlines()
    assert "nowhere" in line
    assert "needs the number of items" in line
    told = CliRunner().invoke(main, [*command, "s3://bucket/split", "--set", "model.retrieval.temperature=0.1"])
    assert told.exit_code == 0, "nothing is left to the split then"


def test_the_command_writes_the_manifest_and_says_what_the_cluster_needs(tmp_path: Path) -> None:
    to = tmp_path / "missing" / "folder" / "experiment.yaml"
    arguments = ["tune", str(SMALL), "--trials", "5", "--katib", str(to), "--split", "s3://mlpipeline/small/split"]
    answer = CliRunner().invoke(main, arguments)
    assert answer.exit_code == 0, answer.output
    assert answer.stdout.strip() == str(to)
    assert "katib.kubeflow.org/metrics-collector-injection=enabled" in answer.stderr
    manifest = valid(yaml.safe_load(to.read_text(encoding="utf-8")))
    assert manifest["metadata"]["name"] == "small-tune"
    script = manifest["spec"]["trialTemplate"]["trialSpec"]["spec"]["template"]["spec"]["containers"][0]["args"][0]
    assert shlex.split(script)[:2] == ["twotower", "train"]
    alone = CliRunner().invoke(main, ["tune", str(SMALL), "--katib", str(to)])
    assert alone.exit_code == 2
    assert "--katib needs --split" in alone.stderr
    to.write_text("a file", encoding="utf-8")
    below = CliRunner().invoke(main, [*arguments[:4], "--katib", str(to / "e.yaml"), "--split", "s3://b/split"])
    assert below.exit_code == 2
    why = f"{to / 'e.yaml'}: cannot be written (File exists). Name another file for --katib."
    assert below.stderr.splitlines() == [f"Error: {why}"]
