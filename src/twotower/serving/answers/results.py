"""What an answer holds: plain values that print, compare and turn into JSON."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Bringer = Literal["index", "new", "popular", "pinned"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Because:
    """An item met that pulled an item of the answer up."""

    item_id: str
    """Which one."""
    title: str | None
    """From the bundle's title column; None where there is none."""
    effect: float
    """By how much the item's score falls where this one had not been met."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why an item stands in an answer."""

    source: Bringer
    """What brought it: the index, the list of new items that the bundle does not have, popularity, or a pin."""
    because: tuple[Because, ...]
    """The items met that pulled it up most, the strongest first; none where there is no history."""
    rules: tuple[str, ...]
    """The business rules that moved it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecommendedItem:
    """One item of an answer, with what each stage thought of it."""

    item_id: str
    """Which one."""
    title: str | None
    """From the bundle's title column; None where there is none."""
    rank: int
    """Place in the answer, from 1."""
    score: float
    """What the answer is ordered by: the ranking head's score, or the popularity of a fallback."""
    retrieval_rank: int | None
    """Place among the candidates before ranking, from 1; None in a fallback."""
    retrieval_score: float | None
    """Inner product of the query's and the item's embedding; None in a fallback."""
    labels: dict[str, float] = field(default_factory=dict)
    """Label -> what the ranking head predicts: a value (regression), a probability (binary) or a logit (listwise)."""
    explanation: Explanation | None = None
    """Only where it was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """The best items for one query, best first."""

    user_id: str | None
    """The user asked for; None for somebody without an id."""
    items: tuple[RecommendedItem, ...]
    """As many as were asked for, or all that are left."""
    fallback: Literal["popular", "retrieval"] | None
    """None when both stages answered; "popular" when the model knew nothing to answer by, "retrieval" when there was no
    time for ranking."""
    notes: tuple[str, ...]
    """What the caller should know: ids that the bundle does not hold, why there was a fallback, why fewer than `k`."""
    bundle: str
    """Which bundle answered: its name and the beginning of its fingerprint."""
    timings_ms: dict[str, float] = field(default_factory=dict, compare=False)
    """Stage -> milliseconds: `query`, `retrieval`, `ranking`, and `explain` where it was asked for."""
    retrieved: int = field(default=0, compare=False)
    """How many candidates retrieval brought."""

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON can hold it."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimilarItem:
    """One neighbour of an item."""

    item_id: str
    """Which one."""
    title: str | None
    """From the bundle's title column; None where there is none."""
    rank: int
    """From 1."""
    score: float
    """Cosine of the two candidate embeddings, -1 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimilarItems:
    """The items whose embeddings point where one item's does, nearest first."""

    item_id: str
    title: str | None
    items: tuple[SimilarItem, ...]
    bundle: str
    """Which bundle answered: its name and the beginning of its fingerprint."""

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON can hold it."""
        return asdict(self)
