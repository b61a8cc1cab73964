"""What a server loads: nothing that trains, and nothing that it has no use for, though all of it is installed here."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

HEAVY = ("keras", "jax", "torch", "kfp", "duckdb", "ibis", "onnx", "scipy", "pandas", "sklearn", "tensorflow")
EVERY_MODULE = """
import importlib, pkgutil, sys
import twotower.serving
found = [module.name for module in pkgutil.walk_packages(twotower.serving.__path__, "twotower.serving.")]
for name in found:
    importlib.import_module(name)
"""
LOADED = f"print(*(name for name in {HEAVY!r} if name in sys.modules))"
ASKED = """
import json, os, signal, socket, threading, time, urllib.request
from twotower.cli.serve import serve

with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]

def ask(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read()

def ask_all():
    try:
        while True:
            try:
                ask("/readyz")
                break
            except OSError:
                time.sleep(0.05)
        print(len(json.loads(ask("/v1/recommend", {"user_id": "u1", "k": 3, "explain": True}))["items"]))
        ask("/v1/rank", {"history": ["i1"], "items": ["i2", "i3"]})
        ask("/v1/similar", {"item_id": "i1", "filter": "title != 'Film 2'"})
        ask("/v1/events", {"events": [{"event_id": "1", "user_id": "u1", "item_id": "i2"}]})
        ask("/v1/info")
        ask("/metrics")
        ask("/openapi.json")
    finally:
        os.kill(os.getpid(), signal.SIGTERM)

threading.Thread(target=ask_all).start()
try:
    serve.main(["BUNDLE", "--port", str(port), "--store", "STORE"], standalone_mode=False)
except SystemExit:
    pass
"""


def fresh(code: str) -> list[str]:
    """What a new process prints, word by word."""
    # A key in our environment is for a real server, and would be asked for.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TWOTOWER_")}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.split()


def test_no_module_of_serving_loads_what_trains() -> None:
    assert fresh(EVERY_MODULE + "print(len(found) > 40)\n" + LOADED) == ["True"]


def test_what_is_not_to_be_loaded_could_be() -> None:
    assert {"keras", "jax", "kfp", "duckdb", "ibis", "onnx", "scipy", "pandas"} <= set(filter(find_spec, HEAVY))


def test_a_server_that_answers_has_loaded_nothing_of_it_either(bundle_directory: Path, tmp_path: Path) -> None:
    asked = ASKED.replace("BUNDLE", str(bundle_directory)).replace("STORE", str(tmp_path / "events.db"))
    assert fresh(EVERY_MODULE + asked + LOADED) == ["3"]
