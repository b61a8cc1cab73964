"""What the recipe says of serving: rules that the business lays over the model's order. It travels with the bundle.

Apart from the server and from the bundle, so that reading a recipe loads neither.
"""

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge, Le

from twotower.data.schema import STRICT, PositiveInt, Share

Logits = Annotated[float, Ge(-1000), Le(1000)]


@dataclass(frozen=True, slots=True, kw_only=True)
class CapConfig:
    """At most so many items of a kind in one answer. Items without a value are of no kind."""

    __pydantic_config__ = STRICT

    column: str
    """A column of the items table. Where it holds lists, or the model reads several values in its strings, an item
    counts for each of them."""
    most: PositiveInt
    """Items of each value in an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PinConfig:
    """An item with a place of its own. It stays away where it may not come: excluded, seen, filtered out or removed."""

    __pydantic_config__ = STRICT

    item_id: str
    """The item."""
    position: PositiveInt
    """Its rank in every answer that is long enough, from 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoostConfig:
    """A head start, or a setback, for the items that fulfil a condition."""

    __pydantic_config__ = STRICT

    filter: str
    """The condition, in the language of a request's `filter`, as in `genres == "Drama" and year >= 2000`."""
    add: Logits
    """Added to the score, in logits: 0.7 doubles an item's odds, -0.7 halves them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RulesConfig:
    """What changes the model's order: boosts, then diversity under the caps, with pinned items in their places."""

    __pydantic_config__ = STRICT

    caps: tuple[CapConfig, ...] = ()
    """Bounds on how much of a kind there may be."""
    pinned: tuple[PinConfig, ...] = ()
    """Items in fixed places."""
    boosts: tuple[BoostConfig, ...] = ()
    """Conditions that raise or lower scores."""
    diversity: Share = 0.0
    """How much an item loses for being like one chosen before it, by the cosine of their embeddings (maximal marginal
    relevance); the score, scaled to 0 to 1 among the candidates, keeps the rest of the weight. 0 is off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """How a server answers from the bundle."""

    __pydantic_config__ = STRICT

    rules: RulesConfig = field(default_factory=RulesConfig)
    """Rules laid over the model's order."""


DEFAULTS = ServeConfig()
"""What is served where nothing else is said."""
