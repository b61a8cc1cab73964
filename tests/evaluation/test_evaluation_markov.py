"""Markov chains of the last items, by hand."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sparse
from numpy.testing import assert_allclose
from numpy.typing import NDArray

from twotower.data.split import SplitDataset
from twotower.evaluation.baselines import ItemWeights
from twotower.evaluation.markov import count_transitions, markov
from twotower.evaluation.queries import successive

Make = Callable[..., SplitDataset]
TRAIN, TEST = 0, 2
# User 0 takes 0, 1, 2; user 1 takes 0, 1; user 2 takes 0, 2. User 3 asks, having taken 0 and then 1.
ROWS = [(0, 0, 1, TRAIN), (0, 1, 2, TRAIN), (0, 2, 3, TRAIN), (1, 0, 1, TRAIN), (1, 1, 2, TRAIN), (2, 0, 1, TRAIN)]
ROWS += [(2, 2, 2, TRAIN), (3, 0, 4, TEST), (3, 1, 5, TEST), (3, 2, 6, TEST)]


def dense(model: ItemWeights) -> NDArray[np.float64]:
    return np.asarray(sparse.csr_array(model.weights).toarray(), np.float64)


@pytest.fixture
def dataset(make_dataset: Make) -> SplitDataset:
    return make_dataset(ROWS, users=4, items=3)


def test_transitions_stay_within_a_user_and_the_train_part(dataset: SplitDataset) -> None:
    counts = count_transitions(dataset.user_log(TRAIN), items=3, window=1)
    # 0 is followed by 1 for users 0 and 1, by 2 for user 2; 1 by 2 for user 0.
    assert counts.toarray().tolist() == [[0, 2, 1], [0, 0, 1], [0, 0, 0]]


def test_transitions_over_two_steps_count_half(dataset: SplitDataset) -> None:
    counts = count_transitions(dataset.user_log(TRAIN), items=3, window=5)
    assert counts.toarray().tolist() == [[0, 2, 1.5], [0, 0, 1], [0, 0, 0]]


def test_scores_add_the_chances_from_each_item_of_the_history_and_fade_with_its_age(dataset: SplitDataset) -> None:
    model = markov(dataset.user_log(TRAIN), items=3, window=1, shrinkage=1.0)
    # Three transitions leave 0 and one leaves 1; with the shrinkage they are shared by 4 and by 2.
    assert_allclose(dense(model), np.array([[0.0, 2 / 4, 1 / 4], [0.0, 0.0, 1 / 2], [0.0, 0.0, 0.0]]))
    # The queries: nothing taken; 0 taken; 0 and then 1 taken, where 0 counts for 0.5.
    expected = [[0.0, 0.0, 0.0], [0.0, 2 / 4, 1 / 4], [0.0, 0.5 * 2 / 4, 0.5 * 1 / 4 + 1 / 2]]
    scores = replace(model, decay=0.5).score(successive(dataset))
    assert_allclose(scores.astype(np.float64), np.array(expected))


def test_a_log_shorter_than_the_window_or_empty_has_its_transitions(make_dataset: Make) -> None:
    one = make_dataset([(0, 1, 1, TRAIN)], users=1, items=2).user_log(TRAIN)
    none = make_dataset([(0, 1, 1, TEST)], users=1, items=2).user_log(TRAIN)
    for log in (one, none):
        assert np.all(dense(markov(log, items=2, window=20, shrinkage=0.0)) == 0)
