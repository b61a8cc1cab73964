"""Why something is not ready, from what the API server says."""

import json
from typing import Any

import pytest

from twotower.cluster.workloads import objects_in, workloads_in
from twotower.errors import ClusterError

NO_NODE = "0/1 nodes are available: 1 Insufficient memory."


def unscheduled(message: str) -> dict[str, Any]:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return {"phase": "Pending", "conditions": [condition]}


@pytest.mark.parametrize(
    ("status", "kind", "why"),
    [
        (unscheduled(NO_NODE), "pending", f"pending: {NO_NODE}"),
        ({"phase": "Failed", "reason": "Evicted", "message": "low on disk"}, "evicted", "evicted: low on disk"),
    ],
)
def test_a_pod_that_does_not_run_says_why(made: Any, status: dict[str, Any], kind: str, why: str) -> None:
    seen = workloads_in([made.deployment("mysql", ready=False), made.pod("mysql", status=status)])
    assert [(each.name, each.why) for each in seen.not_ready] == [("mysql", why)]
    assert [trouble.kind for trouble in seen.troubles] == [kind]


@pytest.mark.parametrize(
    ("reason", "last", "kind", "why"),
    [
        ("ErrImagePull", None, "image pull", "image pull: ghcr.io/kubeflow/kfp-api-server:2.17.0: not found"),
        ("InvalidImageName", None, "image pull", "image pull: ghcr.io/kubeflow/kfp-api-server:2.17.0: not found"),
        ("CreateContainerConfigError", None, "container", "container: main: not found"),
        ("CrashLoopBackOff", {"exitCode": 3}, "crash loop", "crash loop: main ended with code 3, again and again"),
        (
            "CrashLoopBackOff",
            {"exitCode": 137, "reason": "OOMKilled"},
            "out of memory",
            "out of memory: main took more than its limit",
        ),
    ],
)
def test_a_container_that_waits_says_why(
    made: Any, reason: str, last: dict[str, Any] | None, kind: str, why: str
) -> None:
    pod = made.pod("mysql", status=made.waiting(reason, "not found", last=last))
    seen = workloads_in([made.deployment("mysql", ready=False), pod])
    assert [(trouble.kind, str(trouble)) for trouble in seen.troubles] == [(kind, why)]
    assert seen.not_ready[0].why == why


def test_a_pod_whose_claim_has_no_volume_waits_for_the_claim(made: Any) -> None:
    claim = {
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "mysql-pv-claim", "namespace": "kubeflow"},
        "status": {"phase": "Pending"},
    }
    pod = made.pod("mysql", status=unscheduled(NO_NODE), claims=("mysql-pv-claim",))
    seen = workloads_in([made.deployment("mysql", ready=False), pod, claim])
    assert [str(each) for each in seen.troubles] == ["claim: the claim mysql-pv-claim is Pending: it has no volume"]
    # Once it has one, the scheduler's own reason is what remains.
    seen = workloads_in([pod, claim | {"status": {"phase": "Bound"}}])
    assert [str(each) for each in seen.troubles] == [f"pending: {NO_NODE}"]


def test_a_step_that_was_killed_for_memory_is_trouble_and_one_that_ended_well_is_none(made: Any) -> None:
    ended = {"name": "main", "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}
    killed = made.pod("train", status={"phase": "Failed", "containerStatuses": [ended]})
    well = {"name": "main", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}
    done = made.pod("split", status={"phase": "Succeeded", "containerStatuses": [well]})
    assert [trouble.kind for trouble in workloads_in([killed, done]).troubles] == ["out of memory"]


def test_a_container_that_runs_again_after_a_crash_is_no_trouble(made: Any) -> None:
    status = {"name": "main", "state": {"running": {}}, "lastState": {"terminated": {"exitCode": 1, "reason": "Error"}}}
    pod = made.pod("mysql", status={"phase": "Running", "containerStatuses": [status]})
    seen = workloads_in([made.deployment("mysql", ready=False), pod])
    assert (seen.troubles, seen.not_ready[0].why) == ((), "running, not ready yet")


def test_a_deployment_is_ready_when_its_newest_pods_are(made: Any) -> None:
    old = made.deployment("mysql")
    old["metadata"]["generation"] = 2  # The controller has seen generation 1 alone.
    behind = made.deployment("ml-pipeline")
    behind["status"]["updatedReplicas"] = 0
    off = made.deployment("viewer")
    off["spec"]["replicas"], off["status"] = 0, {"observedGeneration": 1}
    seen = workloads_in([old, behind, off])
    assert {each.name: each.is_ready for each in seen.all} == {"mysql": False, "ml-pipeline": False, "viewer": True}
    assert seen.summary == "1 of 3 ready"


def test_a_job_is_ready_when_it_is_complete(made: Any) -> None:
    seen = workloads_in([made.job("a"), made.job("b", complete=False)])
    assert [(each.name, each.is_ready) for each in seen.all] == [("a", True), ("b", False)]


def test_a_job_that_gave_up_says_why(made: Any) -> None:
    job = made.job("init-seaweedfs", complete=False)
    job["status"]["conditions"] = [{"type": "Failed", "status": "True", "message": "Job has reached its limit"}]
    assert [each.why for each in workloads_in([job]).not_ready] == ["failed: Job has reached its limit"]


def test_nothing_at_all_is_not_ready() -> None:
    assert not workloads_in([]).is_ready


def test_a_long_message_is_one_line(made: Any) -> None:
    status = made.waiting("ErrImagePull", "rpc error:\n  " + "x" * 500)
    (trouble,) = workloads_in([made.pod("mysql", status=status)]).troubles
    assert trouble.detail.endswith("...")
    assert "\n" not in trouble.detail
    assert len(trouble.detail) < 260


@pytest.mark.parametrize("text", ["", "No resources found", "[]", json.dumps({"kind": "Pod"})])
def test_an_answer_that_is_no_list_is_told_in_one_line(text: str) -> None:
    with pytest.raises(ClusterError, match="kubectl: no JSON in its answer"):
        objects_in(text)
