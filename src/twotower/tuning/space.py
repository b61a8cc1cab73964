"""The search space, checked before any trial: where each setting is looked for, and the recipe that values give."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from decimal import Decimal
from difflib import get_close_matches
from typing import Any

from twotower.errors import RecipeError
from twotower.recipe import Recipe, parse_recipe, recipe_tree
from twotower.tune_config import RangeConfig, TuneConfig

SECTIONS = ("model", "train")
"""All trials share their data and their judge; these sections decide how they learn."""
YARDSTICK = ("train.metric", "train.validation_queries")
"""Keys by which trials are compared: under other values their figures would not compare."""
UNREAD = ("train.single_tasks",)
"""Keys of those sections that a trial does not read."""
TEMPERATURE = "model.retrieval.temperature"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimension:
    """One setting and its values, all of which the recipe takes."""

    key: str
    """As in `train.learning_rate`."""
    low: float = 0
    high: float = 0
    log: bool = False
    step: float | None = None
    whole: bool = False
    """Whether only whole numbers fit."""
    choices: Mapping[str, Any] | None = None
    """Text -> value, in place of the bounds."""

    def edges(self) -> list[Any]:
        """The values at which a check of a single value fails first."""
        return (
            [self.value(text) for text in self.choices]
            if self.choices
            else [self.value(self.low), self.value(self.high)]
        )

    def value(self, tried: Any) -> Any:
        """What the recipe is given: a sampler tries lists and words by their text."""
        if self.choices is not None:
            return self.choices[tried]
        return int(tried) if self.whole else float(tried)

    def tried(self, value: Any) -> Any | None:
        """What a sampler tries to give the recipe this value; None where it cannot."""
        if self.choices is not None:
            return next((text for text, choice in self.choices.items() if choice == _plain(value)), None)
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return None
        steps = 0.0 if self.step is None else (value - self.low) / self.step
        return value if math.isclose(steps, round(steps), abs_tol=1e-9) else None


def space_of(recipe: Recipe) -> list[Dimension]:
    """The recipe's space, or one around its own settings where it has none.

    Raises:
        RecipeError: an unknown key, one that trials cannot differ in, bounds that are none, or a value that the recipe
            would refuse.
    """
    known = known_settings(recipe)
    if not recipe.tune.space:
        return _around(recipe)
    found = [_dimension(key, bounds, known=known) for key, bounds in recipe.tune.space.items()]
    for dimension in found:
        for value in dimension.edges():
            with_values(recipe, {dimension.key: value}, where=f"tune.space: {dimension.key} = {as_text(value)}")
    return found


def settled(recipe: Recipe, *, items: int = 0) -> Recipe:
    """The recipe with the number that it leaves to the catalogue's size: trials look around it."""
    retrieval = recipe.model.retrieval
    told = replace(retrieval, temperature=retrieval.first_temperature(items=items))
    return replace(recipe, model=replace(recipe.model, retrieval=told))


def follows_catalogue(recipe: Recipe) -> bool:
    """Whether what is tried depends on how many items there are: around the temperature that follows from them."""
    is_auto = recipe.model.retrieval.temperature == "auto"
    return is_auto and not recipe.tune.space and any(each.key == TEMPERATURE for each in _around(recipe))


def known_settings(recipe: Recipe) -> dict[str, Any]:
    """Every key of the sections that trials may differ in -> the recipe's value; a number where the data gives it."""
    return _settings(settled(recipe))


def own_values(recipe: Recipe, space: Sequence[Dimension], *, items: int) -> dict[str, Any] | None:
    """What a sampler tries to give the recipe's own settings; None where the space does not hold them all.

    "auto" is tried as such where it is among the choices, elsewhere as the number that it stands for.

    Args:
        recipe: With what it leaves to the catalogue's size.
        space: What is tried.
        items: Of the train part.
    """
    plain, told = _settings(recipe), known_settings(settled(recipe, items=items))
    own: dict[str, Any] = {}
    for each in space:
        tried = each.tried(plain[each.key])
        own[each.key] = each.tried(told[each.key]) if tried is None else tried
    return None if None in own.values() else own


def with_values(recipe: Recipe, values: Mapping[str, Any], *, where: str) -> Recipe:
    """The recipe with other values at dotted keys, and without its search space.

    Raises:
        RecipeError: a value does not fit.
    """
    tree = recipe_tree(replace(recipe, tune=TuneConfig()))
    for key, value in values.items():
        *sections, last = key.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return parse_recipe(tree, where=where)


def as_text(value: Any) -> str:
    """A value as TOML reads it back; words without quotes, as `--set` takes them."""
    return value if isinstance(value, str) else json.dumps(_plain(value), separators=(",", ":"))


def _settings(recipe: Recipe) -> dict[str, Any]:
    return {key: value for section in SECTIONS for key, value in _leaves(getattr(recipe, section), section)}


