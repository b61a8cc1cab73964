"""What `time-to-quality` makes of two curves, worked by hand."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("scale.time_to_quality")
    for name in ("scale", "scale.time_to_quality"):
        sys.modules.pop(name, None)


def curve(*entries: tuple[float, float, float, float]) -> list[dict[str, float]]:
    return [
        {"trained": trained, "evaluated": evaluated, "top100": top100, "rmse": rmse}
        for trained, evaluated, top100, rmse in entries
    ]


# Epochs of 10 s, evaluations of 20 s, 5 s to begin. The best accuracy comes first, the best error second.
THEIRS = curve((15, 35, 0.20, 1.1), (45, 65, 0.18, 0.9), (75, 95, 0.17, 0.95))


def test_an_evaluation_counts_on_one_clock_only(module: Any) -> None:
    assert module.without_evaluation(THEIRS) == [15, 25, 35]
    assert module.with_evaluation(THEIRS) == [35, 65, 95]


def test_tfrs_is_there_when_it_has_had_both_and_the_slowest_of_ours_when_one_epoch_has(module: Any) -> None:
    first = curve((2, 3, 0.21, 1.0), (4, 5, 0.22, 0.9))  # Both marks at the second epoch: 3 s, 5 s with evaluation.
    second = curve((4, 5, 0.21, 0.8))
    found = module.compare(THEIRS, [first, second])
    assert found["marks"] == {"top100": 0.20, "rmse": 0.9}
    assert (found["tfrs_epoch"], found["our_epochs"]) == (2, [2, 1])
    assert found["ratio_seconds"] == {"tfrs": 25, "ours": [3, 4]}
    assert found["ratio"] == 25 / 4
    assert found["ratio_with_evaluation"] == 65 / 5


def test_a_figure_of_its_own_counts_where_it_is_better(module: Any) -> None:
    theirs = [THEIRS[0] | {"own_top100": 0.25, "own_rmse": 1.2}]
    assert module.compare(theirs, [THEIRS])["marks"] == {"top100": 0.25, "rmse": 1.1}


def test_whoever_never_has_both_at_once_is_not_sooner(module: Any) -> None:
    found = module.compare(THEIRS, [curve((1, 2, 0.3, 1.0), (2, 3, 0.1, 0.8))])
    assert (found["our_epochs"], found["ratio"], found["ratio_with_evaluation"]) == ([None], 0.0, 0.0)
