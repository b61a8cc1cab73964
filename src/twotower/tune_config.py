"""What the recipe says of tuning: which of its settings are tried, and within what bounds.

Apart from the tuning, so that reading a recipe does not load it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt
from pydantic import BeforeValidator

from twotower.data.schema import STRICT

Number = int | float
Setting = bool | int | float | str | list[int | float | str]


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeConfig:
    """A line of `[tune.space]`: where its setting is looked for, between `low` and `high` or among `choices`."""

    __pydantic_config__ = STRICT

    low: Number | None = None
    """Least value, itself included. A setting that takes whole numbers is tried at whole numbers alone."""
    high: Number | None = None
    """Greatest value, itself included."""
    log: bool = False
    """Evenly over orders of magnitude, as fits step sizes and temperatures; `low` is then above 0."""
    step: Annotated[Number, Gt(0)] | None = None
    """Only `low`, `low` + `step`, and so on; not with `log`."""
    choices: tuple[Setting, ...] = ()
    """The values themselves, in place of bounds: numbers, words, lists."""


WORDS = frozenset(RangeConfig.__dataclass_fields__)


def _dotted(value: Any, *, above: str = "") -> Any:
    """Nested tables as one of dotted keys: without quotes TOML takes `train.epochs` for a table in a table."""
    if not isinstance(value, Mapping):
        return value
    found: dict[str, Any] = {}
    for key, inner in value.items():
        is_range = not isinstance(inner, Mapping) or not inner or WORDS & inner.keys()
        found |= {f"{above}{key}": inner} if is_range else _dotted(inner, above=f"{above}{key}.")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneConfig:
    """What `twotower tune` tries; nothing else reads it."""

    __pydantic_config__ = STRICT

    space: Annotated[dict[str, RangeConfig], BeforeValidator(_dotted)] = field(default_factory=dict)
    """Key of `[model]` or `[train]` -> where to look, as in `"train.learning_rate" = {low = 1e-4, high = 0.01, log =
    true}`. Left empty: step sizes, batch size, temperature and dropout around what the recipe has."""
    pruner: Literal["median", "hyperband", "none"] = "median"
    """Which trials end early, by the validation metric after each epoch: those below the median of the others, those
    that successive halving leaves behind, or none."""
    random_trials: Annotated[int, Ge(1)] = 10
    """Trials drawn by chance before the sampler (TPE) learns from them; Katib knows no such setting."""
