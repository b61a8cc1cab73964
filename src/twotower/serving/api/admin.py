"""The admin's routes, on a port of their own: which bundles answer whom, and back again."""

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from twotower.errors import StorageError, TwotowerError
from twotower.serving.api.admin_messages import (
    CheckRequest,
    CheckResponse,
    DeploymentInfo,
    DeploymentRequest,
    PromoteRequest,
    RollbackRequest,
)
from twotower.serving.api.describing import deployment as described
from twotower.serving.api.messages import Health
from twotower.serving.api.openapi import Api
from twotower.serving.api.quick import quick
from twotower.serving.api.refusing import refusal, refusals, tell_refusals
from twotower.serving.api.service import Service

TEXT = """Which bundles answer whom: experiments, swaps, promotion and roll-back.

A bundle is loaded and checked beside what answers, and takes over between two requests; one that is refused changes
nothing. What is refused is told in one line."""
CHANGE = refusals(409, 422)


def create_admin(service: Service) -> FastAPI:
    """The application that changes what `service` answers by."""
    app = Api(title="twotower admin", description=TEXT, tag="deployment")
    tell_refusals(app)

    @app.exception_handler(StorageError)
    @app.exception_handler(TwotowerError)
    async def _(request: Request, fault: TwotowerError) -> JSONResponse:  # noqa: ARG001 - the framework's signature
        return refusal(409, str(fault))  # The bundle cannot be had: here it is not the store.

    @app.get("/livez", summary="Is the process there?", tags=["health"])
    async def livez() -> Health:
        return Health(status="live", bundle=service.bundle_id)

    @app.get("/v1/deployment", summary="Who answers whom", tags=["deployment"])
    async def deployment() -> DeploymentInfo:
        return described(service.live)

    @quick(
        app,
        "PUT",
        "/v1/deployment",
        summary="Let other bundles answer, all at once",
        tag="deployment",
        responses=CHANGE,
    )
    async def put_deployment(asked: DeploymentRequest, request: Request) -> DeploymentInfo:  # noqa: ARG001 - see `QuickRoute`
        await service.deployer.deploy(asked)
        return described(service.live)

    @quick(app, "POST", "/v1/promote", summary="One variant answers everybody", tag="deployment", responses=CHANGE)
    async def promote(asked: PromoteRequest, request: Request) -> DeploymentInfo:  # noqa: ARG001
        service.deployer.promote(asked.variant)
        return described(service.live)

    @quick(app, "POST", "/v1/rollback", summary="What answered before answers", tag="deployment", responses=CHANGE)
    async def rollback(asked: RollbackRequest, request: Request) -> DeploymentInfo:  # noqa: ARG001
        service.deployer.rollback()
        return described(service.live)

    @quick(app, "POST", "/v1/check", summary="Could this bundle answer?", tag="deployment", responses=CHANGE)
    async def check(asked: CheckRequest, request: Request) -> CheckResponse:  # noqa: ARG001
        return CheckResponse(bundle=await service.deployer.check(asked.bundle))

    return app
