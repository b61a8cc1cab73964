"""Every operation of both documents against a real server with keys: which key opens what."""

import http.client
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from twotower.serving.door.keys import SCOPES, KeyScope, add_key

DOCS = Path(__file__).parents[2] / "docs"
DOCUMENTS = {
    name: json.loads((DOCS / f"{name}.json").read_text(encoding="utf-8")) for name in ("openapi", "openapi-admin")
}
OPERATIONS = [
    (name, method.upper(), path)
    for name, document in DOCUMENTS.items()
    for path, operations in document["paths"].items()
    for method in operations
]
EXPECTED: dict[str, KeyScope] = {
    "POST /v1/events": "write",
    "PUT /v1/items": "write",
    "DELETE /v1/items": "write",
    "GET /v1/deployment": "admin",
    "PUT /v1/deployment": "admin",
    "POST /v1/promote": "admin",
    "POST /v1/rollback": "admin",
    "POST /v1/check": "admin",
}
"""Every other takes `read`, but health."""
HEALTH = {"/livez", "/readyz", "/v2/health/live", "/v2/health/ready"}


@dataclass(frozen=True)
class Guarded:
    """A server with a key for each scope."""

    ports: dict[str, int]
    keys: dict[KeyScope, str]

    def status(self, document: str, method: str, path: str, key: str | None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[document], timeout=60)
        headers = {"Content-Type": "application/json"} | ({} if key is None else {"Authorization": f"Bearer {key}"})
        try:
            connection.request(method, path.replace("{name}", "tiny"), b"{}", headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def guarded(bundle_directory: Path, start_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    file = folder / "keys.json"
    keys = {scope: add_key(file, scope, scopes=[scope]) for scope in SCOPES}
    with start_server(bundle_directory, "--keys", str(file), "--store", str(folder / "events.db")) as server:
        ports = {"openapi": server.url, "openapi-admin": server.admin_url}
        yield Guarded({name: int(url.rpartition(":")[2]) for name, url in ports.items()}, keys)


def needed(method: str, path: str) -> KeyScope | None:
    return None if path in HEALTH else EXPECTED.get(f"{method} {path}", "read")


@pytest.mark.parametrize(("document", "method", "path"), OPERATIONS)
def test_the_document_tells_which_key_an_operation_takes(document: str, method: str, path: str) -> None:
    operation = DOCUMENTS[document]["paths"][path][method.lower()]
    scope = needed(method, path)
    assert operation.get("security") == (None if scope is None else [{"key": [scope]}])
    assert ("401" in operation["responses"]) == (scope is not None)


@pytest.mark.parametrize(("document", "method", "path"), OPERATIONS)
def test_only_the_key_with_its_scope_opens_an_operation(
    guarded: Guarded, document: str, method: str, path: str
) -> None:
    scope = needed(method, path)
    without, _ = guarded.status(document, method, path, None)
    wrong, _ = guarded.status(document, method, path, "tt_nobody-has-this")
    opened = {each: guarded.status(document, method, path, key)[0] for each, key in guarded.keys.items()}
    if scope is None:
        assert (without, wrong, set(opened.values())) == (200, 200, {200})
        return
    assert (without, wrong) == (401, 401)
    assert [each for each, status in opened.items() if status != 403] == [scope]
    assert opened[scope] in (200, 400, 422)  # `{}` is not enough for some of them.


@pytest.mark.parametrize(("document", "scope"), [("openapi", "read"), ("openapi-admin", "admin")])
def test_the_document_itself_takes_the_scope_of_its_port(guarded: Guarded, document: str, scope: KeyScope) -> None:
    assert guarded.status(document, "GET", "/openapi.json", None)[0] == 401
    opened = {each: guarded.status(document, "GET", "/openapi.json", key)[0] for each, key in guarded.keys.items()}
    assert [each for each, status in opened.items() if status == 200] == [scope]


def test_a_path_that_is_none_tells_nothing_without_a_key(guarded: Guarded) -> None:
    for document in DOCUMENTS:
        assert guarded.status(document, "GET", "/v1/nothing", None)[0] == 401
        assert guarded.status(document, "GET", "/v1/nothing", guarded.keys["read"])[0] == 404


def test_the_page_needs_no_key_and_what_it_asks_for_does(guarded: Guarded) -> None:
    assert guarded.status("openapi", "GET", "/", None)[0] == 200
    assert guarded.status("openapi", "POST", "/v1/recommend", None)[0] == 401
    assert guarded.status("openapi-admin", "GET", "/", guarded.keys["admin"])[0] == 404
