"""A bundle reaches a cluster, is followed until it answers, and is taken back where it does not; against a real API."""

import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from twotower.errors import ClusterError
from twotower.release import kube as kube_module
from twotower.release.deployment import Rollout, Served, apply_serving, roll_back, served
from twotower.release.manifests import deploy_file

FIRST, SECOND = "s3://bundles/films/versions/first", "s3://bundles/films/versions/second"
IMAGE = "twotower-serve:0123456789ab"
QUICK = Rollout(timeout=1.0, patience=0.1, every=0.02)
LABELS = {"app.kubernetes.io/name": "twotower-serve"}
Object = dict[str, Any]


def ready(deployment: Object) -> Object:
    """The status of a Deployment whose pods, two unless it says otherwise, are new and ready."""
    seen, pods = deployment["metadata"]["generation"], deployment["spec"].get("replicas", 2)
    return {"observedGeneration": seen, "replicas": pods, "updatedReplicas": pods, "availableReplicas": pods}


def half_way(deployment: Object) -> Object:
    """One new pod that is not ready yet, beside the old one."""
    return ready(deployment) | {"updatedReplicas": 1, "availableReplicas": 1}


def rolls_out(kube: Any) -> None:
    """Let every Deployment become ready as soon as somebody looks."""
    kube.progress("deployments", "twotower-serve", [ready])


def deploy(kube: Any, bundle: str = FIRST, **changes: Any) -> tuple[Served | None, list[str]]:
    told: list[str] = []
    before = apply_serving(bundle, **({"image": IMAGE, "report": told.append, "rollout": QUICK} | changes))
    return before, told


def container(kube: Any) -> Object:
    template = kube.get("deployments", "twotower-serve", "twotower")["spec"]["template"]
    served_by: Object = template["spec"]["containers"][0]
    return served_by


def annotation(kube: Any) -> str:
    template = kube.get("deployments", "twotower-serve", "twotower")["spec"]["template"]
    return str(template["metadata"]["annotations"]["twotower.dev/bundle"])


def pod_in_trouble(kube: Any, state: Object, *, bundle: str = SECOND, restarts: int = 0, **more: Any) -> None:
    """A pod of the new bundle whose container waits, as a kubelet tells it."""
    status = {"name": "serve", "ready": False, "restartCount": restarts, "state": {"waiting": state}} | more
    status |= {"image": IMAGE, "imageID": ""}
    kube.put(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": "twotower-serve-new",
                "namespace": "twotower",
                "labels": LABELS,
                "annotations": {"twotower.dev/bundle": bundle},
            },
            "spec": {"containers": [{"name": "serve", "image": IMAGE}]},
            "status": {"phase": "Pending", "containerStatuses": [status]},
        }
    )


def test_a_first_deployment_makes_namespace_key_and_objects_and_waits_until_all_pods_answer(kube: Any) -> None:
    kube.progress("deployments", "twotower-serve", [{}, half_way, ready])
    before, told = deploy(kube)
    assert before is None
    assert container(kube)["args"][:2] == ["serve", FIRST]
    assert container(kube)["image"] == IMAGE
    assert annotation(kube) == FIRST
    made = ("services", "poddisruptionbudgets", "horizontalpodautoscalers", "networkpolicies", "deployments")
    assert [kube.names(plural, "twotower") for plural in made] == [["twotower-serve"]] * 5
    assert "1 of 2 new pods made" in "\n".join(told) or "1 old pods still to go" in "\n".join(told)
    assert told[-1] == f"twotower-serve serves {FIRST} after 0 s"


def test_everything_is_applied_server_side_in_our_name(kube: Any) -> None:
    rolls_out(kube)
    deploy(kube)
    applied = [asked for asked in kube.requests if asked.verb == "patch"]
    assert [asked.plural for asked in applied][-1] == "deployments"
    assert {asked.content_type for asked in applied} == {"application/apply-patch+yaml"}
    assert {asked.query["fieldManager"] for asked in applied} == {"twotower"}


def test_the_api_key_is_random_made_once_and_never_told(kube: Any) -> None:
    rolls_out(kube)
    _, told = deploy(kube)
    key = kube.get("secrets", "twotower-api-key", "twotower")["stringData"]["key"]
    assert len(key) == 43  # 32 random bytes in base64, without padding.
    _, told_again = deploy(kube, SECOND)
    assert kube.get("secrets", "twotower-api-key", "twotower")["stringData"]["key"] == key
    assert key not in "\n".join([*told, *told_again])
    assert not any("Secret" in line for line in told_again)


