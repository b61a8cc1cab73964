"""What joining gains or costs: the joint model beside models that learned one of its tasks each, by the same settings.

Retrieval's own takes part in every protocol; a label's own predicts the test rows that the joint model does. All
differences are paired: on the same queries or rows, over the same resamples of users.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from twotower.evaluation.contenders import TwoStageContender
from twotower.evaluation.names import LABEL_METRICS, TRAINED_ALONE
from twotower.model.calibrated import Calibration
from twotower.model.config import RETRIEVAL


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """A model that learned one task and nothing else."""

    model: TwoStageContender
    calibration: Mapping[str, Calibration] = field(default_factory=dict)
    """Label -> how its prediction is told."""


def joining(protocol: Mapping[str, Any], labels: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What joining does to each task that a model learned alone, a row a metric.

    Args:
        protocol: The main protocol's part of the report.
        labels: The labels' part of it.

    Returns:
        `task`, `metric`, `joint`, `alone`, and `difference`: the joint model's figure minus the other's, a label's on
        the rows that both predict. Where the report has intervals, `interval` and `joining`: whether it "gains" or
        "costs" beyond that, or is "level".
    """
    rows = []
    for row in protocol["differences"]:
        if row["minus"] == TRAINED_ALONE:
            joint, alone = (protocol["contenders"][name]["metrics"] for name in (row["of"], row["minus"]))
            rows.append(_row(RETRIEVAL, row, joint=joint, alone=alone))
    for label, judged in labels.items():
        beside = judged.get("trained_alone", {})
        if "difference" in beside:
            rows.append(_row(label, beside["difference"], joint=beside["joint"], alone=beside["metrics"]))
    return rows


def _row(
    task: str, difference: Mapping[str, Any], *, joint: Mapping[str, float], alone: Mapping[str, float]
) -> dict[str, Any]:
    metric = difference["metric"]
    row = {"task": task, "metric": metric, "joint": joint[metric], "alone": alone[metric]}
    row |= {"difference": difference["value"]}
    if "interval" not in difference:
        return row
    sign = -1 if metric in LABEL_METRICS.values() else 1
    low, high = sorted(sign * end for end in difference["interval"])
    return row | {
        "interval": difference["interval"],
        "joining": "gains" if low > 0 else "costs" if high < 0 else "level",
    }
