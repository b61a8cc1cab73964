"""A model that begins where an earlier one ended: rows by what they stand for, dense weights by their shapes."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from twotower.artifact import MANIFEST, read_manifest, write_artifact
from twotower.data.feature_encoders import VocabularyEncoder
from twotower.data.schema import SequenceFeature
from twotower.data.split import TRAIN, SplitDataset, load_split
from twotower.errors import ArtifactError, TrainingError
from twotower.model.exported import ExportedModel
from twotower.model.joint import JointModel
from twotower.model.network import WEIGHTS
from twotower.model.task_weights import Balance
from twotower.recipe import Recipe
from twotower.training.progress import Trained
from twotower.training.step import TrainState
from twotower.training.train import build_model, train
from twotower.training.validation import Validator
from twotower.training.warm_start import carry_over, save_weights

ITEMS = "candidate_id_item_id"
Keep = Callable[[JointModel], Path]


@pytest.fixture(scope="module")
def dataset(tiny_run: Path) -> SplitDataset:
    return load_split(tiny_run / "split")


@pytest.fixture
def keep(tmp_path: Path) -> Keep:
    """Keeps a model as `train` does, without its graphs."""

    def write(model: JointModel) -> Path:
        with write_artifact(tmp_path / "old", kind="model") as out:
            model.features.save(out)
            save_weights(model, out)
        return tmp_path / "old"

    return write


def drawn(recipe: Recipe, dataset: SplitDataset, *, seed: int, **model: Any) -> JointModel:
    """A model that was not trained: its weights are of the seed alone."""
    return build_model(replace(recipe.model, **model), dataset=dataset, seed=seed)[0]


def rows_by_value(model: JointModel, table: str = ITEMS) -> dict[str, np.ndarray]:
    """What each value's row holds; "" stands for the row of the unknown."""
    encoders = {f"query_{one.key}": one for one in model.features.query}
    encoders |= {f"candidate_{one.key}": one for one in model.features.candidate}
    encoder = encoders[table]
    assert isinstance(encoder, VocabularyEncoder)
    return dict(zip(["", *encoder.vocabulary.values.to_pylist()], np.asarray(model.tables[table]), strict=True))


def other_catalogue(dataset: SplitDataset) -> SplitDataset:
    """The same log a while later: every tenth item has another id, and what was popular is not any more."""
    ids = np.array([f"new-{name}" if row % 10 == 0 else name for row, name in enumerate(dataset.item_ids)], object)
    train = np.flatnonzero(dataset.part == TRAIN)
    often = np.argsort(-np.bincount(dataset.item[train]))[:20]
    fades = train[np.isin(dataset.item[train], often)]
    part = dataset.part.copy()
    part[np.setdiff1d(fades, fades[::40])] = 2
    items = dataset.items.set_column(0, "item_id", [ids.tolist()])
    return replace(dataset, item_ids=ids, items=items, part=part)


def test_rows_follow_what_they_stand_for_and_not_their_numbers(
    tiny_recipe: Recipe, dataset: SplitDataset, keep: Keep
) -> None:
    old = drawn(tiny_recipe, dataset, seed=1)
    later = other_catalogue(dataset)
    new, untouched = (drawn(tiny_recipe, later, seed=2) for _ in range(2))
    carried = carry_over(new, keep(old))
    before, fresh, after = rows_by_value(old), rows_by_value(untouched), rows_by_value(new)
    known = set(before) & set(after)
    assert list(before)[1:] != [name for name in after if name in before], "the numbers are others"
    assert all((after[name] == before[name]).all() for name in known)
    assert all((after[name] == fresh[name]).all() for name in set(after) - known)
    strangers = {name for name in after if name.startswith("new-")}
    assert strangers == set(after) - known
    assert len(strangers) >= 15
    assert "" in known
    assert carried.new_rows >= len(strangers)
    assert carried.rows + carried.new_rows == sum(len(table) for table in new.tables.values())


def test_a_model_that_starts_from_itself_takes_everything(
    tiny_recipe: Recipe, dataset: SplitDataset, keep: Keep
) -> None:
    old, new = (drawn(tiny_recipe, dataset, seed=seed) for seed in (1, 2))
    carried = carry_over(new, keep(old))
    assert carried.new_rows == 0
    assert carried.parts == ("query", "candidate", "memory", "ranking")
    assert new.tables.keys() == old.tables.keys()
    assert all((np.asarray(new.tables[name]) == np.asarray(old.tables[name])).all() for name in old.tables)
    for part, weights in old.weights().items():
        for one, other in zip(weights, new.weights()[part], strict=True):
            assert (np.asarray(one) == np.asarray(other)).all()


