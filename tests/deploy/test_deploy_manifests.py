"""What lies in deploy/ renders, is valid, agrees with the code, and runs with as few rights as it can."""

import json
import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from twotower.errors import ClusterError
from twotower.release import manifests
from twotower.release.manifests import deploy_file, serving_objects

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
OWN_SCHEMAS = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (DEPLOY / "schemas").glob("*.json")}
FOLDERS = sorted(path.parent.relative_to(DEPLOY).as_posix() for path in DEPLOY.rglob("kustomization.yaml"))
VERSIONS = ("1.33", kubernetes_validate.latest_version())
"""That of deploy/kind/cluster.yaml, and the newest."""

Render = Callable[[str], list[dict[str, Any]]]
Object = dict[str, Any]
Pods = Callable[[Object], Iterator[Object]]


def of_kind(objects: list[Object], kind: str) -> list[Object]:
    return [each for each in objects if each["kind"] == kind]


def place(each: Object) -> tuple[str, str, str]:
    return each["metadata"].get("namespace", ""), each["kind"], each["metadata"]["name"]


# Valid


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("folder", FOLDERS)
def test_every_folder_renders_and_every_object_fits_its_schema(folder: str, version: str, rendered: Render) -> None:
    objects = rendered(folder)
    assert objects
    for each in objects:
        if each["kind"] in OWN_SCHEMAS:
            jsonschema.validate(each, OWN_SCHEMAS[each["kind"]], cls=jsonschema.Draft202012Validator)
        else:
            kubernetes_validate.validate(each, version, strict=True)


@pytest.mark.parametrize("kind", sorted(OWN_SCHEMAS))
def test_a_field_that_a_custom_resource_does_not_have_is_refused(kind: str, everything: list[Object]) -> None:
    each = deepcopy(next(each for each in everything if each["kind"] == kind))
    each["spec"]["replicsa"] = 1
    with pytest.raises(jsonschema.ValidationError, match="replicsa"):
        jsonschema.validate(each, OWN_SCHEMAS[kind], cls=jsonschema.Draft202012Validator)


def test_no_file_is_in_no_folder() -> None:
    used = set()
    for path in DEPLOY.rglob("kustomization.yaml"):
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        patches = [patch["path"] for patch in tree.get("patches", ()) if "path" in patch]
        used |= {(path.parent / name).resolve() for name in (*tree["resources"], *patches)}
    aside = ("kustomization.yaml", "cluster.yaml")  # The second is kind's.
    assert {path for path in DEPLOY.rglob("*.yaml") if path.name not in aside} <= used


def test_what_the_deploy_step_applies_is_what_kubectl_renders(rendered: Render) -> None:
    template = of_kind(rendered("serving/base"), "Deployment")[0]["spec"]["template"]
    ours = serving_objects(
        bundle_address=template["metadata"]["annotations"][manifests.BUNDLE],
        image=template["spec"]["containers"][0]["image"],
        namespace="twotower",
    )
    assert sorted(ours, key=place) == sorted(rendered("serving/base"), key=place)


def test_bundle_image_and_namespace_are_filled_in_where_they_belong() -> None:
    objects = serving_objects(bundle_address="s3://b/v", image="twotower-serve:1", namespace="shop")
    assert {each["metadata"].get("namespace", each["metadata"]["name"]) for each in objects} == {"shop"}
    template = objects[-1]["spec"]["template"]
    assert manifests.bundle_of(template) == "s3://b/v"
    assert manifests.image_of(template) == "twotower-serve:1"
    assert template["spec"]["containers"][0]["args"][:2] == ["serve", "s3://b/v"]


@pytest.mark.parametrize("overlay", ["kind", "production"])
def test_an_overlay_names_its_bundle_once(overlay: str, rendered: Render) -> None:
    template = of_kind(rendered(f"serving/overlays/{overlay}"), "Deployment")[0]["spec"]["template"]
    named = yaml.safe_load((DEPLOY / f"serving/overlays/{overlay}/bundle.yaml").read_text(encoding="utf-8"))
    assert manifests.bundle_of(template) == manifests.bundle_of(named["spec"]["template"])
    assert template["spec"]["containers"][0]["args"][1] == manifests.bundle_of(template)


def test_a_file_that_is_not_there_is_one_line() -> None:
    with pytest.raises(ClusterError, match=r"^deploy/nowhere\.yaml is neither in .* nor beside it"):
        deploy_file("nowhere.yaml")


# What is written twice is the same


