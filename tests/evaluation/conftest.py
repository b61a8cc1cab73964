"""Small split data sets made by hand."""

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import settings

from twotower.data.split import SplitDataset

# A deadline measures the machine, not the code.
settings.register_profile("evaluation", deadline=None)
settings.load_profile("evaluation")

Row = tuple[int, int, int, int]
"""User row, item row, second, part."""
SECOND = 1_000_000


@pytest.fixture(scope="session")
def make_dataset() -> Callable[..., SplitDataset]:
    """`make_dataset(rows, users=, items=)`: rows of (user, item, second, part), in the order of time."""
    return _make


def _make(
    rows: Sequence[Row],
    *,
    users: int,
    items: int,
    protocol: str = "time",
    positive: Sequence[bool] | None = None,
    rating: Sequence[float] | None = None,
) -> SplitDataset:
    table = np.array(sorted(rows, key=lambda row: row[2]), np.int64).reshape(-1, 4)
    timestamp = table[:, 2] * SECOND
    tested = timestamp[table[:, 3] == 2]
    return SplitDataset(
        user_ids=np.array([f"u{user}" for user in range(users)], object),
        item_ids=np.array([f"i{item}" for item in range(items)], object),
        users=pa.table({"user_id": [f"u{user}" for user in range(users)]}),
        items=pa.table(
            {
                "item_id": [f"i{item}" for item in range(items)],
                "title": [f"<b>Film</b> & {item}" for item in range(items)],
            }
        ),
        user=table[:, 0].astype(np.int32),
        item=table[:, 1].astype(np.int32),
        timestamp=timestamp,
        positive=np.ones(len(table), bool) if positive is None else np.array(positive),
        part=table[:, 3].astype(np.int8),
        labels={} if rating is None else {"rating": np.array(rating, np.float32)},
        context=pa.table({"place": [None] * len(table)}),
        metadata={
            "protocol": protocol,
            "cut_us": int(tested.min()) if protocol == "time" and len(tested) else None,
            "title_column": "title",
            "source": "by hand",
        },
    )
