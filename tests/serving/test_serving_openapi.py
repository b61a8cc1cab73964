"""The committed OpenAPI documents: what the server says of itself, whole, and true where it is put to the proof."""

import http.client
import json
import socket
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"
NAMES = ("openapi", "openapi-admin")
DOCUMENTS = {name: json.loads((DOCS / f"{name}.json").read_text(encoding="utf-8")) for name in NAMES}
OPERATIONS = {
    operation["operationId"]: (name, method.upper(), path, operation)
    for name, document in DOCUMENTS.items()
    for path, operations in document["paths"].items()
    for method, operation in operations.items()
}
KEYS = {"TWOTOWER_API_KEY": "tt_asks", "TWOTOWER_ADMIN_KEY": "tt_governs"}
JSON = {"Content-Type": "application/json"}
EXAMPLES = [
    pytest.param(operation, example["value"], id=f"{operation}: {title}")
    for operation, (_, _, _, told) in OPERATIONS.items()
    if "requestBody" in told
    for title, example in told["requestBody"]["content"]["application/json"].get("examples", {}).items()
]


@pytest.fixture(scope="module")
def server(tiny_run: Path, start_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Started where the bundles lie that the documents' examples name."""
    folder = tmp_path_factory.mktemp("started")
    (folder / "runs").mkdir()
    for name in ("films", "bolder"):
        (folder / "runs" / name).symlink_to(tiny_run)
    with start_server(tiny_run / "bundle", "--store", "events.db", cwd=folder, keys=KEYS) as started:
        yield started


def ask(url: str, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=60)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def call(server: Any, operation: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    """One operation of the documents, with its key unless other headers are given."""
    document, method, path, _ = OPERATIONS[operation]
    url, key = (server.url, "tt_asks") if document == "openapi" else (server.admin_url, "tt_governs")
    told = {**JSON, "Authorization": f"Bearer {key}"} if headers is None else headers
    sent = body if body is None or isinstance(body, bytes) else json.dumps(body)
    return ask(url, method, path.replace("{name}", "tiny"), sent, told)


def test_a_server_describes_itself_as_the_committed_documents_do(server: Any) -> None:
    for url, key, name in ((server.url, "tt_asks", "openapi"), (server.admin_url, "tt_governs", "openapi-admin")):
        status, document = ask(url, "GET", "/openapi.json", headers={"Authorization": f"Bearer {key}"})
        assert status == 200
        assert json.loads(document) == DOCUMENTS[name], "Run: python dev.py docs"


@pytest.mark.parametrize("name", NAMES)
def test_everything_in_a_document_is_told_in_words(name: str) -> None:
    document = DOCUMENTS[name]
    schemas = document["components"]["schemas"]
    silent = [
        f"{schema}.{field}"
        for schema, told in schemas.items()
        for field, property_ in told.get("properties", {}).items()
        if not property_.get("description")
    ]
    assert silent == []
    assert [schema for schema, told in schemas.items() if not told.get("description")] == []
    operations = [told for each in document["paths"].values() for told in each.values()]
    assert all(told["summary"] and told["operationId"] for told in operations)
    assert {tag for told in operations for tag in told["tags"]} == {tag["name"] for tag in document["tags"]}
    assert all(tag["description"] for tag in document["tags"])
    for kind in ("responses", "headers", "parameters", "securitySchemes"):
        assert all(told["description"] for told in document["components"].get(kind, {}).values())


@pytest.mark.parametrize("name", NAMES)
def test_what_a_document_points_to_is_in_it_and_what_it_holds_is_used(name: str) -> None:
    def pointers(part: Any) -> Iterator[str]:
        if isinstance(part, dict):
            yield from (value for key, value in part.items() if key == "$ref")
            part = list(part.values())
        for each in part if isinstance(part, list) else ():
            yield from pointers(each)

    document = DOCUMENTS[name]
    held = {
        f"#/components/{kind}/{part}"
        for kind, parts in document["components"].items()
        if kind != "securitySchemes"
        for part in parts
    }
    assert set(pointers(document)) == held


def test_an_operation_has_a_name_of_its_own_and_an_example_of_its_body() -> None:
    assert sum(len(each) for document in DOCUMENTS.values() for each in document["paths"].values()) - 1 == len(
        OPERATIONS
    )  # Both ports have /livez.
    with_body = {operation for operation, (_, _, _, told) in OPERATIONS.items() if "requestBody" in told}
    assert {parameter.values[0] for parameter in EXAMPLES} == with_body


@pytest.mark.parametrize(("operation", "body"), EXAMPLES)
def test_every_example_is_answered(server: Any, operation: str, body: Any) -> None:
    status, answer = call(server, operation, body)
    # The first deployment is the server's first: before it there is nothing to go back to.
    assert status == 200, answer


@pytest.mark.parametrize("operation", [name for name, (_, method, _, _) in OPERATIONS.items() if method == "GET"])
def test_what_can_be_read_comes_as_the_type_that_is_documented(server: Any, operation: str) -> None:
    document, method, path, told = OPERATIONS[operation]
    (documented,) = told["responses"]["200"]["content"]
    url, key = (server.url, "tt_asks") if document == "openapi" else (server.admin_url, "tt_governs")
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=60)
    connection.request(method, path.replace("{name}", "tiny"), headers={"Authorization": f"Bearer {key}"})
    response = connection.getresponse()
    connection.close()
    assert (response.status, response.headers.get_content_type()) == (200, documented)
    assert response.headers["X-Request-ID"]


BAD_REQUESTS: dict[str, tuple[int, Any]] = {
    "an unknown column": (400, {"filter": "nothing == 1"}),
    "a k that is too large": (422, {"k": 1001}),
    "a body that is too large": (413, b" " * (1 << 20) + b"{}"),
    "no key": (401, {}),
    "a key for something else": (403, {"Authorization": "Bearer tt_governs"}),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_a_refusal_is_documented_and_has_its_shape(server: Any, case: str) -> None:
    status, sent = BAD_REQUESTS[case]
    if status in (401, 403):
        told, answer = call(server, "recommend", {}, {**JSON, **sent})
    else:
        told, answer = call(server, "recommend", sent)
    assert told == status
    assert str(status) in OPERATIONS["recommend"][3]["responses"]
    assert json.loads(answer).keys() == {"error"}


@pytest.mark.parametrize(
    ("status", "sent", "line"),
    [
        (400, b"no header\r\n\r\n", "This is no HTTP request."),
        (431, b"X: " + b"x" * 65_530, "The headers are larger than 65,536 bytes. Send fewer."),
    ],
)
def test_a_connection_is_refused_in_the_same_shape_wherever_it_goes(
    server: Any, status: int, sent: bytes, line: str
) -> None:
    parts = urllib.parse.urlsplit(server.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=60) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\n" + sent)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert (answer.status, json.loads(answer.read())) == (status, {"error": line})
    assert all(str(status) in told["responses"] for _, _, _, told in OPERATIONS.values())


@pytest.mark.parametrize(
    ("operation", "body", "status"),
    [
        ("check", {"bundle": "runs/nothing"}, 409),
        ("check", {"bundle": "x" * 1000}, 409),
        ("check", {"bundle": "runs/\x00"}, 409),
        ("check", {"bundle": "~nobody-of-that-name/bundle"}, 409),
        ("check", {"bundle": "file:///nothing/there"}, 409),
        ("put_deployment", {"variants": [{"name": "main", "bundle": "runs/nothing"}]}, 409),
        ("put_deployment", {"variants": [{"name": "a b", "bundle": "runs/films/bundle"}]}, 400),
        ("promote", {"variant": "nobody"}, 400),
        ("promote", {}, 422),
    ],
)
def test_what_the_admin_port_refuses_is_documented(server: Any, operation: str, body: Any, status: int) -> None:
    before = call(server, "deployment")
    told, answer = call(server, operation, body)
    assert (told, json.loads(answer).keys()) == (status, {"error"})
    assert str(status) in OPERATIONS[operation][3]["responses"]
    assert call(server, "deployment") == before


def test_a_server_without_a_store_says_so_with_501(tiny_run: Path, start_server: Any) -> None:
    with start_server(tiny_run / "bundle", "--store", "none", keys=KEYS) as storeless:
        for operation in ("add_events", "put_items", "delete_items"):
            examples = OPERATIONS[operation][3]["requestBody"]["content"]["application/json"]["examples"]
            status, answer = call(storeless, operation, next(iter(examples.values()))["value"])
            assert (status, json.loads(answer).keys()) == (501, {"error"})
    documented = {name for name, (_, _, _, told) in OPERATIONS.items() if "501" in told["responses"]}
    assert documented == {"add_events", "put_items", "delete_items"}
