"""Calibration: worked by hand, lowers what it should, and keeps out where there is nothing to gain."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from twotower.data.split import TRAIN, VALIDATION, SplitDataset, load_split
from twotower.evaluation import metrics
from twotower.evaluation.labels import label_values, predict_labels
from twotower.evaluation.model_contender import ModelContender
from twotower.model.calibrated import Calibration
from twotower.model.exported import ExportedModel
from twotower.training import calibration
from twotower.training.calibration import calibrate, fit_calibration, isotonic, line, platt


def error(predicted: np.ndarray, truth: np.ndarray) -> float:
    return metrics.calibration_error(metrics.calibration(predicted.astype(np.float64), truth))


def overconfident(rows: int, *, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a model says whose logits are three times too large, what came, and what it should have said."""
    generator = np.random.default_rng(seed)
    logit = generator.normal(-1.0, 1.0, rows)
    chance = 1 / (1 + np.exp(-logit))
    return 1 / (1 + np.exp(-3 * logit)), (generator.random(rows) < chance).astype(np.float64), chance


def test_what_falls_is_told_as_one_knot_in_its_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "ROWS_PER_KNOT", 1)
    # The means at 2 and 3 fall from 4 to 3: both become 3.5, told at 2.5.
    found = isotonic(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 4.0, 3.0, 5.0]))
    assert found == Calibration(predicted=(1.0, 2.5, 4.0), told=(1.0, 3.5, 5.0))
    assert found.apply(np.array([[0.0, 1.75], [4.5, np.nan]])) == pytest.approx(
        np.array([[1.0, 2.25], [5.0, np.nan]]), nan_ok=True
    )


def test_equal_predictions_are_told_as_their_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "ROWS_PER_KNOT", 1)
    found = isotonic(np.array([1.0, 1.0, 1.0, 2.0]), np.array([0.0, 0.0, 3.0, 4.0]))
    assert found == Calibration(predicted=(1.0, 2.0), told=(1.0, 4.0))


def test_a_prior_row_keeps_a_group_of_zeros_off_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "ROWS_PER_KNOT", 2)
    # Two groups of two rows; the mean of all is 1/2: (0 + 1/2) / 3 and (2 + 1/2) / 3.
    found = isotonic(np.array([0.1, 0.3, 0.6, 0.8]), np.array([0.0, 0.0, 1.0, 1.0]), prior_rows=1.0)
    assert found.told == pytest.approx((1 / 6, 5 / 6))
    assert found.predicted == pytest.approx((0.2, 0.7))


def test_the_line_is_that_of_least_squares_and_ends_where_predictions_did() -> None:
    found = line(np.array([1.0, 2.0, 3.0]), np.array([2.0, 3.0, 7.0]))  # Slope 5/2, through the means 2 and 4.
    assert (found.predicted, found.told) == ((1.0, 3.0), pytest.approx((1.5, 6.5)))
    assert line(np.array([1.0, 2.0]), np.array([5.0, 3.0])).told == (4.0, 4.0)  # It would fall: level instead.
    assert line(np.array([2.0, 2.0]), np.array([5.0, 3.0])) == Calibration(predicted=(2.0,), told=(4.0,))


def test_platt_finds_the_slope_that_was_hidden() -> None:
    said, came, chance = overconfident(20_000, seed=1)
    told = platt(said, came).apply(said)
    # A third of the logit was true; 20,000 rows pin the chance to about a hundredth.
    assert np.abs(told - chance).max() < 0.03


@pytest.mark.parametrize("rows", [400, 8_000])
def test_an_overconfident_model_can_be_taken_literally_afterwards(rows: int) -> None:
    said, came, _ = overconfident(rows, seed=2)
    fitted = fit_calibration("binary", said, came)
    assert fitted is not None
    said, came, _ = overconfident(20_000, seed=3)
    assert error(said, came) > 0.12
    assert error(fitted.apply(said), came) < (0.04 if rows == 400 else 0.02)
    before, after = metrics.binary(said, came), metrics.binary(fitted.apply(said).astype(np.float64), came)
    assert after["log_loss"] < before["log_loss"] - 0.1
    assert after["auc"] == pytest.approx(before["auc"], abs=2e-3)


