"""A run as it goes on, and why it failed: the real clients, over HTTP, against servers that are played."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kfp_api
import kube_api
import pytest
import yaml
from kfp_api import node, nodes

from twotower.errors import PipelineError
from twotower.pipeline import follow
from twotower.pipeline.follow import RunState, failures, follow_run, read_run
from twotower.pipeline.server import Server, connect
from twotower.pipeline.submit import submit_run
from twotower.pipeline.tasks import pipeline_tasks


def states(run: RunState) -> dict[str, str]:
    return {task.name: task.state for task in run.tasks}


RUNNING = [
    *nodes("prepare", "SUCCEEDED", end="03:00:40", number="1"),
    *nodes("train", "RUNNING", start="03:00:41", number="2"),
    *nodes("train", "RUNNING", start="03:00:42", number="3"),
    node("root", "RUNNING"),
    node("exit-handler-1", "RUNNING"),
    node("exit-handler-1-driver", "SUCCEEDED"),
    node("for-loop-2", "RUNNING"),
    node("iteration-driver", "SUCCEEDED"),
]
DONE = [
    *nodes("prepare", "SUCCEEDED", end="03:00:00", number="1", cached=True),
    *nodes("train", "SUCCEEDED", start="03:00:41", end="03:02:41", number="2"),
    *nodes("train", "SUCCEEDED", start="03:00:42", end="03:03:42", number="3"),
    *nodes("summarize", "SUCCEEDED", start="03:04:00", end="03:04:10", number="4"),
]
FAILED = [
    *nodes("prepare", "SUCCEEDED", end="03:00:40", number="1"),
    *nodes("train", "FAILED", start="03:00:41", end="03:01:00", number="2"),
    *nodes("summarize", "SUCCEEDED", start="03:04:00", end="03:04:10", number="4"),
]


@pytest.fixture
def started(api: Any, package: Path) -> tuple[Server, str]:
    return connect(api.url), submit_run(package, {"recipe": "r"}, host=api.url).run_id


def test_tasks_of_nested_parts_come_flat_in_order_and_under_their_display_names(package: Path) -> None:
    tasks = pipeline_tasks(yaml.safe_load(package.read_text()))

    assert [(task.key, task.name) for task in tasks] == [
        ("prepare", "Prepare data"),
        ("train", "train"),
        ("summarize", "Summary"),
    ]


def test_a_run_that_has_begun_shows_what_each_task_does(api: Any, started: tuple[Server, str]) -> None:
    api.script = [("RUNNING", RUNNING)]

    run = read_run(*started)

    assert states(run) == {
        "Prepare data": "succeeded",
        "train (1)": "running",
        "train (2)": "running",
        "Summary": "waiting",
    }
    prepared, first, *_ = run.tasks
    now = datetime(2026, 11, 25, 3, 1, 41, tzinfo=UTC)
    assert (prepared.seconds(now), first.seconds(now)) == (40.0, 60.0)
    assert run.ended is None


def test_a_task_out_of_the_cache_is_told_apart(api: Any, started: tuple[Server, str]) -> None:
    api.script = [("SUCCEEDED", DONE)]

    assert states(read_run(*started)) == {
        "Prepare data": "cached",
        "train (1)": "succeeded",
        "train (2)": "succeeded",
        "Summary": "succeeded",
    }


def test_a_server_that_links_executors_tells_the_cached_by_them(api: Any, started: tuple[Server, str]) -> None:
    slow = nodes("prepare", "SUCCEEDED", end="03:00:30", number="1", cached=True)
    slow[2]["pod_name"] = slow[1]["child_tasks"][0]["pod_name"]
    api.script = [("RUNNING", slow)]

    assert read_run(*started).tasks[0].state == "cached"


def test_tasks_that_were_never_reached_are_skipped_when_the_run_has_ended(
    api: Any, started: tuple[Server, str]
) -> None:
    api.script = [("FAILED", nodes("prepare", "FAILED", end="03:00:10"))]

    assert states(read_run(*started)) == {"Prepare data": "failed", "train": "skipped", "Summary": "skipped"}


def test_a_driver_that_failed_fails_its_task(api: Any, started: tuple[Server, str]) -> None:
    api.script = [
        ("FAILED", [node("prepare-driver", "FAILED", end="03:00:05"), node("prepare", "RUNTIME_STATE_UNSPECIFIED")])
    ]

    (task, *_) = read_run(*started).tasks
    assert (task.state, task.message) == ("failed", "the part that prepares it (its driver) failed")


def test_a_run_made_in_the_ui_is_read_by_its_uploaded_pipeline(api: Any, package: Path) -> None:
    server = connect(api.url)
    uploaded = server.client.upload_pipeline(str(package), pipeline_name="two-steps")
    run = server.client.run_pipeline(
        "e-0", "by hand", pipeline_id=uploaded.pipeline_id, version_id=uploaded.pipeline_id
    )
    api.script = [("SUCCEEDED", DONE)]

    assert list(states(read_run(server, run.run_id))) == ["Prepare data", "train (1)", "train (2)", "Summary"]


def test_a_run_without_a_pipeline_is_read_by_its_nodes(api: Any, started: tuple[Server, str]) -> None:
    api.shows_spec = False
    api.script = [("RUNNING", RUNNING)]

    assert list(states(read_run(*started))) == ["prepare", "train (1)", "train (2)"]


def test_following_shows_each_state_and_ends_with_the_run(api: Any, started: tuple[Server, str]) -> None:
    api.script = [("PENDING", []), ("RUNNING", RUNNING), ("RUNNING", RUNNING), ("SUCCEEDED", DONE)]
    seen: list[str] = []

    run = follow_run(
        *started, watch=lambda run: seen.append(run.state if isinstance(run, RunState) else run), poll=0.01
    )

    assert seen == ["PENDING", "RUNNING", "RUNNING", "SUCCEEDED"]
    assert (run.has_failed, run.ended) == (False, datetime(2026, 11, 25, 3, 10, tzinfo=UTC))


def test_a_server_that_is_away_for_a_moment_does_not_end_the_following(api: Any, started: tuple[Server, str]) -> None:
    api.script = [("RUNNING", RUNNING), ("SUCCEEDED", DONE)]
    seen: list[Any] = []

    def watch(run: RunState | str) -> None:
        seen.append(run)
        if len(seen) == 1:
            api.refusals = [("/runs/", kfp_api.fault(503, 14, "restarting"))]

    assert follow_run(*started, watch=watch, poll=0.01).state == "SUCCEEDED"
    assert seen[1] == f"run r-1: {api.url} answers 503: restarting. Trying again."


def test_a_run_that_takes_too_long_is_left_alone_and_told(api: Any, started: tuple[Server, str]) -> None:
    api.script = [("RUNNING", RUNNING)]

    with pytest.raises(PipelineError) as told:
        follow_run(*started, watch=lambda _: None, poll=0.01, timeout=0.1)
    assert "RUNNING after 0.1 s (train (1): running, train (2): running). It goes on" in str(told.value)
    assert f"twotower pipeline status r-1 --host {api.url}" in str(told.value)


def test_an_unknown_run_is_told_with_where_the_known_ones_are(api: Any) -> None:
    with pytest.raises(PipelineError) as told:
        read_run(connect(api.url), "r-77")
    assert str(told.value) == (
        f"run r-77: {api.url} answers 404: Failed to get a run: run r-77 not found. "
        f"The runs are listed at {api.url}/#/runs."
    )


# Failing


def test_a_failed_tasks_log_comes_from_the_api(api: Any, started: tuple[Server, str]) -> None:
    api.script = [("FAILED", FAILED)]
    api.logs = {f"{kfp_api.WORKFLOW}-2": "\n".join(f"line {number}" for number in range(100))}

    (failure,) = failures(started[0], read_run(*started), lines=3)

    assert (failure.task, failure.log) == ("train", ("line 97", "line 98", "line 99"))


def test_a_failed_tasks_log_comes_from_the_ui_where_the_host_is_the_ui(api: Any, started: tuple[Server, str]) -> None:
    api.script = [("FAILED", FAILED)]
    api.is_ui = True
    # The pod is named after the template, too; the API lists the number alone.
    api.ui_logs = {f"{kfp_api.WORKFLOW}-system-container-impl-2": "Error: no such recipe"}

    (failure,) = failures(started[0], read_run(*started))

    assert failure.log == ("Error: no such recipe",)
    assert "/k8s/pod/logs" in failure.source


def test_a_failed_tasks_log_and_reason_come_from_its_pod(
    api: Any, started: tuple[Server, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    api.script = [("FAILED", FAILED)]
    with kube_api.KubeApi() as cluster:
        monkeypatch.setenv("KUBECONFIG", str(cluster.write_kubeconfig(tmp_path / "config")))
        ended = {"state": {"terminated": {"exitCode": 2, "reason": "Error"}}, "name": "main", "image": "twotower:test"}
        cluster.put(pod("train-pod", task="train", status={"phase": "Failed", "containerStatuses": [ended]}))
        cluster.put(pod("other", task="prepare", status={"phase": "Succeeded"}))
        cluster.logs["kubeflow", "train-pod"] = ["step 1", "Error: the loss is no number"]

        (failure,) = failures(started[0], read_run(*started))

    assert failure.message == "Error, exit code 2"
    assert failure.log == ("step 1", "Error: the loss is no number")
    assert failure.source == "kubectl logs -n kubeflow train-pod -c main"


def test_a_failure_without_any_log_says_how_to_get_it(api: Any, started: tuple[Server, str]) -> None:
    api.script = [("FAILED", FAILED)]

    (failure,) = failures(started[0], read_run(*started))

    assert (failure.message, failure.log) == ("no reason given", ())
    assert "kubectl logs -n kubeflow -l pipeline/runid=r-1" in failure.source


def test_an_error_that_the_server_knows_is_shown(api: Any, started: tuple[Server, str]) -> None:
    failed = nodes("prepare", "FAILED", end="03:00:10")
    failed[1]["error"] = {"code": 13, "message": "ErrImagePull: no such image\n twotower-pipeline:test"}
    api.script = [("FAILED", failed)]

    (failure,) = failures(started[0], read_run(*started))

    assert failure.message == "ErrImagePull: no such image twotower-pipeline:test"


def test_a_run_that_failed_before_any_task_is_explained_by_itself(api: Any, started: tuple[Server, str]) -> None:
    api.script, api.error = [("FAILED", [])], "exceeded quota: pods=0"

    (failure,) = failures(started[0], read_run(*started))

    assert failure.message == "exceeded quota: pods=0"


def test_an_image_that_cannot_be_pulled_is_shown_while_the_run_waits_for_it(
    api: Any, started: tuple[Server, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(follow, "STUCK_AFTER", 0.0)
    api.script = [("RUNNING", nodes("prepare", "RUNNING"))]
    with kube_api.KubeApi() as cluster:
        monkeypatch.setenv("KUBECONFIG", str(cluster.write_kubeconfig(tmp_path / "config")))
        back_off = {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "twotower:test"'}
        waiting = {"name": "main", "image": "twotower:test", "state": {"waiting": back_off}}
        cluster.put(pod("stuck", task="prepare", status={"phase": "Pending", "containerStatuses": [waiting]}))

        with pytest.raises(PipelineError, match=r"Prepare data: ImagePullBackOff: Back-off pulling image"):
            follow_run(*started, watch=lambda _: None, poll=0.01, timeout=0.1)


def pod(name: str, *, task: str, status: dict[str, Any]) -> dict[str, Any]:
    metadata = {
        "name": name,
        "namespace": "kubeflow",
        "labels": {"pipeline/runid": "r-1"},
        "annotations": {"workflows.argoproj.io/node-name": f"wf.root.exit-handler-1.{task}.executor"},
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": status}
