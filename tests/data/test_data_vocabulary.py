"""A vocabulary gives each value its row, however it is asked."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twotower.data.vocabulary import OUT_OF_VOCABULARY, Vocabulary

TEXTS = st.lists(st.none() | st.text(max_size=3), max_size=30)


@given(known=TEXTS, asked=TEXTS, large=st.booleans())
def test_columns_and_values_by_hand_give_the_same_rows(
    known: list[str | None], asked: list[str | None], large: bool
) -> None:
    vocabulary = Vocabulary.fit(pa.array(known, pa.string()))
    column = pa.array(asked, pa.large_string() if large else pa.string())
    by_column = vocabulary.rows(column)
    by_hand = vocabulary.rows(asked)
    np.testing.assert_array_equal(by_column, by_hand)
    np.testing.assert_array_equal(vocabulary.rows(pa.chunked_array([column])), by_hand, "with Python's table there")
    expected = {value: row for row, value in enumerate(vocabulary.values.to_pylist(), start=1)}
    assert by_hand.tolist() == [expected.get(value, OUT_OF_VOCABULARY) for value in asked]


@pytest.mark.parametrize("values", [["b", "a", "b", None], [2, 1, 2, None], [2.0, 1.0, 2.0, None]])
def test_the_most_frequent_value_comes_first(values: list[object]) -> None:
    first, second = ("b", "a") if values[0] == "b" else ("2", "1")
    vocabulary = Vocabulary.fit(pa.array(values))
    assert vocabulary.values.to_pylist() == [first, second]
    assert vocabulary.rows([first, second, None, "c"]).tolist() == [1, 2, 0, 0]
