"""The items table as filters and rules read it: columns of types that can be compared, lists where values are many."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from twotower.data.feature_encoders import MultiCategoryEncoder
from twotower.data.fitted_features import FittedFeatures

MOMENT = pa.timestamp("us")
CODED = 1 << 16
"""Distinct texts up to which a column is held as codes, by which it is compared three times as fast."""


def readable_items(items: pa.Table, features: FittedFeatures) -> pa.Table:
    """The items table with the columns that need it turned into plain ones; the others are shared, not copied.

    A string in which the model reads several values, as in `Comedy|Drama`, becomes the list of them; dates and moments
    become microseconds in UTC, and decimals the nearest floats. Texts that come again are held as dictionaries.

    Args:
        items: Item features by row.
        features: The model's, which know what stands between the values of a string.
    """
    separators = {
        encoder.column: encoder.config.separator
        for encoder in features.candidate
        if isinstance(encoder, MultiCategoryEncoder)
    }
    return pa.table(
        {
            name: items[name] if name == "item_id" else _readable(items[name], separators.get(name))
            for name in items.column_names
        }
    )


def _readable(column: pa.ChunkedArray, separator: str | None) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    held = column.type
    if pa.types.is_decimal(held):
        # Straight to floats, 19.99 becomes 19.990000000000002.
        return column.cast(pa.string()).cast(pa.float64())
    if pa.types.is_date(held):
        return column.cast(MOMENT)
    if pa.types.is_timestamp(held):
        return column.cast(pa.timestamp("us", held.tz), safe=held.unit != "ns").cast(pa.int64()).cast(MOMENT)
    if separator and _is_text(held):
        column = pa.chunked_array([_split(chunk, separator) for chunk in column.chunks], pa.list_(pa.string()))
    return _coded(column)


def _is_text(held: pa.DataType) -> bool:
    return bool(pa.types.is_string(held) or pa.types.is_large_string(held))


def _split(texts: pa.Array, separator: str) -> pa.ListArray:
    """Lists of the values between separators, without blanks round them; empty values are left out."""
    parts = pc.split_pattern(texts.cast(pa.string()), pattern=separator)
    values = pc.utf8_trim_whitespace(parts.flatten())
    is_kept = pc.not_equal(values, "")
    kept_before = np.concatenate([[0], np.cumsum(is_kept.to_numpy(zero_copy_only=False))])
    return _lists(kept_before[_bounds(parts)], values.filter(is_kept), is_missing=texts.is_null())


def _coded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The same column with its texts, single or in lists, as codes; others, and texts of too many kinds, as it is."""
    is_list = pa.types.is_list(column.type)
    held = column.type.value_type if is_list else column.type
    if not _is_text(held):
        return column
    texts = [chunk.flatten() if is_list else chunk for chunk in column.chunks]
    if any(len(each[: 2 * CODED].unique()) > CODED for each in texts):  # A look ahead: ids and titles end here.
        return column
    coded = [each.dictionary_encode() for each in texts]
    if any(len(each.dictionary) > CODED for each in coded):
        return column
    codes = pa.dictionary(pa.int32(), held)
    if not is_list:
        return pa.chunked_array(coded, codes)
    lists = [
        _lists(_bounds(chunk), each, is_missing=chunk.is_null())
        for chunk, each in zip(column.chunks, coded, strict=True)
    ]
    return pa.chunked_array(lists, pa.list_(codes))


def _bounds(lists: pa.ListArray) -> NDArray[np.int64]:
    """`[n + 1]` where each list begins among all values that `flatten` gives, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(pc.list_value_length(lists).fill_null(0).to_numpy())])


def _lists(bounds: NDArray[np.int64], values: pa.Array, *, is_missing: pa.BooleanArray) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(bounds.astype(np.int32)), values, mask=is_missing)
