"""The compiled pipeline: the golden file, every task's settings, the profile."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from twotower.errors import PipelineError
from twotower.pipeline.compile import compile_pipeline
from twotower.pipeline.dress import TITLES
from twotower.pipeline.image import code_tag, tagged
from twotower.pipeline.pipeline import UNCACHED
from twotower.pipeline.profile import Profile, load_profile, parse_profile
from twotower.steps import STEPS

GOLDEN = Path(__file__).with_name("pipeline.golden.yaml")
PLAIN = Profile(image="twotower-pipeline:golden", serve_image="twotower-serve:golden")


def compiled(profile: Profile, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pipeline's specification and the platform's."""
    out = folder / "pipeline.yaml"
    compile_pipeline(profile, out)
    spec, *platform = yaml.safe_load_all(out.read_text(encoding="utf-8"))
    return spec, platform[0] if platform else {}


def executors(spec: dict[str, Any]) -> dict[str, Any]:
    """Step -> its container."""
    found = spec["deploymentSpec"]["executors"]
    return {name.removeprefix("exec-").replace("-", "_"): each["container"] for name, each in found.items()}


def tasks(spec: dict[str, Any]) -> dict[str, Any]:
    """Step -> its task, from every level."""
    dags = [spec["root"], *spec["components"].values()]
    levels = [dag["dag"]["tasks"] for dag in dags if "dag" in dag]
    return {
        name.replace("-", "_"): task
        for level in levels
        for name, task in level.items()
        if name.replace("-", "_") in STEPS
    }


def test_the_pipeline_equals_its_golden_file(tmp_path: Path) -> None:
    """`TWOTOWER_GOLDEN=write` writes it anew, to be read before it is committed."""
    spec, platform = compiled(PLAIN, tmp_path)
    spec["sdkVersion"] = "any"
    text = yaml.safe_dump_all([spec, platform], sort_keys=True)
    if os.environ.get("TWOTOWER_GOLDEN") == "write":
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")


def test_every_task_has_image_resources_retries_timeout_title_and_caching(tmp_path: Path) -> None:
    spec, platform = compiled(PLAIN, tmp_path)
    containers, found = executors(spec), tasks(spec)
    on_cluster = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert set(containers) == set(found) == set(STEPS)
    for step in STEPS:
        resources = containers[step]["resources"]
        assert containers[step]["image"] == PLAIN.image
        assert {"resourceCpuLimit", "resourceCpuRequest", "resourceMemoryLimit", "resourceMemoryRequest"} <= set(
            resources
        )
        retry = found[step]["retryPolicy"]
        assert retry["maxRetryCount"] == 2
        assert (retry["backoffDuration"], retry["backoffFactor"], retry["backoffMaxDuration"]) == ("30s", 2.0, "3600s")
        assert found[step]["taskInfo"]["name"] == TITLES[step]
        assert int(on_cluster[f"exec-{step.replace('_', '-')}"]["activeDeadlineSeconds"]) >= 900
        assert bool(found[step].get("cachingOptions", {}).get("enableCache")) == (step not in UNCACHED)


def test_the_tag_follows_the_code_and_so_the_cache_key_does(tmp_path: Path) -> None:
    assert code_tag().startswith("0.1.0-")
    assert tagged().startswith("twotower-pipeline:")
    one, other = (
        executors(compiled(replace(PLAIN, image=image), tmp_path)[0])
        for image in ("twotower-pipeline:a", "twotower-pipeline:b")
    )
    assert all(one[step]["image"] != other[step]["image"] for step in STEPS)


