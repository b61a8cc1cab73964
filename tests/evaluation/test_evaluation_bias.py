"""The baseline of rating prediction, by hand."""

from collections.abc import Callable

import numpy as np
import pytest

from twotower.data.split import SplitDataset
from twotower.evaluation import bias

Make = Callable[..., SplitDataset]
TRAIN, VALIDATION, TEST = 0, 1, 2


def test_biases_worked_by_hand(make_dataset: Make) -> None:
    # One user gives 5 and 3 to two items: the mean is 4, the items' biases are +-1/(1 + 1), the user's stays 0.
    dataset = make_dataset([(0, 0, 1, TRAIN), (0, 1, 2, TRAIN)], users=2, items=3, rating=[5.0, 3.0])
    values = dataset.labels["rating"].astype(np.float64)
    model = bias.bias_only(dataset, values, rows=np.arange(2), user_ridge=1.0, item_ridge=1.0)
    assert model.predict(np.array([0, 0], np.int32), np.array([0, 1], np.int32)) == pytest.approx([4.5, 3.5])
    # An unknown user and an unknown item get the mean.
    assert model.predict(np.array([1], np.int32), np.array([2], np.int32)) == pytest.approx([4.0])


def test_a_user_who_gives_more_has_the_bias_that_the_ridge_leaves(make_dataset: Make) -> None:
    # Users give 5 and 3 to one item each way; by symmetry items have no bias, and users 2/(2 + 2) of theirs.
    rows = [(0, 0, 1, TRAIN), (0, 1, 2, TRAIN), (1, 0, 3, TRAIN), (1, 1, 4, TRAIN)]
    dataset = make_dataset(rows, users=2, items=2, rating=[5.0, 5.0, 3.0, 3.0])
    values = dataset.labels["rating"].astype(np.float64)
    model = bias.bias_only(dataset, values, rows=np.arange(4), user_ridge=2.0, item_ridge=7.0)
    assert model.user_bias == pytest.approx([0.5, -0.5])
    assert model.item_bias == pytest.approx([0.0, 0.0])


def test_ridges_are_chosen_on_the_validation_part_and_learn_from_the_train_part(make_dataset: Make) -> None:
    # The validation part repeats the train part: the weakest pull to the mean is best, and the strongest worst.
    rows = [(user, item, 4 * part + 2 * user + item, part) for part in (0, 1) for user in (0, 1) for item in (0, 1)]
    dataset = make_dataset(rows, users=2, items=2, rating=[5, 4, 3, 2] * 2)
    _, facts = bias.tuned_bias_only(dataset, dataset.labels["rating"].astype(np.float64))
    assert facts["settings"] == {"user_ridge": 1.0, "item_ridge": 1.0}
    assert len(facts["validation"]["tried"]) == 9
    assert facts["validation"]["value"] == min(one["value"] for one in facts["validation"]["tried"])


def test_without_a_validation_part_the_middle_ridges_stand(make_dataset: Make) -> None:
    dataset = make_dataset([(0, 0, 1, TRAIN), (0, 1, 2, TEST)], users=1, items=2, rating=[4.0, np.nan])
    _, facts = bias.tuned_bias_only(dataset, dataset.labels["rating"].astype(np.float64))
    assert facts == {"settings": {"user_ridge": 5.0, "item_ridge": 5.0}, "validation": None}
