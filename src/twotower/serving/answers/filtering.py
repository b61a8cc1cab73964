"""Filters on a catalogue: parsed once, and the mask over the bundle's items kept while there is room."""

from collections import OrderedDict
from threading import Lock

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from twotower.bundle import Bundle
from twotower.errors import RequestError
from twotower.filter_language import ColumnType, column_type
from twotower.serving.answers.filters import Filter, parse

KEPT_BYTES = 64 << 20
"""Of masks that are kept: a megabyte each at a million items."""


class Filtering:
    """Which items fulfil a condition."""

    def __init__(self, items: pa.Table) -> None:
        """Take the bundle's `I` items as `readable_items` gives them."""
        self._items = items
        self._most = max(1, KEPT_BYTES // max(1, items.num_rows))
        self._kept: OrderedDict[str, NDArray[np.bool_]] = OrderedDict()
        self._lock = Lock()

    @property
    def columns(self) -> dict[str, ColumnType | None]:
        """What a condition can name, and what it can be compared with; None where only whether it is missing."""
        return {field.name: column_type(field.type) for field in self._items.schema}

    def mask(self, condition: str, *, put: pa.Table) -> NDArray[np.bool_]:
        """`[I + N]` True for the items that fulfil the condition, of the bundle and of the `N` put since.

        Args:
            condition: In the language of filters.
            put: The latter, as `readable_items` gives them.

        Raises:
            RequestError: the condition is none, or does not fit the items' columns.
        """
        filter_ = parse(condition, self._items.schema)
        with self._lock:
            mask = self._kept.get(filter_.text)
            if mask is not None:
                self._kept.move_to_end(filter_.text)
        if mask is None:
            mask = filter_.mask(self._items)
            with self._lock:
                self._kept[filter_.text] = mask
                while len(self._kept) > self._most:
                    self._kept.popitem(last=False)
        if not put.num_rows:
            return mask
        return np.concatenate([mask, filter_.mask(put)])


def positives(bundle: Bundle) -> Filter | None:
    """The recipe's rule by which an interaction may stand in a history; None where every one may.

    The rule is a condition in SQL. One that says more than labels and this language can is not followed: then every
    interaction that comes in counts, until the next training looks at it by the rule.
    """
    rule = bundle.metadata.get("positives", "true")
    labels = bundle.metadata.get("label_columns", [])
    try:
        return None if rule == "true" else parse(rule, pa.schema([(name, pa.float64()) for name in labels]))
    except RequestError:
        return None
