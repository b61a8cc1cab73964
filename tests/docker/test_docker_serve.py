"""A run in the pipeline image, and the serving image that answers from its bundle, which it may only read."""

import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import twotower
from twotower.data.split import load_split

pytestmark = pytest.mark.docker

KEY = "a key of the test's own"
TINY = Path(__file__).resolve().parents[1] / "tiny.toml"


@pytest.fixture(scope="module")
def run_directory(docker, pipeline_image: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `twotower run` of the tiny recipe leaves, trained in a container that writes there and nowhere else."""
    out = tmp_path_factory.mktemp("run")
    mounts = ("--volume", f"{TINY}:/tiny.toml:ro", "--volume", f"{out}:/runs")
    caller = ("--user", f"{os.getuid()}:{os.getgid()}")
    docker.run(pipeline_image, "twotower", "run", "/tiny.toml", "--out", "/runs/tiny", options=(*mounts, *caller))
    return out / "tiny"


@pytest.fixture(scope="module")
def server(docker, serve_image: str, run_directory: Path) -> Iterator[tuple[str, str]]:
    """Container and address of a server that is ready."""
    with serving(docker, serve_image, run_directory / "bundle") as found:
        yield found


@contextmanager
def serving(docker, image: str, bundle: Path, *flags: str) -> Iterator[tuple[str, str]]:
    """Container and address of a server that is ready, reachable from this machine alone; `flags` are docker's."""
    options = {
        "--volume": f"{bundle}:/bundle:ro",
        "--env": f"TWOTOWER_API_KEY={KEY}",
        "--publish": "127.0.0.1::8000",
        "--health-interval": "1s",
    }
    told = (*docker.hardened, *(part for option in options.items() for part in option), *flags)
    command = ("serve", "/bundle", "--host", "0.0.0.0", "--port", "8000")
    container = docker("run", "--detach", *told, image, *command).stdout.strip()
    try:
        address = docker("port", container, "8000").stdout.split()[-1]
        wait_until_ready(docker, container, f"http://{address}")
        yield container, f"http://{address}"
    finally:
        docker("rm", "--force", container)


def wait_until_ready(docker, container: str, address: str) -> None:
    for _ in range(120):
        try:
            with urllib.request.urlopen(f"{address}/readyz", timeout=5):
                return
        except OSError:
            time.sleep(0.25)
    logs = docker("logs", container)
    pytest.fail(f"the server is not ready after half a minute: {logs.stdout}{logs.stderr}")


def ask(address: str, body: dict[str, object], *, key: str = KEY, path: str = "/v1/recommend") -> dict[str, object]:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    request = urllib.request.Request(f"{address}{path}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        found: dict[str, object] = json.load(answer)
    return found


def test_the_container_gives_the_answer_that_the_bundle_gives_here(server, run_directory: Path) -> None:
    user = str(load_split(run_directory / "split").user_ids[0])
    expected = twotower.load(run_directory / "bundle").recommend(user, k=5)
    answer = ask(server[1], {"user_id": user, "k": 5})
    assert [item["item_id"] for item in answer["items"]] == [item.item_id for item in expected.items]
    assert answer["bundle"] == expected.bundle


def test_the_container_refuses_who_has_no_key(server) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        ask(server[1], {"user_id": "1"}, key="another")


def test_400_mb_of_memory_are_enough_to_answer(docker, serve_image: str, run_directory: Path) -> None:
    with serving(docker, serve_image, run_directory / "bundle", "--memory", "400m", "--memory-swap", "400m") as (
        container,
        address,
    ):
        for user in load_split(run_directory / "split").user_ids[:100]:
            assert ask(address, {"user_id": str(user), "k": 5})["items"]
        assert docker("inspect", "--format", "{{.State.OOMKilled}}", container).stdout.strip() == "false"


def test_beside_a_bundle_that_cannot_be_written_nothing_is_kept_and_nothing_is_wrong(docker, server) -> None:
    event = {"event_id": "1", "user_id": "1", "item_id": "1"}
    with pytest.raises(urllib.error.HTTPError, match="501") as refused:
        ask(server[1], {"events": [event]}, path="/v1/events")
    assert "without a store" in json.load(refused.value)["error"]
    logs = docker("logs", server[0])
    assert re.fullmatch(r"Serving tiny-\w+ on http://0\.0\.0\.0:8000\n", logs.stdout + logs.stderr)


def test_docker_itself_sees_that_the_server_is_healthy(docker, server) -> None:
    for _ in range(60):
        state = docker("inspect", "--format", "{{.State.Health.Status}}", server[0]).stdout.strip()
        if state != "starting":
            break
        time.sleep(0.25)
    assert state == "healthy"


def test_a_stopped_container_ends_in_order(docker, server) -> None:
    docker("stop", "--time", "20", server[0])
    assert docker("inspect", "--format", "{{.State.ExitCode}}", server[0]).stdout.strip() == "0"
