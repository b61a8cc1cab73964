"""The whole pipeline under kfp's local runner: the simulated world and MovieLens, every branch, for real."""

import functools
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import twotower
from twotower import artifact
from twotower.errors import PipelineError
from twotower.pipeline.local import LocalRun, local_profile, run_local
from twotower.pipeline.local_log import TaskEnd
from twotower.recipe import load_recipe, recipe_toml
from twotower.release.registry import Registry
from twotower.steps import STEPS

SMALL = load_recipe(Path(__file__).with_name("small.toml"))


def run(out: Path, **arguments: Any) -> LocalRun:
    """The pipeline below `out`, with a registry and a deployed bundle of its own there."""
    found: dict[str, Any] = {"recipe": recipe_toml(SMALL), **arguments}
    profile = local_profile(registry=out / "registry", deploy_to=out / "bundle")
    return run_local(found, profile=profile, out=out, ended=lambda _: None, line=lambda _: None)


def states(run: LocalRun) -> dict[str, str]:
    return {end.task.replace("-", "_"): end.state for end in run.ends}


def logged(run: LocalRun, task: str, output: str) -> dict[str, Any]:
    """What the UI is told of an artifact."""
    folder = Path(run.outputs[task][output]).parent
    artifacts = json.loads((folder / "executor_output.json").read_text(encoding="utf-8"))["artifacts"]
    (found,) = artifacts[output]["artifacts"]
    return dict(found["metadata"])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipeline") / "small"


@pytest.fixture(scope="module")
def first(home: Path) -> LocalRun:
    """A run that the gate promotes; the tests that follow go on from it."""
    return run(home)


def test_every_step_runs_and_what_was_promoted_answers(home: Path, first: LocalRun) -> None:
    assert states(first) == dict.fromkeys(STEPS, "done")
    champion = Registry(address=str(home / "registry"), name="small").champion()
    assert champion is not None
    answer = twotower.load(home / "bundle").recommend("11", k=3)
    assert len(answer.items) == 3
    assert answer.bundle == champion.version


def test_the_ui_gets_metrics_curves_pages_and_cards(first: LocalRun) -> None:
    metrics = logged(first, "evaluate", "metrics")
    assert 0 < metrics["popularity_ndcg_at_10"] < metrics["two_stage_ndcg_at_10"] < 1
    curve = logged(first, "evaluate", "curve")
    names = [each["displayName"] for each in curve["confusionMatrix"]["annotationSpecs"]]
    assert names == ["rating up to it", "rating above 3.58"]
    counted = [sum(row["row"]) for row in curve["confusionMatrix"]["rows"]]
    report = json.loads((first.outputs["evaluate"]["report"] / "report.json").read_text(encoding="utf-8"))
    assert sum(counted) == report["labels"]["rating"]["rows"]
    alarms = [point["falsePositiveRate"] for point in curve["confidenceMetrics"]]
    assert alarms == sorted(alarms)
    assert (len(alarms), alarms[-1]) == (50, 1)
    assert first.outputs["evaluate"]["page"].read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert "Nothing in the way of training" in first.outputs["validate"]["page"].read_text(encoding="utf-8")
    assert first.outputs["gate"]["card"].read_text(encoding="utf-8").startswith("# Promoted: small")
    assert "answers" in first.outputs["smoke-test"]["card"].read_text(encoding="utf-8")
    assert "SUCCEEDED" in first.outputs["summarize"]["card"].read_text(encoding="utf-8")
    assert logged(first, "split", "parts")["protocol"] == "time"


def test_a_second_run_is_all_cache_hits_and_changes_nothing(home: Path, first: LocalRun) -> None:
    before = (home / "registry" / "small" / "champion.json").read_bytes()
    second = run(home)
    assert second.all_cached
    assert not first.all_cached
    assert (home / "registry" / "small" / "champion.json").read_bytes() == before
    assert second.outputs["evaluate"]["report"] == first.outputs["evaluate"]["report"]


def test_a_refused_candidate_ends_well_and_changes_nothing_that_is_deployed(home: Path, first: LocalRun) -> None:
    before = artifact.fingerprint(home / "bundle")
    refused = run(home, recipe=recipe_toml(replace(SMALL, gate=replace(SMALL.gate, margin=0.9))))
    ran = states(refused)
    assert ran["gate"] == ran["summarize"] == "done"
    assert ran["evaluate"] == ran["train"] == "cached"
    assert not {"bundle", "smoke_test", "register", "deploy"} & set(ran)
    assert "**failed** | NDCG@10 beats Popularity by more than 0.9" in refused.outputs["gate"]["card"].read_text()
    assert artifact.fingerprint(home / "bundle") == before
    assert Registry(address=str(home / "registry"), name="small").versions() == [
        twotower.load(home / "bundle").bundle.id
    ]


def test_of_two_variants_the_better_goes_on_and_has_to_beat_the_champion(home: Path, first: LocalRun) -> None:
    version = twotower.load(home / "bundle").bundle.id
    seen = run(home, variants=[{"train.epochs": 1}, {"train.epochs": 2, "train.learning_rate": 0.002}])
    assert [end.state for end in seen.ends if end.task == "train"] == ["done", "done"]
    chosen = artifact.read_manifest(Path(seen.outputs["choose"]["best"]), kind="model")["metadata"]
    folders = sorted((home / "pipeline").glob("twotower-*"))[-1].rglob("model/manifest.json")
    reached = [json.loads(path.read_text(encoding="utf-8"))["metadata"]["validation"] for path in folders]
    assert len(reached) == 2
    assert chosen["validation"] == max(reached)
    card = seen.outputs["gate"]["card"].read_text(encoding="utf-8")
    assert f"held against: `{version}`" in card
    assert "beats Champion (answers now), beyond the 95% interval" in card


