"""The training as a whole: it learns, repeats itself, goes on where it stopped, and looks at the train part alone."""

import json
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import keras
import numpy as np
import pyarrow as pa
import pytest

from twotower.data.split import TEST, SplitDataset, load_split
from twotower.errors import DataError, RecipeError, TrainingError
from twotower.model.config import LabelConfig, RankingConfig
from twotower.recipe import Recipe
from twotower.training.progress import Trained, TrainProgress
from twotower.training.step import Stepper, TrainState
from twotower.training.train import build_model, train


class StoppedError(Exception):
    """Stands for the machine going away."""


def fit(recipe: Recipe, dataset: SplitDataset, directory: Path, **named: Any) -> Trained:
    resume = named.pop("resume", False)
    report: Callable[[TrainProgress], None] = named.pop("report", lambda progress: None)
    config = replace(recipe.train, **named.pop("train", {}))
    return train(
        config,
        model_config=named.pop("model", recipe.model),
        dataset=dataset,
        seed=recipe.seed,
        checkpoint=directory / "checkpoint",
        resume=resume,
        report=report,
    )


def weights(trained: Trained) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves((trained.model.weights(), trained.model.tables))]


def same(first: Trained, second: Trained) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(weights(first), weights(second), strict=True))


@pytest.fixture(scope="module")
def dataset(tiny_split: Path) -> SplitDataset:
    return load_split(tiny_split)


