"""The raw tables as one directory: what a source handed over, before anything is checked or dropped.

On one machine `prepare` reads a source by itself. Where the path runs in containers, `fetch` reads it once, wherever
it lies, and everything after that needs neither the source nor its credentials.
"""

import shutil
from pathlib import Path
from typing import Any

from twotower.artifact import verify
from twotower.data.engine import Engine
from twotower.data.interactions import RawData
from twotower.data.tables import INPUT_ROW, INTERACTIONS, ITEMS, USERS, WORLD, write_table

KIND = "raw"


def write_raw(engine: Engine, raw: RawData, *, out: Path) -> dict[str, Any]:
    """Write a source's tables as they are.

    Args:
        out: An open directory; gets `interactions.parquet`, and `users.parquet` and `items.parquet` if there are any.

    Returns: what `read_raw` needs besides.
    """
    rows = write_table(engine.batches(raw.interactions.order_by(INPUT_ROW)), out / INTERACTIONS)
    for table, name in ((raw.users, USERS), (raw.items, ITEMS)):
        if table is not None:
            write_table(engine.batches(table.order_by(INPUT_ROW)), out / name)
    return {
        "source": raw.name,
        "labels": list(raw.labels),
        "context": list(raw.context),
        "title_column": raw.title_column,
        "timestamp_format": raw.timestamp_format,
        "parts": [list(part) for part in raw.parts],
        "interactions": rows,
    }


def read_raw(engine: Engine, directory: Path, *, out: Path) -> RawData:
    """The tables that `write_raw` wrote; a simulated world's truth goes on into `out`.

    Raises:
        ArtifactError: no raw directory there, or a damaged one.
    """
    metadata = verify(directory, kind=KIND)["metadata"]
    tables = {
        name: engine.load(f"raw_{name.removesuffix('.parquet')}", directory / name)
        for name in (INTERACTIONS, USERS, ITEMS)
        if (directory / name).is_file()
    }
    if (directory / WORLD).is_file():
        shutil.copyfile(directory / WORLD, out / WORLD)
    return RawData(
        name=metadata["source"],
        interactions=tables[INTERACTIONS],
        users=tables.get(USERS),
        items=tables.get(ITEMS),
        labels=tuple(metadata["labels"]),
        context=tuple(metadata["context"]),
        title_column=metadata["title_column"],
        timestamp_format=metadata["timestamp_format"],
        parts=tuple((name, last) for name, last in metadata.get("parts", [])),
    )
