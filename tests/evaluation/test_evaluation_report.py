"""The whole report, in a simulated world whose best ranking is known."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from twotower.data.split import SplitDataset, load_split
from twotower.errors import DataError
from twotower.evaluation import baselines
from twotower.evaluation.contenders import Oracle
from twotower.evaluation.evaluate import EvaluateConfig, evaluate
from twotower.evaluation.queries import Queries
from twotower.evaluation.report import headline_sentence, write_report

Make = Callable[..., SplitDataset]


class Stages:
    """Retrieves by popularity and ranks by the true chances: the ranking stage cannot be better."""

    name = "model"
    label_kinds: ClassVar[dict[str, str]] = {"rating": "regression"}

    def __init__(self, dataset: SplitDataset) -> None:
        self.popularity = baselines.Popularity(counts=baselines.train_popularity(dataset))
        oracle = Oracle.of(dataset)
        assert oracle is not None
        self.oracle = oracle

    def score(self, queries: Queries) -> np.ndarray:
        return self.popularity.score(queries)

    def rank(self, queries: Queries, candidates: np.ndarray) -> np.ndarray:
        return np.take_along_axis(self.oracle.score(queries), candidates, axis=1)

    def predict(self, queries: Queries, item: np.ndarray) -> dict[str, np.ndarray]:
        return {"rating": np.full(len(item), 3.5, np.float32)}


@pytest.fixture(scope="module")
def dataset(tiny_split: Path) -> SplitDataset:
    return load_split(tiny_split)


@pytest.fixture(scope="module")
def report(dataset: SplitDataset) -> dict[str, Any]:
    config = EvaluateConfig(candidates=30, bootstrap=200, ks=(1, 10, 50))
    return evaluate(config, dataset=dataset, model=Stages(dataset), seed=1)


def ndcg(report: dict[str, Any], name: str, protocol: str = "successive") -> float:
    value: float = report["protocols"][protocol]["contenders"][name]["metrics"]["ndcg@10"]
    return value


def test_every_contender_is_in_every_protocol(report: dict[str, Any]) -> None:
    baselines = {"popularity", "recent_popularity", "item_knn", "ease", "ials", "markov"}
    expected = {"retrieval", "two_stage", "ceiling", "oracle"} | baselines
    assert list(report["protocols"]) == ["successive", "static"]
    for protocol in report["protocols"].values():
        assert set(protocol["contenders"]) == expected


def test_retrieval_by_popularity_is_the_popularity_baseline(report: dict[str, Any]) -> None:
    for protocol in ("successive", "static"):
        contenders = report["protocols"][protocol]["contenders"]
        assert contenders["retrieval"]["metrics"] == contenders["popularity"]["metrics"]
        assert contenders["retrieval"]["lists"] == contenders["popularity"]["lists"]


def test_stages_stand_between_retrieval_and_the_ceiling(report: dict[str, Any]) -> None:
    assert ndcg(report, "retrieval") < ndcg(report, "two_stage") < ndcg(report, "ceiling")


def test_nobody_does_better_than_the_oracle(report: dict[str, Any]) -> None:
    rivals = ("retrieval", "two_stage", "popularity", "recent_popularity", "item_knn", "ease")
    assert ndcg(report, "oracle") > max(ndcg(report, name) for name in rivals)
    shares = report["protocols"]["successive"]["share_of_best"]
    assert shares["two_stage"]["ndcg@10"] == ndcg(report, "two_stage") / ndcg(report, "oracle")


def test_headline_and_differences_repeat_the_table(report: dict[str, Any]) -> None:
    main = report["protocols"]["successive"]
    gain = next(row for row in main["differences"] if (row["metric"], row["minus"]) == ("ndcg@10", "retrieval"))
    assert gain["value"] == pytest.approx(ndcg(report, "two_stage") - ndcg(report, "retrieval"))
    assert gain["interval"][0] < gain["value"] < gain["interval"][1]
    assert report["headline"]["two_stage_ndcg"] == ndcg(report, "two_stage")
    low, high = main["intervals"]["two_stage"]["ndcg@10"]
    assert low < ndcg(report, "two_stage") < high


def test_a_smaller_bound_on_memory_gives_the_same_report(dataset: SplitDataset, report: dict[str, Any]) -> None:
    config = EvaluateConfig(candidates=30, bootstrap=200, ks=(1, 10, 50), scores_in_memory=1_000)
    other = evaluate(config, dataset=dataset, model=Stages(dataset), seed=1)
    for name in ("retrieval", "two_stage", "popularity", "recent_popularity", "oracle"):
        assert ndcg(other, name) == ndcg(report, name)
    assert ndcg(other, "ease") == pytest.approx(ndcg(report, "ease"), abs=1e-3)


def test_fewer_queries_and_no_baselines_can_be_asked_for(dataset: SplitDataset) -> None:
    config = EvaluateConfig(max_queries=50, baselines=(), bootstrap=0, examples=0, ks=(5,))
    found = evaluate(config, dataset=replace(dataset, directory=None), model=Stages(dataset), seed=1)
    assert found["protocols"]["successive"]["queries"] == 50
    assert set(found["protocols"]["successive"]["contenders"]) == {"retrieval", "two_stage", "ceiling"}
    assert found["labels"]["rating"]["rows"] <= 50
    assert "no baseline" in headline_sentence(found)


def test_ease_is_left_out_of_a_large_catalogue_with_a_reason(dataset: SplitDataset) -> None:
    config = EvaluateConfig(ease_max_items=10, baselines=("popularity", "ease"), bootstrap=0, max_queries=50)
    found = evaluate(config, dataset=dataset, model=Stages(dataset), seed=1)
    assert "ease" not in found["protocols"]["static"]["contenders"]
    assert any("EASE is left out" in note for note in found["notes"])


def test_a_split_that_is_not_by_time_is_asked_statically_alone(dataset: SplitDataset) -> None:
    shuffled = replace(dataset, metadata={**dataset.metadata, "protocol": "random", "cut_us": None})
    found = evaluate(EvaluateConfig(bootstrap=0), dataset=shuffled, model=Stages(dataset), seed=1)
    assert list(found["protocols"]) == ["static"]


def test_a_query_that_asks_only_for_what_was_seen_does_not_count(make_dataset: Make, dataset: SplitDataset) -> None:
    small = make_dataset([(0, 0, 1, 0), (1, 1, 1, 0), (0, 0, 5, 2), (1, 2, 6, 2)], users=2, items=3)

    class Constant(Stages):
        def __init__(self) -> None:
            pass

        label_kinds: ClassVar[dict[str, str]] = {}

        def score(self, queries: Queries) -> np.ndarray:
            return np.zeros((len(queries), 3), np.float32)

        def rank(self, queries: Queries, candidates: np.ndarray) -> np.ndarray:
            return np.full(candidates.shape, np.nan, np.float32)

    excluding = evaluate(EvaluateConfig(baselines=()), dataset=small, model=Constant(), seed=1)
    assert [excluding["protocols"]["successive"][key] for key in ("asked", "queries", "only_seen")] == [2, 1, 1]
    assert excluding["protocols"]["successive"]["contenders"]["two_stage"]["nan_scores"] == 2
    including = evaluate(EvaluateConfig(baselines=(), exclude_seen=False), dataset=small, model=Constant(), seed=1)
    assert [including["protocols"]["successive"][key] for key in ("queries", "only_seen")] == [2, 0]


def test_a_part_without_positives_is_refused(make_dataset: Make, dataset: SplitDataset) -> None:
    with pytest.raises(DataError, match="no positive interaction in the test part"):
        evaluate(
            EvaluateConfig(), dataset=make_dataset([(0, 0, 1, 0)], users=1, items=1), model=Stages(dataset), seed=1
        )


def test_the_page_stands_alone_and_the_json_is_strict(report: dict[str, Any], tmp_path: Path) -> None:
    nasty = json.loads(json.dumps(report))
    nasty["examples"][0]["history"] = ["<script>alert(1)</script>"]
    nasty["training"] = [{"epoch": 1, "loss": 5.0, "rmse": float("nan")}, {"epoch": 2, "loss": 4.0, "rmse": 1.0}]
    nasty["index"] = {"kind": "exact", "items": 200}
    write_report(nasty, tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert headline_sentence(report) in page
    assert "<script>alert" not in page
    assert not re.search(
        r"<(link|img|iframe)|<script[^>]*\ssrc|@import|url\(", page.split("charts</script>")[0][:20_000]
    )
    assert "default-src 'none'" in page
    for name in ("contenders", "cutoffs", "segments", "calibration-rating", "training-loss", "training-rmse"):
        assert f'data-chart="{name}"' in page
        assert f'"{name}"' in page
    text = (tmp_path / "report.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name))["training"][0]["rmse"] is None
    card = (tmp_path / "card.md").read_text(encoding="utf-8")
    assert card.startswith("# Model card")
    assert "| Model, both stages |" in card


def test_the_sentence_says_a_loss_as_plainly_as_a_win(report: dict[str, Any]) -> None:
    changed = json.loads(json.dumps(report))
    main = changed["protocols"]["successive"]
    best = main["best_baseline"]["ndcg@10"]
    row = next(
        row for row in main["differences"] if (row["metric"], row["of"], row["minus"]) == ("ndcg@10", "two_stage", best)
    )
    for interval, verdict in (([0.1, 0.2], "beats"), ([-0.1, 0.1], "is level with"), ([-0.2, -0.1], "loses to")):
        row["interval"] = interval
        assert f"The model {verdict} the best baseline" in headline_sentence(changed)


def test_a_report_that_was_read_again_gives_the_same_page(report: dict[str, Any], tmp_path: Path) -> None:
    write_report(report, tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    write_report(json.loads((tmp_path / "report.json").read_text(encoding="utf-8")), tmp_path)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page


def test_alarms_and_leaks_stand_on_top_of_page_and_card(report: dict[str, Any], tmp_path: Path) -> None:
    warned = json.loads(json.dumps(report))
    warned["alarms"] = ["the loss <stays> where it was"]
    warned["audit"] = [
        {"name": "vocabularies", "passed": True, "detail": "2 of them"},
        {"name": "sampling probabilities", "passed": False, "detail": "item 'i7': 0.2, but 0.1 in train"},
    ]
    write_report(warned, tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    box = page[page.index('class="alarm"') : page.index("What each stage adds")]
    assert "the loss &lt;stays&gt; where it was" in box
    assert "Leak, sampling probabilities: item &#39;i7&#39;: 0.2, but 0.1 in train" in box
    assert "2 of them" not in box
    assert "FAILED" in page
    card = (tmp_path / "card.md").read_text(encoding="utf-8")
    assert "> **Alarm**: the loss <stays> where it was\n" in card
    assert "| sampling probabilities | FAILED | item 'i7': 0.2, but 0.1 in train |" in card
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["alarms"] == warned["alarms"]
    write_report(report, tmp_path)
    assert 'class="alarm"' not in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Alarm" not in (tmp_path / "card.md").read_text(encoding="utf-8")


def test_a_reader_finds_what_ranking_adds_with_its_interval(report: dict[str, Any], tmp_path: Path) -> None:
    changed = json.loads(json.dumps(report))
    row = next(
        row
        for row in changed["protocols"]["successive"]["differences"]
        if (row["metric"], row["minus"]) == ("ndcg@10", "retrieval")
    )
    row |= {"value": 0.0123, "interval": [0.01, 0.02]}
    write_report(changed, tmp_path)
    page = re.sub(r"\s*\n\s*", "", (tmp_path / "report.html").read_text(encoding="utf-8"))
    assert (
        'Ranking: both stages minus retrieval alone</th><td>NDCG@10</td><td class="n">+0.0123</td>'
        '<td class="n">+0.0100 to +0.0200</td>'
    ) in page
    card = (tmp_path / "card.md").read_text(encoding="utf-8")
    assert "| Ranking: both stages minus retrieval alone | NDCG@10 | +0.0123 | +0.0100 to +0.0200 |" in card
    assert "Retrieval: minus the best baseline" in card


def test_the_pull_of_each_task_is_shown(report: dict[str, Any], tmp_path: Path) -> None:
    joined = json.loads(json.dumps(report))
    joined["training"] = [
        {"epoch": 1, "loss": 5.0, "gradient_norm_retrieval": 0.5, "gradient_norm_rating": 0.0},
        {"epoch": 2, "loss": 4.0, "gradient_norm_retrieval": 0.4, "gradient_norm_rating": 0.1},
    ]
    write_report(joined, tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "What each task pulls on the shared weights" in page
    assert '<th scope="row">rating</th><td class="n">0.1000</td><td class="n">0.25</td>' in page
    assert "training-gradient_norm" not in page
    drawn = json.loads(re.search(r'id="charts">(.*?)</script>', page, re.DOTALL)[1])["pull"]  # type: ignore[index]
    # A pull of nothing has no place on a log scale.
    points = [(row["epoch"], row["task"]) for rows in drawn["datasets"].values() for row in rows]
    assert points == [(1, "retrieval"), (2, "retrieval"), (2, "rating")]


def drawn(report: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The charts of the page, by name."""
    write_report(report, folder)
    page = (folder / "report.html").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(re.search(r'id="charts">(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index]
    return found


def test_a_contender_has_one_colour_of_its_own_in_every_chart(report: dict[str, Any], tmp_path: Path) -> None:
    charts = drawn(report, tmp_path)
    colours: dict[str, set[str]] = {}
    for name in ("contenders", "cutoffs", "segments"):
        scale = next(
            layer["encoding"]["color"]["scale"] for layer in charts[name]["layer"] if "color" in layer["encoding"]
        )
        for contender, colour in zip(scale["domain"], scale["range"], strict=True):
            colours.setdefault(contender, set()).add(colour)
    assert len(colours) == 9
    assert all(len(found) == 1 for found in colours.values())
    assert len(set.union(*colours.values())) == 9
    others, both, retrieval = (layer["mark"] for layer in charts["cutoffs"]["layer"])  # What comes last lies on top.
    assert others["strokeWidth"] < min(both["strokeWidth"], retrieval["strokeWidth"])


def test_axes_of_training_name_whole_epochs_once_and_values_with_their_digits(
    report: dict[str, Any], tmp_path: Path
) -> None:
    trained = json.loads(json.dumps(report))
    pulls = {"gradient_norm_retrieval": 0.5}
    trained["training"] = [{"epoch": epoch, "weight_met": 0.2, **pulls} for epoch in range(1, 41)]
    charts = drawn(trained, tmp_path)
    for name in ("training-weight_met", "pull"):
        assert charts[name]["encoding"]["x"]["axis"]["values"] == list(range(1, 41, 4))
    assert charts["training-weight_met"]["encoding"]["y"]["axis"]["format"] == "~g"
    trained["training"] = trained["training"][:3]
    assert drawn(trained, tmp_path)["pull"]["encoding"]["x"]["axis"]["values"] == [1, 2, 3]


def test_a_baseline_that_predicts_a_label_better_is_told_in_words(report: dict[str, Any], tmp_path: Path) -> None:
    judged = json.loads(json.dumps(report))
    judged["labels"]["rating"]["metrics"]["rmse"] = 0.9
    for rmse, is_told in ((0.8, True), (0.95, False)):
        judged["labels"]["rating"]["baselines"] = {
            "train mean": {"rmse": 1.1, "mae": 1.0},
            "bias_only": {"rmse": rmse, "mae": 0.7},
        }
        write_report(judged, tmp_path)
        for name in ("report.html", "card.md"):
            text = (tmp_path / name).read_text(encoding="utf-8")
            said = "User and item bias predicts rating better than the model does: RMSE 0.8000 against 0.9000"
            assert (said in text) is is_told
            assert "Mean of the train part" in text
            assert "bias_only" not in text.split("charts</script>")[0]


def test_equal_stages_are_explained(report: dict[str, Any], tmp_path: Path) -> None:
    said = "ranking kept the order of retrieval"
    equal = json.loads(json.dumps(report))
    found = equal["protocols"]["successive"]["contenders"]
    found["two_stage"]["metrics"] = found["retrieval"]["metrics"]
    for told, is_told in ((report, False), (equal, True)):
        write_report(told, tmp_path)
        for name in ("report.html", "card.md"):
            assert (said in (tmp_path / name).read_text(encoding="utf-8")) is is_told
