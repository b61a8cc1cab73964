"""Answers for many users at once, block by block, as a table or a file."""

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from twotower.bundle import Bundle
from twotower.serving.answers.answering import Standing, answer
from twotower.serving.answers.asking import Asked, Asking, Id
from twotower.serving.answers.stages import RANKED_AT_ONCE

BATCH_SCHEMA = pa.schema(
    [("user_id", pa.string()), ("item_id", pa.string()), ("score", pa.float32()), ("rank", pa.int32())]
)
"""One row an item: users in the order asked for, each with the best first."""


def blocks(
    bundle: Bundle,
    asking: Asking,
    *,
    standing: Callable[[], Standing],
    user_ids: Iterable[Id],
    k: int,
    exclude_seen: bool,
    moment: int,
) -> Iterator[pa.Table]:
    """A table of `BATCH_SCHEMA` for each block of users, in their order.

    Args:
        bundle: Which answers.
        asking: Puts the users in the model's terms.
        standing: Gives what can come when a block's turn has come.
        user_ids: Whom to recommend for.
        k: How many items each.
        exclude_seen: Leave out what each user met.
        moment: The moment of asking, microseconds since 1970.
    """
    everybody = iter(user_ids)
    size = max(1, RANKED_AT_ONCE // max(k, int(bundle.metadata["candidates"])))
    while users := [str(user_id) for user_id in islice(everybody, size)]:
        now = standing()
        asked = asking.ask(users, catalogue=now.catalogue, moment=moment, exclude_seen=exclude_seen)
        yield _table(bundle, users, asked, k=k, standing=now)


def write(path: str | os.PathLike[str], tables: Iterable[pa.Table]) -> int:
    """Write tables of `BATCH_SCHEMA` as one Parquet file, which appears when it is complete; gives its rows."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    rows = 0
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        unfinished = Path(folder) / target.name
        with pq.ParquetWriter(unfinished, BATCH_SCHEMA) as writer:
            for table in tables:
                writer.write_table(table)
                rows += table.num_rows
        unfinished.replace(target)
    return rows


def _table(bundle: Bundle, users: list[str], asked: Asked, *, k: int, standing: Standing) -> pa.Table:
    """The answers to one block; those by the model and those by popularity fall into the users' order again."""
    parts: list[tuple[NDArray[Any], ...]] = []
    for is_told in (True, False):
        places = np.flatnonzero(asked.is_told == is_told)
        if not len(places):
            continue
        began = time.perf_counter()
        found = answer(bundle, asked.take(places), k=k, standing=standing, allowed=None, began=began).found
        holds = np.arange(found.row.shape[1]) < found.count[:, None]
        query, place = np.nonzero(holds)
        parts.append((places[query], found.row[holds], found.score[holds], place + 1))
    query, row, score, place = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(query, kind="stable")
    columns = [
        pa.array(users).take(pa.array(query[order])),
        pa.array([standing.catalogue.id(each) for each in row[order].tolist()], pa.string()),
        pa.array(score[order], pa.float32()),
        pa.array(place[order].astype(np.int32)),
    ]
    return pa.table(columns, schema=BATCH_SCHEMA)
