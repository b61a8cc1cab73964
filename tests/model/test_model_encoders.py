"""Layers that make one piece of a tower's input of several values."""

import numpy as np
import pytest

from twotower.model.encoders import BagEncoder


@pytest.mark.parametrize(("combiner", "two"), [("mean", [2.0, 3.0]), ("sum", [4.0, 6.0])])
def test_several_values_become_their_mean_or_their_sum(combiner: str, two: list[float]) -> None:
    tables = {"table": np.array([[9.0, 9.0], [1.0, 2.0], [3.0, 4.0]], np.float32)}
    rows = {"genres": np.array([[1, 2, -1], [2, -1, -1], [-1, -1, -1]], np.int32)}
    found = BagEncoder("genres", "table", combiner=combiner)(rows, tables)
    np.testing.assert_array_equal(found, [two, [3.0, 4.0], [0.0, 0.0]])
