"""Runs started on a Kubeflow Pipelines server: the real kfp.Client, over HTTP, against one that is played."""

import socket
from pathlib import Path
from typing import Any

import kfp_api
import pytest
import yaml

from twotower.errors import PipelineError
from twotower.pipeline.follow import follow_run, read_run
from twotower.pipeline.server import connect
from twotower.pipeline.submit import SubmittedRun, submit_run, typed_arguments


def submit(api: Any, package: Path, **options: Any) -> SubmittedRun:
    return submit_run(package, {"recipe": "r"}, host=api.url, **options)


def test_a_submitted_run_carries_the_pipeline_its_arguments_and_its_experiment(api: Any, package: Path) -> None:
    run = submit_run(
        package, {"recipe": "films", "window_days": 7}, host=f"{api.url}/", run_name="nightly", service_account="runner"
    )

    assert run == SubmittedRun(run_id="r-1", url=f"{api.url}/#/runs/details/r-1")
    (sent,) = api.asked("POST", "/apis/v2beta1/runs")
    assert sent.body["display_name"] == "nightly"
    assert sent.body["experiment_id"] == "e-0"
    assert sent.body["service_account"] == "runner"
    assert sent.body["runtime_config"]["parameters"] == {"recipe": "films", "window_days": 7}
    assert sent.body["pipeline_spec"]["pipelineInfo"]["name"] == "two-steps"


def test_submitting_prints_nothing_of_kfps_own(api: Any, package: Path, capfd: pytest.CaptureFixture[str]) -> None:
    submit(api, package, experiment="new", create_experiment=True)

    assert capfd.readouterr() == ("", "")


def test_an_unknown_experiment_is_refused_with_those_there_are(api: Any, package: Path) -> None:
    with pytest.raises(PipelineError, match=r"no experiment 'mine'; there is Default\. .*--create-experiment"):
        submit(api, package, experiment="mine")
    assert api.runs == {}


def test_an_experiment_is_made_when_asked_for_and_used_from_then_on(api: Any, package: Path) -> None:
    for _ in range(2):
        submit(api, package, experiment="mine", create_experiment=True)

    assert [each["display_name"] for each in api.experiments] == ["Default", "mine"]
    assert {run["experiment_id"] for run in api.runs.values()} == {"e-1"}


def test_caching_is_switched_off_for_tasks_at_every_depth(api: Any, package: Path) -> None:
    submit(api, package, no_cache=True)

    (sent,) = api.asked("POST", "/apis/v2beta1/runs")
    spec = sent.body["pipeline_spec"]
    parts = [spec["root"], *spec["components"].values()]
    tasks = {name: task for part in parts for name, task in part.get("dag", {}).get("tasks", {}).items()}
    assert {"prepare", "train", "summarize"} <= tasks.keys()
    assert not any(task.get("cachingOptions", {}).get("enableCache", False) for task in tasks.values())


def test_caching_is_left_to_the_pipeline_by_default(api: Any, package: Path) -> None:
    submit(api, package)

    (sent,) = api.asked("POST", "/apis/v2beta1/runs")
    assert sent.body["pipeline_spec"]["components"] == yaml.safe_load(package.read_text())["components"]


def test_an_argument_that_the_pipeline_does_not_know_is_refused_before_anything_is_sent(
    api: Any, package: Path
) -> None:
    with pytest.raises(PipelineError, match=r"has no parameter recipes; it has recipe, until, variants, warm_start"):
        submit_run(package, {"recipes": "r"}, host=api.url)
    with pytest.raises(PipelineError, match=r"needs the parameter recipe\."):
        submit_run(package, {}, host=api.url)
    assert api.requests == []


