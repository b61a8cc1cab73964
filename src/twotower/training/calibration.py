"""Predictions that can be taken literally: what the validation part says each of them was worth.

Negatives that were sampled and losses that are weighted leave a head's numbers ordered, but too high or too low. A map
of one number to one mends that without another training, where it holds on rows that it was not fitted to.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression, minimize

from twotower.data.split import VALIDATION, SplitDataset
from twotower.evaluation.labels import label_values, predict_labels
from twotower.evaluation.model_contender import ModelContender
from twotower.model.calibrated import Calibration
from twotower.model.exported import DESCRIPTION, ExportedModel

Values = NDArray[np.float64]
Fit = Callable[[Values, Values], Calibration]
KNOTS = 64
"""Knots of a map at most."""
ROWS_PER_KNOT = 50
"""Fewer rows than this say too little of their mean."""
FEWEST_ROWS = 100
"""Below it there is no telling whether a map helps."""
ISOTONIC_ROWS = 1000
"""Below it only a map of two numbers is fitted."""
MOST_ROWS = 100_000
"""Validation rows asked at most: 64 knots gain nothing from more."""
_EDGE = 1e-6
"""Probabilities are kept so far from 0 and 1 where their logarithm is taken."""


def calibrate(directory: Path, dataset: SplitDataset, *, seed: int) -> dict[str, Calibration]:
    """Fit each label's map on the validation part, and write them into the model's description.

    Args:
        directory: A model directory that `export_model` wrote and nothing has sealed yet.
        dataset: The data set that the model was trained on.
        seed: Of the rows drawn where there are too many, and of the halves.

    Returns: The label's map, for the labels that gain by one.
    """
    rows = np.flatnonzero(dataset.part == VALIDATION)
    rows = np.sort(np.random.default_rng(seed).permutation(rows)[:MOST_ROWS])
    contender = ModelContender(ExportedModel.load(directory), dataset=dataset)
    if not contender.label_kinds:
        return {}
    found = {}
    asked, predicted = predict_labels(contender, dataset, rows)
    for label, kind in contender.label_kinds.items():
        truth = label_values(dataset, label)[asked]
        fitted = fit_calibration(kind, predicted[label], truth, seed=seed)
        if fitted is not None:
            found[label] = fitted
    description = json.loads((directory / DESCRIPTION).read_text(encoding="utf-8"))
    description["calibration"] = {label: fitted.to_json() for label, fitted in found.items()}
    (directory / DESCRIPTION).write_text(json.dumps(description, indent=1), encoding="utf-8")
    return found


def fit_calibration(kind: str, predicted: Values, truth: Values, *, seed: int = 0) -> Calibration | None:
    """The map that lowers the loss most on rows that it was not fitted to; None where none does.

    Each map is fitted on one half and judged on the other, both ways round; the best is then fitted on all rows.

    Args:
        kind: "regression", judged by the squared error, or "binary", by the log loss. Others have nothing to calibrate.
        predicted: `[n]` values, or probabilities.
        truth: `[n]` labels. Rows where either is no number are left out.
        seed: Of the halves.
    """
    usable = np.isfinite(predicted) & np.isfinite(truth)
    predicted, truth = predicted[usable], truth[usable]
    if kind not in _METHODS or len(truth) < FEWEST_ROWS:
        return None
    methods, loss = _METHODS[kind]
    half = np.random.default_rng(seed).permutation(len(truth)) % 2 == 0
    best, least = None, loss(predicted, truth)
    for method in methods if len(truth) >= ISOTONIC_ROWS else methods[:1]:
        held = np.empty_like(predicted)
        for part in (half, ~half):
            held[~part] = method(predicted[part], truth[part]).apply(predicted[~part])
        value = loss(held, truth)
        if value < least:
            best, least = method, value
    return None if best is None else best(predicted, truth)


def isotonic(predicted: Values, truth: Values, *, prior_rows: float = 0.0) -> Calibration:
    """The rising map of least squared error through the means of up to `KNOTS` groups of equal size.

    A stretch where it would be level becomes one knot in the stretch's middle, so that what differed still differs.

    Args:
        prior_rows: Rows of the overall mean added to each group, which keeps probabilities off 0 and 1.

    Source:
        Oron and Flournoy, "Centered isotonic regression: point and interval estimation for dose-response studies",
        Statistics in Biopharmaceutical Research 9(3), 2017, https://doi.org/10.1080/19466315.2017.1286256
    """
    _, inverse, counts = np.unique(predicted, return_inverse=True, return_counts=True)
    # Equal predictions stay in one group: they will be told as one.
    groups = min(KNOTS, max(1, len(predicted) // ROWS_PER_KNOT))
    group = (((np.cumsum(counts) - counts / 2) / len(predicted)) * groups).astype(np.int64)[inverse]
    size = np.bincount(group)
    filled = size > 0
    size = size[filled]
    place = np.bincount(group, weights=predicted)[filled] / size
    mean = (np.bincount(group, weights=truth)[filled] + prior_rows * truth.mean()) / (size + prior_rows)
    solved = isotonic_regression(mean, weights=size)
    start = solved.blocks[:-1]
    return Calibration(
        predicted=tuple((np.add.reduceat(place * size, start) / np.add.reduceat(size, start)).tolist()),
        told=tuple(solved.x[start].tolist()),
    )


def platt(predicted: Values, truth: Values) -> Calibration:
    """The rising logistic curve over the prediction's own logit, written out in `KNOTS` knots.

    One row's worth of belief that the prediction is right as it stands keeps labels of one value from infinity.

    Source:
        Platt, "Probabilistic outputs for support vector machines", Advances in Large Margin Classifiers, 1999
    """
    logit = _logit(predicted)

    def loss(curve: Values) -> tuple[float, Values]:
        slope, shift = curve
        told = slope * logit + shift
        wrong = 0.5 * (1.0 + np.tanh(0.5 * told)) - truth
        value = float(np.sum(np.logaddexp(0.0, told) - truth * told))
        belief = np.array([slope - 1.0, shift])
        return value + 0.5 * float(belief @ belief), np.array([wrong @ logit, wrong.sum()]) + belief

    slope, shift = minimize(loss, [1.0, 0.0], jac=True, method="L-BFGS-B", bounds=[(0.0, None), (None, None)]).x
    # Evenly apart in the logit: straight lines between the knots then miss curves up to twice as steep by below .01.
    knots = np.linspace(_logit(np.zeros(1))[0], _logit(np.ones(1))[0], KNOTS)
    # A vectorised tanh may step back in its last digit.
    told = np.maximum.accumulate(0.5 * (1.0 + np.tanh(0.5 * (slope * knots + shift))))
    return Calibration(predicted=tuple((0.5 * (1.0 + np.tanh(0.5 * knots))).tolist()), told=tuple(told.tolist()))


def line(predicted: Values, truth: Values) -> Calibration:
    """The straight line of least squared error that does not fall, as far as predictions were seen."""
    spread = float(predicted.var())
    slope = (
        max(float(np.mean((predicted - predicted.mean()) * (truth - truth.mean()))) / spread, 0.0) if spread else 0.0
    )
    ends = np.unique([predicted.min(), predicted.max()])
    told = truth.mean() + slope * (ends - predicted.mean())
    return Calibration(predicted=tuple(ends.tolist()), told=tuple(told.tolist()))


def _logit(probability: Values) -> Values:
    kept = np.clip(probability, _EDGE, 1.0 - _EDGE)
    return np.asarray(np.log(kept) - np.log1p(-kept))


def _squared_error(predicted: Values, truth: Values) -> float:
    return float(np.mean((predicted - truth) ** 2))


def _log_loss(predicted: Values, truth: Values) -> float:
    kept = np.clip(predicted, _EDGE, 1.0 - _EDGE)
    return float(-np.mean(truth * np.log(kept) + (1.0 - truth) * np.log1p(-kept)))


_METHODS: dict[str, tuple[tuple[Fit, ...], Callable[[Values, Values], float]]] = {
    "regression": ((line, isotonic), _squared_error),
    "binary": ((platt, partial(isotonic, prior_rows=1.0)), _log_loss),
}
"""Kind of label -> the maps that are tried, the stiffest first, and what judges them."""