def test_the_replicas_that_the_autoscaler_set_stay(kube: Any) -> None:
    rolls_out(kube)
    deploy(kube)
    scaled = kube.get("deployments", "twotower-serve", "twotower")
    scaled["spec"]["replicas"] = 5
    kube.put(scaled, manager="autoscaler")
    deploy(kube, SECOND)
    assert kube.get("deployments", "twotower-serve", "twotower")["spec"]["replicas"] == 5


def test_a_second_bundle_rolls_the_pods_and_names_the_one_before(kube: Any) -> None:
    rolls_out(kube)
    deploy(kube)
    before, _ = deploy(kube, SECOND, image="twotower-serve:new")
    assert before == Served(bundle=FIRST, image=IMAGE)
    assert served() == Served(bundle=SECOND, image="twotower-serve:new")
    assert container(kube)["args"][1] == annotation(kube) == SECOND


def test_a_limit_that_somebody_else_set_stays_and_the_bundle_is_ours_all_the_same(kube: Any) -> None:
    rolls_out(kube)
    deploy(kube)
    theirs = kube.get("deployments", "twotower-serve", "twotower")
    of_container = theirs["spec"]["template"]["spec"]["containers"][0]
    of_container["resources"]["limits"]["memory"] = "9Gi"
    of_container["args"][1] = "s3://by-hand"
    theirs["metadata"]["labels"]["app.kubernetes.io/part-of"] = "shop"
    kube.put(theirs, manager="kubectl")
    _, told = deploy(kube, SECOND)
    assert container(kube)["resources"]["limits"] == {"cpu": "2", "memory": "9Gi", "ephemeral-storage": "10Gi"}
    assert container(kube)["args"][1] == annotation(kube) == SECOND
    labels = kube.get("deployments", "twotower-serve", "twotower")["metadata"]["labels"]
    assert labels["app.kubernetes.io/part-of"] == "shop"
    kept = next(line for line in told if "kept as others set it" in line)
    assert '.spec.template.spec.containers[name="serve"].resources.limits.memory' in kept
    assert ".metadata.labels.app.kubernetes.io/part-of" in kept
    assert "args" not in kept


def test_a_bundle_that_crashes_is_taken_back_with_its_last_words(kube: Any) -> None:
    rolls_out(kube)
    deploy(kube)
    kube.progress("deployments", "twotower-serve", [half_way])
    ended = {"terminated": {"exitCode": 2, "reason": "Error"}}
    pod_in_trouble(kube, {"reason": "CrashLoopBackOff"}, restarts=2, lastState=ended)
    kube.logs["twotower", "twotower-serve-new"] = ["opening", "Error: model.onnx: its sha256 is another one."]
    told: list[str] = []
    with pytest.raises(ClusterError) as fault:
        apply_serving(SECOND, image=IMAGE, report=told.append, rollout=QUICK)
    assert str(fault.value) == (
        f"twotower/twotower-serve: {SECOND} does not answer after 0 s: twotower-serve-new CrashLoopBackOff "
        "(exit code 2); it said: Error: model.onnx: its sha256 is another one. "
        f"{FIRST} was put back."
    )
    assert "  opening" in told
    assert container(kube)["args"][1] == annotation(kube) == FIRST


def test_an_image_that_cannot_be_pulled_is_named(kube: Any) -> None:
    rolls_out(kube)
    deploy(kube)
    kube.progress("deployments", "twotower-serve", [half_way])
    pod_in_trouble(kube, {"reason": "ImagePullBackOff", "message": f'Back-off pulling image "{IMAGE}"'})
    with pytest.raises(ClusterError, match=f'ImagePullBackOff .Back-off pulling image "{IMAGE}".*{FIRST} was put back'):
        deploy(kube, SECOND)


def test_a_pod_without_a_node_says_what_the_scheduler_says(kube: Any) -> None:
    kube.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "twotower"}})
    kube.progress("deployments", "twotower-serve", [half_way])
    pod_in_trouble(kube, {}, bundle=FIRST)
    message = "0/1 nodes are available: 1 Insufficient memory."
    condition = {"type": "PodScheduled", "status": "False", "message": message}
    kube.set_status("pods", "twotower-serve-new", "twotower", {"conditions": [condition]})
    with pytest.raises(ClusterError, match=r"has no node \(0/1 nodes are available: 1 Insufficient memory\)"):
        deploy(kube)


