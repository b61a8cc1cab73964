"""schemathesis over both OpenAPI documents, against the real server with keys: every operation, phase and check.

The documents are the committed ones, with links that tell what can come after what. Half of the generated values are of
the bundle's own, so that answers are computed and bundles swapped, and not only refused.
"""

import collections
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"
KEYS = {"TWOTOWER_API_KEY": "tt_asks", "TWOTOWER_ADMIN_KEY": "tt_governs"}
PHASES = ("examples", "coverage", "fuzzing", "stateful")
SEED = 5
FIRST_ITEM = "$response.body#/items/0/item_id"
LINKS: dict[str, dict[str, Any]] = {
    "recommend": {"similar": {"item_id": FIRST_ITEM}, "rank": {"items": [FIRST_ITEM]}},
    "put_items": {"delete_items": {"item_ids": ["$request.body#/items/0/item_id"]}},
    "put_deployment": {"promote": {"variant": "$response.body#/variants/0/name"}, "rollback": {}},
    "check": {"put_deployment": {"variants": [{"name": "main", "bundle": "$request.body#/bundle"}]}},
    "promote": {"rollback": {}},
    "rollback": {"rollback": {}},
}
"""Operation -> what can come after it, with its body."""
CONFIG = """
[checks.positive_data_acceptance]
# A body of the right form may name what is not there, which is told with 400, 404 and 409.
expected-statuses = ["2xx", 400, 404, 409]

[checks.negative_data_rejection]
expected-statuses = [400, 401, 404, 413, 422]

[dictionaries]
models.values = ["tiny"]
ids.values = ["1", "2", "7", "42", "55", "108", 3, "nothing"]
filters.values = ["year >= 2000", "genres in ['Drama'] and not year < 1990", "title is missing", "shoe == 4", "((year"]
bundles.values = ["runs/films/bundle", "runs/bolder/bundle", "runs/films/model", "runs/films"]
names.values = ["main", "bolder"]

[parameters]
"path.name" = { dictionary = "models", probability = 0.7 }
"body.user_id" = { dictionary = "ids", probability = 0.5 }
"body.item_id" = { dictionary = "ids", probability = 0.5 }
"body.items[*]" = { dictionary = "ids", probability = 0.5 }
"body.history[*]" = { dictionary = "ids", probability = 0.5 }
"body.filter" = { dictionary = "filters", probability = 0.5 }
"body.bundle" = { dictionary = "bundles", probability = 0.5 }
"body.variants[*].bundle" = { dictionary = "bundles", probability = 0.5 }
"body.shadows[*].bundle" = { dictionary = "bundles", probability = 0.5 }
"body.variants[*].name" = { dictionary = "names", probability = 0.5 }
"body.variant" = { dictionary = "names", probability = 0.5 }
"""


@pytest.fixture(scope="module")
def server(tiny_run: Path, start_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Started where the bundles lie that the documents' examples name."""
    folder = tmp_path_factory.mktemp("started")
    (folder / "runs").mkdir()
    for name in ("films", "bolder"):
        (folder / "runs" / name).symlink_to(tiny_run)
    with start_server(tiny_run / "bundle", "--store", "events.db", cwd=folder, keys=KEYS) as started:
        yield started


def linked(document: dict[str, Any]) -> dict[str, Any]:
    for methods in document["paths"].values():
        for operation in methods.values():
            operation["responses"]["200"]["links"] = {
                name: {"operationId": name, "requestBody": body}
                for name, body in LINKS.get(operation["operationId"], {}).items()
            }
    return document


def run(document: str, url: str, key: str, folder: Path, *options: str) -> dict[tuple[str, str], collections.Counter]:
    """Every answer that came, by operation; fails with schemathesis's own report."""
    source = json.loads((DOCS / f"{document}.json").read_text(encoding="utf-8"))
    (folder / "document.json").write_text(json.dumps(linked(source)), encoding="utf-8")
    (folder / "schemathesis.toml").write_text(CONFIG, encoding="utf-8")
    program = "import sys; from schemathesis.cli import schemathesis; sys.exit(schemathesis())"
    command = [sys.executable, "-c", program, "--config-file", "schemathesis.toml", "run", "document.json"]
    command += ["--url", url, "--header", f"Authorization: Bearer {key}", "--phases", ",".join(PHASES)]
    command += ["--continue-on-failure", "--generation-database", "none", "--request-timeout", "60"]
    command += ["--report", "ndjson", "--report-ndjson-path", "report.ndjson", *options]
    finished = subprocess.run(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    told = "\n".join(line[:500] for line in finished.stdout.splitlines())
    assert finished.returncode == 0, told
    assert "No issues found" in told or "warning" in told.splitlines()[-1], told
    return answers(folder / "report.ndjson", source)


def answers(report: Path, document: dict[str, Any]) -> dict[tuple[str, str], collections.Counter]:
    found: dict[tuple[str, str], collections.Counter] = {
        (method.upper(), path): collections.Counter()
        for path, methods in document["paths"].items()
        for method in methods
    }
    for line in report.read_text(encoding="utf-8").splitlines():
        recorder = json.loads(line).get("ScenarioFinished", {}).get("recorder", {})
        for case, exchange in recorder.get("interactions", {}).items():
            operation = recorder["cases"][case]["value"]
            answer = exchange["response"]
            key = (operation["method"], operation["path"])
            if answer and key in found:
                found[key][answer["status_code"]] += 1
    return found


def check(found: dict[tuple[str, str], collections.Counter]) -> None:
    assert [operation for operation, statuses in found.items() if not statuses[200]] == []
    assert [operation for operation, statuses in found.items() if any(status >= 500 for status in statuses)] == []


def test_the_api_keeps_to_its_document(server: Any, tmp_path: Path) -> None:
    check(run("openapi", server.url, "tt_asks", tmp_path, "--max-examples", "10", "--seed", str(SEED)))


def test_the_admin_s_api_keeps_to_its_document(server: Any, tmp_path: Path) -> None:
    check(run("openapi-admin", server.admin_url, "tt_governs", tmp_path, "--max-examples", "20", "--seed", str(SEED)))


@pytest.mark.slow
@pytest.mark.parametrize("document", ["openapi", "openapi-admin"])
def test_a_long_run_with_another_seed_each_time_finds_nothing(server: Any, tmp_path: Path, document: str) -> None:
    url, key = (server.url, "tt_asks") if document == "openapi" else (server.admin_url, "tt_governs")
    check(run(document, url, key, tmp_path, "--max-examples", "300"))
