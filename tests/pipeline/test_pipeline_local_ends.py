"""Local runs that fail, are interrupted, come in pairs, or fetch MovieLens over a network that does not always work."""

import functools
import http.server
import json
import os
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
from local_runs import SMALL, logged, run, states

from twotower.errors import PipelineError
from twotower.pipeline.local import local_profile, run_local
from twotower.pipeline.local_log import TaskEnd
from twotower.recipe import load_recipe, recipe_toml


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
