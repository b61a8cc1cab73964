"""How a refusal looks: one line, the same shape for every route, and what the OpenAPI document says of it."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as RoutingError

from twotower.errors import ArtifactError, BusyError, RequestError, StorageError
from twotower.serving.api.messages import ErrorResponse
from twotower.serving.api.service import UnavailableError
from twotower.serving.door.admission import RETRY_AFTER_S, OverloadedError

MAX_LINE = 500
"""Characters of what is told."""


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route refuses by beside what any can, for the OpenAPI document; `openapi.py` tells what each means."""
    return {status: {"model": ErrorResponse} for status in statuses}


READ = refusals(422)
WRITE = refusals(422, 501)


def tell_refusals(app: FastAPI) -> None:
    """Give every refusal the same shape; none of them repeats a body or a key."""

    @app.exception_handler(RequestError)
    async def _(request: Request, fault: RequestError) -> JSONResponse:  # noqa: ARG001 - the framework's signature
        return refusal(400, str(fault))

    @app.exception_handler(RequestValidationError)
    async def _(request: Request, fault: RequestValidationError) -> JSONResponse:
        return refusal(422, _first_fault(fault, request))

    @app.exception_handler(RoutingError)
    async def _(request: Request, fault: RoutingError) -> JSONResponse:  # noqa: ARG001
        return refusal(fault.status_code, str(fault.detail), headers=dict(fault.headers or {}))

    @app.exception_handler(OverloadedError)
    @app.exception_handler(BusyError)
    async def _(request: Request, fault: Exception) -> JSONResponse:  # noqa: ARG001
        return refusal(503, "Too much is asked just now. Ask again later.", headers={"Retry-After": str(RETRY_AFTER_S)})

    @app.exception_handler(UnavailableError)
    async def _(request: Request, fault: UnavailableError) -> JSONResponse:  # noqa: ARG001
        return refusal(501, str(fault))

    @app.exception_handler(ArtifactError)
    async def _(request: Request, fault: ArtifactError) -> JSONResponse:  # noqa: ARG001
        return refusal(409, str(fault))

    @app.exception_handler(StorageError)
    async def _(request: Request, fault: StorageError) -> JSONResponse:  # noqa: ARG001
        return refusal(503, str(fault), headers={"Retry-After": str(RETRY_AFTER_S)})

    @app.exception_handler(Exception)
    async def _(request: Request, fault: Exception) -> JSONResponse:  # noqa: ARG001
        # It is raised again, and the door writes it into the log.
        return refusal(500, "A fault of the server's own; its log tells it.")


def refusal(status: int, text: str, *, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """One line of bounded length. Half a surrogate pair, which JSON can bring in, cannot go out as UTF-8."""
    line = " ".join(text.encode("utf-8", "backslashreplace").decode().split())
    if len(line) > MAX_LINE:  # What was sent stands first, and what is wrong with it last.
        line = f"{line[: MAX_LINE // 2]} ... {line[-MAX_LINE // 2 :]}"
    return JSONResponse({"error": line}, status_code=status, headers=headers)


def _first_fault(fault: RequestValidationError, request: Request) -> str:
    first = fault.errors()[0]
    if first["type"] == "content_type":
        return "body: no JSON object. Send one, with the header Content-Type: application/json."
    if first["type"] == "json_invalid":
        return f"body: no JSON ({first['ctx']['error']}). Send one JSON object."
    if first["type"] == "many":
        return f"body: {first['msg']}. GET /openapi.json tells what it may hold."
    where = ".".join(str(part) for part in first["loc"][1:])
    if not where:
        return "body: no JSON object. Send one, with the header Content-Type: application/json."
    if first["type"] == "unexpected_keyword_argument":
        return f"{where}: no such field. There are {', '.join(_siblings(request, first['loc'][1:-1]))}."
    return f"{where}: {first['msg']}."


def _siblings(request: Request, path: tuple[str | int, ...]) -> list[str]:
    """The fields beside one that does not exist, at `path` in the route's message."""
    kind: Any = get_type_hints(request.scope["endpoint"], include_extras=False)["asked"]
    for step in path:
        kind = get_type_hints(kind)[step] if isinstance(step, str) else kind.__args__[0]
    return [field.name for field in fields(kind)] if is_dataclass(kind) else []
