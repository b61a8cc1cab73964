# ruff: noqa: T201
"""Run by a test in a process of its own: what a step on two devices carries between them, as JSON on stdout."""

import json
import os
import re
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import jax
import numpy as np

from twotower.data.split import load_split
from twotower.errors import RecipeError
from twotower.recipe import load_recipe
from twotower.training.distributed import Rows, bring_back, deal_rows, refuse_uneven, take_home
from twotower.training.step import Plan, Stepper, _dealt
from twotower.training.train import build_model

CARRIED = r"= (.*?) (?:all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("


def carried(split: Path, recipe: Path) -> dict[str, list[int]]:
    """Lengths of what a compiled step carries, and of tables: whole, and the share of a device."""
    import keras

    read = load_recipe(recipe)
    model, arrays = build_model(read.model, dataset=load_split(split), seed=read.seed)
    stepper = Stepper(
        model,
        arrays,
        optimizer=keras.optimizers.Adam(0.001),
        embedding_learning_rate=0.05,
        accumulator="element",
        decay_steps=0,
        seed=0,
    )
    none = np.zeros((2, 0), np.int32)
    plan, state = _dealt(Plan(np.zeros((2, 8), np.int32), none, none, none)), stepper.start()
    program = stepper._run.lower(state, plan, stepper.arrays).compile().as_text()
    shapes = [each for line in re.findall(CARRIED, program) for each in re.findall(r"f32\[([\d,]+)\]", line)]
    lengths = {int(size) for each in shapes for size in each.split(",")}
    whole = {len(table) for table in state.tables.values()}
    return {"carried": sorted(lengths), "tables": sorted(whole | {length // 2 for length in whole})}


def survives_dealing(rows: int) -> bool:
    """Whether a table comes home as it was dealt out, without what filled it up."""
    table = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3)
    home = take_home(deal_rows(table), rows=rows)
    again = take_home(bring_back(Rows(home.values, home.start, rows)), rows=rows)
    return np.array_equal(home.values, table) and np.array_equal(again.values, table)


def refusal(batch_size: int) -> str:
    """What is said of a batch."""
    try:
        refuse_uneven(batch_size)
    except RecipeError as fault:
        return str(fault)
    return ""


if __name__ == "__main__":
    split, recipe = (Path(os.environ[name]) for name in ("SPLIT", "RECIPE"))
    found = {"devices": len(jax.devices()), "survives": all(map(survives_dealing, (1, 2, 7)))}
    found |= {"refusals": [refusal(6), refusal(7)]}
    print(json.dumps(found | carried(split, recipe)))
