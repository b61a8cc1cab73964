"""The Open Inference Protocol, version 2, over HTTP: what KServe and its clients ask of any model server.

Tensors in: `user_id` `[n]` or `[n, 1]`, and if wanted `k` (one number) and `history` `[n, h]`, where an empty text
holds nothing. Tensors out: `item_id` and `score`, both `[n, k]`, best first; an empty item_id holds nothing.

Source:
    Open Inference Protocol, https://github.com/kserve/open-inference-protocol
"""

from importlib.metadata import version
from itertools import chain
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response

from twotower.errors import RequestError
from twotower.serving.api.messages import MAX_BATCH, MAX_ID, MAX_IDS, MAX_K, RecommendRequest, is_text
from twotower.serving.api.protocol_messages import (
    InferInput,
    InferOutput,
    InferRequest,
    InferResponse,
    ModelMetadata,
    ModelReady,
    ServerLive,
    ServerMetadata,
    ServerReady,
    TensorMetadata,
)
from twotower.serving.api.quick import quick
from twotower.serving.api.refusing import READ, refusals
from twotower.serving.api.service import Service

MISSING = refusals(404)
INPUTS = (
    TensorMetadata(name="user_id", datatype="BYTES", shape=(-1,)),
    TensorMetadata(name="history", datatype="BYTES", shape=(-1, -1)),
    TensorMetadata(name="k", datatype="INT32", shape=(1,)),
)
OUTPUTS = (
    TensorMetadata(name="item_id", datatype="BYTES", shape=(-1, -1)),
    TensorMetadata(name="score", datatype="FP32", shape=(-1, -1)),
)


def add_protocol(app: FastAPI, service: Service) -> None:
    """The routes below `/v2`."""

    @app.get("/v2", summary="Open Inference Protocol: the server", tags=["models"])
    async def server() -> ServerMetadata:
        return ServerMetadata(name="twotower", version=version("twotower"))

    @app.get("/v2/health/live", summary="Open Inference Protocol: is the server live?", tags=["health"])
    async def live() -> ServerLive:
        return ServerLive(live=True)

    @app.get("/v2/health/ready", summary="Open Inference Protocol: is the server ready?", tags=["health"])
    async def ready(response: Response) -> ServerReady:
        response.status_code = 503 if service.is_ending else 200
        return ServerReady(ready=not service.is_ending)

    @app.get("/v2/models/{name}", summary="Open Inference Protocol: the model", responses=MISSING, tags=["models"])
    async def model(name: str) -> ModelMetadata:
        _refuse_other(name, service)
        deployment = service.live.current
        versions = tuple(dict.fromkeys(each.recommender.bundle.id for each in deployment.variants))
        return ModelMetadata(name=name, versions=versions, inputs=INPUTS, outputs=OUTPUTS)

    @app.get(
        "/v2/models/{name}/ready", summary="Open Inference Protocol: is it ready?", responses=MISSING, tags=["models"]
    )
    async def model_ready(name: str) -> ModelReady:
        _refuse_other(name, service)
        return ModelReady(name=name, ready=True)

    @quick(
        app,
        "POST",
        "/v2/models/{name}/infer",
        summary="Open Inference Protocol: the best items for several users",
        tag="models",
        responses=READ | refusals(404),
    )
    async def infer(asked: InferRequest, request: Request) -> InferResponse:
        name = request.path_params["name"]
        _refuse_other(name, service)
        state = request.state
        answers = await service.recommend_each(
            queries(asked), request_id=state.request_id, arrived=state.arrived, by_one=True
        )
        width = max(len(answer.items) for answer in answers)
        ids = [[item.item_id for item in answer.items] for answer in answers]
        scores = [[item.score for item in answer.items] for answer in answers]
        shape = (len(answers), width)
        return InferResponse(
            model_name=name,
            model_version=answers[0].bundle,
            id=asked.id or state.request_id,
            outputs=(
                InferOutput(name="item_id", datatype="BYTES", shape=shape, data=_flat(ids, width, blank="")),
                InferOutput(name="score", datatype="FP32", shape=shape, data=_flat(scores, width, blank=0.0)),
            ),
        )