def test_a_warm_start_begins_with_the_champions_weights(home: Path, first: LocalRun) -> None:
    warm = run(home, warm_start=True)
    carried = artifact.read_manifest(Path(warm.outputs["choose"]["best"]), kind="model")["metadata"]["carried_over"]
    assert carried["new_rows"] == 0
    assert carried["rows"] > 300
    assert carried["parts"] == ["query", "candidate", "memory", "ranking"]


def test_what_was_rolled_back_is_not_promoted_again_by_a_run(home: Path, first: LocalRun) -> None:
    registry = Registry(address=str(home / "registry"), name="small")
    before = registry.champion()
    assert before is not None
    copy = home.parent / "rolled-back"
    shutil.copytree(home, copy, ignore=shutil.ignore_patterns(".lock"))
    record = copy / "registry" / "small" / "champion.json"
    # The model that the same recipe makes again; the champion may by now be one that began with its weights.
    model = artifact.fingerprint(Path(first.outputs["choose"]["best"]))
    left = json.loads(record.read_text(encoding="utf-8")) | {"withdrawn": {model: before.version}}
    record.write_text(json.dumps(left | {"version": "other", "model": "another"}), encoding="utf-8")
    other = copy / "registry" / "small" / "versions"
    shutil.copytree(other / before.version, other / "other")
    again = run(copy)
    assert "deploy" not in states(again)
    assert f"{before.version} was rolled back" in again.outputs["gate"]["card"].read_text(encoding="utf-8")


def test_two_runs_in_one_directory_are_refused(tmp_path: Path) -> None:
    from filelock import FileLock

    (tmp_path / "pipeline").mkdir()
    with FileLock(tmp_path / "pipeline" / ".lock"), pytest.raises(PipelineError, match="another run goes on here"):
        run(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="sends a POSIX signal")
def test_an_interrupted_run_ends_its_tasks_and_says_so(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "twotower",
        "pipeline",
        "run",
        "--local",
        str(Path(__file__).with_name("small.toml")),
    ]
    process = subprocess.Popen([*command, "--out", str(tmp_path)], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("locate")  # The next task is under way.
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    summary = json.loads((tmp_path / "pipeline" / "cancelled" / "summary.json").read_text(encoding="utf-8"))
    assert (summary["state"], summary["name"]) == ("CANCELLED", "small")
    found = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(tmp_path) not in found


def test_a_failure_is_one_line_and_reaches_the_exit_handler_and_the_webhook(tmp_path: Path) -> None:
    recipe = replace(SMALL, prepare=replace(SMALL.prepare, source="files"))
    with _listener() as (address, told), pytest.raises(PipelineError) as caught:
        run(tmp_path, recipe=recipe_toml(recipe), data=str(tmp_path / "none"), webhook=address)
    assert str(caught.value).startswith(
        f"locate: {tmp_path / 'none'}: no such file or folder. Check the address of the data. (Step locate of "
    )
    assert "\n" not in str(caught.value)
    (summary,) = told
    assert (summary["state"], summary["name"], summary["champion"]) == ("FAILED", "small", None)
    card = next((tmp_path / "pipeline").glob("twotower-*/summarize/card"))
    assert card.read_text(encoding="utf-8").startswith("# small: FAILED")


def test_movielens_comes_over_http_after_a_retry_that_succeeds(data_dir: Path, tmp_path: Path) -> None:
    archive = tmp_path / "served" / "ml-100k.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as content:
        for name in ("u.data", "u.item", "u.genre", "u.user"):
            content.write(data_dir / "ml-100k" / name, f"ml-100k/{name}")
    recipe = replace(
        SMALL,
        name="films",
        prepare=load_recipe("simulated", {"prepare.source": "movielens-100k"}).prepare,
        train=replace(SMALL.train, epochs=1, batch_size=1024),
        evaluate=replace(SMALL.evaluate, max_queries=2_000),
    )
    ends: list[TaskEnd] = []
    with _files(archive.parent, failures=1) as address:
        found = run_local(
            {"recipe": recipe_toml(recipe), "data": f"{address}/ml-100k.zip"},
            profile=local_profile(registry=tmp_path / "registry", deploy_to=tmp_path / "bundle"),
            out=tmp_path,
            ended=ends.append,
            line=lambda _: None,
        )
    assert [end.state for end in ends[:3]] == ["failed", "retried", "done"]
    assert {end.task for end in ends[:3]} == {"locate"}
    assert logged(found, "prepare", "prepared")["source"] == "movielens-100k"
    report = json.loads((Path(found.outputs["evaluate"]["report"]) / "report.json").read_text(encoding="utf-8"))
    assert report["data"]["items"] == 1682
    assert states(found)["deploy"] == "done"


@contextmanager
def _listener() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A webhook that keeps what it is told."""
    told: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with _served(Handler) as address:
        yield address, told


@contextmanager
def _files(folder: Path, *, failures: int) -> Iterator[str]:
    """A web server for a folder that is not up to its first requests."""
    left = [failures]

    class Handler(http.server.SimpleHTTPRequestHandler):
        def send_head(self) -> Any:
            if left[0]:
                left[0] -= 1
                self.send_error(503)
                return None
            return super().send_head()

        def log_message(self, *_: Any) -> None:
            pass

    with _served(functools.partial(Handler, directory=str(folder))) as address:
        yield address


@contextmanager
def _served(handler: Any) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
