"""Whether a candidate is promoted, from reports written by hand."""

import copy
from typing import Any

import pytest

from twotower.errors import RecipeError
from twotower.evaluation.config import EvaluateConfig, GateConfig
from twotower.evaluation.gate import Verdict, gate, gate_card, refuse_bad_gate

EXACT = {"kind": "exact", "items": 200}


def difference(minus: str, value: float, low: float, high: float, *, metric: str = "ndcg@10") -> dict[str, Any]:
    return {"metric": metric, "of": "two_stage", "minus": minus, "value": value, "interval": [low, high]}


def report(*differences: dict[str, Any], champion: bool = False) -> dict[str, Any]:
    """NDCG@10 of .05 in all, .04 on warm users; no query of cold items."""
    segments = {"warm users": {"ndcg@10": 0.04}, "cold users": {"ndcg@10": 0.01}, "cold items": None}
    contenders = {"two_stage": {"metrics": {"ndcg@10": 0.05}, "segments": segments}, "popularity": {}}
    return {
        "main_protocol": "successive",
        "lead_metrics": ["ndcg@10", "recall@100"],
        "protocols": {
            "successive": {
                "contenders": contenders | ({"champion": {}} if champion else {}),
                "differences": list(differences),
            },
            # Another protocol, in which everything is the other way round, decides nothing.
            "static": {"contenders": {}, "differences": [difference("popularity", -1.0, -1.0, -1.0)]},
        },
    }


WINS = difference("popularity", 0.03, 0.01, 0.05)


def judged(config: GateConfig, *differences: dict[str, Any], champion: bool = False, **index: Any) -> Verdict:
    return gate(config, report=report(*differences, champion=champion), index=index or EXACT)


def test_a_candidate_above_the_baseline_by_its_whole_interval_is_promoted() -> None:
    verdict = judged(GateConfig(), WINS)
    assert verdict.promoted
    assert verdict.reason == "Promoted: all 2 checks passed."
    assert [(check.rule, check.found) for check in verdict.checks] == [
        ("NDCG@10 beats Popularity, beyond the 95% interval", "+0.0300 (+0.0100 to +0.0500)"),
        ("the index finds 95% of the exact best 100", "the index is exact"),
    ]


@pytest.mark.parametrize(
    ("value", "low", "high"), [(0.03, 0.0, 0.06), (0.03, -0.001, 0.06), (-0.01, -0.02, -0.001), (0.0, 0.0, 0.0)]
)
def test_an_interval_that_reaches_nought_is_no_win(value: float, low: float, high: float) -> None:
    verdict = judged(GateConfig(), difference("popularity", value, low, high))
    assert not verdict.promoted
    assert verdict.reason == (
        f"Refused: NDCG@10 beats Popularity, beyond the 95% interval: {value:+.4f} ({low:+.4f} to {high:+.4f})."
    )


@pytest.mark.parametrize(
    ("margin", "promoted"), [(0.0, True), (0.009, True), (0.01, False), (0.02, False), (-0.5, True)]
)
def test_the_margin_moves_the_bar(margin: float, promoted: bool) -> None:
    assert judged(GateConfig(margin=margin), WINS).promoted is promoted


def test_below_nought_the_margin_lets_a_little_loss_pass() -> None:
    little = difference("popularity", -0.001, -0.004, 0.002)
    assert judged(GateConfig(margin=-0.005), little).promoted
    assert not judged(GateConfig(margin=-0.003), little).promoted
    assert "by more than -0.003" in judged(GateConfig(margin=-0.003), little).reason


def test_every_baseline_named_has_to_be_beaten() -> None:
    config = GateConfig(baselines=("popularity", "ease"))
    verdict = judged(config, WINS, difference("ease", -0.02, -0.03, -0.01))
    assert [check.passed for check in verdict.checks] == [True, False, True]
    assert verdict.reason == "Refused: NDCG@10 beats EASE, beyond the 95% interval: -0.0200 (-0.0300 to -0.0100)."


def test_the_champion_has_to_be_beaten_as_well() -> None:
    better, worse = difference("champion", 0.01, 0.002, 0.02), difference("champion", 0.01, -0.002, 0.02)
    assert judged(GateConfig(), WINS, better, champion=True).promoted
    verdict = judged(GateConfig(), WINS, worse, champion=True)
    assert verdict.reason.startswith("Refused: NDCG@10 beats Champion (answers now), beyond the 95% interval")
    assert judged(GateConfig(champion=False), WINS, worse, champion=True).promoted


def test_without_a_champion_there_is_none_to_beat() -> None:
    assert len(judged(GateConfig(), WINS).checks) == 2


def test_the_rows_of_other_metrics_and_contenders_decide_nothing() -> None:
    others = (
        difference("popularity", -1.0, -1.0, -1.0, metric="recall@100"),
        difference("popularity", -1.0, -1.0, -1.0) | {"of": "retrieval"},
    )
    assert judged(GateConfig(), *others, WINS).promoted
    recall = difference("popularity", 0.3, 0.2, 0.4, metric="recall@100")
    verdict = judged(GateConfig(metric="recall@100"), difference("popularity", -1.0, -1.0, -1.0), recall)
    assert verdict.checks[0].rule == "Recall@100 beats Popularity, beyond the 95% interval"
    assert verdict.promoted


