"""What an answer holds: plain values that print, compare and turn into JSON."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class RecommendedItem:
    """One item of an answer, with what each stage thought of it."""

    item_id: str
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
    """Label -> what the ranking head predicts: a value for regression, a probability for binary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """The best items for one query, best first."""

    user_id: str | None
    """The user asked for; None for somebody without an id."""
    items: tuple[RecommendedItem, ...]
    """As many as were asked for, or all that are left."""
    fallback: Literal["popular"] | None
    """None when the model answered; "popular" when it knew nothing to answer by."""
    notes: tuple[str, ...]
    """What the caller should know: ids that the bundle does not hold, why there was a fallback, why fewer than `k`."""
    bundle: str
    """Which bundle answered: its name and the beginning of its fingerprint."""

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON can hold it."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimilarItem:
    """One neighbour of an item."""

    item_id: str
    title: str | None
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