def _leaves(config: Any, path: str) -> Iterator[tuple[str, Any]]:
    for field in fields(config):
        key, value = f"{path}.{field.name}", getattr(config, field.name)
        if is_dataclass(value):
            yield from _leaves(value, key)
        else:
            yield key, value


def _dimension(key: str, bounds: RangeConfig, *, known: Mapping[str, Any]) -> Dimension:
    where = f"tune.space: '{key}'"
    _refuse_bad_key(key, known=known)
    if bounds.choices:
        if any(each is not None for each in (bounds.low, bounds.high, bounds.step)) or bounds.log:
            raise RecipeError(f"{where} has choices, which need no low, high, log or step. Leave those out.")
        choices = {as_text(choice): choice for choice in bounds.choices}
        if len(choices) < 2 or len(choices) < len(bounds.choices):
            raise RecipeError(f"{where}: choices = {as_text(bounds.choices)} are not two or more different ones.")
        return Dimension(key=key, choices=choices)
    if bounds.low is None or bounds.high is None:
        raise RecipeError(f"{where} needs low and high, as in {{low = 0.01, high = 0.3, log = true}}, or choices.")
    if isinstance(known[key], bool) or not isinstance(known[key], int | float):
        raise RecipeError(f"{where} is no number (now {as_text(known[key])}), so it has no bounds. Give it choices.")
    whole = isinstance(known[key], int)
    fault = _fault_of_bounds(bounds, low=bounds.low, high=bounds.high, whole=whole)
    if fault:
        raise RecipeError(f"{where}: {fault}")
    low, high, step = (bounds.low, bounds.high, bounds.step)
    if step is not None:  # The greatest value is one that the steps reach.
        first, length = Decimal(str(low)), Decimal(str(step))
        high = float(first + length * ((Decimal(str(high)) - first) // length))
    return Dimension(key=key, low=low, high=high, log=bounds.log, step=step, whole=whole)


def _fault_of_bounds(bounds: RangeConfig, *, low: float, high: float, whole: bool) -> str:
    """What is wrong with a range; "" where nothing is."""
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        return f"low = {low} is not below high = {high}. Give two numbers, the lesser one as low."
    if bounds.log and low <= 0:
        return f"log = true needs low above 0 (found {low}). Raise it, or leave log out."
    if bounds.step is not None and bounds.log:
        return "log and step do not go together. Leave one of them out."
    if bounds.step is not None and bounds.step > high - low:
        return f"step = {bounds.step} is longer than from low = {low} to high = {high}. Shorten it."
    if whole and not all(float(each).is_integer() for each in (low, high, bounds.step or 1)):
        return f"it takes whole numbers (found low = {low}, high = {high}, step = {bounds.step}). Round them."
    return ""


def _refuse_bad_key(key: str, *, known: Mapping[str, Any]) -> None:
    if key in YARDSTICK:
        raise RecipeError(f"tune.space: '{key}' is what trials are judged by, so they must share it. Set it for all.")
    if key in UNREAD:
        raise RecipeError(f"tune.space: '{key}' changes nothing of a trial. Leave it out.")
    if key in known:
        return
    if key.partition(".")[0] in Recipe.__dataclass_fields__ and key.partition(".")[0] not in SECTIONS:
        raise RecipeError(
            f"tune.space: '{key}' cannot be tuned: trials share their data and their judge. Name keys of "
            f"{' and '.join(SECTIONS)}."
        )
    (nearest,) = get_close_matches(key, known, n=1, cutoff=0)
    raise RecipeError(f"tune.space: unknown key '{key}'. The nearest is '{nearest}'; docs/recipe.md lists every key.")


def _around(recipe: Recipe) -> list[Dimension]:
    """A space for a recipe without one: what most often decides, from well below to well above what it has."""
    train, model = recipe.train, recipe.model
    found = [
        Dimension(key="train.learning_rate", low=train.learning_rate / 8, high=train.learning_rate * 8, log=True),
        Dimension(
            key="train.embedding_learning_rate",
            low=train.embedding_learning_rate / 8,
            high=train.embedding_learning_rate * 8,
            log=True,
        ),
        Dimension(
            key="train.batch_size", choices={str(size): size for size in _sizes(train.batch_size)}
        ),
    ]  # fmt: skip
    temperature = model.retrieval.first_temperature(items=0)
    if model.retrieval.weight and model.retrieval.loss == "softmax":
        found.append(Dimension(key=TEMPERATURE, low=temperature / 4, high=temperature * 4, log=True))
    if model.ranking.labels:
        high = max(0.5, model.ranking.dropout)
        found.append(Dimension(key="model.ranking.dropout", low=0.0, high=high))
    return found


def _sizes(size: int) -> list[int]:
    return [size // 2, size, 2 * size] if size > 1 else [1, 2]


def _plain(value: Any) -> Any:
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
