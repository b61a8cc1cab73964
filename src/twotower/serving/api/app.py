"""The routes: which path does what, and how a refusal looks."""

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, PlainTextResponse

from twotower.errors import RequestError
from twotower.serving.api import describing
from twotower.serving.api.messages import (
    MAX_BATCH_IDS,
    BatchRequest,
    BatchResponse,
    DeleteItemsRequest,
    EventsRequest,
    EventsResponse,
    FoundItems,
    Health,
    HistoryRequest,
    Info,
    ItemsResponse,
    PutItemsRequest,
    RankRequest,
    RankResponse,
    RecommendRequest,
    RecommendResponse,
    SearchRequest,
    SimilarRequest,
    SimilarResponse,
)
from twotower.serving.api.openapi import Api
from twotower.serving.api.page_routes import FRAME_POLICY, add_page
from twotower.serving.api.protocol import add_protocol
from twotower.serving.api.quick import quick
from twotower.serving.api.refusing import READ, WRITE, refusals, tell_refusals
from twotower.serving.api.service import Service
from twotower.serving.door.telemetry import CONTENT_TYPE

COMPUTED = frozenset({"/v1/recommend", "/v1/rank", "/v1/similar", "/v1/recommend:batch"})
"""What waits for its turn, and is sent away where there is no room."""

TEXT = """Two-stage recommendations: retrieval brings candidates out of all items, ranking orders them.

An id is a text or a whole number, and `42` and `"42"` are the same. A field that is not described here is refused. A
request may bring an id of its own, 1 to 128 printable letters in the header X-Request-ID, which comes back and stands
in the log. What is refused is told in one line."""


class MarkdownResponse(PlainTextResponse):
    """A text in Markdown."""

    media_type = "text/markdown"


def create_app(service: Service) -> FastAPI:
    """The application that answers by `service`, with nothing in front of it."""
    app = Api(title="twotower", description=TEXT, tag="about")
    tell_refusals(app)
    _add_health(app, service)
    _add_answers(app, service)
    _add_writes(app, service)
    _add_descriptions(app, service)
    add_protocol(app, service)
    add_page(app)
    return app


def _add_health(app: FastAPI, service: Service) -> None:
    """The routes for probes: they wait for nothing."""

    # Some load balancers ask by HEAD.
    @app.head("/livez", tags=["health"], include_in_schema=False)
    @app.get("/livez", summary="Is the process there?", tags=["health"])
    async def livez() -> Health:
        return Health(status="live", bundle=service.bundle_id)

    @app.head("/readyz", tags=["health"], include_in_schema=False)
    @app.get("/readyz", summary="Can it be asked?", tags=["health"], responses=refusals(503))
    async def readyz() -> Health:
        if service.is_ending:
            raise HTTPException(503, "The server ends.")
        return Health(status="ready", bundle=service.bundle_id)

    @app.get("/metrics", summary="Figures for Prometheus", tags=["about"], response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(service.telemetry.render(), media_type=CONTENT_TYPE)


def _add_answers(app: FastAPI, service: Service) -> None:
    """The routes that answer from what is live."""

    @quick(app, "POST", "/v1/recommend", summary="The best items for who asks", tag="recommend", responses=READ)
    async def recommend(asked: RecommendRequest, request: Request) -> RecommendResponse:
        state = request.state
        answer = await service.recommend(asked, request_id=state.request_id, arrived=state.arrived)
        # For the log and for traces; who asked is nobody's business there.
        state.bundle, state.variant, state.fallback = answer.bundle, answer.variant, answer.fallback
        state.timings_ms = answer.timings_ms
        return answer

    @quick(
        app,
        "POST",
        "/v1/recommend:batch",
        summary="Several requests at once, each answered as if it had come alone",
        tag="recommend",
        responses=READ,
    )
    async def recommend_batch(asked: BatchRequest, request: Request) -> BatchResponse:
        state = request.state
        if sum(len(each.history) + len(each.exclude) for each in asked.requests) > MAX_BATCH_IDS:
            raise RequestError(
                f"requests: more than {MAX_BATCH_IDS:,} items in history and exclude. Send smaller batches."
            )
        answers = await service.recommend_each(asked.requests, request_id=state.request_id, arrived=state.arrived)
        return BatchResponse(responses=tuple(answers))

    @quick(
        app,
        "POST",
        "/v1/rank",
        summary="A list of the caller's own, in the order of the ranking head",
        tag="recommend",
        responses=READ,
    )
    async def rank(asked: RankRequest, request: Request) -> RankResponse:
        return await service.rank(asked, request_id=request.state.request_id, arrived=request.state.arrived)

    @quick(app, "POST", "/v1/similar", summary="The items nearest to one item", tag="recommend", responses=READ)
    async def similar(asked: SimilarRequest, request: Request) -> SimilarResponse:
        return await service.similar(asked, request_id=request.state.request_id)

    @quick(app, "POST", "/v1/search", summary="Items by a part of their title or id", tag="recommend", responses=READ)
    async def search(asked: SearchRequest, request: Request) -> FoundItems:  # noqa: ARG001 - see `QuickRoute`
        return await service.search(asked)

    @quick(app, "POST", "/v1/history", summary="What is known of a user", tag="recommend", responses=READ)
    async def history(asked: HistoryRequest, request: Request) -> FoundItems:  # noqa: ARG001
        return await service.history(asked)


def _add_writes(app: FastAPI, service: Service) -> None:
    """The routes that keep something."""

    @quick(
        app,
        "POST",
        "/v1/events",
        summary="What happened: durable once acknowledged, and once only",
        tag="write",
        responses=WRITE,
    )
    async def add_events(asked: EventsRequest, request: Request) -> EventsResponse:
        return await service.add_events(asked, request_id=request.state.request_id)

    @quick(
        app,
        "PUT",
        "/v1/items",
        summary="New items, or new features: they can come at once",
        tag="write",
        responses=WRITE,
    )
    async def put_items(asked: PutItemsRequest, request: Request) -> ItemsResponse:
        return await service.put_items(asked, request_id=request.state.request_id)

    @quick(app, "DELETE", "/v1/items", summary="Items that shall not come any more", tag="write", responses=WRITE)
    async def delete_items(asked: DeleteItemsRequest, request: Request) -> ItemsResponse:
        return await service.delete_items(asked, request_id=request.state.request_id)


def _add_descriptions(app: FastAPI, service: Service) -> None:
    """The routes that tell of what is served."""

    @app.get("/v1/info", summary="What is served", tags=["about"])
    async def info() -> Info:
        return describing.info(service.live.current)

    @app.get(
        "/v1/report",
        summary="The bundle's report, a page of its own",
        responses=refusals(404),
        response_class=HTMLResponse,
        tags=["about"],
    )
    async def report() -> HTMLResponse:
        return HTMLResponse(_read(service, "report.html"), headers={"Content-Security-Policy": FRAME_POLICY})

    @app.get(
        "/v1/card",
        summary="The bundle's model card",
        responses=refusals(404),
        response_class=MarkdownResponse,
        tags=["about"],
    )
    async def card() -> MarkdownResponse:
        return MarkdownResponse(_read(service, "card.md"))


def _read(service: Service, name: str) -> str:
    """A text of the bundle's report."""
    path = service.live.current.variants[0].recommender.bundle.directory / "report" / name
    if not path.is_file():
        raise HTTPException(404, f"The bundle has no {name}.")
    return path.read_text(encoding="utf-8")
