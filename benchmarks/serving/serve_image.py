"""The serving image: how long until it can be asked, and how much memory it holds; the median of three runs.

The image is built from this checkout, as the tests do it (`tests/docker/docker_engine.py`), and runs as the Dockerfile
says: read-only, without capabilities, the bundle mounted for reading. `ready_s` runs from `docker run` until `/readyz`
answers 200. `memory_mb` is read after 1,000 requests: what the kernel charges the container with or what the server's
process has resident, whichever is more.
"""

import argparse
import importlib.util
import secrets
import socket
import sys
import tempfile
import time
import urllib.request
from contextlib import closing
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import results

from serving import bundles, driving
from twotower.bundle import Bundle
from twotower.serving.load.generator import LoadPlan, run_loop
from twotower.serving.load.generator import run as run_load
from twotower.serving.load.measuring import request_bodies

KEYS = ("ready_s", "memory_mb")
REQUESTS = 1000
RATE = 200.0
READY_WITHIN_S = 120.0
CHARGED = ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes")
"""Bytes, in the second and in the first version of control groups."""
ENGINE = Path(__file__).resolve().parents[2] / "tests" / "docker" / "docker_engine.py"


def run(arguments: list[str]) -> dict[str, float]:
    """Build, start, ask, weigh."""
    parser = argparse.ArgumentParser(prog="run.py serve-image", description=__doc__)
    parser.add_argument("--bundle", type=Path, help="what is served; by default MovieLens-1M, made once and kept")
    parser.add_argument("--runs", type=int, default=3, help="each with a container of its own (default 3)")
    told = parser.parse_args(arguments)
    bundle: Path = (told.bundle or bundles.movielens()).resolve()
    engine = _engine()
    with engine.running_docker() as docker, tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        image = engine.build(
            docker, "serve", base=engine.find_base(docker, scratch), secrets=engine.write_secrets(scratch)
        )
        runs = [_one(docker, image, bundle, seed=seed) for seed in range(told.runs)]
    print(f"raw figures: {results.write('serve-image', {'image': image, 'runs': runs})}")
    driving.refuse_failures(runs)
    return {key: driving.median(runs, key) for key in KEYS}


def _engine() -> ModuleType:
    """How the tests find or start Docker and build the images."""
    specification = importlib.util.spec_from_file_location(ENGINE.stem, ENGINE)
    assert specification is not None
    assert specification.loader is not None
    module = sys.modules[ENGINE.stem] = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def _one(docker: Any, image: str, bundle: Path, *, seed: int) -> dict[str, Any]:
    """What one container gave."""
    key, port = secrets.token_urlsafe(32), _free_port()
    url = f"http://127.0.0.1:{port}"
    options = ("--volume", f"{bundle}:/bundle:ro", "--env", f"TWOTOWER_API_KEY={key}")
    published = ("--publish", f"127.0.0.1:{port}:8000")
    command = ("serve", "/bundle", "--host", "0.0.0.0", "--port", "8000")
    began = time.time()
    container = docker("run", "--detach", *docker.hardened, *options, *published, image, *command).stdout.strip()
    try:
        ready = _wait_until_ready(docker, container, url)
        started = datetime.fromisoformat(
            docker("inspect", "--format", "{{.State.StartedAt}}", container).stdout.strip()
        )
        idle = _memory(docker, container)
        plan = LoadPlan(
            url=url,
            rate=RATE,
            seconds=REQUESTS / RATE,
            warmup=0.0,
            bodies=request_bodies(Bundle.load(bundle), k=20, count=REQUESTS, users="uniform", seed=seed),
            headers={"Authorization": f"Bearer {key}"},
        )
        load = run_loop(run_load(plan)).summary()
        held = _memory(docker, container)
    finally:
        docker("rm", "--force", container)
    found = {
        "ready_s": ready - began,
        "ready_from_process_start_s": ready - started.timestamp(),
        "memory_mb": max(held.values()),
        "memory_when_ready_mb": idle,
        "memory_after_requests_mb": held,
    }
    driving.say(", ".join(f"{name} {value}" for name, value in found.items()))
    return found | load


def _wait_until_ready(docker: Any, container: str, url: str) -> float:
    """The moment of the first answer 200.

    Raises:
        RuntimeError: it ended, or took two minutes.
    """
    end = time.time() + READY_WITHIN_S
    while time.time() < end:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5):
                return time.time()
        except OSError:
            time.sleep(0.01)
    told = docker("logs", container)
    raise RuntimeError(f"{container}: not ready after {READY_WITHIN_S:.0f} s: {told.stdout}{told.stderr}")


def _memory(docker: Any, container: str) -> dict[str, float]:
    """In MB: charged to the container, page cache of what it read among it; and resident in its process."""
    charged = docker("exec", container, "sh", "-c", f"cat {' '.join(CHARGED)} 2> /dev/null; :").stdout
    status = docker("exec", container, "cat", "/proc/1/status").stdout
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return {"charged": int(charged.split()[0]) / 1e6, "resident": int(resident.split()[1]) * 1024 / 1e6}


def _free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        return int(free.getsockname()[1])
