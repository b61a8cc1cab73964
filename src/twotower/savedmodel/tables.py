"""What a bundle knows of its users and items, as arrays that a graph can look up: a server's work before the towers.

Everything is as at the bundle's own moment, a second after the end of its log, as `serving` asks by default.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from twotower.data.feature_encoders import DAY, PADDING, SECOND
from twotower.data.vocabulary import OUT_OF_VOCABULARY

if TYPE_CHECKING:  # The TensorFlow process needs the names alone, and no ONNX Runtime.
    from twotower.bundle import Bundle

FACTS, ARRAYS, CHECKED = "facts.json", "arrays.npz", "checked.npz"
"""What goes into the TensorFlow process; and the last, what comes back to be compared."""
REFUSED = 2
"""Exit status by which that process says that its last line is for the user."""
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class UserTables:
    """`U` users by row, and after them a row for somebody unknown."""

    query_input: dict[str, NDArray[Any]]
    """Input of the query tower, the history aside -> `[U + 1, ...]`, or `[1, ...]` where it is the same for all."""
    is_told: NDArray[np.bool_]
    """`[U + 1]` whether these inputs tell anything of who asks; the moment alone is nothing."""
    history_item: NDArray[np.int32]
    """`[h]` rows of the item table (-1: never met in training), each user's newest first, no more than are read."""
    history_days: NDArray[np.float32]
    """`[h]` their ages."""
    history_start: NDArray[np.int64]
    """`[U + 2]` user `u` owns the places `history_start[u]` up to but without `history_start[u + 1]`."""
    seen_item: NDArray[np.int32]
    """`[s]` catalogue rows of all that each user met."""
    seen_start: NDArray[np.int64]
    """`[U + 2]` likewise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemTables:
    """`I` items by row."""

    candidate_input: dict[str, NDArray[Any]]
    """Input of the candidate tower -> `[I, ...]`."""
    history_row: NDArray[np.int32]
    """`[I]` row of the item table, as a history reads it."""
    trends: NDArray[np.float32]
    """`[I, F]`."""
    popular: NDArray[np.int32]
    """`[I]` rows, the most popular first."""
    popular_score: NDArray[np.float32]
    """`[I]` their popularity, in that order."""


def write_tables(bundle: "Bundle", directory: Path) -> None:
    """Write `facts.json` and `arrays.npz` into an open directory."""
    moment = int(bundle.metadata["last_us"]) + SECOND
    items = _item_tables(bundle)
    users = _user_tables(bundle, moment=moment, history_row=items.history_row)
    arrays = _named("user", users) | _named("item", items)
    np.savez(directory / ARRAYS, allow_pickle=False, **arrays)
    facts = {
        "users": bundle.users["user_id"].to_pylist(),
        "items": bundle.items["item_id"].to_pylist(),
        "candidates": int(bundle.metadata["candidates"]),
        "order": bundle.model.order,
        "temperature": bundle.model.temperature,
        # An item told without its moment was met just before the moment of asking.
        "told_days": (moment // SECOND - (moment - 1) // SECOND) / DAY,
    }
    (directory / FACTS).write_text(json.dumps(facts), encoding="utf-8")


def part_of(arrays: Arrays, part: str) -> dict[str, NDArray[Any]]:
    """Those named `part/NAME`, by NAME."""
    return {name.removeprefix(f"{part}/"): values for name, values in arrays.items() if name.startswith(f"{part}/")}


def _named(part: str, tables: UserTables | ItemTables) -> dict[str, NDArray[Any]]:
    """Every array as `PART/FIELD`, the towers' inputs as `query_input/KEY` and `candidate_input/KEY`."""
    named: dict[str, NDArray[Any]] = {}
    for each in fields(tables):
        value = getattr(tables, each.name)
        if isinstance(value, dict):
            named |= {f"{each.name}/{key}": array for key, array in value.items()}
        else:
            named[f"{part}/{each.name}"] = value
    return named


def _item_tables(bundle: "Bundle") -> ItemTables:
    features = bundle.model.features
    popular = np.argsort(-bundle.popularity, kind="stable")
    ids = bundle.items["item_id"].to_pylist()
    rows = np.zeros(len(ids), np.int32) if features.history is None else features.history.items.rows(ids)
    return ItemTables(
        candidate_input=features.candidate_inputs(bundle.items),
        history_row=np.where(rows == OUT_OF_VOCABULARY, PADDING, rows).astype(np.int32),
        trends=np.asarray(bundle.trends),
        popular=popular.astype(np.int32),
        popular_score=np.asarray(bundle.popularity[popular], np.float32),
    )


def _user_tables(bundle: "Bundle", *, moment: int, history_row: NDArray[np.int32]) -> UserTables:
    features, log = bundle.model.features, bundle.log
    length = features.history.config.length if features.history is not None else 0
    history = _newest(bundle, length=length)
    inputs = _query_inputs(bundle, moment=moment)
    is_told = np.zeros(bundle.users.num_rows + 1, np.bool_)
    for encoder in features.query:
        if encoder.column != "timestamp" or encoder.column in features.user_columns:
            values = inputs[encoder.key]
            is_told |= (values != values[-1]).reshape(len(values), -1).any(axis=1)
    return UserTables(
        query_input={key: values[:1] if (values == values[0]).all() else values for key, values in inputs.items()},
        is_told=is_told,
        history_item=history_row[log.item[history]],
        history_days=((moment // SECOND - log.timestamp[history] // SECOND) / DAY).astype(np.float32),
        history_start=_starts(_owners(bundle)[history], users=bundle.users.num_rows),
        seen_item=np.asarray(log.item, np.int32),
        seen_start=np.append(log.start, log.start[-1]).astype(np.int64),
    )


def _query_inputs(bundle: "Bundle", *, moment: int) -> dict[str, NDArray[Any]]:
    """`[U + 1, ...]` by input, the history aside: every user's, and last those of somebody unknown."""
    features, users = bundle.model.features, bundle.users
    rows = np.arange(users.num_rows + 1)
    known = pa.array(rows, mask=rows == users.num_rows)
    read = {encoder.column for encoder in features.query}.intersection(users.column_names)
    inputs = features.query_inputs(
        columns={name: users[name].take(known) for name in read},
        timestamp=np.full(len(rows), moment, np.int64),
        history=[([], [])] * len(rows),
    )
    return {encoder.key: inputs[encoder.key] for encoder in features.query}


def _newest(bundle: "Bundle", *, length: int) -> NDArray[np.int64]:
    """Places of the log that a history may hold: each user's newest `length`, the newest first."""
    places = np.flatnonzero(bundle.positive)
    owner = _owners(bundle)[places]
    ends = np.cumsum(np.bincount(owner, minlength=bundle.users.num_rows))
    from_end = ends[owner] - 1 - np.arange(len(places))
    kept = from_end < length
    order = np.lexsort((from_end[kept], owner[kept]))
    return np.asarray(places[kept][order], np.int64)


def _owners(bundle: "Bundle") -> NDArray[np.int64]:
    """By place of the log: whose it is."""
    return np.repeat(np.arange(bundle.users.num_rows), np.diff(bundle.log.start))


def _starts(owner: NDArray[np.int64], *, users: int) -> NDArray[np.int64]:
    """`[users + 2]` first place of each user among the places of these owners; the last one, unknown, has none."""
    return np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=users + 1))]).astype(np.int64)