def test_every_image_is_a_target_of_the_dockerfile(everything: list[Object], pods_of: Pods) -> None:
    stages = re.findall(r"^FROM .* AS (\S+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    images = {container["image"] for each in everything for pod in pods_of(each) for container in pod["containers"]}
    names = {image.partition(":")[0].rpartition("/")[2] for image in images}
    assert names == {"twotower-serve", "twotower-pipeline"}
    assert {name.removeprefix("twotower-") for name in names} <= set(stages)


def test_the_arguments_are_ones_that_the_serve_command_takes(everything: list[Object], pods_of: Pods) -> None:
    from twotower.cli.serve import serve

    for each in [*of_kind(everything, "Deployment"), *of_kind(everything, "InferenceService")]:
        container = next(pods_of(each))["containers"][0]
        assert container["args"][0] == "serve"
        context = serve.make_context("serve", list(container["args"][1:]))
        assert context.params["host"] == "0.0.0.0"
        assert context.params["port"] == container["ports"][0]["containerPort"]
        mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
        assert mounts == [Path(context.params["cache"]).as_posix(), "/tmp"]


def test_kserve_serves_as_the_deployment_does(rendered: Render, pods_of: Pods) -> None:
    ours = next(pods_of(of_kind(rendered("serving/base"), "Deployment")[0]))["containers"][0]
    theirs = next(pods_of(of_kind(rendered("kserve"), "InferenceService")[0]))["containers"][0]
    assert [theirs[part] for part in ("args", "env", "volumeMounts", "securityContext")] == [
        ours[part] for part in ("args", "env", "volumeMounts", "securityContext")
    ]


def test_the_train_job_is_the_one_that_the_launcher_makes(rendered: Render) -> None:
    from twotower.pipeline.trainjob import TrainJobSpec, train_job_manifest

    [written] = rendered("trainer")
    made = train_job_manifest(
        TrainJobSpec(
            name="twotower-train",
            namespace="kubeflow",
            image="twotower-pipeline:TAG",
            recipe="s3://mlpipeline/twotower/recipe.toml",
            split="s3://mlpipeline/twotower/split",
            out="s3://mlpipeline/twotower/model",
            nodes=2,
            requests={"cpu": "2", "memory": "4Gi"},
            limits={"memory": "4Gi"},
            env={"AWS_ENDPOINT_URL": "http://seaweedfs.kubeflow:9000", "AWS_REGION": "us-east-1"},
            secret_env={
                "AWS_ACCESS_KEY_ID": ("mlpipeline-minio-artifact", "accesskey"),
                "AWS_SECRET_ACCESS_KEY": ("mlpipeline-minio-artifact", "secretkey"),
            },
        )
    )
    assert written == made


def test_the_profile_for_kind_is_one_and_leads_to_the_same_store_as_the_served_pods(rendered: Render) -> None:
    from twotower.pipeline.profile import load_profile

    profile = load_profile(DEPLOY / "profiles" / "kind.toml")
    [secret] = of_kind(rendered("kfp-storage"), "Secret")
    assert profile.environment.items() <= secret["stringData"].items()
    assert profile.deploy_to == "kubernetes:twotower"
    assert [each.name for each in profile.all_secrets] == ["mlpipeline-minio-artifact"]  # Kubeflow Pipelines makes it.


# As few rights as can be


@pytest.fixture
def pods_that_serve(everything: list[Object], pods_of: Pods) -> list[Object]:
    kinds = ("Deployment", "InferenceService")
    return [pod for each in everything if each["kind"] in kinds for pod in pods_of(each)]


def test_no_pod_that_serves_is_root_writes_to_its_image_or_holds_a_token(pods_that_serve: list[Object]) -> None:
    pods = pods_that_serve
    assert len(pods) == 4  # base, two overlays, KServe
    for pod in pods:
        [container] = pod["containers"]
        rights = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
        assert container["securityContext"] == rights
        user = pod["securityContext"]
        assert user["runAsNonRoot"] is True
        assert user["runAsUser"] == user["runAsGroup"] == 10001
        assert user["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert all(set(volume) == {"name", "emptyDir"} for volume in pod["volumes"])


def test_the_user_is_the_one_of_the_image() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert re.search(r"^USER 10001", text, re.MULTILINE)


def test_every_pod_that_serves_is_probed_and_bounded(pods_that_serve: list[Object]) -> None:
    from twotower.serving.api.app import create_app
    from twotower.serving.api.service import Service
    from twotower.serving.door.telemetry import Telemetry
    from twotower.serving.http import scopes
    from twotower.serving.live.deployment import Live

    routes = scopes(create_app(Service(Live(), store=None, telemetry=Telemetry())))
    for pod in pods_that_serve:
        [container] = pod["containers"]
        probes = [container[name]["httpGet"]["path"] for name in ("startupProbe", "readinessProbe", "livenessProbe")]
        assert {routes[path]["GET"] for path in probes} == {None}  # A probe shows no key.
        for bound in ("requests", "limits"):
            assert {"cpu", "memory"} <= container["resources"][bound].keys()


def test_a_pod_goes_only_when_another_is_ready(everything: list[Object]) -> None:
    for each in of_kind(everything, "Deployment"):
        assert each["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
        assert each["spec"]["revisionHistoryLimit"] == 5
        assert "replicas" not in each["spec"]  # They are the autoscaler's.


def test_the_network_opens_one_port_and_no_way_out_but_names_and_stores(rendered: Render) -> None:
    policy = next(each for each in rendered("serving/base") if each["kind"] == "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert [port["port"] for rule in policy["ingress"] for port in rule["ports"]] == [8000]
    assert sorted(port["port"] for rule in policy["egress"] for port in rule["ports"]) == [53, 53, 443, 8333]


def test_no_role_reads_or_changes_a_secret_or_has_a_right_to_everything(rendered: Render) -> None:
    roles = of_kind(rendered("rbac"), "Role")
    assert len(roles) == 2
    assert of_kind(rendered("rbac"), "ClusterRole") == []
    for rule in [rule for role in roles for rule in role["rules"]]:
        assert "*" not in [*rule["verbs"], *rule["resources"], *rule["apiGroups"]]
        if "secrets" in rule["resources"]:
            assert rule["verbs"] == ["create"]
        if {"patch", "update", "delete"} & set(rule["verbs"]) and "trainjobs" not in rule["resources"]:
            assert rule["resourceNames"] == [manifests.NAME]
