"""A prediction read as a yes or no: the curve and the table, worked by hand, and laws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from twotower.evaluation import metrics

Case = tuple[NDArray[np.float64], NDArray[np.float64]]

SCORE = np.array([0.9, 0.8, 0.7, 0.6, 0.55])
ACTUAL = np.array([1.0, 1.0, 0.0, 1.0, 0.0])


def test_the_curve_climbs_by_thirds_and_halves() -> None:
    # Three yes, two no. From the strictest threshold: yes, yes, no, yes, no.
    curve = metrics.roc(SCORE, ACTUAL)
    assert curve["threshold"] == [0.9, 0.8, 0.7, 0.6, 0.55]
    assert curve["true_positive_rate"] == pytest.approx([1 / 3, 2 / 3, 2 / 3, 1, 1])
    assert curve["false_positive_rate"] == [0, 0, 0.5, 0.5, 1]


def test_equal_scores_are_one_point() -> None:
    curve = metrics.roc(np.array([0.5, 0.5, 0.5, 0.1]), np.array([1.0, 0.0, 1.0, 0.0]))
    assert curve == {"threshold": [0.5, 0.1], "false_positive_rate": [0.5, 1.0], "true_positive_rate": [1.0, 1.0]}


@pytest.mark.parametrize("actual", [np.zeros(5), np.ones(5)])
def test_where_all_labels_are_equal_there_is_no_curve(actual: NDArray[np.float64]) -> None:
    assert metrics.roc(SCORE, actual) == {"threshold": [], "false_positive_rate": [], "true_positive_rate": []}


def test_a_score_that_is_no_number_gives_no_curve() -> None:
    assert metrics.roc(np.array([np.nan, 0.1]), np.array([1.0, 0.0]))["threshold"] == []


def test_the_table_counts_each_kind_of_right_and_wrong() -> None:
    # At .7 and above it says yes: of the no, .7 is said yes and .55 is not; of the yes, .6 is missed.
    assert metrics.confusion(SCORE, ACTUAL, threshold=0.7) == [[1, 1], [1, 2]]
    assert metrics.confusion(SCORE, ACTUAL, threshold=2.0) == [[2, 0], [3, 0]]
    assert metrics.confusion(SCORE, ACTUAL, threshold=0.0) == [[0, 2], [0, 3]]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    # Few distinct scores, so that ties come often.
    rows = draw(st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=2, max_size=60))
    score, actual = zip(*rows, strict=True)
    return np.array(score) / 20, np.array(actual, np.float64)


@given(cases(), st.integers(1, 12))
def test_the_curve_never_falls_and_ends_where_everything_is_said_yes(case: Case, points: int) -> None:
    curve = metrics.roc(*case, points=points)
    if 0 < case[1].sum() < len(case[1]):
        assert len(curve["threshold"]) <= points
        assert (np.diff(curve["threshold"]) < 0).all()
        for rate in ("false_positive_rate", "true_positive_rate"):
            assert (np.diff(curve[rate]) >= 0).all()
            assert 0 <= curve[rate][0] <= curve[rate][-1] <= 1
        if points > 1:
            assert curve["threshold"][0] == case[0].max()
            assert (curve["false_positive_rate"][-1], curve["true_positive_rate"][-1]) == (1, 1)


@given(cases())
def test_the_area_below_the_whole_curve_is_the_auc(case: Case) -> None:
    curve = metrics.roc(*case, points=1_000)
    if curve["threshold"]:
        x, y = (np.array([0, *curve[rate]]) for rate in ("false_positive_rate", "true_positive_rate"))
        area = float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum())
        assert area == pytest.approx(metrics.auc(*case), abs=1e-12)


@given(cases(), st.integers(0, 20))
def test_the_table_and_the_curve_agree_at_every_threshold(case: Case, place: int) -> None:
    curve = metrics.roc(*case, points=1_000)
    if curve["threshold"]:
        place %= len(curve["threshold"])
        (right_no, false_yes), (missed, right_yes) = metrics.confusion(*case, threshold=curve["threshold"][place])
        assert right_no + false_yes + missed + right_yes == len(case[0])
        assert curve["true_positive_rate"][place] == pytest.approx(right_yes / (right_yes + missed))
        assert curve["false_positive_rate"][place] == pytest.approx(false_yes / (false_yes + right_no))
