"""Models of one task each: which there are, what stops each of them, and that only the losses differ."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from twotower.data.split import VALIDATION, SplitDataset, load_split
from twotower.errors import RecipeError, TrainingError
from twotower.model.config import LabelConfig, ModelConfig, RankingConfig, RetrievalConfig
from twotower.recipe import Recipe
from twotower.training.config import TrainConfig
from twotower.training.progress import Trained
from twotower.training.single_tasks import directory_of, refuse_head_start, single_tasks
from twotower.training.train import build_model, train
from twotower.training.validation import Validator

MET = LabelConfig(name="met", kind="listwise", weight=0.2)
RATING = LabelConfig(name="rating", kind="regression", weight=0.03)
LIKED = LabelConfig(name="liked", kind="binary")
ASKED = TrainConfig(single_tasks=True, metric="recall@100", epochs=7)
Fit = Callable[..., Trained]


@pytest.fixture(scope="module")
def dataset(tiny_split: Path) -> SplitDataset:
    """With a binary label beside the rating; half of it is unknown."""
    found = load_split(tiny_split)
    liked = np.where(np.arange(len(found.item)) % 2, found.labels["rating"] >= 4, np.nan).astype(np.float32)
    return replace(found, labels=found.labels | {"liked": liked})


@pytest.fixture
def fit(tiny_recipe: Recipe, dataset: SplitDataset, tmp_path: Path) -> Fit:
    """Trains for one epoch by the tiny recipe's settings."""

    def run(model: ModelConfig, **settings: Any) -> Trained:
        return train(
            replace(tiny_recipe.train, epochs=1, **settings),
            model_config=model,
            dataset=dataset,
            seed=tiny_recipe.seed,
            checkpoint=tmp_path / "checkpoint",
            resume=False,
            report=lambda progress: None,
        )

    return run


def joint(*labels: LabelConfig, **named: Any) -> ModelConfig:
    order = {label.name: 1.0 for label in labels[:1]}
    return ModelConfig(ranking=RankingConfig(labels=labels, order=order, experts=2), **named)


def test_every_task_that_is_learned_has_a_model_of_its_own_but_met(dataset: SplitDataset) -> None:
    found = single_tasks(ASKED, joint(RATING, MET, LIKED), dataset=dataset)
    assert {task: config.metric for task, (config, _) in found.items()} == {
        "retrieval": "recall@100",
        "rating": "rmse",
        "liked": "log_loss",
    }
    assert {task: model.tasks() for task, (_, model) in found.items()} == {
        "retrieval": {"retrieval": 1.0},
        "rating": {"rating": 1.0},
        "liked": {"liked": 1.0},
    }
    for config, model in found.values():
        assert replace(config, metric="") == replace(ASKED, metric="", single_tasks=False)
        assert model.ranking.order == {}
        assert model.ranking.experts == 2, "the head stays as it is"
    assert single_tasks(replace(ASKED, single_tasks=False), joint(RATING), dataset=dataset) == {}


def test_retrieval_is_stopped_by_a_metric_of_its_own_and_needs_no_learned_weights(dataset: SplitDataset) -> None:
    model = joint(RATING, retrieval=RetrievalConfig(weight=0.5), task_weights="uncertainty")
    found = single_tasks(replace(ASKED, metric="rmse"), model, dataset=dataset)
    assert {task: config.metric for task, (config, _) in found.items()} == {"retrieval": "ndcg@10", "rating": "rmse"}
    assert {alone.task_weights for _, alone in found.values()} == {"static"}
    assert found["retrieval"][1].retrieval == RetrievalConfig(weight=1.0)


@pytest.mark.parametrize(
    ("model", "tasks"),
    [
        (joint(MET), ["retrieval"]),
        (joint(RATING, replace(LIKED, weight=0.0)), ["retrieval", "rating"]),
        (joint(RATING, LIKED, retrieval=RetrievalConfig(weight=0.0)), ["rating", "liked"]),
    ],
)
def test_what_the_joint_model_does_not_learn_is_not_learned_alone(
    dataset: SplitDataset, model: ModelConfig, tasks: list[str]
) -> None:
    assert list(single_tasks(ASKED, model, dataset=dataset)) == tasks


