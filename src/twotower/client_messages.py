"""What `twotower.client` asks with and answers with: plain frozen values."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Id = str | int
Value = str | int | float | bool | None
Columns = Mapping[str, Value | Sequence[Value]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Who asks for how much: a known user, somebody with a history or a context, or nobody in particular."""

    user_id: Id | None = None
    history: Sequence[Id] = ()
    """Items met, oldest first."""
    k: int = 10
    exclude: Sequence[Id] = ()
    exclude_seen: bool = True
    filter: str | None = None
    context: Columns = field(default_factory=dict)
    explain: bool = False
    deadline_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Because:
    """An item met that pulled an item of the answer up."""

    item_id: str
    title: str | None
    effect: float
    """By how much the score would be lower without it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why an item stands in an answer."""

    source: str
    """`index`, `new`, `popular`, `pinned` or `given`."""
    because: tuple[Because, ...]
    """The strongest first."""
    rules: tuple[str, ...]
    """Business rules that moved it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One item of an answer, with what each stage thought of it."""

    item_id: str
    title: str | None
    rank: int
    """Place in the answer, from 1."""
    score: float
    """What the answer is ordered by."""
    retrieval_rank: int | None
    """Place among the candidates before ranking; None where retrieval did not bring it."""
    retrieval_score: float | None
    labels: dict[str, float]
    """Label -> what the ranking head predicts."""
    explanation: Explanation | None
    """Only where it was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendations:
    """The best items for one query, best first."""

    request_id: str
    """To be sent along with the events that come of it, as are bundle and variant."""
    bundle: str
    variant: str
    items: tuple[Item, ...]
    fallback: Literal["popular", "retrieval"] | None
    """None where both stages answered."""
    notes: tuple[str, ...]
    """Such as ids that the server does not know."""
    timings_ms: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """The caller's own items, best first."""

    request_id: str
    bundle: str
    variant: str
    items: tuple[Item, ...]
    notes: tuple[str, ...]
    timings_ms: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """An item that is like another."""

    item_id: str
    title: str | None
    rank: int
    score: float
    """Cosine of the two embeddings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """The items that are most like one, nearest first."""

    request_id: str
    bundle: str
    variant: str
    items: tuple[Neighbour, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened. It counts once by its id, however often it is sent."""

    user_id: Id
    item_id: Id
    event_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    """By default a new one; give your own where the same event may come from two places."""
    kind: Literal["interaction", "impression"] = "interaction"
    timestamp: int | None = None
    """Microseconds since 1970; None is the moment of arrival."""
    labels: Mapping[str, float] = field(default_factory=dict)
    context: Columns = field(default_factory=dict)
    request_id: str | None = None
    """Of the answer that it goes back to, as are the three below."""
    bundle: str | None = None
    variant: str | None = None
    rank: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventsWritten:
    """Events that are on disk."""

    accepted: int
    duplicates: int
    """Those that were there already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemsWritten:
    """Items put or removed: on disk, and known to every answer from now on."""

    written: int
    items: int
    """Items that can come now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of the items table that a filter can name."""

    name: str
    type: str
    is_list: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A bundle that answers, and which share of the users."""

    name: str
    bundle: str
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """What is served."""

    name: str
    bundle: str
    variants: tuple[Variant, ...]
    created: str
    counts: dict[str, int]
    candidates: int
    title_column: str | None
    item_columns: tuple[Column, ...]
    query_columns: tuple[str, ...]
    labels: tuple[str, ...]
    limits: dict[str, int]
