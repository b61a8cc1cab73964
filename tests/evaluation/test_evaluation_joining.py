"""What joining gains or costs: paired differences between the joint model and models of one task each."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from twotower.data.split import SplitDataset, load_split
from twotower.evaluation import baselines
from twotower.evaluation.config import EvaluateConfig
from twotower.evaluation.contenders import Oracle
from twotower.evaluation.evaluate import evaluate
from twotower.evaluation.joining import Alone, joining
from twotower.evaluation.labels import evaluate_labels
from twotower.evaluation.names import TRAINED_ALONE
from twotower.evaluation.queries import Queries
from twotower.evaluation.report import MINUS, protocol_table, render_page, write_report
from twotower.model.calibrated import Calibration

CONFIG = EvaluateConfig(candidates=30, bootstrap=200, ks=(10, 50), baselines=("popularity",), examples=0)
Make = Callable[..., SplitDataset]


class Retriever:
    """Retrieves by popularity or, given an oracle, by the true chances; predicts one rating for all."""

    name = "model"
    label_kinds: ClassVar[dict[str, str]] = {"rating": "regression"}

    def __init__(self, dataset: SplitDataset, *, oracle: Oracle | None = None, rating: float = 3.5) -> None:
        self.by: Any = oracle or baselines.Popularity(counts=baselines.train_popularity(dataset))
        self.rating = rating

    def score(self, queries: Queries) -> np.ndarray:
        return np.asarray(self.by.score(queries))

    def rank(self, queries: Queries, candidates: np.ndarray) -> np.ndarray:
        return np.take_along_axis(self.score(queries), candidates, axis=1)

    def predict(self, queries: Queries, item: np.ndarray) -> dict[str, np.ndarray]:
        return {"rating": np.full(len(item), self.rating, np.float32)}


@pytest.fixture(scope="module")
def dataset(tiny_split: Path) -> SplitDataset:
    return load_split(tiny_split)


@pytest.fixture(scope="module")
def weak(dataset: SplitDataset) -> Retriever:
    return Retriever(dataset)


@pytest.fixture(scope="module")
def strong(dataset: SplitDataset) -> Retriever:
    return Retriever(dataset, oracle=Oracle.of(dataset), rating=3.0)


@pytest.fixture(scope="module")
def plain(dataset: SplitDataset, weak: Retriever) -> dict[str, Any]:
    """The report of the weak one, with nothing beside it."""
    return evaluate(CONFIG, dataset=dataset, model=weak, seed=1)


@pytest.fixture(scope="module")
def beaten(dataset: SplitDataset, weak: Retriever, strong: Retriever) -> dict[str, Any]:
    """The report of the weak one, beside the strong one as both single models."""
    alone = {"retrieval": Alone(model=strong), "rating": Alone(model=strong)}
    return evaluate(CONFIG, dataset=dataset, model=weak, alone=alone, seed=1)


def rows(report: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["task"], row["metric"]): row for row in report["joining"]["rows"]}


def test_a_model_beside_itself_differs_by_exactly_nothing(dataset: SplitDataset, weak: Retriever) -> None:
    alone = {"retrieval": Alone(model=weak), "rating": Alone(model=weak)}
    found = rows(evaluate(CONFIG, dataset=dataset, model=weak, alone=alone, seed=1))
    assert len(found) == 5, "four metrics lead, and one is the label's"
    for row in found.values():
        assert (row["difference"], row["interval"], row["joining"]) == (0, [0, 0], "level")
        assert row["joint"] == row["alone"]


def test_figures_belong_to_the_model_that_they_stand_under(
    dataset: SplitDataset, plain: dict[str, Any], beaten: dict[str, Any], strong: Retriever
) -> None:
    by_itself = evaluate(CONFIG, dataset=dataset, model=strong, seed=1)
    for name, protocol in beaten["protocols"].items():
        other = by_itself["protocols"][name]["contenders"]["retrieval"]
        assert protocol["contenders"][TRAINED_ALONE]["metrics"] == other["metrics"]
        assert protocol["contenders"][TRAINED_ALONE]["segments"] == other["segments"]
    beside = beaten["labels"]["rating"]["trained_alone"]
    assert beside["metrics"] == by_itself["labels"]["rating"]["metrics"]
    found = rows(beaten)
    ndcg = found["retrieval", "ndcg@10"]
    assert ndcg["joint"] == plain["headline"]["retrieval_ndcg"]
    assert ndcg["alone"] == by_itself["headline"]["retrieval_ndcg"]
    assert ndcg["difference"] == ndcg["joint"] - ndcg["alone"]
    assert ndcg["interval"][0] < ndcg["difference"] < ndcg["interval"][1] < 0
    assert ndcg["joining"] == "costs"
    rmse = found["rating", "rmse"]
    assert rmse["joint"] == plain["labels"]["rating"]["metrics"]["rmse"]
    assert rmse["alone"] == by_itself["labels"]["rating"]["metrics"]["rmse"]
    assert rmse["interval"][0] < rmse["difference"] < rmse["interval"][1]


def test_a_single_model_is_no_baseline_and_changes_no_other_figure(
    plain: dict[str, Any], beaten: dict[str, Any]
) -> None:
    for name, before in plain["protocols"].items():
        after = beaten["protocols"][name]
        assert after["best_baseline"] == before["best_baseline"] == dict.fromkeys(plain["lead_metrics"], "popularity")
        assert {name: after["contenders"][name] for name in before["contenders"]} == before["contenders"]
        assert [row for row in after["differences"] if row["minus"] != TRAINED_ALONE] == before["differences"]
        assert TRAINED_ALONE not in before["contenders"]
    assert beaten["headline"] == plain["headline"]
    assert "trained_alone" not in plain["labels"]["rating"]


ROWS = [(0, 0, 1, 0), (1, 1, 2, 0), (0, 1, 5, 2), (1, 0, 6, 2), (2, 2, 7, 2)]


class Says:
    """Predicts what it is told to, by item."""

    name = "says"

    def __init__(self, label: str, kind: str, by_item: list[float]) -> None:
        self.label_kinds = {label: kind}
        self.label, self.by_item = label, np.array(by_item, np.float32)

    def score(self, queries: Queries) -> np.ndarray:
        return np.zeros((len(queries), 3), np.float32)

    def rank(self, queries: Queries, candidates: np.ndarray) -> np.ndarray:
        return np.zeros(candidates.shape, np.float32)

    def predict(self, queries: Queries, item: np.ndarray) -> dict[str, np.ndarray]:
        return {self.label: self.by_item[item]}


def test_errors_of_both_are_told_and_compared_on_the_rows_that_both_predict(make_dataset: Make) -> None:
    dataset = make_dataset(ROWS, users=3, items=3, rating=[4, 2, 5, 3, 1])
    # Test rows: item 1 rated 5, item 0 rated 3, item 2 rated 1. The joint model is off by 1, 1, 3; the other predicts
    # nothing of item 2, and tells one more than it predicts: off by 2 and 0.
    joint = Says("rating", "regression", [4.0, 4.0, 4.0])
    told = {"rating": Calibration(predicted=(0.0, 9.0), told=(1.0, 10.0))}
    alone = Alone(model=Says("rating", "regression", [2.0, 2.0, np.nan]), calibration=told)
    found = evaluate_labels(joint, dataset, max_rows=0, resamples=50, seed=1, alone={"rating": alone})["rating"]
    beside = found["trained_alone"]
    assert found["metrics"] == pytest.approx({"rmse": np.sqrt(11 / 3), "mae": 5 / 3})
    assert beside["joint"] == {"rmse": 1.0, "mae": 1.0}
    assert beside["metrics"] == pytest.approx({"rmse": np.sqrt(2.0), "mae": 1.0})
    assert beside["nan_predictions"] == 1
    assert beside["difference"]["metric"] == "rmse"
    assert beside["difference"]["value"] == pytest.approx(1 - np.sqrt(2.0))
    # Two users: resamples hold one of them, the other, or both.
    assert beside["difference"]["interval"] == pytest.approx([-1.0, 1.0])
    (row,) = joining({"differences": []}, {"rating": found})
    assert (row["joint"], row["alone"]) == pytest.approx((1.0, np.sqrt(2.0)))
    assert row["difference"] == row["joint"] - row["alone"]


def test_a_binary_label_is_compared_by_its_log_loss(make_dataset: Make) -> None:
    dataset = make_dataset(ROWS, users=3, items=3, rating=[1, 0, 1, 0, 1])
    joint, alone = (Says("rating", "binary", [chance] * 3) for chance in (0.5, 0.8))
    found = evaluate_labels(joint, dataset, max_rows=0, resamples=0, seed=1, alone={"rating": Alone(model=alone)})
    beside = found["rating"]["trained_alone"]
    # Two of three rows are 1.
    assert beside["metrics"]["log_loss"] == pytest.approx(-(2 * np.log(0.8) + np.log(0.2)) / 3)
    assert beside["difference"]["value"] == pytest.approx(np.log(2) - beside["metrics"]["log_loss"])
    (row,) = joining({"differences": []}, found)
    assert (row["task"], row["metric"], row["joint"]) == ("rating", "log_loss", pytest.approx(np.log(2)))
    assert "joining" not in row, "without an interval nothing can be said"


def test_a_model_that_predicts_nothing_is_compared_with_nothing(make_dataset: Make) -> None:
    dataset = make_dataset(ROWS, users=3, items=3, rating=[4, 2, 5, 3, 1])
    joint, mute = (Says("rating", "regression", [value] * 3) for value in (3.0, float("nan")))
    found = evaluate_labels(joint, dataset, max_rows=0, resamples=9, seed=1, alone={"rating": Alone(model=mute)})
    assert found["rating"]["trained_alone"] == {"nan_predictions": 3}
    assert joining({"differences": []}, found) == []


@pytest.mark.parametrize(
    ("metric", "interval", "verdict"),
    [
        ("ndcg@10", [0.01, 0.02], "gains"),
        ("ndcg@10", [-0.02, -0.01], "costs"),
        ("ndcg@10", [-0.01, 0.02], "level"),
        ("ndcg@10", [0.0, 0.02], "level"),
        # An error is the better the smaller it is.
        ("rmse", [-0.02, -0.01], "gains"),
        ("rmse", [0.01, 0.02], "costs"),
        ("log_loss", [-0.02, -0.01], "gains"),
        ("log_loss", [-0.01, 0.02], "level"),
    ],
)
def test_a_gain_is_a_difference_beyond_its_interval_on_the_better_side(
    metric: str, interval: list[float], verdict: str
) -> None:
    difference = {"metric": metric, "value": 0.0, "interval": interval}
    beside = {"metrics": {metric: 1.0}, "joint": {metric: 1.0}, "difference": difference}
    (row,) = joining({"differences": []}, {"some": {"trained_alone": beside}})
    assert row["joining"] == verdict


def test_a_single_model_is_shown_as_another_model_and_not_as_a_baseline(beaten: dict[str, Any]) -> None:
    rows = protocol_table(beaten, beaten["main_protocol"])["rows"]
    kinds = {row["name"]: row["kind"] for row in rows}
    assert (kinds[TRAINED_ALONE], kinds["popularity"], kinds["retrieval"]) == ("other model", "baseline", "model")
    page = render_page(beaten)
    assert '<tr class="other-model">' in page
    drawn = json.loads(page.partition('id="charts">')[2].partition("</script>")[0])
    colour = drawn["contenders"]["layer"][0]["encoding"]["color"]["scale"]
    assert len(set(colour["range"])) == len(colour["range"])
    assert set(colour["domain"]) == {row["title"] for row in rows if row["kind"] != "ceiling"}


def test_a_reader_finds_what_joining_gains_or_costs(
    beaten: dict[str, Any], plain: dict[str, Any], tmp_path: Path
) -> None:
    told = json.loads(json.dumps(beaten))
    told["joining"]["notes"] = ["joint: epoch 2 of 3, <b>."]
    told["joining"]["rows"][-1] |= {"joint": 0.9, "alone": 0.95, "difference": -0.05, "interval": [-0.07, -0.03]}
    told["joining"]["rows"][-1]["joining"] = "gains"
    write_report(told, tmp_path)
    page = re.sub(r"\s*\n\s*", "", (tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "What joining gains or costs" in page
    assert "the joint one by <code>train.metric</code>" in page
    assert (
        '<th scope="row">rating</th><td>RMSE</td><td class="n">0.9000</td><td class="n">0.9500</td>'
        f'<td class="n">{MINUS}0.0500</td><td class="n">{MINUS}0.0700 to {MINUS}0.0300</td><td>gains</td>'
    ) in page
    assert "joint: epoch 2 of 3, &lt;b&gt;." in page
    assert '<th scope="row">Retrieval, trained alone</th>' in page
    assert '<th scope="row">Trained alone</th><td class="n">' in page
    # It is about joining, not about what a stage adds.
    stages = page[page.index("What each stage adds") : page.index("For whom, and for what")]
    assert "Retrieval: minus the best baseline, Retrieval, trained alone" not in stages
    card = (tmp_path / "card.md").read_text(encoding="utf-8")
    assert f"| rating | RMSE | 0.9000 | 0.9500 | {MINUS}0.0500 | {MINUS}0.0700 to {MINUS}0.0300 | gains |" in card
    assert "| rating: trained alone |" in card
    write_report(plain, tmp_path)
    for name in ("report.html", "card.md", "report.json"):
        assert "oining" not in (tmp_path / name).read_text(encoding="utf-8")
