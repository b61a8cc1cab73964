"""Rules that no server could follow are refused when the bundle is made, and not at the first request."""

from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc

from twotower.errors import RecipeError, RequestError
from twotower.filter_language import column_type
from twotower.filter_parser import parse_tree
from twotower.serve_config import CapConfig, PinConfig, RulesConfig


def refuse_bad_rules(config: RulesConfig, items: pa.Table) -> None:
    """Refuse rules that do not fit the catalogue.

    Args:
        config: The rules.
        items: The catalogue, as `readable_items` gives it.

    Raises:
        RecipeError: a cap on a column that is not there or cannot be counted, a condition that cannot be read, an item
            that is not in the catalogue, two pins of one item or position, or pins that exceed a cap.
    """
    for cap in config.caps:
        if cap.column not in items.column_names:
            there = ", ".join(items.column_names)
            raise RecipeError(f"serve.rules.caps: there is no item column '{cap.column}'. There are {there}.")
        held = items.schema.field(cap.column).type
        if column_type(held) is None:
            raise RecipeError(f"serve.rules.caps: column '{cap.column}' holds {held}, which cannot be counted.")
    for boost in config.boosts:
        try:
            parse_tree(boost.filter, items.schema)
        except RequestError as fault:
            raise RecipeError(f"serve.rules.boosts: {boost.filter!r}: {fault}") from fault
    if config.pinned:
        _refuse_bad_pins(config.pinned, items, caps=config.caps)


def _refuse_bad_pins(pins: tuple[PinConfig, ...], items: pa.Table, *, caps: tuple[CapConfig, ...]) -> None:
    for noun, values in (("item", [pin.item_id for pin in pins]), ("position", [pin.position for pin in pins])):
        if again := [value for value, count in Counter(values).items() if count > 1]:
            raise RecipeError(f"serve.rules.pinned: {noun} {again[0]!r} stands there more than once. Keep one.")
    wanted = pa.array([pin.item_id for pin in pins], pa.string())
    pinned = items.filter(pc.is_in(items["item_id"], value_set=wanted))
    there = set(pinned["item_id"].to_pylist())
    for pin in pins:
        if pin.item_id not in there:
            raise RecipeError(f"serve.rules.pinned: item '{pin.item_id}' is not in the catalogue. Name another.")
    for cap in caps:
        held = (set(value) if isinstance(value, list) else {value} for value in pinned[cap.column].to_pylist())
        for value, count in Counter(value for values in held for value in values).items():
            if value is not None and count > cap.most:
                raise RecipeError(
                    f"serve.rules.pinned: {count} of the items have {cap.column} {value!r}, and the cap allows "
                    f"{cap.most}. Raise the cap, or pin fewer."
                )
