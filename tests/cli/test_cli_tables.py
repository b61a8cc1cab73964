"""Results on the screen."""

from typing import Any

import pytest

from twotower.cli.tables import print_recommendation, print_report, print_similar
from twotower.serving.answers.results import Recommendation, RecommendedItem, SimilarItem, SimilarItems

METRICS = ("ndcg@10", "recall@100")


def contender(ndcg: float, recall: float) -> dict[str, Any]:
    return {"metrics": dict(zip(METRICS, (ndcg, recall), strict=True))}


REPORT: dict[str, Any] = {
    "main_protocol": "successive",
    "lead_metrics": list(METRICS),
    "data": {"items": 2000},
    "headline": {
        "ndcg": "ndcg@10",
        "two_stage_ndcg": 0.06,
        "best_baseline_ndcg": {"name": "popularity", "value": 0.02},
    },
    "protocols": {
        "successive": {
            "queries": 500,
            "contenders": {
                "retrieval": contender(0.05, 0.3),
                "two_stage": contender(0.06, 0.3),
                "popularity": contender(0.02, 0.2),
            },
            "intervals": {"two_stage": {"ndcg@10": [0.055, 0.065]}},
            "differences": [
                {"metric": "ndcg@10", "of": "two_stage", "minus": "popularity", "value": 0.04, "interval": [0.03, 0.05]}
            ],
        }
    },
}


def test_a_report_is_a_table_of_contenders_best_first_and_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(REPORT)
    text = capsys.readouterr().out
    places = [text.index(name) for name in ("Model, both stages", "Model, retrieval alone", "Popularity  ")]
    assert places == sorted(places)
    assert "0.0600   0.0550-0.0650" in text
    assert "The model beats the best baseline, Popularity: NDCG@10 0.0600 against 0.0200, +200%" in text


def test_an_answer_shows_both_stages_and_every_label(capsys: pytest.CaptureFixture[str]) -> None:
    item = RecommendedItem(
        item_id="17",
        title="Alien [1979]",
        rank=1,
        score=2.5,
        retrieval_rank=4,
        retrieval_score=0.75,
        labels={"rating": 4.25},
    )
    answer = Recommendation(user_id="42", items=(item,), fallback=None, notes=(), bundle="films")
    print_recommendation(answer, title="Recommendations for user 42")
    heading, _, row = (line for line in capsys.readouterr().out.splitlines()[1:] if line.strip())
    assert heading.split() == ["rank", "item", "title", "score", "retrieval", "rank", "retrieval", "score", "rating"]
    assert row.split() == ["1", "17", "Alien", "[1979]", "2.500", "4", "0.750", "4.250"]


def test_a_fallback_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    item = RecommendedItem(item_id="1", title=None, rank=1, score=9.0, retrieval_rank=None, retrieval_score=None)
    answer = Recommendation(user_id=None, items=(item,), fallback="popular", notes=(), bundle="films")
    print_recommendation(answer, title="Recommendations for anybody")
    assert "Recommendations for anybody (fallback: popular)" in capsys.readouterr().out


def test_neighbours_show_their_cosine(capsys: pytest.CaptureFixture[str]) -> None:
    near = SimilarItem(item_id="3", title="Aliens", rank=1, score=0.875)
    print_similar(SimilarItems(item_id="2", title="Alien", items=(near,), bundle="films"))
    text = capsys.readouterr().out
    assert "Similar to Alien" in text
    assert text.splitlines()[-2].split() == ["1", "3", "Aliens", "0.875"]
