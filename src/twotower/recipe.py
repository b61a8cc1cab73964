"""One TOML file -> one frozen tree of the rooms' settings.

A recipe is read from a file, or from one of those that come with the package (`builtin_recipes`), then overridden by
environment variables `TWOTOWER__SECTION__KEY` (read in lower case) and, last, by what the caller names
(`section.key`). Unknown keys are refused, so that a slip of the pen never becomes a default.
"""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import date
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Lt
from pydantic import StringConstraints, TypeAdapter, ValidationError

from twotower import storage
from twotower.bundle_config import BundleConfig
from twotower.data.config import PrepareConfig, SplitConfig
from twotower.data.schema import ENVIRONMENT, STRICT
from twotower.errors import RecipeError, StorageError
from twotower.evaluation.config import EvaluateConfig, GateConfig
from twotower.index.config import IndexConfig
from twotower.model.config import ModelConfig
from twotower.serve_config import ServeConfig
from twotower.training.config import TrainConfig
from twotower.tune_config import TuneConfig

DEFAULT = "simulated"
"""The embedded recipe that runs when none is named: offline, in about a minute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that a run depends on but the data."""

    __pydantic_config__ = STRICT

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")] = "run"
    """Names the run's directory and its bundle: letters, digits, `_`, `.` and `-`."""
    seed: Annotated[int, Ge(0), Lt(2**32)] = 42
    """Every random choice follows from it."""
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    """Raw tables -> checked ones."""
    split: SplitConfig = field(default_factory=SplitConfig)
    """What trains, validates and tests."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The joint model."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """How it learns."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """How it is judged."""
    index: IndexConfig = field(default_factory=IndexConfig)
    """How candidates are found."""
    gate: GateConfig = field(default_factory=GateConfig)
    """What a candidate has to show before a pipeline deploys it."""
    bundle: BundleConfig = field(default_factory=BundleConfig)
    """What a server gets."""
    serve: ServeConfig = field(default_factory=ServeConfig)
    """How it answers."""
    tune: TuneConfig = field(default_factory=TuneConfig)
    """Which settings are tried for better ones."""


def builtin_recipes() -> list[str]:
    """The names of the recipes that come with the package."""
    return sorted(path.name.removesuffix(".toml") for path in _folder().iterdir() if path.name.endswith(".toml"))


def load_recipe(name_or_path: str | Path | None = None, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe.

    Args:
        name_or_path: A TOML file, its address (`s3://`, `https://`, ...), its text (a line break in it tells), or the
            name of a recipe that comes with the package; None takes `simulated`.
        overrides: `section.key` -> value, as TOML text or as a Python value.

    Raises:
        RecipeError: no such recipe, not TOML, an unknown key, or a value that does not fit.
    """
    where, text = _read(DEFAULT if name_or_path is None else name_or_path)
    tree = _parse_toml(text, where=where)
    for key, value in _from_environment().items():
        _override(tree, key.lower().split("__"), value, where=f"{ENVIRONMENT}{key}")
    for dotted, value in (overrides or {}).items():
        _override(tree, dotted.split("."), _value(value), where=dotted)
    return parse_recipe(tree, where=where)


def read_recipe(text: str) -> Recipe:
    """The recipe that `recipe_toml` wrote: complete, so that neither the environment nor defaults change it.

    Raises:
        RecipeError: not TOML, an unknown key, or a value that does not fit.
    """
    return parse_recipe(_parse_toml(text, where="recipe"), where="recipe")


def parse_recipe(tree: Mapping[str, Any], *, where: str) -> Recipe:
    """A checked recipe from nested settings.

    Args:
        tree: Section -> key -> value.
        where: The file's name, for the message.

    Raises:
        RecipeError: an unknown key or a value that does not fit.
    """
    try:
        return TypeAdapter(Recipe).validate_python(tree)
    except ValidationError as fault:
        raise RecipeError(_one_line(fault, where=where)) from fault


def recipe_tree(recipe: Recipe) -> dict[str, Any]:
    """The recipe as nested plain values with every default written out; what is not set is left out."""
    plain = _plain(asdict(recipe))
    assert isinstance(plain, dict)
    return plain


def recipe_toml(recipe: Recipe) -> str:
    """The recipe as TOML with every default written out: reading it gives an equal recipe."""
    import tomli_w

    return tomli_w.dumps(recipe_tree(recipe))


def _parse_toml(text: str, *, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as fault:
        raise RecipeError(f"{where}: not TOML: {fault}.") from fault


def _folder() -> Any:
    return resources.files("twotower") / "recipes"


def _read(name_or_path: str | Path) -> tuple[str, str]:
    """Where the recipe stands, and its text."""
    if "\n" in str(name_or_path):
        return "recipe", str(name_or_path)
    if storage.is_address(str(name_or_path)):
        try:
            return str(name_or_path), storage.read_bytes(str(name_or_path)).decode("utf-8")
        except (StorageError, UnicodeDecodeError) as fault:
            raise RecipeError(f"{name_or_path}: the recipe cannot be read ({fault}).") from fault
    path = Path(name_or_path)
    if len(path.name) < 256 and path.is_file():
        try:
            return str(path), path.read_text(encoding="utf-8")
        except UnicodeDecodeError as fault:
            raise RecipeError(f"{path}: not UTF-8 (byte {fault.start}). Save it as UTF-8.") from fault
    if str(name_or_path) in builtin_recipes():
        return str(name_or_path), (_folder() / f"{name_or_path}.toml").read_text(encoding="utf-8")
    there = ", ".join(builtin_recipes())
    raise RecipeError(f"{name_or_path}: no such file, and none of the recipes that come with twotower ({there}).")


def _from_environment() -> dict[str, Any]:
    found = {name[len(ENVIRONMENT) :]: text for name, text in os.environ.items() if name.startswith(ENVIRONMENT)}
    return {key: _value(text) for key, text in sorted(found.items())}


def _value(value: Any) -> Any:
    """TOML text as its value; text that is no TOML value is a string. One that looks like a number needs its quotes."""
    if not isinstance(value, str):
        return value
    try:
        found = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return value
    return value if isinstance(found, date) else found  # No setting is a date; moments are text.


def _override(tree: dict[str, Any], keys: list[str], value: Any, *, where: str) -> None:
    *sections, last = keys
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise RecipeError(f"{where}: '{section}' is no section of the recipe. Name a key as section.key.")
    tree[last] = value


def _one_line(fault: ValidationError, *, where: str) -> str:
    first = fault.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{where}: unknown key '{key}'. docs/recipe.md lists every key."
    found = repr(first["input"])
    shown = found if len(found) <= 60 else found[:57] + "..."
    return f"{where}: {key or 'recipe'}: {first['msg']} (found {shown}). docs/recipe.md tells what fits."


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items() if part is not None}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value