@pytest.mark.parametrize(("floor", "passed"), [(0.03, True), (0.04, True), (0.041, False)])
def test_a_floor_holds_for_its_segment(floor: float, passed: bool) -> None:
    verdict = judged(GateConfig(floors={"warm users": floor}), WINS)
    assert [check.passed for check in verdict.checks] == [True, passed, True]
    assert verdict.checks[1].rule == f"NDCG@10 of warm users is at least {floor:g}"
    assert verdict.checks[1].found == "0.0400"


def test_a_floor_under_a_segment_that_nobody_asked_for_says_so_and_holds() -> None:
    verdict = judged(GateConfig(floors={"cold items": 0.5}), WINS)
    assert verdict.checks[1].found == "no query of this segment, so nothing to judge"
    assert verdict.promoted


def test_a_floor_under_a_segment_that_does_not_exist_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"no segment 'warm user'; there are warm users, cold users, cold items\."):
        judged(GateConfig(floors={"warm user": 0.1}), WINS)


@pytest.mark.parametrize(("recall", "passed"), [(0.95, True), (0.9499, False), (1.0, True)])
def test_an_approximate_index_has_to_find_what_the_exact_one_does(recall: float, passed: bool) -> None:
    verdict = judged(GateConfig(), WINS, kind="hnsw", recall={"10": 0.0, "100": recall})
    assert verdict.promoted is passed
    assert verdict.checks[-1].found == f"{100 * recall:.1f}%"


def test_an_exact_index_needs_no_recall_even_where_the_other_was_measured() -> None:
    assert judged(GateConfig(), WINS, kind="exact", recall={"10": 0.0, "100": 0.0}).promoted


def test_an_approximate_index_that_was_not_measured_is_not_trusted() -> None:
    verdict = judged(GateConfig(), WINS, kind="hnsw", items=9)
    assert verdict.reason == "Refused: the index finds 95% of the exact best 100: not measured: no test query."


def test_every_reason_for_a_refusal_is_told() -> None:
    config = GateConfig(floors={"cold users": 0.02})
    loses = difference("popularity", -0.1, -0.2, -0.05)
    verdict = judged(config, loses, kind="hnsw", recall={"100": 0.5})
    assert verdict.reason.count(";") == 2
    assert "cold users is at least 0.02: 0.0100" in verdict.reason
    assert "best 100: 50.0%" in verdict.reason


@pytest.mark.parametrize("metric", ["ndcg@20", "accuracy", "recall@10"])
def test_a_metric_that_does_not_lead_the_report_is_refused_beforehand(metric: str) -> None:
    with pytest.raises(RecipeError, match=r"gate\.metric = .*: the report leads with ndcg@10, recall@100, hit_rate@10"):
        refuse_bad_gate(GateConfig(metric=metric), EvaluateConfig())


def test_what_the_gate_would_miss_in_the_report_is_told_beforehand() -> None:
    refuse_bad_gate(GateConfig(), EvaluateConfig())
    refuse_bad_gate(GateConfig(metric="recall@20"), EvaluateConfig(ks=(5, 20)))
    refuse_bad_gate(GateConfig(metric="ndcg@5"), EvaluateConfig(ks=(5, 20)))
    with pytest.raises(RecipeError, match=r"'ease' is not evaluated\. Add it to evaluate\.baselines\."):
        refuse_bad_gate(GateConfig(baselines=("popularity", "ease")), EvaluateConfig(baselines=("popularity",)))
    with pytest.raises(RecipeError, match=r"evaluate\.bootstrap = 0 gives no intervals to judge by"):
        refuse_bad_gate(GateConfig(), EvaluateConfig(bootstrap=0))


def test_a_baseline_that_was_left_out_of_the_report_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"the report has no 'ease', which was left out of it; its notes say why"):
        judged(GateConfig(baselines=("ease",)), WINS)


def test_a_model_that_was_withdrawn_does_not_come_back_by_itself() -> None:
    verdict = gate(GateConfig(), report=report(WINS), index=EXACT, withdrawn="films-1")
    assert verdict.reason == (
        "Refused: this model was not withdrawn: films-1 was rolled back; `twotower deploy` brings it back."
    )


def test_a_report_without_intervals_cannot_promote() -> None:
    without = copy.deepcopy(WINS)
    del without["interval"]
    with pytest.raises(RecipeError, match=r"the report has no intervals\. Set evaluate\.bootstrap above 0"):
        judged(GateConfig(), without)


def test_the_card_says_what_was_decided_against_whom_and_why() -> None:
    card = gate_card(judged(GateConfig(), WINS), name="films", champion="")
    assert card.splitlines()[0] == "# Promoted: films"
    assert "Nothing is deployed yet." in card
    assert "| passed | NDCG@10 beats Popularity, beyond the 95% interval | +0.0300 (+0.0100 to +0.0500) |" in card
    refused = gate_card(judged(GateConfig(margin=0.5), WINS), name="films", champion="films-0123456789ab")
    assert refused.splitlines()[0] == "# Refused: films"
    assert "held against: `films-0123456789ab`" in refused
    assert "| **failed** | NDCG@10 beats Popularity by more than 0.5" in refused
    assert "Nothing that is deployed was changed." in refused
