"""How a run ended: told whatever else cannot be reached."""

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from twotower import artifact
from twotower.bundle_config import MODEL_KEY
from twotower.errors import RecipeError
from twotower.release.registry import Registry
from twotower.release.summary import Outcome, write_summary

DONE = Outcome(run="nightly-7", name="films", state="SUCCEEDED")
FAILED = Outcome(run="nightly-8", name="films", state="FAILED", error="train: the loss is no number")


class Hook:
    """A webhook: what it was told, and what it answers."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        self.status = 204
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.headers["Content-Type"] == "application/json"
                hook.told.append(json.loads(body))
                self.send_response(hook.status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}/hook"


@pytest.fixture
def hook() -> Iterator[Hook]:
    served = Hook()
    thread = threading.Thread(target=served.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield served
    served.server.shutdown()
    served.server.server_close()
    thread.join()


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """A registry with one version, which answers."""
    with artifact.write_artifact(tmp_path / "model", kind="model"):
        pass
    with artifact.write_artifact(tmp_path / "bundle", kind="bundle", metadata={"name": "films", MODEL_KEY: "m"}):
        pass
    found = Registry(address=str(tmp_path / "registry"), name="films")
    found.promote(found.add(tmp_path / "bundle", model=tmp_path / "model"))
    return found


def summary(outcome: Outcome, out: Path, *, registry: str = "", webhook: str = "") -> dict[str, Any]:
    """What was returned, once it is certain that the file says the same."""
    content = write_summary(outcome, registry=registry, webhook=webhook, out=out)
    assert json.loads((out / "summary.json").read_text(encoding="utf-8")) == content
    return content


def page(out: Path) -> str:
    return (out / "summary.md").read_text(encoding="utf-8")


def test_a_success_is_told_with_the_champion_on_the_page_and_to_the_webhook(
    tmp_path: Path, registry: Registry, hook: Hook
) -> None:
    content = summary(DONE, tmp_path / "new" / "out", registry=registry.address, webhook=hook.address)
    champion = registry.champion()
    assert champion is not None
    assert (content["state"], content["champion"], content["webhook"]) == (
        "SUCCEEDED",
        champion.version,
        "told, answered 204",
    )
    assert hook.told == [{key: value for key, value in content.items() if key != "webhook"}]
    assert page(tmp_path / "new" / "out").startswith("# films: SUCCEEDED\n")
    assert f"| champion | {champion.version} |" in page(tmp_path / "new" / "out")


def test_a_failure_is_told_with_its_error(tmp_path: Path, hook: Hook) -> None:
    summary(FAILED, tmp_path, webhook=hook.address)
    assert hook.told[0]["error"] == "train: the loss is no number"
    assert "| error | train: the loss is no number |" in page(tmp_path)


def test_an_error_of_many_lines_stays_in_its_cell(tmp_path: Path) -> None:
    outcome = Outcome(run="r", name="films", state="FAILED", error="Traceback:\n  a | b\nend")
    assert summary(outcome, tmp_path)["error"] == "Traceback:\n  a | b\nend"
    assert "| error | Traceback: a \\| b end |" in page(tmp_path).splitlines()


def test_a_webhook_that_refuses_or_is_down_does_not_hide_how_the_run_ended(tmp_path: Path, hook: Hook) -> None:
    hook.status = 500
    assert summary(FAILED, tmp_path / "refuses", webhook=hook.address)["webhook"].startswith("not told (")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{probe.getsockname()[1]}/hook"
    content = summary(FAILED, tmp_path / "down", webhook=closed)
    assert (content["state"], content["webhook"][:10]) == ("FAILED", "not told (")
    assert "# films: FAILED" in page(tmp_path / "down")


@pytest.mark.parametrize("webhook", ["http://", "http://[bad", "http://127.0.0.1:1/a b", "http://127.0.0.1:port"])
def test_a_webhook_that_cannot_be_asked_does_not_hide_it_either(tmp_path: Path, webhook: str) -> None:
    assert summary(DONE, tmp_path, webhook=webhook)["webhook"].startswith("not told (")


def test_a_webhook_of_another_kind_is_refused_once_the_summary_is_written(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"webhook 'mailto:me': no http:// or https:// address\.") as fault:
        write_summary(FAILED, registry="", webhook="mailto:me", out=tmp_path)
    assert "\n" not in str(fault.value)
    assert json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))["state"] == "FAILED"
    assert "# films: FAILED" in page(tmp_path)


def test_a_registry_that_cannot_be_read_is_told_in_the_champions_place(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    (Path(registry.address) / "films" / "champion.json").write_text("{", encoding="utf-8")
    content = summary(DONE, tmp_path / "damaged", registry=registry.address)
    assert content["champion"].startswith("unknown (")
    assert "damaged" in content["champion"]
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        store = f"s3://bucket/registry?scheme=http&endpoint_override=127.0.0.1:{probe.getsockname()[1]}"
    content = summary(DONE, tmp_path / "away", registry=store)
    assert content["champion"].startswith("unknown (s3://bucket/registry/films/champion.json")
    assert "# films: SUCCEEDED" in page(tmp_path / "away")


def test_without_a_name_a_registry_or_a_deployment_there_is_no_champion(tmp_path: Path, registry: Registry) -> None:
    nameless = Outcome(run="r", name="", state="FAILED", error="no such recipe")
    assert summary(nameless, tmp_path / "1", registry=registry.address)["champion"] is None
    assert page(tmp_path / "1").startswith("# run: FAILED")
    assert summary(DONE, tmp_path / "2")["champion"] is None
    assert summary(DONE, tmp_path / "3", registry=str(tmp_path / "none"))["champion"] is None
    assert summary(DONE, tmp_path / "3")["webhook"] == "none"
