"""Names of the tables' files and columns, and the one way to write a table."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

INTERACTIONS, USERS, ITEMS = "interactions.parquet", "users.parquet", "items.parquet"
WORLD = "world.npz"
"""The truth behind a simulated log, beside its tables."""

INPUT_ROW = "input_row"
"""Position in the user's files, from 1 and without the header: breaks ties in time, and names a faulty row."""
GIVEN_PART = "given_part"
"""0 train, 1 validation, 2 test: only where the user's own files say so."""
PART = "part"
"""The same, as `split` decided it."""
KEYS = ("user_id", "item_id", "timestamp")
"""Columns that every interaction has."""
RESERVED = (*KEYS, "positive", PART, GIVEN_PART, INPUT_ROW)
"""No label and no context column has one of these names."""
EVENT_ID = "event_id"
"""An interaction's own id, where a server recorded it."""

_ROW_GROUP = 1_048_576


def write_table(batches: pa.RecordBatchReader, path: Path) -> int:
    """Write batches as one Parquet file whose bytes depend on the rows alone; gives the number of rows."""
    rows, waiting = 0, batches.schema.empty_table()
    with pq.ParquetWriter(path, batches.schema) as writer:
        for batch in batches:
            rows += batch.num_rows
            waiting = pa.concat_tables([waiting, pa.Table.from_batches([batch])])
            while waiting.num_rows >= _ROW_GROUP:
                writer.write_table(waiting.slice(0, _ROW_GROUP))
                waiting = waiting.slice(_ROW_GROUP)
        writer.write_table(waiting)
    return rows