def test_every_part_that_learns_is_carried_over(tiny_recipe: Recipe, dataset: SplitDataset, keep: Keep) -> None:
    everything = {
        "query": (SequenceFeature(kind="sequence", length=10, blocks=1),),
        "retrieval": replace(tiny_recipe.model.retrieval, learn_temperature=True, temperature=0.5),
        "ranking": replace(tiny_recipe.model.ranking, experts=2),
        "task_weights": "uncertainty",
    }
    old, new = (drawn(tiny_recipe, dataset, seed=seed, **everything) for seed in (1, 2))
    old.layers["tasks"].log_variance.assign([0.1, 0.2, 0.3])
    old.layers["retrieval"].logarithm.assign(-2.0)
    carried = carry_over(new, keep(old))
    assert carried.parts == ("history", "query", "candidate", "retrieval", "memory", "ranking", "tasks")
    assert all(len(weights) > 0 for weights in old.weights().values())
    assert all(
        (np.asarray(one) == np.asarray(other)).all()
        for part, weights in old.weights().items()
        for one, other in zip(weights, new.weights()[part], strict=True)
    )
    assert new.temperature() == pytest.approx(np.exp(-2))


def test_a_temperature_that_is_not_learned_stays_the_recipes(
    tiny_recipe: Recipe, dataset: SplitDataset, keep: Keep
) -> None:
    old = drawn(tiny_recipe, dataset, seed=1, retrieval=replace(tiny_recipe.model.retrieval, learn_temperature=True))
    old.layers["retrieval"].logarithm.assign(-2.0)
    new = drawn(tiny_recipe, dataset, seed=2, retrieval=replace(tiny_recipe.model.retrieval, temperature=0.5))
    assert "retrieval" not in carry_over(new, keep(old)).parts
    assert new.temperature() == pytest.approx(0.5)


def test_what_was_carried_over_answers_as_the_exported_graphs_do(
    tiny_recipe: Recipe, dataset: SplitDataset, tiny_run: Path
) -> None:
    model = drawn(tiny_recipe, dataset, seed=5)
    carry_over(model, tiny_run / "model")
    exported = ExportedModel.load(tiny_run / "model")
    inputs = exported.features.candidate_inputs(dataset.items)
    output, _ = model.apply("candidate", model.weights(), model.states(), inputs, model.tables)
    np.testing.assert_allclose(output, exported.embed_candidates(inputs).whole, atol=1e-4)


@pytest.mark.parametrize("layers", [(), (8,), (16, 16)])
def test_a_part_of_another_shape_begins_as_drawn(
    tiny_recipe: Recipe, dataset: SplitDataset, keep: Keep, layers: tuple[int, ...]
) -> None:
    tower = replace(tiny_recipe.model.query_tower, layers=layers)
    old = keep(drawn(tiny_recipe, dataset, seed=1))
    new, untouched = (drawn(tiny_recipe, dataset, seed=2, query_tower=tower) for _ in range(2))
    carried = carry_over(new, old)
    assert carried.parts == ("candidate", "memory", "ranking")
    for one, other in zip(new.weights()["query"], untouched.weights()["query"], strict=True):
        assert (np.asarray(one) == np.asarray(other)).all()
    assert carried.new_rows == 0, "the tables do not depend on the tower's layers"


def test_a_table_of_another_width_or_size_begins_as_drawn(
    tiny_recipe: Recipe, dataset: SplitDataset, keep: Keep
) -> None:
    old = drawn(tiny_recipe, dataset, seed=1)
    region, title = 2, 2
    query = [*tiny_recipe.model.query]
    query[region] = replace(query[region], dim=6)  # type: ignore[arg-type]
    candidate = [*tiny_recipe.model.candidate]
    candidate[title] = replace(candidate[title], buckets=500)  # type: ignore[arg-type]
    changes = {"query": tuple(query), "candidate": tuple(candidate)}
    new, untouched = (drawn(tiny_recipe, dataset, seed=2, **changes) for _ in range(2))
    carried = carry_over(new, keep(old))
    others = {"query_category_region", "candidate_text_title"}
    assert {name for name in new.tables if new.tables[name].shape != old.tables[name].shape} == others
    for name, table in new.tables.items():
        assert (np.asarray(table) == np.asarray((untouched if name in others else old).tables[name])).all(), name
    assert carried.new_rows == sum(len(new.tables[name]) for name in others)
    assert carried.parts == ("candidate", "memory", "ranking"), "the query tower reads a wider region"


