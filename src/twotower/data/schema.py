"""Which column feeds which tower, and as what kind.

A feature is declared in the recipe by its kind and column. `FeatureConfig` is the union of the kinds; each has only the
settings that it uses, so a setting that would be ignored is refused.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import ConfigDict, Field

STRICT = ConfigDict(extra="forbid")
ENVIRONMENT = "TWOTOWER__"
"""How the names of environment variables begin that override the recipe."""

PositiveInt = Annotated[int, Gt(0)]
Share = Annotated[float, Ge(0), Lt(1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class IdFeature:
    """An embedding per id. Ids that training did not meet share the out-of-vocabulary row."""

    __pydantic_config__ = STRICT

    kind: Literal["id"]
    column: str
    """`user_id`, `item_id`, or a column that holds another id."""
    dim: PositiveInt = 32
    """Width of the embedding."""
    dropout: Share = 0.0
    """Share of ids hidden in training, as if never met: what stands beside the id then learns to place an item by what
    it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CategoryFeature:
    """An embedding per distinct value. A missing value and one never met share the out-of-vocabulary row."""

    __pydantic_config__ = STRICT

    kind: Literal["category"]
    column: str
    """A column of single values, such as a region."""
    dim: PositiveInt = 8
    """Width of the embedding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiCategoryFeature:
    """The mean or the sum of the embeddings of several values, such as the genres of a film."""

    __pydantic_config__ = STRICT

    kind: Literal["multi_category"]
    column: str
    """A column of lists, or of strings in which `separator` stands between the values."""
    separator: str = "|"
    """What stands between the values of a string."""
    dim: PositiveInt = 8
    """Width of the embedding."""
    length: PositiveInt = 8
    """Values read per row; further ones are left out."""
    combiner: Literal["mean", "sum"] = "mean"
    """How several become one. `sum` also tells how many there are, and lets a linear tower add up what each of them
    says: the better one for placing cold items."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberFeature:
    """A number, shifted and scaled to mean 0 and deviation 1 on the train split, beside a flag for a missing one."""

    __pydantic_config__ = STRICT

    kind: Literal["number"]
    column: str
    """A column of numbers, such as a price."""
    bins: Annotated[int, Ge(0), Le(256)] = 0
    """Stretches between quantiles of the train split, each beside the number as 0 below it, 1 above it and the part
    that has been passed within it. A linear map of these bends where it likes, as taste does along years and prices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFeature:
    """The mean of the embeddings of hashed word n-grams (one word and two in a row)."""

    __pydantic_config__ = STRICT

    kind: Literal["text"]
    column: str
    """A column of text, such as a title."""
    dim: PositiveInt = 16
    """Width of the embedding."""
    buckets: PositiveInt = 20_000
    """Rows of the hashed table."""
    length: PositiveInt = 16
    """n-grams read per row; further ones are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimestampFeature:
    """A moment: sine and cosine of the hour, the weekday and the day of the year, beside the scaled age of it."""

    __pydantic_config__ = STRICT

    kind: Literal["timestamp"]
    column: str
    """`timestamp` for the moment of the query, or a column of the users or items table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingFeature:
    """An embedding computed beforehand, such as a text encoder's of a title: lists of numbers, all of one length.

    Each goes in scaled to length 1, shifted by the mean of the train split and divided by one deviation for all places,
    beside a flag for a missing one.
    """

    __pydantic_config__ = STRICT

    kind: Literal["embedding"]
    column: str
    """A column of lists of numbers."""
    width: PositiveInt
    """Numbers in each list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryFeature:
    """The last items that the user met before the query, newest first, embedded by the candidate tower's id table.

    The items are summed up by weights that depend on their place and their age, in several ways at once.
    """

    __pydantic_config__ = STRICT

    kind: Literal["history"]
    length: PositiveInt = 50
    """Items read; older ones are left out."""
    pools: Annotated[int, Ge(1)] = 4
    """Weighted sums taken of the same items, each with learned weights of its own."""
    training: Literal["earlier", "others"] = "earlier"
    """What an example's history holds in training. `earlier`: what came before it, as for every query that is served.
    `others`: of the newest `length` of everything else that its user met, before or after, a share drawn anew each
    time. That suits logs whose order tells little, and random splits: over the epochs each two items of a user are seen
    both ways round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceFeature:
    """The last items before the query, read in their order by a causal transformer that knows the time between them.

    It is trained on every position of a history at once. Takes the place of `history`: a tower reads one of the two.
    """

    __pydantic_config__ = STRICT

    kind: Literal["sequence"]
    length: PositiveInt = 100
    """Items read; older ones are left out."""
    blocks: PositiveInt = 2
    """Layers of attention."""
    heads: PositiveInt = 2
    """Heads of attention; a divisor of the width of the items' embedding."""
    dropout: Share = 0.2
    """Share of numbers hidden in training, against learning by heart."""


QueryFeature = Annotated[
    IdFeature
    | CategoryFeature
    | MultiCategoryFeature
    | NumberFeature
    | TextFeature
    | TimestampFeature
    | EmbeddingFeature
    | HistoryFeature
    | SequenceFeature,
    Field(discriminator="kind"),
]
"""What the query tower may read: columns of the users table, of the interactions (context), or the history."""

CandidateFeature = Annotated[
    IdFeature
    | CategoryFeature
    | MultiCategoryFeature
    | NumberFeature
    | TextFeature
    | TimestampFeature
    | EmbeddingFeature,
    Field(discriminator="kind"),
]
"""What the candidate tower may read: columns of the items table."""