def queries(asked: InferRequest) -> list[RecommendRequest]:
    """The queries that the tensors hold.

    Raises:
        RequestError: a tensor that is none of ours, of another type or shape, or with other values than it says.
    """
    tensors = {each.name: each for each in asked.inputs}
    if len(tensors) < len(asked.inputs):
        raise RequestError("inputs: a tensor stands there twice. Name each once.")
    if strange := sorted(set(tensors) - {each.name for each in INPUTS}):
        raise RequestError(f"inputs: no tensor '{strange[0]}'. There are {', '.join(each.name for each in INPUTS)}.")
    if not {"user_id", "history"} & set(tensors):
        raise RequestError("inputs: neither user_id nor history is there. Send one of them.")
    users = [row[0] or None for row in _texts(tensors["user_id"], width=1)] if "user_id" in tensors else None
    histories = _texts(tensors["history"], width=None) if "history" in tensors else None
    count = len(users if users is not None else histories or [])
    if histories is not None and sum(map(bool, chain.from_iterable(histories))) > MAX_IDS:
        raise RequestError(f"inputs.history: more than {MAX_IDS:,} items. Send fewer at once.")
    if histories is not None and len(histories) != count:
        raise RequestError(f"inputs.history: {len(histories)} rows for {count} users. Send one row a user.")
    if not 1 <= count <= MAX_BATCH:
        raise RequestError(f"inputs: {count} queries. Send 1 to {MAX_BATCH} at once.")
    k = _k(tensors["k"]) if "k" in tensors else 10
    return [
        RecommendRequest(
            user_id=users[row] if users is not None else None,
            history=tuple(item for item in histories[row] if item) if histories is not None else (),
            k=k,
        )
        for row in range(count)
    ]


def _texts(tensor: InferInput, *, width: int | None) -> list[list[str]]:
    """The rows of a tensor of texts; a width of 1 may be left out of its shape."""
    if tensor.datatype != "BYTES":
        raise RequestError(f"inputs.{tensor.name}: datatype is {tensor.datatype}. Send BYTES, each id as a text.")
    shape = tensor.shape if len(tensor.shape) > 1 else (tensor.shape[0], 1) if width == 1 else (1, tensor.shape[0])
    if width is not None and shape[1] != width:
        raise RequestError(f"inputs.{tensor.name}: shape is {list(tensor.shape)}. Send [n] or [n, {width}].")
    flat = [value for row in tensor.data for value in (row if isinstance(row, list) else [row])]
    if len(flat) != shape[0] * shape[1]:
        raise RequestError(f"inputs.{tensor.name}: {len(flat)} values, {shape[0] * shape[1]} by its shape.")
    if not all(is_text(value) and len(value) <= MAX_ID for value in flat):
        raise RequestError(
            f"inputs.{tensor.name}: a value is no text of at most {MAX_ID:,} characters. Send each id as one."
        )
    return [flat[row * shape[1] : (row + 1) * shape[1]] for row in range(shape[0])]


def _k(tensor: InferInput) -> int:
    if tensor.datatype == "BYTES":
        raise RequestError("inputs.k: datatype is BYTES. Send INT32 or INT64.")
    flat = [value for row in tensor.data for value in (row if isinstance(row, list) else [row])]
    if len(flat) != 1 or isinstance(flat[0], bool) or not isinstance(flat[0], int) or not 1 <= flat[0] <= MAX_K:
        raise RequestError(f"inputs.k: not one whole number from 1 to {MAX_K}. Send one, for all queries.")
    return flat[0]


def _refuse_other(name: str, service: Service) -> None:
    served = service.name
    if name != served:
        raise HTTPException(404, f"There is no model of that name here. The one served is '{served}'.")


def _flat(rows: list[list[Any]], width: int, *, blank: Any) -> list[Any]:
    return [value for row in rows for value in [*row, *[blank] * (width - len(row))]]
