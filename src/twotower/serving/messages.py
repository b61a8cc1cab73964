"""What goes over the wire: the bodies of requests and answers, from which the OpenAPI page is made.

Ids travel in bodies, never in paths, so that any text can be one. A field that is not here is refused.
"""

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, MaxLen
from pydantic import ConfigDict, PlainValidator, Strict
from pydantic_core import PydanticCustomError

from twotower.serving.results import RecommendedItem

MAX_K = 1000
MAX_IDS = 10_000
"""Items of a history, and items to leave out."""
MAX_ID = 1024
"""Characters of an id."""
MAX_COLUMNS = 100
MESSAGE = ConfigDict(extra="forbid", use_attribute_docstrings=True)

Scalar = str | int | float | bool | None


def _is_text(value: object) -> bool:
    """Whether it can go out again: JSON can bring in half a surrogate pair, which no answer can hold."""
    return isinstance(value, str) and (value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value))


def _is_scalar(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, int) or _is_text(value)


def _checked_id(value: Any) -> str | int:
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if not (is_number or _is_text(value)) or len(str(value)) > MAX_ID:
        raise PydanticCustomError("id", f"An id is a text or a whole number, of at most {MAX_ID:,} characters")
    return value  # type: ignore[no-any-return]


def _checked_value(value: Any) -> Scalar | list[Scalar]:
    if not all(_is_scalar(each) for each in (value if isinstance(value, list) else [value])):
        raise PydanticCustomError("value", "A value is a text, a finite number, true, false, null, or a list of these")
    return value  # type: ignore[no-any-return]


# Unions of pydantic's own would tell a fault once for each of their parts.
GivenId = Annotated[str | int, PlainValidator(_checked_id, json_schema_input_type=str | int)]
GivenIds = Annotated[tuple[GivenId, ...], MaxLen(MAX_IDS)]
ContextValue = Annotated[
    Scalar | list[Scalar], PlainValidator(_checked_value, json_schema_input_type=Scalar | list[Scalar])
]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecommendRequest:
    """Who asks for how much: a known user, somebody told by a history or by context, or nobody in particular."""

    __pydantic_config__ = MESSAGE

    user_id: GivenId | None = None
    """Whom to recommend for; the bundle knows the user's features and history."""
    history: GivenIds = ()
    """Items met, oldest first; they join what the bundle knows of the user."""
    k: Annotated[int, Strict(), Ge(1), Le(MAX_K)] = 10
    """How many items."""
    exclude: GivenIds = ()
    """Items that must not come."""
    exclude_seen: Annotated[bool, Strict()] = True
    """Leave out what the user met, in the bundle or in `history`."""
    context: Annotated[dict[str, ContextValue], MaxLen(MAX_COLUMNS)] = field(default_factory=dict)
    """Columns that the model reads of who asks, by name; they replace the bundle's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecommendResponse:
    """The best items for one request, best first."""

    __pydantic_config__ = MESSAGE

    request_id: str
    """The header X-Request-ID of the request, or one made for it; the answer's header has it too."""
    bundle: str
    """Which bundle answered."""
    items: tuple[RecommendedItem, ...]
    """As many as were asked for, or all that are left."""
    fallback: Literal["popular"] | None
    """Null when the model answered; "popular" when it knew nothing to answer by."""
    notes: tuple[str, ...]
    """What the caller should know, such as ids that the bundle does not hold."""
    timings_ms: dict[str, float]
    """Part of the work -> milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorResponse:
    """Why there is no answer."""

    __pydantic_config__ = MESSAGE

    error: str
    """One line: where, what was found, what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """That the server is there, and what it serves."""

    __pydantic_config__ = MESSAGE

    status: Literal["live", "ready"]
    bundle: str
    """Which bundle answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLive:
    """Health as the Open Inference Protocol has it."""

    live: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerReady:
    """Readiness as the Open Inference Protocol has it."""

    ready: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelMetadata:
    """A model as the Open Inference Protocol describes it."""

    __pydantic_config__ = MESSAGE

    name: str
    versions: tuple[str, ...]
    """The bundle's id."""
    platform: Literal["twotower"] = "twotower"
