"""How good the ranking heads' own predictions are: each test interaction's label against what was predicted for it."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twotower.data.split import TEST, TRAIN, SplitDataset
from twotower.errors import DataError
from twotower.evaluation import metrics
from twotower.evaluation.bias import tuned_bias_only
from twotower.evaluation.bootstrap import Resamples, resample_users
from twotower.evaluation.contenders import TwoStageContender
from twotower.evaluation.joining import Alone
from twotower.evaluation.names import LABEL_METRICS
from twotower.evaluation.queries import labelled
from twotower.evaluation.ranks import blocks
from twotower.model.calibrated import Calibration

Values = NDArray[np.float64]
BLOCK = 8192
"""Predictions asked for at a time."""


def evaluate_labels(
    model: TwoStageContender,
    dataset: SplitDataset,
    *,
    max_rows: int,
    resamples: int,
    seed: int,
    calibration: Mapping[str, Calibration] | None = None,
    alone: Mapping[str, Alone] | None = None,
) -> dict[str, Any]:
    """Label -> its metrics, baselines, calibration and segments on the test rows that carry it.

    Args:
        max_rows: Rows asked for at most, drawn at random; 0 for all.
        resamples: Of the bootstrap.
        calibration: Label -> how its prediction is told. All is judged as told, and beside it stands, as
            `before_calibration`, what it would be without.
        alone: Task -> the model that learned it alone. A label's stands beside the model's as `trained_alone`, with
            `joint`, the model's metrics on the rows that both predict, and the paired `difference`, model minus alone.
    """
    rows = np.flatnonzero(dataset.part == TEST)
    if max_rows and len(rows) > max_rows:
        rows = np.sort(np.random.default_rng(seed).choice(rows, max_rows, replace=False))
    if not model.label_kinds or not len(rows):
        return {}
    asked, predicted = predict_labels(model, dataset, rows)
    beside = _predicted_alone(alone or {}, dataset, rows)
    return {
        label: _judge(
            dataset,
            label,
            kind=kind,
            rows=asked,
            predicted=predicted[label],
            alone=beside.get(label),
            calibration=(calibration or {}).get(label),
            resamples=resamples,
            seed=seed,
        )
        for label, kind in model.label_kinds.items()
    }


def predict_labels(
    model: TwoStageContender, dataset: SplitDataset, rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], dict[str, Values]]:
    """The rows in the order asked, `[n]`, and label -> `[n]` what is predicted of them, each at its own moment."""
    queries = labelled(dataset, rows)
    predicted: dict[str, list[NDArray[np.float32]]] = {label: [] for label in model.label_kinds}
    for start, stop in blocks(len(queries), BLOCK):
        block = queries.take(start, stop)
        for label, values in model.predict(block, block.relevant).items():
            if label in predicted:
                predicted[label].append(values)
    return queries.log_row, {
        label: np.concatenate(parts).astype(np.float64) if parts else np.zeros(0) for label, parts in predicted.items()
    }


def label_values(dataset: SplitDataset, label: str) -> Values:
    """`[n]` the label of every interaction, NaN where it is missing; `positive` is one for retrieval's own question."""
    if label in dataset.labels:
        return dataset.labels[label].astype(np.float64)
    if label == "positive":
        return dataset.positive.astype(np.float64)
    held = ", ".join(dataset.labels) or "none"
    raise DataError(f"label {label!r}: not in the split, which holds {held}. Prepare it again with this label.")


