"""A route whose body goes straight from bytes to the message, and whose answer straight from the message to bytes.

FastAPI describes the route in the OpenAPI document as it does any other, from the same signature; what it would do a
request, between the two, costs more than the recommendation.
"""

from collections.abc import Awaitable, Callable, Coroutine
from functools import cached_property
from typing import Any, get_type_hints

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import Response

JSON = "application/json"
MOST_FAULTS = 100
"""In a body whose first fault is told."""
Endpoint = Callable[..., Awaitable[Any]]


def quick(
    app: FastAPI, method: str, path: str, *, summary: str, tag: str, responses: dict[int | str, dict[str, Any]]
) -> Callable[[Endpoint], Endpoint]:
    """Adds the endpoint that it decorates to an application, by a `QuickRoute`."""

    def add(endpoint: Endpoint) -> Endpoint:
        app.router.add_api_route(
            path,
            endpoint,
            methods=[method],
            summary=summary,
            tags=[tag],
            responses=responses,
            route_class_override=QuickRoute,
        )
        return endpoint

    return add


class QuickRoute(APIRoute):
    """For endpoints of the form `async def endpoint(asked: Message, request: Request) -> Message`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What starlette calls."""
        return self._handle

    async def _handle(self, request: Request) -> Response:
        raw = await request.body()
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        # Any other type can be sent by a page of another site without asking first.
        if content_type != JSON:
            raise RequestValidationError([{"type": "content_type", "loc": ("body",), "msg": "not JSON"}])
        request_type, response = self._adapters
        try:
            asked = request_type.validate_json(raw)
        except ValidationError as fault:
            if (count := fault.error_count()) > MOST_FAULTS:  # Telling them takes longer than the recommendation.
                raise RequestValidationError(
                    [{"type": "many", "loc": ("body",), "msg": f"{count:,} faults"}]
                ) from fault
            raise RequestValidationError(
                [
                    dict(error) | {"loc": ("body", *error["loc"])}
                    for error in fault.errors(include_url=False, include_input=False)[:1]
                ]
            ) from fault
        answer = await self.endpoint(asked, request)
        return Response(response.dump_json(answer), media_type=JSON)

    @cached_property
    def _adapters(self) -> tuple[TypeAdapter[Any], TypeAdapter[Any]]:
        hints = get_type_hints(self.endpoint, include_extras=True)
        return TypeAdapter(hints["asked"]), TypeAdapter(hints["return"])
