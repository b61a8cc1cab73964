"""The ranking heads' predictions and their baselines, and the bootstrap."""

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import pytest

from twotower.data.split import SplitDataset
from twotower.errors import DataError
from twotower.evaluation.bootstrap import resample_users
from twotower.evaluation.labels import evaluate_labels, label_values
from twotower.evaluation.queries import Queries
from twotower.model.calibrated import Calibration

Make = Callable[..., SplitDataset]
ROWS = [(0, 0, 1, 0), (1, 1, 2, 0), (0, 1, 5, 2), (1, 0, 6, 2), (2, 2, 7, 2)]


class Guess:
    """Predicts the same for every row but those of one item."""

    name = "guess"
    label_kinds: ClassVar[dict[str, str]] = {"rating": "regression", "positive": "binary"}

    def score(self, queries: Queries) -> np.ndarray:
        return np.zeros((len(queries), 3), np.float32)

    def rank(self, queries: Queries, candidates: np.ndarray) -> np.ndarray:
        return np.zeros(candidates.shape, np.float32)

    def predict(self, queries: Queries, item: np.ndarray) -> dict[str, np.ndarray]:
        rating = np.where(item == 2, np.nan, 3.0).astype(np.float32)
        return {"rating": rating, "positive": np.full(len(item), 0.5, np.float32), "surplus": rating}


def test_predictions_are_judged_on_the_test_rows_that_carry_the_label(make_dataset: Make) -> None:
    dataset = make_dataset(
        ROWS, users=3, items=3, rating=[4, 2, 5, np.nan, 1], positive=[True, True, True, False, True]
    )
    found = evaluate_labels(Guess(), dataset, max_rows=0, resamples=20, seed=1)
    assert set(found) == {"rating", "positive"}
    # Of three test rows one has no rating, and one prediction is no number.
    assert (found["rating"]["rows"], found["rating"]["nan_predictions"]) == (1, 1)
    assert found["rating"]["metrics"] == {"rmse": 2.0, "mae": 2.0}
    assert found["rating"]["baselines"]["train mean"]["rmse"] == 2.0
    assert found["rating"]["intervals"]["rmse"] == [2.0, 2.0]
    assert found["positive"]["rows"] == 3
    assert found["positive"]["metrics"]["auc"] == 0.5
    assert found["positive"]["metrics"]["log_loss"] == pytest.approx(np.log(2))


def test_a_calibrated_label_is_judged_as_told_and_as_it_was_before(make_dataset: Make) -> None:
    dataset = make_dataset(
        ROWS, users=3, items=3, rating=[4, 2, 5, np.nan, 1], positive=[True, True, True, False, True]
    )
    # Every rating is predicted as 3 and told as 4; the one test row that counts is rated 5.
    told = {"rating": Calibration(predicted=(2.0, 4.0), told=(3.0, 5.0))}
    found = evaluate_labels(Guess(), dataset, max_rows=0, resamples=0, seed=1, calibration=told)
    assert found["rating"]["metrics"]["rmse"] == 1.0
    assert found["rating"]["calibration_error"] == 1.0
    assert found["rating"]["calibration"] == [{"predicted": 4.0, "actual": 5.0, "count": 1}]
    assert found["rating"]["segments"][0]["metrics"]["rmse"] == 1.0
    assert found["rating"]["before_calibration"] == {
        "metrics": {"rmse": 2.0, "mae": 2.0},
        "calibration": [{"predicted": 3.0, "actual": 5.0, "count": 1}],
        "calibration_error": 2.0,
    }
    assert "before_calibration" not in found["positive"]


def test_a_label_that_the_split_does_not_hold_is_named(make_dataset: Make) -> None:
    with pytest.raises(DataError, match="'stars': not in the split, which holds rating"):
        label_values(make_dataset(ROWS, users=3, items=3, rating=[1.0] * 5), "stars")


def test_bootstrap_resamples_users_and_not_rows() -> None:
    # One user with 100 equal rows and one with a single row: means swing between the two as users are drawn.
    values = np.concatenate([np.zeros(100), [1.0]])
    user = np.concatenate([np.zeros(100, np.int32), [1]]).astype(np.int32)
    drawn = resample_users({"a": values}, user, resamples=400, seed=3).means["a"]
    assert set(np.round(drawn, 6)) == {0.0, round(1 / 101, 6), 1.0}


def test_interval_covers_the_mean_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        values = generator.normal(1.0, 2.0, 60)
        low, high = resample_users({"a": values}, np.arange(60, dtype=np.int32), resamples=300, seed=seed).interval("a")
        covered += low <= 1.0 <= high
    # The percentile interval of 60 users covers about 94 in 100 times: 188 of 200, give or take 3.4.
    assert 175 <= covered <= 198


def test_differences_are_paired() -> None:
    values = np.random.default_rng(0).normal(size=50)
    drawn = resample_users({"a": values + 0.1, "b": values}, np.arange(50, dtype=np.int32), resamples=200, seed=1)
    assert drawn.interval("a", minus="b") == pytest.approx([0.1, 0.1])


def test_the_same_seed_gives_the_same_interval() -> None:
    values, user = np.random.default_rng(0).normal(size=50), np.arange(50, dtype=np.int32)
    one, other = (resample_users({"a": values}, user, resamples=50, seed=7).interval("a") for _ in range(2))
    assert one == other
