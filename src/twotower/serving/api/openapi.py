"""The OpenAPI documents: what routes' signatures do not tell, such as keys, refusals that anybody can meet, examples.

`docs/openapi.json` and `docs/openapi-admin.json` are these documents, written by `python dev.py docs`.
"""

from http import HTTPStatus
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.responses import JSONResponse

from twotower.serving.door.door import MAX_BODY
from twotower.serving.door.routing import scope_of

REFUSALS = {
    400: (
        "It cannot be answered: it names what is not there, asks for what cannot be, or is no HTTP request.",
        "history: none of these items is in the bundle. Name one of them that is.",
    ),
    401: (
        "The server has keys, and the request shows none of them.",
        "No valid key. Send it in the header: Authorization: Bearer KEY.",
    ),
    403: (
        "The key has another scope; or, where the server has no keys, it was asked from elsewhere.",
        "The key may not do this: it takes one with the scope 'write'.",
    ),
    404: ("There is none of that name.", "There is no model of that name here. The one served is 'films'."),
    408: ("It was not whole in time.", "The request was not whole after 10 s. Send it in one piece."),
    409: (
        "The bundle cannot answer; what answered before goes on.",
        "films: there is no manifest.json.",
    ),
    413: ("The body is too large.", f"The body is larger than {MAX_BODY:,} bytes. Ask for less at once."),
    415: ("The body is compressed.", "The body is compressed. Send it as it is, without Content-Encoding."),
    422: ("The body is of another form.", "k: Input should be less than or equal to 1000."),
    431: ("The headers are too large.", "The headers are larger than 65,536 bytes. Send fewer."),
    500: ("A fault of the server's own.", "A fault of the server's own; its log tells it."),
    501: ("The server keeps nothing.", "This server was started without a store. Name one by --store."),
    503: ("There is no room just now.", "Too much is asked just now. Ask again later."),
}
"""Status -> what it says of a request, and a line that comes with it."""
ANYWHERE = (400, 403, 408, 413, 415, 431, 500, 503)
"""What any request can meet: it is judged as HTTP before its route is."""
KEY_SCHEME = "key"
TAGS = {
    "recommend": "Answers. They take a key with the scope `read`.",
    "write": "What is kept. It takes a key with the scope `write`, and a server with a store.",
    "about": "What is served, and how it fares. It takes a key with the scope `read`.",
    "models": "The Open Inference Protocol, version 2. It takes a key with the scope `read`.",
    "health": "For probes: they take no key and wait for nothing.",
    "deployment": "Which bundles answer whom. It takes a key with the scope `admin`.",
}
EXAMPLES: dict[str, dict[str, Any]] = {
    "recommend": {
        "A known user": {"user_id": "42", "k": 5},
        "Somebody new, by what they met": {"history": ["108", "55"], "filter": "year >= 2000"},
        "With reasons, and little time": {"user_id": 42, "exclude": ["108"], "explain": True, "deadline_ms": 50},
        "Nobody in particular": {},
    },
    "recommend_batch": {"Two users": {"requests": [{"user_id": "42"}, {"user_id": "7", "k": 3}]}},
    "rank": {"A list for a known user": {"user_id": "42", "items": ["108", "55", "12"]}},
    "similar": {"The nearest three": {"item_id": "108", "k": 3}},
    "search": {"Part of a title": {"text": "garden", "k": 5}},
    "history": {"The latest five": {"user_id": "42", "k": 5}},
    "add_events": {
        "One met, one shown": {
            "events": [
                {"event_id": "a-1", "user_id": "42", "item_id": "108", "labels": {"rating": 4}},
                {"event_id": "a-2", "user_id": "42", "item_id": "55", "kind": "impression", "rank": 1},
            ]
        }
    },
    "put_items": {"A new item": {"items": [{"item_id": "new-1", "features": {"title": "A New Film", "year": 2026}}]}},
    "delete_items": {"One item": {"item_ids": ["new-1"]}},
    "infer": {
        "Two users": {
            "inputs": [
                {"name": "user_id", "shape": [2], "datatype": "BYTES", "data": ["42", "7"]},
                {"name": "k", "shape": [1], "datatype": "INT32", "data": [3]},
            ]
        }
    },
    "put_deployment": {
        "An experiment": {
            "variants": [
                {"name": "main", "bundle": "runs/films/bundle", "share": 0.9},
                {"name": "bolder", "bundle": "runs/bolder/bundle", "share": 0.1},
            ]
        }
    },
    "promote": {"One of two": {"variant": "bolder"}},
    "rollback": {"Back": {}},
    "check": {"A folder": {"bundle": "runs/films/bundle"}},
}
"""Operation -> bodies by what they are for."""


