"""What goes over the wire: the bodies of requests and answers, from which the OpenAPI page is made.

Ids travel in bodies, never in paths, so that any text can be one. A field that is not here is refused.
"""

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, MaxLen, MinLen
from pydantic import AllowInfNan, BeforeValidator, ConfigDict, FailFast, PlainValidator, Strict
from pydantic_core import PydanticCustomError

from twotower.serving.answers.results import RecommendedItem, SimilarItem

MAX_K = 1000
MAX_IDS = 10_000
"""Items of a history, and items to leave out."""
MAX_ID = 1024
"""Characters of an id."""
MAX_COLUMNS = 100
MAX_FILTER = 2_000
"""Characters of a filter."""
MAX_BATCH = 100
"""Requests in one batch."""
MAX_BATCH_IDS = 20_000
"""Items of the histories, and items to leave out, of a whole batch."""
MAX_WRITES = 1_000
"""Events or items written at once."""
MAX_VARIANTS = 8
"""Bundles that answer at once."""
MAX_EVENT_ID = 256
"""Characters of an event's or a request's id."""
MAX_DEADLINE_MS = 60_000
MAX_MOMENT = 1 << 53
"""Microseconds, either way of 1970: what every JSON reader tells exactly."""
MESSAGE = ConfigDict(extra="forbid", use_attribute_docstrings=True)
TOLD = ConfigDict(use_attribute_docstrings=True)
"""For the Open Inference Protocol's messages, which may hold what others read."""

Scalar = str | int | float | bool | None


def is_text(value: object) -> bool:
    """Whether it can go out again: JSON can bring in half a surrogate pair, which no answer can hold."""
    return isinstance(value, str) and (value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value))


def _is_scalar(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, int) or is_text(value)