def test_pods_of_the_bundle_before_are_not_blamed(kube: Any) -> None:
    rolls_out(kube)
    deploy(kube)
    kube.progress("deployments", "twotower-serve", [half_way, half_way, ready])
    pod_in_trouble(kube, {"reason": "CrashLoopBackOff"}, bundle=FIRST, restarts=9)
    _, told = deploy(kube, SECOND)
    assert "CrashLoopBackOff" not in "\n".join(told)


def test_a_rollout_that_never_ends_is_given_up_and_a_first_one_is_left_for_a_look(kube: Any) -> None:
    kube.progress("deployments", "twotower-serve", [half_way])
    with pytest.raises(ClusterError) as fault:
        deploy(kube, rollout=Rollout(timeout=0.2, patience=0.1, every=0.02))
    assert str(fault.value).endswith("Nothing was deployed before; the pods are left for a look.")
    assert "1 of 2" in str(fault.value) or "old pods" in str(fault.value)
    assert annotation(kube) == FIRST


def test_the_deadline_of_the_deployment_ends_the_waiting(kube: Any) -> None:
    late = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
    kube.progress("deployments", "twotower-serve", [lambda each: half_way(each) | {"conditions": [late]}])
    with pytest.raises(ClusterError, match="its deadline for progress has passed"):
        deploy(kube, rollout=Rollout(timeout=60.0, patience=60.0, every=0.02))


def test_a_stale_status_is_not_believed(kube: Any) -> None:
    rolls_out(kube)
    deploy(kube)
    stale = ready(kube.get("deployments", "twotower-serve", "twotower"))  # Of the generation before the new bundle.
    kube.progress("deployments", "twotower-serve", [stale, stale, stale, ready])
    _, told = deploy(kube, SECOND)
    assert "twotower-serve: not seen by its controller yet" in told


def test_an_api_that_stumbles_while_we_wait_is_asked_again(kube: Any) -> None:
    kube.progress("deployments", "twotower-serve", [{}, half_way, ready])
    kube.on_write(
        "deployments",
        lambda api, _: api.refuse(
            "get", "deployments", status=503, reason="ServiceUnavailable", message="restarting", times=2
        ),
    )
    _, told = deploy(kube)
    assert any("503 restarting" in line for line in told)
    assert told[-1].startswith("twotower-serve serves")


def test_rolling_back_serves_the_earlier_bundle_by_the_image_that_runs(kube: Any) -> None:
    rolls_out(kube)
    deploy(kube)
    deploy(kube, SECOND)
    assert roll_back(FIRST, report=lambda _: None, rollout=QUICK) == Served(bundle=SECOND, image=IMAGE)
    assert served() == Served(bundle=FIRST, image=IMAGE)


def test_there_is_nothing_to_roll_back_where_nothing_is_deployed(kube: Any) -> None:
    with pytest.raises(ClusterError, match="so there is nothing to roll back"):
        roll_back(FIRST, report=lambda _: None)
    assert served() is None


def rules_of(kind: str = "Role") -> dict[str, list[Object]]:
    """The rules of deploy/rbac by namespace."""
    objects = yaml.safe_load_all(deploy_file("rbac/deploy.yaml").read_text(encoding="utf-8"))
    return {each["metadata"]["namespace"]: each["rules"] for each in objects if each["kind"] == kind}


def test_the_rights_in_deploy_rbac_are_enough_for_deploying_failing_and_rolling_back(kube: Any) -> None:
    kube.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "twotower"}})
    kube.rules = rules_of()
    rolls_out(kube)
    deploy(kube)
    kube.progress("deployments", "twotower-serve", [half_way])
    ended = {"terminated": {"exitCode": 2, "reason": "Error"}}
    pod_in_trouble(kube, {"reason": "CrashLoopBackOff"}, restarts=2, lastState=ended)
    kube.logs["twotower", "twotower-serve-new"] = ["last words"]
    with pytest.raises(ClusterError, match="it said: last words"):
        deploy(kube, SECOND)
    rolls_out(kube)
    roll_back(SECOND, report=lambda _: None, rollout=QUICK)
    assert served() == Served(bundle=SECOND, image=IMAGE)


