"""Prepared tables -> train, validation, test.

Four protocols. `time` cuts the whole log at an instant, as life does. `last_out` tests each user on the last positive
interaction: comparable with many papers, but what others did later is in the training data. `random` draws single
interactions: only for comparison with tutorials that do so. `given` takes the parts from the user's own files.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from twotower.artifact import verify
from twotower.data.columns import read_arrays, read_columns
from twotower.data.config import SplitConfig
from twotower.data.histories import UserLog
from twotower.data.tables import GIVEN_PART, INTERACTIONS, ITEMS, PART, USERS, WORLD
from twotower.errors import DataError, RecipeError

TRAIN, VALIDATION, TEST = 0, 1, 2

_DEFAULT_TEST, _DEFAULT_VALIDATION = 0.1, 0.05


def split(config: SplitConfig, *, seed: int, prepared: Path, out: Path) -> dict[str, Any]:
    """Write the prepared tables again, each interaction with its part.

    Args:
        seed: For the parts that are drawn by chance.
        prepared: What `prepare` wrote.
        out: An open directory; gets the same files, with a column `part`.

    Returns: the prepared directory's metadata, `protocol`, `cut_us`, and counts for each part.

    Raises:
        RecipeError: a setting that the protocol does not read.
        DataError: a part would be empty.
        ArtifactError: `prepared` is not what `prepare` wrote, or damaged.
    """
    metadata = verify(prepared, kind="prepared")["metadata"]
    log = _read_keys(prepared)
    part = assign_parts(config, log, generator=np.random.default_rng(seed))
    for name, number in (("train", TRAIN), ("test", TEST)):
        if not (log.positive & (part == number)).any():
            raise DataError(
                f"{prepared}: by protocol {config.protocol!r} the {name} part has no positive interaction. "
                "Change split.test or split.validation, or take another split.protocol."
            )
    _write_parts(prepared / INTERACTIONS, part, target=out / INTERACTIONS)
    for file in (USERS, ITEMS, WORLD):
        if (prepared / file).is_file():
            shutil.copyfile(prepared / file, out / file)
    cut_us = int(log.timestamp[part == TEST][0]) if config.protocol == "time" else None
    counts = {**metadata["counts"], **_counts(log, part)}
    return {**metadata, "protocol": config.protocol, "cut_us": cut_us, "counts": counts}


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """What the protocols look at: `n` interactions in the order of time."""

    user: NDArray[np.int32]
    item: NDArray[np.int32]
    """`[n]` rows of the users and items tables."""
    timestamp: NDArray[np.int64]
    """`[n]` microseconds since 1970, not descending."""
    positive: NDArray[np.bool_]
    """`[n]`"""
    given: NDArray[np.int8] | None = None
    """`[n]` the parts that the user's own files say."""


def assign_parts(config: SplitConfig, log: Log, *, generator: np.random.Generator) -> NDArray[np.int8]:
    """`[n]` the part of each interaction, by the recipe's protocol."""
    if config.test is not None and config.protocol in ("last_out", "given"):
        raise RecipeError(f"split.test: protocol {config.protocol!r} does not read it. Remove it.")
    if config.validation is not None and config.protocol == "last_out":
        raise RecipeError("split.validation: protocol 'last_out' takes each user's last but one. Remove it.")
    test = _DEFAULT_TEST if config.test is None else config.test
    validation = _DEFAULT_VALIDATION if config.validation is None else config.validation
    if config.protocol in ("time", "random") and test + validation >= 1:
        raise RecipeError(f"split.test {test:g} and validation {validation:g} leave nothing for train. Lower them.")
    if config.protocol == "time":
        return parts_by_time(log.timestamp, test=test, validation=validation)
    if config.protocol == "last_out":
        return parts_by_last(log.user, log.positive)
    if config.protocol == "random":
        return parts_by_chance(len(log.user), test=test, validation=validation, generator=generator)
    if log.given is None:
        raise RecipeError(
            "split.protocol = 'given': the source names no test file. Set prepare.files.test, or another protocol."
        )
    return parts_as_given(log.given, validation=validation, generator=generator)