def _judge(
    dataset: SplitDataset,
    label: str,
    *,
    kind: str,
    rows: NDArray[np.int64],
    predicted: Values,
    alone: Values | None,
    calibration: Calibration | None,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """One label's part of the report."""
    values = label_values(dataset, label)
    given = ~np.isnan(values[rows])
    usable = given & np.isfinite(predicted)
    rows, predicted, alone = rows[usable], predicted[usable], None if alone is None else alone[usable]
    result: dict[str, Any] = {"kind": kind, "rows": len(rows), "nan_predictions": int((given & ~usable).sum())}
    if not len(rows):
        return result
    actual, train = values[rows], (dataset.part == TRAIN) & ~np.isnan(values)
    measure = metrics.regression if kind == "regression" else metrics.binary
    if calibration is not None:
        result["before_calibration"] = {"metrics": measure(predicted, actual)} | _reliability(predicted, actual)
        predicted = calibration.apply(predicted).astype(np.float64)
    result |= {
        "metrics": measure(predicted, actual),
        "baselines": _baselines(dataset, values, kind=kind, train=train, rows=rows),
        "as_classifier": _as_classifier(predicted, actual, label=label, kind=kind, train=values[train]),
        "segments": _segments(dataset, predicted, actual=actual, rows=rows, measure=measure),
    } | _reliability(predicted, actual)
    if resamples and kind == "regression":
        drawn = resample_users({"rmse": (predicted - actual) ** 2}, dataset.user[rows], resamples=resamples, seed=seed)
        result["intervals"] = {"rmse": np.sqrt(drawn.interval("rmse")).tolist()}
    if alone is not None:
        user = dataset.user[rows]
        beside = _trained_alone(alone, predicted, actual=actual, kind=kind, user=user, resamples=resamples, seed=seed)
        result["trained_alone"] = beside
    return result


def _predicted_alone(alone: Mapping[str, Alone], dataset: SplitDataset, rows: NDArray[np.int64]) -> dict[str, Values]:
    """Label -> `[n]` what the model that learned it alone tells of the rows, in the order of `predict_labels`."""
    found: dict[str, Values] = {}
    for label, one in alone.items():
        if label in one.model.label_kinds:
            _, predicted = predict_labels(one.model, dataset, rows)
            told = one.calibration[label].apply(predicted[label]) if label in one.calibration else predicted[label]
            found[label] = told.astype(np.float64)
    return found


def _trained_alone(
    alone: Values,
    joint: Values,
    *,
    actual: Values,
    kind: str,
    user: NDArray[np.int32],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """How well the label is predicted by the model that learned nothing else, and how much better or worse it is."""
    told = np.isfinite(alone)
    result: dict[str, Any] = {"nan_predictions": int((~told).sum())}
    if not told.any():
        return result
    alone, joint, actual, user = alone[told], joint[told], actual[told], user[told]
    metric, is_number = LABEL_METRICS[kind], kind == "regression"
    measure = metrics.regression if is_number else metrics.binary
    result |= {"metrics": measure(alone, actual), "joint": measure(joint, actual)}
    result["difference"] = {"metric": metric, "value": result["joint"][metric] - result["metrics"][metric]}
    if resamples:
        losses = {
            name: (predicted - actual) ** 2 if is_number else metrics.log_losses(predicted, actual)
            for name, predicted in (("joint", joint), ("alone", alone))
        }
        drawn = resample_users(losses, user, resamples=resamples, seed=seed)
        if is_number:
            drawn = Resamples(means={name: np.sqrt(means) for name, means in drawn.means.items()})
        result["difference"]["interval"] = drawn.interval("joint", minus="alone")
    return result


def _reliability(predicted: Values, actual: Values) -> dict[str, Any]:
    """How far the prediction can be taken literally: the curve, and its expected calibration error."""
    curve = metrics.calibration(predicted, actual)
    return {"calibration": curve, "calibration_error": metrics.calibration_error(curve)}


def _as_classifier(predicted: Values, actual: Values, *, label: str, kind: str, train: Values) -> dict[str, Any]:
    """ROC and confusion of the prediction as a yes or no; of a number, whether it is above the train part's mean."""
    threshold = float(train.mean()) if kind == "regression" and len(train) else 0.5
    is_yes = (actual > threshold).astype(np.float64)
    yes, no = (
        (f"{label} above {threshold:.3g}", f"{label} up to it") if kind == "regression" else (label, f"not {label}")
    )
    return {
        "categories": [no, yes],
        "threshold": threshold,
        "confusion": metrics.confusion(predicted, is_yes, threshold=threshold),
        "auc": metrics.auc(predicted, is_yes),
        "roc": metrics.roc(predicted, is_yes),
    }


def _baselines(
    dataset: SplitDataset, values: Values, *, kind: str, train: NDArray[np.bool_], rows: NDArray[np.int64]
) -> dict[str, dict[str, float]]:
    if not train.any():
        return {}
    actual = values[rows]
    mean = np.full(len(rows), values[train].mean())
    if kind == "binary":
        return {"train mean": metrics.binary(mean, actual)}
    bias, _ = tuned_bias_only(dataset, values)
    return {
        "train mean": metrics.regression(mean, actual),
        "bias_only": metrics.regression(bias.predict(dataset.user[rows], dataset.item[rows]), actual),
    }


def _segments(
    dataset: SplitDataset,
    predicted: Values,
    *,
    actual: Values,
    rows: NDArray[np.int64],
    measure: Callable[[Values, Values], dict[str, float]],
) -> list[dict[str, Any]]:
    """Users and items apart by whether the train part met them."""
    train = dataset.part == TRAIN
    warm_user = np.isin(dataset.user[rows], dataset.user[train])
    warm_item = np.isin(dataset.item[rows], dataset.item[train])
    masks = {
        "warm users": warm_user,
        "cold users": ~warm_user,
        "warm items": warm_item,
        "cold items": ~warm_item,
    }
    return [
        {"name": name, "rows": int(mask.sum()), "metrics": measure(predicted[mask], actual[mask])}
        for name, mask in masks.items()
        if mask.any()
    ]
