"""A champion beside the candidate: the same queries, the same candidates, the same resamples."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from twotower.data.split import SplitDataset, load_split
from twotower.evaluation import baselines
from twotower.evaluation.config import EvaluateConfig, GateConfig
from twotower.evaluation.contenders import Oracle
from twotower.evaluation.evaluate import evaluate
from twotower.evaluation.gate import gate
from twotower.evaluation.queries import Queries
from twotower.evaluation.report import write_report

CONFIG = EvaluateConfig(candidates=30, bootstrap=200, ks=(10, 50), baselines=("popularity",), examples=0)


class ByPopularity:
    """Retrieves by popularity, and ranks by it or, given an oracle, by the true chances."""

    name = "model"
    label_kinds: ClassVar[dict[str, str]] = {}

    def __init__(self, dataset: SplitDataset, *, oracle: Oracle | None = None) -> None:
        self.popularity = baselines.Popularity(counts=baselines.train_popularity(dataset))
        self.oracle = oracle

    def score(self, queries: Queries) -> np.ndarray:
        return self.popularity.score(queries)

    def rank(self, queries: Queries, candidates: np.ndarray) -> np.ndarray:
        scores = self.popularity.score(queries) if self.oracle is None else self.oracle.score(queries)
        return np.take_along_axis(scores, candidates, axis=1)

    def predict(self, queries: Queries, item: np.ndarray) -> dict[str, np.ndarray]:
        return {}


@pytest.fixture(scope="module")
def dataset(tiny_split: Path) -> SplitDataset:
    return load_split(tiny_split)


@pytest.fixture(scope="module")
def weak(dataset: SplitDataset) -> ByPopularity:
    return ByPopularity(dataset)


@pytest.fixture(scope="module")
def strong(dataset: SplitDataset) -> ByPopularity:
    return ByPopularity(dataset, oracle=Oracle.of(dataset))


def against(report: dict[str, Any], minus: str, metric: str = "ndcg@10") -> dict[str, Any]:
    rows = report["protocols"][report["main_protocol"]]["differences"]
    found: dict[str, Any]
    (found,) = [row for row in rows if (row["of"], row["minus"], row["metric"]) == ("two_stage", minus, metric)]
    return found


def test_a_model_against_itself_differs_by_exactly_nothing(dataset: SplitDataset, strong: ByPopularity) -> None:
    report = evaluate(CONFIG, dataset=dataset, model=strong, champion=strong, seed=1)
    for metric in report["lead_metrics"]:
        row = against(report, "champion", metric)
        assert row["value"] == 0
        assert list(row["interval"]) == [0, 0]
    for protocol in report["protocols"].values():
        contenders = protocol["contenders"]
        assert contenders["champion"]["metrics"] == contenders["two_stage"]["metrics"]
        assert contenders["champion"]["segments"] == contenders["two_stage"]["segments"]
    verdict = gate(GateConfig(), report=report, index={"kind": "exact"})
    assert [check.passed for check in verdict.checks] == [True, False, True]


def test_a_champion_is_no_baseline_and_changes_no_other_figure(
    dataset: SplitDataset, weak: ByPopularity, strong: ByPopularity
) -> None:
    alone = evaluate(CONFIG, dataset=dataset, model=weak, seed=1)
    beside = evaluate(CONFIG, dataset=dataset, model=weak, champion=strong, seed=1)
    main, other = (one["protocols"]["successive"] for one in (alone, beside))
    assert other["best_baseline"] == main["best_baseline"] == dict.fromkeys(alone["lead_metrics"], "popularity")
    assert {name: other["contenders"][name] for name in main["contenders"]} == main["contenders"]
    assert "champion" not in main["contenders"]
    assert against(beside, "popularity") == against(alone, "popularity")
    assert beside["headline"] == alone["headline"]


def test_the_better_one_wins_from_either_side(
    dataset: SplitDataset, weak: ByPopularity, strong: ByPopularity, tmp_path: Path
) -> None:
    won = evaluate(CONFIG, dataset=dataset, model=strong, champion=weak, seed=1)
    lost = evaluate(CONFIG, dataset=dataset, model=weak, champion=strong, seed=1)
    assert against(won, "champion")["value"] == pytest.approx(-against(lost, "champion")["value"])
    assert gate(GateConfig(), report=won, index={"kind": "exact"}).promoted
    assert "Champion (answers now)" in gate(GateConfig(), report=lost, index={"kind": "exact"}).reason
    write_report(won, tmp_path)
    assert "Champion (answers now)" in (tmp_path / "card.md").read_text(encoding="utf-8")