def test_what_could_not_be_set_beside_anything_is_refused_in_a_line(dataset: SplitDataset) -> None:
    with pytest.raises(RecipeError, match="learns 'retrieval' and nothing else, so there is no joint model") as fault:
        single_tasks(ASKED, joint(), dataset=dataset)
    assert "\n" not in str(fault.value)
    unlabelled = dataset.labels["liked"].copy()
    unlabelled[dataset.part == VALIDATION] = np.nan
    poor = replace(dataset, labels=dataset.labels | {"liked": unlabelled})
    with pytest.raises(RecipeError, match="'liked' alone is stopped by its log_loss, but the validation part has no"):
        single_tasks(ASKED, joint(RATING, LIKED), dataset=poor)
    # Without a validation part every model goes through all epochs, these as well.
    part = np.where(dataset.part == VALIDATION, 0, dataset.part).astype(np.int8)
    assert list(single_tasks(ASKED, joint(LIKED), dataset=replace(poor, part=part))) == ["retrieval", "liked"]
    with pytest.raises(RecipeError, match="no label 'clicked'"):
        single_tasks(ASKED, joint(replace(LIKED, name="clicked")), dataset=dataset)


def test_a_label_of_any_name_has_a_directory_below_the_model() -> None:
    names = ["rating", "..", ".", "a/b", "a%2Fb", "gefällt mir", "retrieval"]
    places = [Path(directory_of(name)) for name in names]
    assert len(set(places)) == len(names)
    assert all(place.parent == Path("single") and place.name not in (".", "..") for place in places)
    assert directory_of("rating") == "single/rating"


def test_a_joint_model_alone_gets_no_head_start(tmp_path: Path) -> None:
    earlier = tmp_path / "earlier"
    (earlier / "single" / "retrieval").mkdir(parents=True)
    (earlier / "single" / "retrieval" / "manifest.json").write_text("{}", encoding="utf-8")
    refuse_head_start(earlier, ["retrieval"])
    with pytest.raises(TrainingError, match="holds no model of 'rating' alone, so the joint model alone would have"):
        refuse_head_start(earlier, ["retrieval", "rating"])


def test_a_label_alone_asks_for_no_negatives(fit: Fit, tiny_recipe: Recipe) -> None:
    ranking = replace(tiny_recipe.model.ranking, labels=(RATING, LIKED))
    alone = replace(tiny_recipe.model, ranking=ranking, retrieval=RetrievalConfig(weight=0.0))
    drawn = RetrievalConfig(weight=0.0, negatives="sampled", in_batch_negatives=8, uniform_negatives=8)
    one, other = (fit(model, metric="log_loss") for model in (alone, replace(alone, retrieval=drawn)))
    for first, second in zip(
        *(jax.tree.leaves((t.model.weights(), t.model.tables)) for t in (one, other)), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(first), np.asarray(second))
    (entry,) = one.history
    assert "retrieval" not in entry
    assert entry["loss"] == pytest.approx(0.03 * entry["rating"] + entry["liked"], rel=1e-5)
    assert [name for name in entry if name.startswith("validation_")] == ["validation_rmse", "validation_log_loss"]


def test_log_loss_of_a_binary_label_is_that_of_its_validation_rows(
    fit: Fit, tiny_recipe: Recipe, dataset: SplitDataset
) -> None:
    ranking = replace(tiny_recipe.model.ranking, labels=(MET, LIKED), order={})
    config = replace(tiny_recipe.model, ranking=ranking)
    trained = fit(config, metric="log_loss")
    model, (entry,) = trained.model, trained.history
    _, arrays = build_model(config, dataset=dataset, seed=tiny_recipe.seed)
    watched = replace(tiny_recipe.train, metric="log_loss")
    validator = Validator.build(watched, model, dataset=dataset, trends=arrays.trends, seed=1)
    assert validator is not None
    asked = validator.labels["log_loss"]
    known = dataset.labels["liked"][(dataset.part == VALIDATION) & ~np.isnan(dataset.labels["liked"])]
    assert np.sort(asked.label).tolist() == np.sort(known).tolist()
    query = model.embed_query(model.call_layers, asked.inputs, model.tables)
    candidate = model.layers["candidate"](validator.items, model.tables)[asked.item]
    output = model.rank(model.call_layers, query, candidate[:, None], trends=asked.trends)
    logit = np.asarray(output)[:, 0, 1]  # The second label's.
    expected = np.mean(np.logaddexp(0.0, logit) - asked.label * logit)
    assert entry["validation_log_loss"] == pytest.approx(expected, rel=1e-4)
    assert {"validation_recall@100", "validation_ndcg@10"} <= entry.keys(), "retrieval is watched beside it"


def test_a_model_that_learns_nothing_is_refused(tiny_recipe: Recipe, fit: Fit) -> None:
    nothing = replace(tiny_recipe.model, retrieval=RetrievalConfig(weight=0.0), ranking=RankingConfig(labels=()))
    with pytest.raises(RecipeError, match="no task has a weight above 0"):
        fit(nothing)