@pytest.fixture(scope="module")
def reference(tiny_recipe: Recipe, dataset: SplitDataset, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """One training from start to end, without a break."""
    return fit(tiny_recipe, dataset, tmp_path_factory.mktemp("reference"))


def test_losses_fall_and_validation_beats_chance(reference: Trained, dataset: SplitDataset) -> None:
    first, last = reference.history[0], reference.history[-1]
    assert last["retrieval"] < first["retrieval"]
    assert last["rating"] < first["rating"]
    assert last["validation_recall@100"] > 1.1 * 100 / len(dataset.item_ids)


def test_a_training_that_stops_anywhere_goes_on_to_the_same_weights(
    tiny_recipe: Recipe, dataset: SplitDataset, reference: Trained, tmp_path: Path
) -> None:
    calls = 0

    def stop_at_third(progress: TrainProgress) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise StoppedError

    settings = {"checkpoint_steps": 10}
    with pytest.raises(StoppedError):
        fit(tiny_recipe, dataset, tmp_path, train=settings, report=stop_at_third)
    assert (tmp_path / "checkpoint").is_dir()
    taken: list[int] = []
    resumed = fit(
        tiny_recipe, dataset, tmp_path, train=settings, resume=True, report=lambda progress: taken.append(progress.step)
    )
    assert taken[0] > 20, "the steps before the checkpoint are not taken again"
    assert same(resumed, reference)
    assert [entry["retrieval"] for entry in resumed.history] == pytest.approx(
        [entry["retrieval"] for entry in reference.history], rel=1e-6
    )


def test_a_call_is_begun_before_the_losses_of_the_last_are_read(
    tiny_recipe: Recipe, dataset: SplitDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    run = Stepper.run
    monkeypatch.setattr(Stepper, "run", lambda *given: (told.append("begun"), run(*given))[1])
    settings = {"epochs": 1, "steps_per_call": 10, "checkpoint_steps": 10_000}

    def report(progress: TrainProgress) -> None:
        told.append("read" if progress.validation is None else "epoch")

    fit(tiny_recipe, dataset, tmp_path, train=settings, report=report)
    calls = told.count("begun")
    assert calls > 2
    assert told == ["begun", *["begun", "read"] * (calls - 1), "read", "epoch"]


def test_a_checkpoint_of_another_run_is_refused(
    tiny_recipe: Recipe, dataset: SplitDataset, reference: Trained, tmp_path: Path
) -> None:
    fit(tiny_recipe, dataset, tmp_path, train={"epochs": 1})
    other_positives = replace(dataset, positive=dataset.positive & (np.arange(len(dataset.item)) % 7 > 0))
    for recipe, data in ((replace(tiny_recipe, seed=9), dataset), (tiny_recipe, other_positives)):
        with pytest.raises(TrainingError, match="belongs to a run with another recipe, seed or data"):
            fit(recipe, data, tmp_path, train={"epochs": 1}, resume=True)


def test_items_and_users_that_only_the_test_part_knows_change_nothing(
    tiny_recipe: Recipe, dataset: SplitDataset, tmp_path: Path
) -> None:
    # A film, a genre and a viewer that only the test part knows; the film stands first in the catalogue and is popular.
    film = pa.Table.from_pylist(
        [{"item_id": "0", "title": "Brand New Words", "genres": "Opera", "year": 1800}], schema=dataset.items.schema
    )
    viewer = pa.Table.from_pylist([{"user_id": "new", "region": "Moon", "age": 7}], schema=dataset.users.schema)
    times = 50
    end = dataset.timestamp[-1]
    changed = replace(
        dataset,
        item_ids=np.concatenate([np.array(["0"], object), dataset.item_ids]),
        items=pa.concat_tables([film, dataset.items]),
        user_ids=np.concatenate([dataset.user_ids, np.array(["new"], object)]),
        users=pa.concat_tables([dataset.users, viewer]),
        user=np.concatenate([dataset.user, np.full(times, len(dataset.user_ids), np.int32)]),
        item=np.concatenate([dataset.item + 1, np.zeros(times, np.int32)]),
        timestamp=np.concatenate([dataset.timestamp, np.full(times, end)]),
        positive=np.concatenate([dataset.positive, np.ones(times, bool)]),
        part=np.concatenate([dataset.part, np.full(times, TEST, np.int8)]),
        labels={"rating": np.concatenate([dataset.labels["rating"], np.full(times, 1.0, np.float32)])},
        context=pa.table(
            {name: dataset.context[name].to_pylist() + [None] * times for name in dataset.context.column_names}
        ),
    )
    # Trends measure against the mean item of the catalogue, and a film more moves that: the next test is theirs.
    model = replace(tiny_recipe.model, ranking=replace(tiny_recipe.model.ranking, trends=False))
    one = fit(tiny_recipe, dataset, tmp_path / "one", model=model, train={"epochs": 1})
    assert same(fit(tiny_recipe, changed, tmp_path / "other", model=model, train={"epochs": 1}), one)


def test_what_is_met_in_the_test_part_changes_nothing(
    tiny_recipe: Recipe, dataset: SplitDataset, reference: Trained, tmp_path: Path
) -> None:
    tested = np.flatnonzero(dataset.part == TEST)
    item, labels = dataset.item.copy(), {"rating": dataset.labels["rating"].copy()}
    item[tested], labels["rating"][tested] = item[tested[0]], 1.0
    trained = fit(tiny_recipe, replace(dataset, item=item, labels=labels), tmp_path)
    assert same(trained, reference)
    assert trained.history == reference.history


def test_a_loss_that_is_no_number_stops_with_what_to_lower(
    tiny_recipe: Recipe, dataset: SplitDataset, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=r"no number at step \d+ \(epoch 1\)\. Lower train.embedding_learning_rate"):
        fit(tiny_recipe, dataset, tmp_path, train={"optimizer": "sgd", "learning_rate": 1e12})


def test_the_step_is_named_from_which_on_the_loss_is_no_number(
    tiny_recipe: Recipe, dataset: SplitDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, calls = Stepper.run, 0

    def third_fails(*given: Any) -> tuple[TrainState, dict[str, Any]]:
        nonlocal calls
        calls += 1
        state, losses = run(*given)
        return state, losses | {"loss": losses["loss"].at[3].set(np.nan)} if calls == 3 else losses

    monkeypatch.setattr(Stepper, "run", third_fails)
    settings = {"steps_per_call": 5, "checkpoint_steps": 5}
    with pytest.raises(TrainingError, match=r"no number at step 14 \(epoch 1\)"):
        fit(tiny_recipe, dataset, tmp_path, train=settings)
    position = json.loads((tmp_path / "checkpoint" / "position.json").read_text(encoding="utf-8"))
    assert position["step_in_epoch"] == 10, "what went wrong is in no checkpoint"


class NoisyLayer(keras.layers.Layer):
    """A layer of the user's own that acts differently in training."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(8)
        self.dropout = keras.layers.Dropout(0.5)

    def call(self, features: Any) -> Any:
        return self.dropout(self.dense(features))


def test_a_layer_of_the_users_own_trains_and_is_told_that_it_does(
    tiny_recipe: Recipe, dataset: SplitDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("mine")
    module.NoisyLayer = NoisyLayer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mine", module)
    tower = replace(tiny_recipe.model.query_tower, network="mine:NoisyLayer", layers=(4,))
    model = replace(tiny_recipe.model, query_tower=tower)
    first, _ = build_model(model, dataset=dataset, seed=tiny_recipe.seed)
    trained = fit(tiny_recipe, dataset, tmp_path, model=model, train={"epochs": 1})
    before, after = first.states()["query"], trained.model.states()["query"]
    assert any(not np.array_equal(one, other) for one, other in zip(before, after, strict=True)), "dropout drew nothing"
    shapes = [weight.shape for weight in trained.model.weights()["query"]]
    assert (8, 4) in shapes, "the hidden layers follow the user's own"


def test_a_layer_that_is_none_is_refused(tiny_recipe: Recipe, dataset: SplitDataset) -> None:
    for network, told in (("os:getcwd", "is no Keras layer"), ("nowhere:Layer", "cannot make"), (":X", "cannot make")):
        tower = replace(tiny_recipe.model.query_tower, network=network)
        with pytest.raises(RecipeError, match=told):
            build_model(replace(tiny_recipe.model, query_tower=tower), dataset=dataset, seed=1)


def test_a_log_that_spans_more_than_four_bytes_of_seconds_is_refused(
    tiny_recipe: Recipe, dataset: SplitDataset
) -> None:
    timestamp = dataset.timestamp.copy()
    timestamp[0] -= 70 * 366 * 86_400 * 1_000_000
    with pytest.raises(DataError, match="from 1953 to 2025 span more than 68 years"):
        build_model(tiny_recipe.model, dataset=replace(dataset, timestamp=timestamp), seed=1)


def test_a_metric_that_cannot_be_watched_is_refused(tiny_recipe: Recipe, dataset: SplitDataset, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="'accuracy' cannot be watched"):
        fit(tiny_recipe, dataset, tmp_path, train={"metric": "accuracy"})


def test_an_epoch_is_not_chosen_by_a_retrieval_that_nothing_trains(
    tiny_recipe: Recipe, dataset: SplitDataset, tmp_path: Path
) -> None:
    model = tiny_recipe.model
    rating = LabelConfig(name="rating", kind="regression")
    retrieval = replace(model.retrieval, weight=0.0)
    for labels in ((rating,), (rating, LabelConfig(name="met", kind="listwise", weight=0.0))):
        off = replace(model, retrieval=retrieval, ranking=replace(model.ranking, labels=labels))
        with pytest.raises(RecipeError, match=r"'ndcg@10' judges retrieval, .* Take rmse, or give it a weight") as told:
            fit(tiny_recipe, dataset, tmp_path, model=off, train={"metric": "ndcg@10"})
        assert "\n" not in str(told.value)
    # What was met among what retrieval brings trains it too.
    met = (LabelConfig(name="met", kind="listwise"),)
    on = replace(model, retrieval=retrieval, ranking=replace(model.ranking, labels=met, order={}))
    (entry,) = fit(tiny_recipe, dataset, tmp_path, model=on, train={"metric": "ndcg@10", "epochs": 1}).history
    assert "validation_ndcg@10" in entry


@pytest.mark.parametrize("off", ["retrieval", "rating"])
def test_weight_zero_gives_a_specialised_model(
    tiny_recipe: Recipe, dataset: SplitDataset, tmp_path: Path, off: str
) -> None:
    model = tiny_recipe.model
    if off == "retrieval":
        labels = (LabelConfig(name="rating", kind="regression"),)
        ranking = replace(model.ranking, labels=labels)
        model = replace(model, retrieval=replace(model.retrieval, weight=0.0), ranking=ranking)
    else:
        model = replace(model, ranking=RankingConfig(labels=()))
    metric = "rmse" if off == "retrieval" else "ndcg@10"
    (entry,) = fit(tiny_recipe, dataset, tmp_path, model=model, train={"epochs": 1, "metric": metric}).history
    if off == "retrieval":
        assert entry["loss"] == pytest.approx(entry["rating"], rel=1e-5)
    else:
        assert entry["loss"] == pytest.approx(entry["retrieval"], rel=1e-5)
        assert "rating" not in entry