def test_a_profile_puts_gpus_places_secrets_and_a_workspace_onto_tasks(tmp_path: Path) -> None:
    profile = parse_profile(
        {
            "env": {"AWS_REGION": "eu"},
            "secrets": [{"name": "store", "env": {"key": "AWS_ACCESS_KEY_ID"}}],
            "node_selector": {"pool": "gpu"},
            "tolerations": [{"key": "gpu", "effect": "NoSchedule"}],
            "image_pull_secrets": ["registry"],
            "workspace": {"claim": "shared"},
            "tasks": {"default": {"retries": 5}, "train": {"gpus": 2, "memory_limit": "32Gi", "timeout_minutes": 90}},
        },
        where="test",
    )
    spec, platform = compiled(profile, tmp_path)
    train, fetch = executors(spec)["train"], executors(spec)["fetch"]
    assert train["resources"]["accelerator"]["resourceCount"] == "2"
    assert train["resources"]["resourceMemoryLimit"] == "32Gi"
    assert "accelerator" not in fetch["resources"]
    assert {"name": "AWS_REGION", "value": "eu"} in train["env"]
    assert {"name": "AWS_ENDPOINT_URL", "value": "http://seaweedfs.kubeflow:9000"} in train["env"]
    assert tasks(spec)["gate"]["retryPolicy"]["maxRetryCount"] == 5
    pod = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-train"]
    assert int(pod["activeDeadlineSeconds"]) == 90 * 60
    assert pod["nodeSelector"]["labels"] == {"pool": "gpu"}
    assert pod["tolerations"][0]["key"] == "gpu"
    ours = next(each for each in pod["secretAsEnv"] if each["secretName"] == "store")
    assert ours["keyToEnv"][0] == {"envVar": "AWS_ACCESS_KEY_ID", "secretKey": "key"}
    assert pod["imagePullSecret"][0]["secretName"] == "registry"
    assert pod["pvcMount"][0]["mountPath"] == "/workspace"


def test_a_profile_with_a_train_job_hands_its_settings_to_the_train_task(tmp_path: Path) -> None:
    job = {"namespace": "team", "nodes": 4, "gpus": 1, "timeout_minutes": 30}
    profile = parse_profile({"train_job": job, "secrets": [{"name": "s", "env": {"k": "V"}}]}, where="test")
    given = tasks(compiled(profile, tmp_path)[0])["train"]["inputs"]["parameters"]["train_job"]["runtimeValue"][
        "constant"
    ]
    assert (given["nodes"], given["namespace"], given["timeout_minutes"]) == (4, "team", 30)
    assert given["limits"] == {"memory": "4Gi", "nvidia.com/gpu": "1"}
    assert given["secret_env"]["V"] == ["s", "k"]


def test_the_profiles_that_come_along_compile(tmp_path: Path) -> None:
    profiles = sorted((Path(__file__).parents[2] / "deploy" / "profiles").glob("*.toml"))
    assert profiles
    for path in profiles:
        spec, _ = compiled(load_profile(path), tmp_path)
        assert spec["root"]["inputDefinitions"]["parameters"]["registry"]["defaultValue"] == load_profile(path).registry


def test_kubernetes_resources_name_the_pipeline_and_its_version(tmp_path: Path) -> None:
    compile_pipeline(PLAIN, tmp_path / "resources.yaml", form="kubernetes")
    found = list(yaml.safe_load_all((tmp_path / "resources.yaml").read_text(encoding="utf-8")))
    assert [each["kind"] for each in found] == ["Pipeline", "PipelineVersion"]
    assert found[1]["metadata"]["name"] == "twotower-golden"
    assert found[1]["spec"]["pipelineName"] == found[0]["metadata"]["name"] == "twotower"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("imge = 'x'", "unknown key 'imge'"),
        ("[tasks.trian]\ngpus = 1", "tasks.trian: no such step; there are default, locate"),
        ("[tasks.train]\ngpus = -1", "tasks.train.gpus: Input should be greater than or equal to 0 (found -1)"),
        ("a = ", "not TOML"),
    ],
)
def test_a_faulty_profile_is_refused_by_its_key(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "profile.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(PipelineError, match=r"profile\.toml: ") as caught:
        load_profile(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert told in str(caught.value)


def test_a_limit_below_our_request_lowers_the_request_and_a_jobs_time_lengthens_its_tasks(tmp_path: Path) -> None:
    tree = {"tasks": {"default": {"memory_limit": "1Gi", "cpu_limit": "500m"}}, "train_job": {"namespace": "n"}}
    spec, platform = compiled(parse_profile(tree, where="test"), tmp_path)
    resources = executors(spec)["train"]["resources"]
    # Train asks for 2Gi and a core by itself; `fetch` for less than the limits.
    assert (resources["resourceMemoryRequest"], resources["resourceCpuRequest"]) == ("1Gi", "500m")
    assert executors(spec)["fetch"]["resources"]["resourceMemoryRequest"] == "512Mi"
    pod = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-train"]
    assert int(pod["activeDeadlineSeconds"]) == 60 * (1440 + 15)


def test_a_registry_elsewhere_gets_nothing_of_kubeflows_own_store(tmp_path: Path) -> None:
    spec, platform = compiled(parse_profile({"registry": "s3://ours/twotower"}, where="test"), tmp_path)
    assert "env" not in executors(spec)["deploy"]
    assert "secretAsEnv" not in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-deploy"]