def _whole(value: Any) -> Any:
    """JSON has one kind of number: 10.0 is the whole number 10."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _checked_id(value: Any) -> str | int:
    value = _whole(value)
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if not (is_number or is_text(value)) or len(str(value)) > MAX_ID:
        raise PydanticCustomError("id", f"An id is a text or a whole number, of at most {MAX_ID:,} characters")
    return value  # type: ignore[no-any-return]


def _checked_value(value: Any) -> Scalar | list[Scalar]:
    if not all(_is_scalar(each) for each in (value if isinstance(value, list) else [value])):
        raise PydanticCustomError("value", "A value is a text, a finite number, true, false, null, or a list of these")
    return value  # type: ignore[no-any-return]


def _checked_text(value: Any) -> str:
    if not is_text(value):
        raise PydanticCustomError("text", "A text is expected, without halves of surrogate pairs")
    return value  # type: ignore[no-any-return]


# Unions of pydantic's own would tell a fault once for each of their parts.
GivenId = Annotated[str | int, PlainValidator(_checked_id, json_schema_input_type=Annotated[str, MaxLen(MAX_ID)] | int)]
# One fault ends the reading of a list: telling thousands would hold up everybody else.
ONE_FAULT = FailFast()
GivenIds = Annotated[tuple[GivenId, ...], ONE_FAULT, MaxLen(MAX_IDS)]
ContextValue = Annotated[
    Scalar | list[Scalar], PlainValidator(_checked_value, json_schema_input_type=Scalar | list[Scalar])
]
Context = Annotated[dict[str, ContextValue], MaxLen(MAX_COLUMNS)]


Text = Annotated[str, PlainValidator(_checked_text, json_schema_input_type=str)]
Filter = Annotated[Text, MaxLen(MAX_FILTER)]
Whole = BeforeValidator(_whole)
K = Annotated[int, Strict(), Ge(1), Le(MAX_K), Whole]
Flag = Annotated[bool, Strict()]
Moment = Annotated[int, Strict(), Ge(-MAX_MOMENT), Le(MAX_MOMENT), Whole]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecommendRequest:
    """Who asks for how much: a known user, somebody told by a history or by context, or nobody in particular."""

    __pydantic_config__ = MESSAGE

    user_id: GivenId | None = None
    """Whom to recommend for; the bundle knows the user's features and history, the store what came since."""
    history: GivenIds = ()
    """Items met, oldest first; they join what is known of the user."""
    k: K = 10
    """How many items."""
    exclude: GivenIds = ()
    """Items that must not come."""
    exclude_seen: Flag = True
    """Leave out what the user met, in the bundle, in the store or in `history`."""
    filter: Filter | None = None
    """A condition on item features that every item of the answer fulfils, such as `year >= 2000 and not adult`."""
    context: Context = field(default_factory=dict)
    """Columns that the model reads of who asks, by name; they replace the bundle's."""
    explain: Flag = False
    """Say of each item where it came from and which items met pulled it up most; takes longer."""
    deadline_ms: Annotated[float, Strict(), Gt(0), Le(MAX_DEADLINE_MS)] | None = None
    """Milliseconds from the request's arrival; where ranking would end later, retrieval's order answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecommendResponse:
    """The best items for one request, best first."""

    __pydantic_config__ = MESSAGE

    request_id: str
    """The header X-Request-ID of the request, or one made for it; the answer's header has it too."""
    bundle: str
    """Which bundle answered."""
    variant: str
    """Which part of an experiment answered; `main` where there is none."""
    items: tuple[RecommendedItem, ...]
    """As many as were asked for, or all that are left."""
    fallback: Literal["popular", "retrieval"] | None
    """Null when both stages answered; "popular" when the model knew nothing to answer by, "retrieval" when there was
    no time for ranking."""
    notes: tuple[str, ...]
    """What the caller should know, such as ids that the bundle does not hold."""
    timings_ms: dict[str, float]
    """Part of the work -> milliseconds: `queue`, `query`, `retrieval`, `ranking`, `explain`, `total`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRequest:
    """Several requests at once, each answered as if it had come alone."""

    __pydantic_config__ = MESSAGE

    requests: Annotated[tuple[RecommendRequest, ...], ONE_FAULT, MinLen(1), MaxLen(MAX_BATCH)]
    """Answered one after the other; where one of them is refused, all are. Their `history` and `exclude` may hold
    20,000 items together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchResponse:
    """The answers, in the order of the requests."""

    __pydantic_config__ = MESSAGE

    responses: tuple[RecommendResponse, ...]
    """One a request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankRequest:
    """A list of the caller's own, to be put in the order of the ranking head."""

    __pydantic_config__ = MESSAGE

    items: Annotated[GivenIds, MinLen(1), MaxLen(MAX_K)]
    """What to order; items that are not in the catalogue are told in the notes."""
    user_id: GivenId | None = None
    """For whom."""
    history: GivenIds = ()
    """Items met, oldest first."""
    context: Context = field(default_factory=dict)
    """Columns that the model reads of who asks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankResponse:
    """The caller's items, best first."""

    __pydantic_config__ = MESSAGE

    request_id: str
    """The header X-Request-ID of the request, or one made for it."""
    bundle: str
    """Which bundle answered."""
    variant: str
    """Which part of an experiment answered."""
    items: tuple[RecommendedItem, ...]
    """Those in the catalogue."""
    notes: tuple[str, ...]
    """What the caller should know, such as ids that the bundle does not hold."""
    timings_ms: dict[str, float]
    """Part of the work -> milliseconds: `queue`, `query`, `ranking`, `total`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimilarRequest:
    """Whose neighbours."""

    __pydantic_config__ = MESSAGE

    item_id: GivenId
    """The item that the others are to be like."""
    k: K = 10
    """How many items."""
    exclude: GivenIds = ()
    """Items that must not come."""
    filter: Filter | None = None
    """A condition that every item of the answer fulfils."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimilarResponse:
    """The items whose candidate embeddings point where this item's does, nearest first."""

    __pydantic_config__ = MESSAGE

    request_id: str
    """The header X-Request-ID of the request, or one made for it."""
    bundle: str
    """Which bundle answered."""
    variant: str
    """Which part of an experiment answered."""
    items: tuple[SimilarItem, ...]
    """Nearest first; as many as were asked for, or all that are left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventMessage:
    """Something that happened: an item was met, or shown."""

    __pydantic_config__ = MESSAGE

    event_id: Annotated[Text, MinLen(1), MaxLen(MAX_EVENT_ID)]
    """The caller's own; an event that is sent again under the same id counts once."""
    user_id: GivenId
    """Who met it, or was shown it."""
    item_id: GivenId
    """What was met or shown."""
    kind: Literal["interaction", "impression"] = "interaction"
    """An interaction joins the user's history; an impression only says that the item was shown."""
    timestamp: Moment | None = None
    """Microseconds since 1970; by default the moment of arrival."""
    labels: Annotated[dict[Text, Annotated[float, Strict(), AllowInfNan(False)]], MaxLen(MAX_COLUMNS)] = field(
        default_factory=dict
    )
    """Label -> value, such as `{"rating": 4}`."""
    context: Context = field(default_factory=dict)
    """What was known when it happened."""
    request_id: Annotated[Text, MaxLen(MAX_EVENT_ID)] | None = None
    """The answer that it goes back to."""
    bundle: Annotated[Text, MaxLen(MAX_ID)] | None = None
    """Which bundle answered; by default the one that answers the user now."""
    variant: Annotated[Text, MaxLen(MAX_ID)] | None = None
    """Which part of an experiment answered; by default the one that answers the user now."""
    rank: K | None = None
    """The item's place in that answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventsRequest:
    """What happened since."""

    __pydantic_config__ = MESSAGE

    events: Annotated[tuple[EventMessage, ...], ONE_FAULT, MinLen(1), MaxLen(MAX_WRITES)]
    """All of them are kept, or none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventsResponse:
    """That the events are on disk."""

    __pydantic_config__ = MESSAGE

    request_id: str
    """The header X-Request-ID of the request, or one made for it."""
    accepted: int
    """Events that were new."""
    duplicates: int
    """Events whose id was there already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemMessage:
    """An item of the catalogue, as the items table has it."""

    __pydantic_config__ = MESSAGE

    item_id: GivenId
    """A new one, or one whose features are to be others."""
    features: Context = field(default_factory=dict)
    """Column -> value; a column left out counts as missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PutItemsRequest:
    """New items, or new features of items that are there."""

    __pydantic_config__ = MESSAGE

    items: Annotated[tuple[ItemMessage, ...], ONE_FAULT, MinLen(1), MaxLen(MAX_WRITES)]
    """All of them are kept, or none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteItemsRequest:
    """Items that shall not come any more."""

    __pydantic_config__ = MESSAGE

    item_ids: Annotated[tuple[GivenId, ...], ONE_FAULT, MinLen(1), MaxLen(MAX_WRITES)]
    """An id that is not there is no fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemsResponse:
    """That the change is on disk, and that answers know of it."""

    __pydantic_config__ = MESSAGE

    request_id: str
    """The header X-Request-ID of the request, or one made for it."""
    written: int
    """Items that the request told to put or to remove; an id that was not there to be removed counts too."""
    items: int
    """Items that can come now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRequest:
    """Part of a title, to find an item by."""

    __pydantic_config__ = MESSAGE

    text: Annotated[Text, MinLen(1), MaxLen(MAX_ID)]
    """In either case."""
    k: K = 10
    """How many items."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundItem:
    """An item by name."""

    __pydantic_config__ = MESSAGE

    item_id: str
    """The item's id, as a text."""
    title: str | None
    """Null where the bundle has no titles."""
    timestamp: int | None = None
    """Microseconds since 1970 when it was met; null in a search."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundItems:
    """Items by name."""

    __pydantic_config__ = MESSAGE

    items: tuple[FoundItem, ...]
    """Found by a text: the popular first. Met by a user: the latest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryRequest:
    """Whose history."""

    __pydantic_config__ = MESSAGE

    user_id: GivenId
    """Who met the items."""
    k: K = 50
    """How many items."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnInfo:
    """A column that a filter can name."""

    __pydantic_config__ = MESSAGE

    name: str
    """As a filter writes it."""
    type: Literal["text", "number", "bool", "moment", "nothing"]
    """What it is compared with; "nothing" where only `is missing` can be asked."""
    is_list: bool
    """Whether an item has several values: then a comparison holds where it holds for one of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantInfo:
    """A bundle that answers, and whom."""

    __pydantic_config__ = MESSAGE

    name: str
    """The variant's name, which stands in every answer of its own."""
    bundle: str
    """Its id."""
    share: float
    """Of the users, 0 to 1; 0 where it only answers beside the others, unseen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """What is served."""

    __pydantic_config__ = MESSAGE

    name: str
    """The recipe's name."""
    bundle: str
    """Which bundle answers, of the first variant."""
    variants: tuple[VariantInfo, ...]
    """All that answer; a share of 0 answers unseen."""
    created: str
    """When the bundle was made, UTC."""
    counts: dict[str, int]
    """`users`, `items`, `interactions`, `positives`."""
    candidates: int
    """How many items retrieval hands to ranking."""
    title_column: str | None
    """The column of the items table that `title` is read from; null where there is none."""
    item_columns: tuple[ColumnInfo, ...]
    """What a filter can name."""
    query_columns: tuple[str, ...]
    """What `context` can tell."""
    labels: tuple[str, ...]
    """What the ranking head predicts."""
    limits: dict[str, int]
    """The most of what a request may hold: `k`, `history`, `exclude`, `batch`, `writes`, `filter` (in characters) and
    `deadline_ms`."""
    example_users: tuple[str, ...]
    """Ids to begin with."""
    example_items: tuple[FoundItem, ...]
    """Popular items to begin with."""


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
    """What was asked for."""
    bundle: str
    """Which bundle answers."""