def parts_by_time(timestamp: NDArray[np.int64], *, test: float, validation: float) -> NDArray[np.int8]:
    """Cut at two instants, so that a moment is never torn: nothing in test is earlier than anything in train.

    Args:
        timestamp: `[n]` not descending.
        test: The latest share, rounded up to whole moments.
        validation: The share before that.
    """
    count = len(timestamp)
    cut_test = timestamp[min(int(count * (1 - test)), count - 1)]
    part = np.zeros(count, np.int8)
    if validation:
        part[timestamp >= timestamp[max(int(count * (1 - test - validation)), 0)]] = VALIDATION
    part[timestamp >= cut_test] = TEST
    return part


def parts_by_last(user: NDArray[np.int32], positive: NDArray[np.bool_]) -> NDArray[np.int8]:
    """Each user's last positive is test, the last but one validation, and whatever comes after goes with it.

    Users with fewer than three positives stay in train, as there would be nothing to learn of them.

    Args:
        user: `[n]` in the order of time.
        positive: `[n]`
    """
    order = np.argsort(user, kind="stable")
    owner, good = user[order], positive[order].astype(np.int64)
    first = np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]])
    sizes = np.diff(np.r_[first, len(owner)])
    total = np.repeat(np.add.reduceat(good, first), sizes)
    before = np.cumsum(good) - good
    reached = before - np.repeat(before[first], sizes) + good  # Positives up to this interaction, itself included.
    enough = total >= 3
    part = np.zeros(len(user), np.int8)
    part[order[enough & (reached >= total - 1)]] = VALIDATION
    part[order[enough & (reached >= total)]] = TEST
    return part


def parts_by_chance(count: int, *, test: float, validation: float, generator: np.random.Generator) -> NDArray[np.int8]:
    """Draw `round(n * test)` interactions for test and `round(n * validation)` others for validation."""
    part = np.zeros(count, np.int8)
    order = generator.permutation(count)
    tested, validated = round(count * test), round(count * validation)
    part[order[:tested]] = TEST
    part[order[tested : tested + validated]] = VALIDATION
    return part


def parts_as_given(given: NDArray[np.int8], *, validation: float, generator: np.random.Generator) -> NDArray[np.int8]:
    """The files' parts; where they have no validation part, a share of train is drawn for it."""
    part = given.copy()
    if not (part == VALIDATION).any():
        train = np.flatnonzero(part == TRAIN)
        part[generator.choice(train, round(len(train) * validation), replace=False)] = VALIDATION
    return part