def test_every_right_in_deploy_rbac_is_made_use_of(kube: Any) -> None:
    kube.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "twotower"}})
    rolls_out(kube)
    deploy(kube)
    kube.progress("deployments", "twotower-serve", [half_way])
    pod_in_trouble(kube, {"reason": "Error"}, restarts=2, lastState={"terminated": {"exitCode": 2, "reason": "E"}})
    with pytest.raises(ClusterError):
        deploy(kube, SECOND)
    used = {(f"{asked.plural}/{asked.subresource}".rstrip("/"), asked.verb) for asked in kube.requests}
    used |= {(plural, "create") for plural, verb in used if verb == "patch"}  # So is the apply of what is not there.
    rules = rules_of()["twotower"]
    assert {(plural, verb) for rule in rules for plural in rule["resources"] for verb in rule["verbs"]} <= used


def test_an_account_without_the_rights_is_told_who_gives_them(kube: Any) -> None:
    kube.rules = {}
    with pytest.raises(ClusterError) as fault:
        deploy(kube)
    assert "\n" not in str(fault.value)
    assert '403 deployments.apps "twotower-serve" is forbidden' in str(fault.value)
    assert str(fault.value).endswith("kubectl apply -k deploy/rbac")


def test_a_namespace_that_is_missing_and_may_not_be_made_is_one_line(kube: Any) -> None:
    message = 'namespaces is forbidden: User "x" cannot create resource "namespaces" at the cluster scope'
    kube.refuse("create", "namespaces", status=403, reason="Forbidden", message=message)
    with pytest.raises(ClusterError, match=r"cannot create Namespace twotower .*403 namespaces is forbidden"):
        deploy(kube)


def test_a_put_back_that_fails_too_is_told_beside_the_first_fault(kube: Any) -> None:
    rolls_out(kube)
    deploy(kube)
    kube.progress("deployments", "twotower-serve", [half_way])
    pod_in_trouble(kube, {"reason": "InvalidImageName", "message": "bad"})
    kube.on_write(
        "deployments",
        lambda api, _: api.refuse("patch", "services", status=403, reason="Forbidden", message="no longer yours"),
    )
    with pytest.raises(ClusterError, match=rf"InvalidImageName \(bad\)\. {FIRST} could not be put back .*no longer"):
        deploy(kube, SECOND)


def test_an_expired_token_is_one_line(kube: Any) -> None:
    kube.token = "another"
    with pytest.raises(ClusterError, match=r"401 Unauthorized\. Renew the credentials"):
        served()


def test_a_conflict_that_names_no_field_is_one_line(kube: Any) -> None:
    kube.refuse("patch", "services", status=409, reason="Conflict", message="the object has been modified")
    with pytest.raises(ClusterError, match=r"cannot apply Service twotower-serve .*409 the object has been modified"):
        deploy(kube)


def kubeconfig_to(address: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    text["clusters"][0]["cluster"]["server"] = address
    path.write_text(yaml.safe_dump(text), encoding="utf-8")
    monkeypatch.setenv("KUBECONFIG", str(path))


def test_a_cluster_that_is_not_running_is_one_line(kube: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    kubeconfig_to(address, tmp_path / "kubeconfig", monkeypatch)
    with pytest.raises(ClusterError, match=f"{address}: no answer. Is the cluster running"):
        served()


def test_a_cluster_that_accepts_and_never_answers_is_given_up(kube: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube_module, "ANSWER_WITHIN_S", (0.2, 0.2))
    kube.delay = 1.0
    with pytest.raises(ClusterError, match="no answer"):
        served()


class Page(BaseHTTPRequestHandler):
    """What a web server answers to everything."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>welcome</html>")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Stay quiet."""


def test_a_server_that_is_no_kubernetes_is_one_line(kube: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        kubeconfig_to(f"http://127.0.0.1:{server.server_port}", tmp_path / "kubeconfig", monkeypatch)
        with pytest.raises(ClusterError, match=r"answers, but is no Kubernetes API\. Check the kubeconfig's server"):
            served()
        server.shutdown()


def test_a_pod_without_an_account_is_one_line(kube: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setattr("kubernetes.config.incluster_config.SERVICE_TOKEN_FILENAME", "/nowhere/token")
    with pytest.raises(ClusterError, match=r"^No cluster: Service token file does not exist"):
        served()


def test_a_kubeconfig_that_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(ClusterError, match=r"^No cluster: .*name one by KUBECONFIG"):
        served()


def test_a_context_that_the_kubeconfig_does_not_know_is_one_line(kube: Any) -> None:
    with pytest.raises(ClusterError, match=r"No cluster: .*staging"):
        served(context="staging")


def test_what_was_learnt_of_the_api_is_left_nowhere(kube: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    served()
    assert [path.name for path in tmp_path.iterdir()] == ["kubeconfig"]