def test_a_feature_that_the_old_model_did_not_have_begins_as_drawn(
    tiny_recipe: Recipe, dataset: SplitDataset, keep: Keep
) -> None:
    without = tuple(one for one in tiny_recipe.model.query if getattr(one, "column", "") != "user_id")
    old = drawn(tiny_recipe, dataset, seed=1, query=without)
    new = drawn(tiny_recipe, dataset, seed=2)
    carried = carry_over(new, keep(old))
    assert carried.new_rows == len(new.tables["query_id_user_id"])
    assert carried.parts == ("candidate", "memory", "ranking")


def fit(recipe: Recipe, dataset: SplitDataset, folder: Path, **named: Any) -> Trained:
    config = replace(recipe.train, **named.pop("train", {}))
    return train(
        config,
        model_config=recipe.model,
        dataset=dataset,
        seed=recipe.seed,
        checkpoint=folder / "checkpoint",
        resume=named.pop("resume", False),
        report=lambda progress: None,
        **named,
    )


STILL = {"epochs": 1, "learning_rate": 1e-9, "embedding_learning_rate": 1e-9}
"""A training that hardly moves: what it begins with is what validation sees."""


def test_a_warm_start_begins_where_the_old_training_ended_and_goes_on_only_from_there(
    tiny_recipe: Recipe, dataset: SplitDataset, tiny_run: Path, tmp_path: Path
) -> None:
    fresh, arrays = build_model(tiny_recipe.model, dataset=dataset, seed=tiny_recipe.seed)
    validator = Validator.build(tiny_recipe.train, fresh, dataset=dataset, trends=arrays.trends, seed=tiny_recipe.seed)
    assert validator is not None
    first = validator.metrics(
        TrainState(
            fresh.weights(),
            fresh.tables,
            fresh.states(),
            accumulators={},
            optimizer=[],
            step=jnp.zeros(()),
            task_weights=jnp.zeros(3),
            balance=Balance.start(fresh.tasks),
        )
    )
    ended = read_manifest(tiny_run / "model", kind="model")["metadata"]["validation"]

    warm = fit(tiny_recipe, dataset, tmp_path, train=STILL, warm_start=tiny_run / "model")
    (entry,) = warm.history
    assert entry["validation_ndcg@10"] == pytest.approx(ended, abs=1e-3)
    assert entry["validation_ndcg@10"] > 1.2 * first["ndcg@10"]
    assert entry["validation_rmse"] < first["rmse"]
    assert warm.carried_over is not None
    assert warm.carried_over.new_rows == 0

    with pytest.raises(TrainingError, match="belongs to a run with another recipe, seed or data"):
        fit(tiny_recipe, dataset, tmp_path, train=STILL, resume=True)
    again = fit(tiny_recipe, dataset, tmp_path, train=STILL, resume=True, warm_start=tiny_run / "model")
    assert again.history == warm.history


def without_weights(model: Path, to: Path) -> Path:
    with write_artifact(to, kind="model", metadata=read_manifest(model, kind="model")["metadata"]) as out:
        shutil.copytree(model, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST, WEIGHTS))
    return to


def test_a_model_without_its_weights_is_refused(
    tiny_recipe: Recipe, dataset: SplitDataset, tiny_run: Path, tmp_path: Path
) -> None:
    bare = without_weights(tiny_run / "model", tmp_path / "bare")
    with pytest.raises(TrainingError, match=r"bare: no weights\.npz, so nothing to start from\.") as fault:
        fit(tiny_recipe, dataset, tmp_path, train=STILL, warm_start=bare)
    assert "\n" not in str(fault.value)
    assert not (tmp_path / "checkpoint").exists()


def test_a_start_that_is_no_model_or_a_damaged_one_is_refused(
    tiny_recipe: Recipe, dataset: SplitDataset, tiny_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match="holds a 'bundle' directory, not a 'model' one"):
        fit(tiny_recipe, dataset, tmp_path, train=STILL, warm_start=tiny_run / "bundle")
    with pytest.raises(ArtifactError, match="not a model directory"):
        fit(tiny_recipe, dataset, tmp_path, train=STILL, warm_start=tmp_path / "none")
    copy = tmp_path / "copy"
    shutil.copytree(tiny_run / "model", copy)
    (copy / WEIGHTS).write_bytes((copy / WEIGHTS).read_bytes()[:-1] + b"?")
    with pytest.raises(ArtifactError, match=r"weights\.npz: damaged"):
        fit(tiny_recipe, dataset, tmp_path, train=STILL, warm_start=copy)