def test_what_is_no_compiled_pipeline_is_refused_by_name(api: Any, tmp_path: Path) -> None:
    for name, text, why in (
        ("a.json", "{}", "ends in .yaml"),
        ("b.yaml", "a: [", "no readable YAML"),
        ("c.yaml", "kind: Pod", "no compiled pipeline"),
        ("d.yaml", "pipelineInfo: {name: a}\nroot: {tasks: 1}", "damaged pipeline"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(PipelineError, match=rf"{name}.*{why}"):
            submit(api, tmp_path / name)
    with pytest.raises(PipelineError, match=r"e\.yaml: there is no such file"):
        submit(api, tmp_path / "e.yaml")


def test_typed_arguments_are_of_the_parameters_kind(package: Path) -> None:
    texts = {"recipe": "007", "window_days": "7", "warm_start": "true", "variants": '["a", "b"]'}

    assert typed_arguments(package, texts) == {
        "recipe": "007",
        "window_days": 7,
        "warm_start": True,
        "variants": ["a", "b"],
    }
    for wrong in ({"window_days": "seven"}, {"window_days": "true"}, {"warm_start": "1"}, {"variants": "a"}):
        with pytest.raises(PipelineError, match=r"--param \w+=\w+: it takes"):
            typed_arguments(package, wrong)


# A server that is none, or does not know us


def test_a_closed_port_is_told_in_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        host = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(PipelineError, match=rf"{host}: it cannot be reached \(.*\)\. .*port-forward"):
            connect(host)


def test_a_server_that_does_not_answer_in_time_is_told_in_one_line(api: Any) -> None:
    api.delay = 5

    with pytest.raises(PipelineError, match=r"it does not answer in time"):
        connect(api.url, timeout=0.2)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ((200, "<html>welcome</html>", "text/html"), "answers 200 with text/html"),
        ((404, "<html>no</html>", "text/html"), "answers 404 with text/html"),
        ((404, {"detail": "Not Found"}, "application/json"), "answers 404 to /apis/v2beta1/healthz"),
        ((200, {"status": "UP"}, "application/json"), "does not say `multi_user`"),
        ((200, [1], "application/json"), "does not say `multi_user`"),
        ((200, "oops", "application/json"), "holds no JSON"),
        ((503, {"error": "database is gone"}, "application/json"), "not well: 503: database is gone"),
    ],
)
def test_what_is_no_kfp_server_is_told_by_what_it_answers(api: Any, answer: Any, why: str) -> None:
    api.refusals = [("healthz", kfp_api.Answer(*answer))]

    with pytest.raises(PipelineError) as told:
        connect(api.url)
    assert why in str(told.value)
    assert api.url in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost", "ftp://a", "http://", ""])
def test_an_address_without_its_scheme_is_refused(host: str) -> None:
    with pytest.raises(PipelineError, match=r"no address of a server"):
        connect(host)


def test_a_password_in_the_address_is_refused_and_not_shown() -> None:
    with pytest.raises(PipelineError) as told:
        connect("http://me:secret@127.0.0.1")
    assert "secret" not in str(told.value)


def test_a_token_and_a_cookie_reach_the_server_and_are_shown_nowhere(package: Path) -> None:
    with kfp_api.KfpApi(token="t0k3n") as api:
        api.cookie = "session=c00k1e"
        server = connect(api.url, token="t0k3n", cookie="session=c00k1e")
        run = submit(api, package, token="t0k3n", cookie="session=c00k1e")
        read_run(server, run.run_id)

        assert {each.headers["authorization"] for each in api.requests} == {"Bearer t0k3n"}
        assert "t0k3n" not in repr(server)


def test_an_expired_token_is_told_in_one_line_at_once_and_in_the_middle(package: Path) -> None:
    with kfp_api.KfpApi(token="new") as api:
        with pytest.raises(PipelineError, match=r"token or the cookie is missing, invalid or expired \(401\)") as told:
            connect(api.url, token="old-t0k3n")
        assert "t0k3n" not in str(told.value)

        server = connect(api.url, token="new")
        run = submit(api, package, token="new")
        api.token = "newer"
        with pytest.raises(PipelineError, match=r"expired \(401\)"):
            follow_run(server, run.run_id, watch=lambda _: None, poll=0.01)


def test_a_missing_right_is_told_with_the_servers_reason(api: Any, package: Path) -> None:
    api.refusals = [("runs$", kfp_api.fault(403, 7, "User 'ann' is not authorized to create runs"))]

    with pytest.raises(PipelineError, match=r"not allowed \(403\): User 'ann' is not authorized to create runs"):
        submit(api, package)


def test_a_login_page_in_place_of_the_api_names_the_cookie(api: Any) -> None:
    api.cookie = "session=1"

    with pytest.raises(PipelineError, match=r"behind a login, set TWOTOWER_KFP_TOKEN or TWOTOWER_KFP_COOKIE"):
        connect(api.url, cookie="session=0")


def test_a_server_for_many_users_wants_a_namespace(package: Path) -> None:
    with kfp_api.KfpApi(multi_user=True) as api:
        with pytest.raises(PipelineError, match=r"--namespace NAME"):
            connect(api.url)
        submit(api, package, namespace="ann")
        assert api.asked("GET", "/apis/v2beta1/experiments")[-1].query["namespace"] == "ann"


def test_a_namespace_is_not_sent_to_a_server_for_one_user(api: Any, package: Path) -> None:
    submit(api, package, namespace="kubeflow-user")

    assert len(api.runs) == 1


def test_damaged_settings_of_kfp_are_told_by_name(api: Any, tmp_path: Path) -> None:
    (tmp_path / "context.json").write_text("{")

    with pytest.raises(PipelineError, match=r"context\.json: kfp's settings are no JSON"):
        connect(api.url)