def test_a_bent_rating_is_straightened() -> None:
    generator = np.random.default_rng(4)
    true = generator.uniform(1, 5, 4000)
    rating, said = true + generator.normal(0, 0.5, 4000), 0.2 * true**2
    fitted = fit_calibration("regression", said, rating)
    assert fitted is not None
    assert len(fitted.predicted) > 2  # No line would do.
    assert metrics.regression(fitted.apply(said).astype(np.float64), rating)["rmse"] == pytest.approx(0.5, abs=0.03)


def test_where_nothing_is_to_be_gained_nothing_is_fitted() -> None:
    _, came, chance = overconfident(3000, seed=5)
    assert fit_calibration("binary", chance, came) is None
    exact = np.linspace(1, 5, 2000)
    assert fit_calibration("regression", exact, exact) is None
    assert fit_calibration("listwise", exact + 1, exact) is None
    assert fit_calibration("regression", exact[:99] + 1, exact[:99]) is None


def test_rows_that_are_no_number_are_left_out() -> None:
    truth = np.tile([1.0, 2.0], 100)
    predicted = truth + 1.0
    with_gaps = fit_calibration("regression", np.append(predicted, [np.nan, 9.0]), np.append(truth, [1.0, np.nan]))
    assert with_gaps == fit_calibration("regression", predicted, truth)
    assert with_gaps is not None
    assert with_gaps.apply(np.array([2.5])) == pytest.approx([1.5])


@settings(max_examples=50)
@given(
    npst.arrays(np.float64, 120, elements=st.floats(0, 1, width=32)),
    npst.arrays(np.float64, 120, elements=st.sampled_from([0.0, 1.0])),
    st.sampled_from([isotonic, platt, line]),
)
def test_what_is_told_never_falls_and_reads_back_the_same(predicted: np.ndarray, truth: np.ndarray, method) -> None:
    fitted = method(predicted, truth)
    told = fitted.apply(np.linspace(-1, 2, 301))
    assert (np.diff(told) >= 0).all()
    assert len(fitted.predicted) <= calibration.KNOTS
    assert Calibration.from_json(json.loads(json.dumps(fitted.to_json()))) == fitted


@pytest.mark.parametrize(
    "content",
    [
        {"predicted": [], "told": []},
        {"predicted": [0.0], "told": [0.0, 1.0]},
        {"predicted": [0.0, 0.0], "told": [0.0, 1.0]},
        {"predicted": [0.0, 1.0], "told": [1.0, 0.0]},
        {"predicted": [0.0, float("nan")], "told": [0.0, 1.0]},
        {"predicted": [0.0]},
        {"predicted": None, "told": [1.0]},
    ],
)
def test_a_broken_map_is_refused(content: dict) -> None:
    with pytest.raises((ValueError, LookupError, TypeError)):
        Calibration.from_json(content)


@pytest.fixture
def model(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be rewritten."""
    return Path(shutil.copytree(tiny_run / "model", tmp_path / "model"))


def test_a_model_is_described_with_the_maps_that_help_it(tiny_run: Path, model: Path) -> None:
    dataset: SplitDataset = load_split(tiny_run / "split")
    found = calibrate(model, dataset, seed=1)
    written = json.loads((model / "model.json").read_text(encoding="utf-8"))["calibration"]
    assert {label: Calibration.from_json(content) for label, content in written.items()} == found
    assert calibrate(model, dataset, seed=1) == found  # What a model is told as does not count when it is fitted again.
    contender = ModelContender(ExportedModel.load(model), dataset=dataset)
    rows, predicted = predict_labels(contender, dataset, np.flatnonzero(dataset.part == VALIDATION))
    for label, fitted in found.items():
        truth = label_values(dataset, label)[rows]
        assert np.nanmean((fitted.apply(predicted[label]) - truth) ** 2) < np.nanmean((predicted[label] - truth) ** 2)


def test_without_validation_labels_nothing_is_fitted(tiny_run: Path, model: Path) -> None:
    dataset = load_split(tiny_run / "split")
    dataset = replace(dataset, part=np.where(dataset.part == VALIDATION, np.int8(TRAIN), dataset.part))
    assert calibrate(model, dataset, seed=1) == {}
    assert json.loads((model / "model.json").read_text(encoding="utf-8"))["calibration"] == {}
