"""What goes over the wire by the Open Inference Protocol, version 2."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, MaxLen, MinLen
from pydantic import Strict

from twotower.serving.api.messages import MAX_EVENT_ID, MAX_IDS, ONE_FAULT, TOLD, Text, Whole


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerMetadata:
    """The server as the Open Inference Protocol describes it."""

    __pydantic_config__ = TOLD

    name: str
    """`twotower`."""
    version: str
    """Of the server."""
    extensions: tuple[str, ...] = ()
    """None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLive:
    """Health as the Open Inference Protocol has it."""

    __pydantic_config__ = TOLD

    live: bool
    """True where there is an answer at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerReady:
    """Readiness as the Open Inference Protocol has it."""

    __pydantic_config__ = TOLD

    ready: bool
    """True: the server answers nobody before it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReady:
    """A model's readiness as the Open Inference Protocol has it."""

    __pydantic_config__ = TOLD

    name: str
    """The model's name."""
    ready: bool
    """True: the server answers nobody before it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorMetadata:
    """A tensor as the Open Inference Protocol describes it; -1 is a size that the request decides."""

    __pydantic_config__ = TOLD

    name: str
    """What the tensor is called in a request or an answer."""
    datatype: str
    """`BYTES` for texts, `INT32`, `FP32`."""
    shape: tuple[int, ...]
    """Size by axis."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelMetadata:
    """A model as the Open Inference Protocol describes it."""

    __pydantic_config__ = TOLD

    name: str
    """The recipe's name."""
    versions: tuple[str, ...]
    """The bundles' ids."""
    platform: Literal["twotower"] = "twotower"
    """What runs the model."""
    inputs: tuple[TensorMetadata, ...]
    """What a request can hold; `user_id` or `history` it must."""
    outputs: tuple[TensorMetadata, ...]
    """What an answer holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InferInput:
    """A tensor that comes in; `data` is flat or nested, and holds as many values as the shape says."""

    __pydantic_config__ = TOLD

    name: str
    """`user_id`, `history` or `k`."""
    shape: Annotated[tuple[Annotated[int, Strict(), Ge(0), Le(MAX_IDS), Whole], ...], ONE_FAULT, MinLen(1), MaxLen(2)]
    """Size by axis: `[n]` or `[n, 1]` for `user_id`, `[n, h]` for `history`, `[1]` for `k`."""
    datatype: Literal["BYTES", "INT32", "INT64"]
    """`BYTES` for ids, a whole number for `k`."""
    data: list[Any]
    """An empty text in `history` holds nothing; an empty `user_id` is nobody in particular."""
    parameters: dict[str, Any] | None = None
    """Read by others; no parameter changes anything here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InferOutput:
    """A tensor that goes out, flat in row-major order."""

    __pydantic_config__ = TOLD

    name: str
    """`item_id` or `score`."""
    shape: tuple[int, ...]
    """Queries, and the most items that one of them got."""
    datatype: str
    """`BYTES` or `FP32`."""
    data: list[str] | list[float]
    """Best first, row by row; a row that is shorter ends in empty ids and scores of 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InferRequest:
    """Several queries at once, as the Open Inference Protocol has them."""

    __pydantic_config__ = TOLD

    inputs: Annotated[tuple[InferInput, ...], ONE_FAULT, MinLen(1), MaxLen(3)]
    """The tensors, each once."""
    id: Annotated[Text, MaxLen(MAX_EVENT_ID)] | None = None
    """Comes back with the answer."""
    parameters: dict[str, Any] | None = None
    """Read by others; no parameter changes anything here."""
    outputs: list[dict[str, Any]] | None = None
    """Which outputs are wanted; all of them come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InferResponse:
    """The answers, one row a query."""

    __pydantic_config__ = TOLD

    model_name: str
    """The name that was asked for."""
    model_version: str
    """Which bundle answered."""
    id: str
    """As it came, or the request's."""
    outputs: tuple[InferOutput, ...]
    """`item_id` and `score`."""