class Api(FastAPI):
    """An application that describes itself, at `/openapi.json`, and has no page that loads scripts from elsewhere."""

    def __init__(self, *, title: str, description: str, tag: str) -> None:
        """Begin without routes but the document's, which takes the scope of `tag`."""
        super().__init__(
            title=title,
            description=description,
            version=version("twotower"),
            license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
            docs_url=None,
            redoc_url=None,
            openapi_url=None,
            generate_unique_id_function=_operation_id,
        )
        self.add_api_route("/openapi.json", self._document, tags=[tag], include_in_schema=False)

    def openapi(self) -> dict[str, Any]:
        """The document."""
        if self.openapi_schema is None:
            _complete(super().openapi())
        assert self.openapi_schema is not None
        return self.openapi_schema

    async def _document(self) -> JSONResponse:
        return JSONResponse(self.openapi())


def _operation_id(route: APIRoute) -> str:
    return route.name


def _complete(document: dict[str, Any]) -> None:
    """Add to FastAPI's document what it cannot know."""
    operations = [(path, each) for path, methods in document["paths"].items() for each in methods.values()]
    told = {status for path, operation in operations for status in _complete_operation(path, operation)}
    tags = {operation["tags"][0] for _, operation in operations}
    document["tags"] = [{"name": name, "description": text} for name, text in TAGS.items() if name in tags]
    components = document["components"]
    for left in ("HTTPValidationError", "ValidationError"):  # FastAPI's own form of a refusal.
        components["schemas"].pop(left, None)
    for schema in components["schemas"].values():
        for property_ in schema.get("properties", {}).values():
            property_.pop("title", None)  # The name once more.
    components["securitySchemes"] = {
        KEY_SCHEME: {
            "type": "http",
            "scheme": "bearer",
            "description": "A key, where the server has any; `twotower keys add` makes one.",
        }
    }
    components["headers"] = {
        "request-id": {
            "description": "The header X-Request-ID of the request, or one made for it.",
            "schema": {"type": "string"},
        },
        "retry-after": {"description": "Seconds to wait.", "schema": {"type": "string", "pattern": "^[0-9]+$"}},
    }
    components["responses"] = {str(status): _refusal(status) for status in sorted(told)}
    if any("{name}" in path for path, _ in operations):
        components["parameters"] = {
            "name": {
                "name": "name",
                "in": "path",
                "required": True,
                "description": "The model's name, which is the recipe's: `GET /v1/info` tells it.",
                "schema": {"type": "string"},
            }
        }


def _complete_operation(path: str, operation: dict[str, Any]) -> set[int]:
    """Tell of one operation which key it takes and how it is refused; gives the statuses."""
    scope = scope_of(operation["tags"][0])
    refusals = {int(status) for status in operation["responses"]} - {HTTPStatus.OK} | {*ANYWHERE}
    if scope is not None:
        operation["security"] = [{KEY_SCHEME: [scope]}]
        refusals.add(HTTPStatus.UNAUTHORIZED)
    if "{name}" in path:
        operation["parameters"] = [{"$ref": "#/components/parameters/name"}]
    if "requestBody" not in operation:
        refusals.discard(HTTPStatus.UNPROCESSABLE_ENTITY)
    elif examples := EXAMPLES.get(operation["operationId"]):
        content = operation["requestBody"]["content"]["application/json"]
        content["examples"] = {name: {"value": body} for name, body in examples.items()}
    answer = operation["responses"]["200"] | {"headers": _headers("X-Request-ID")}
    operation["responses"] = {"200": answer} | {
        str(status): {"$ref": f"#/components/responses/{status}"} for status in sorted(map(int, refusals))
    }
    return refusals


def _refusal(status: int) -> dict[str, Any]:
    text, line = REFUSALS[status]
    named = ("X-Request-ID", "Retry-After") if status == HTTPStatus.SERVICE_UNAVAILABLE else ("X-Request-ID",)
    schema = {"$ref": "#/components/schemas/ErrorResponse"}
    return {
        "description": text,
        "headers": _headers(*named),
        "content": {"application/json": {"schema": schema, "example": {"error": line}}},
    }


def _headers(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name.lower().removeprefix('x-')}"} for name in names}