def load_split(directory: Path) -> "SplitDataset":
    """Read what `split` wrote into arrays.

    Raises:
        ArtifactError: `directory` is not a split directory, or a file in it is damaged; names the file.
    """
    metadata = verify(directory, kind="split")["metadata"]
    users, items = pq.read_table(directory / USERS), pq.read_table(directory / ITEMS)
    columns = read_columns(
        directory / INTERACTIONS,
        user_ids=users["user_id"],
        item_ids=items["item_id"],
        labels=metadata["label_columns"],
        context=metadata["context_columns"],
    )
    return SplitDataset(
        user_ids=_strings(users["user_id"]),
        item_ids=_strings(items["item_id"]),
        users=users,
        items=items,
        user=columns.user,
        item=columns.item,
        timestamp=columns.timestamp,
        positive=columns.positive,
        part=columns.part,
        labels=columns.labels,
        context=columns.context,
        metadata=metadata,
        directory=directory,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitDataset:
    """The whole log with each interaction's part, in numbers: what training and evaluation read.

    `n` interactions in the order of time (ties keep the input's order), `U` users, `I` items of the catalogue.
    User and item *rows* count everything that the log and the tables name, whatever the part; what a model may know is
    decided by its vocabularies, which are made from the train part alone.
    """

    user_ids: NDArray[np.object_]
    """`[U]` raw ids as strings; the position is the user's row."""
    item_ids: NDArray[np.object_]
    """`[I]` raw ids as strings; the position is the item's row in the catalogue."""
    users: pa.Table
    """`U` rows: `user_id` and the columns of the users table (null where a user has none)."""
    items: pa.Table
    """`I` rows: `item_id` and the columns of the items table (null where an item has none)."""
    user: NDArray[np.int32]
    """`[n]` user row."""
    item: NDArray[np.int32]
    """`[n]` item row."""
    timestamp: NDArray[np.int64]
    """`[n]` microseconds since 1970, not descending."""
    positive: NDArray[np.bool_]
    """`[n]` whether retrieval should bring this item for this user."""
    part: NDArray[np.int8]
    """`[n]` `TRAIN`, `VALIDATION` or `TEST`."""
    labels: dict[str, NDArray[np.float32]]
    """Name -> `[n]`; NaN where the label is missing."""
    context: pa.Table
    """`n` rows: the context columns of the interactions (no column where there are none)."""
    metadata: dict[str, Any]
    """`protocol` ("time", "last_out", "random", "given"), `title_column`, `source`, and what else the step kept."""
    directory: Path | None = None
    """Where it was read from; a simulated world lies there too."""
    whole: "SplitDataset | None" = None
    """What this was narrowed from, where it holds some users' interactions only: popularity is counted there."""

    def user_log(self, *parts: int, positives_only: bool = False) -> UserLog:
        """The interactions of the parts named, by user and time."""
        keep = np.isin(self.part, parts)
        if positives_only:
            keep &= self.positive
        return UserLog.from_columns(self.user[keep], self.item[keep], self.timestamp[keep], users=len(self.user_ids))


def _read_keys(prepared: Path) -> Log:
    """The few columns that decide an interaction's part."""
    path = prepared / INTERACTIONS
    types = {"user_id": np.int32, "item_id": np.int32, "timestamp": np.int64, "positive": np.bool_}
    given = {GIVEN_PART: np.int8} if GIVEN_PART in pq.read_schema(path).names else {}
    tables = {"user_id": prepared / USERS, "item_id": prepared / ITEMS}
    ids = {name: pq.read_table(table, columns=[name])[name] for name, table in tables.items()}
    found = read_arrays(path, types | given, ids=ids)
    return Log(
        user=found["user_id"],
        item=found["item_id"],
        timestamp=found["timestamp"],
        positive=found["positive"],
        given=found.get(GIVEN_PART),
    )


def _write_parts(source: Path, part: NDArray[np.int8], *, target: Path) -> None:
    """Copy the interactions, a row group at a time, with their part."""
    done = 0
    with pq.ParquetFile(source) as file:
        names = [name for name in file.schema_arrow.names if name != GIVEN_PART]
        schema = pa.schema([file.schema_arrow.field(name) for name in names]).append(pa.field(PART, pa.int8()))
        with pq.ParquetWriter(target, schema) as writer:
            for group in range(file.num_row_groups):
                rows = file.read_row_group(group, columns=names)
                writer.write_table(rows.append_column(PART, pa.array(part[done : done + rows.num_rows])))
                done += rows.num_rows


def _counts(log: Log, part: NDArray[np.int8]) -> dict[str, int]:
    """How large each part is, and how many of the test users are known from before."""
    counts = {}
    users, items = (
        {number: np.bincount(column[part == number], minlength=1 + int(column.max())) > 0 for number in range(3)}
        for column in (log.user, log.item)
    )
    for name, number in (("train", TRAIN), ("validation", VALIDATION), ("test", TEST)):
        counts[f"{name}_interactions"] = int((part == number).sum())
        counts[f"{name}_users"] = int(users[number].sum())
        counts[f"{name}_items"] = int(items[number].sum())
    for name, met in (("users", users), ("items", items)):
        counts[f"test_{name}_met_before"] = int((met[TEST] & (met[TRAIN] | met[VALIDATION])).sum())
    return counts


def _strings(column: pa.ChunkedArray) -> NDArray[np.object_]:
    return np.asarray(column.to_pylist(), np.object_)
