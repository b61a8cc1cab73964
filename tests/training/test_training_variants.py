"""Every way of learning that a recipe can ask for learns, on a world that it takes a moment to learn."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from twotower.data.batches import TrainingArrays
from twotower.data.fitted_features import fit_features
from twotower.data.prepare import PrepareConfig
from twotower.data.schema import HistoryFeature, IdFeature, MultiCategoryFeature, SequenceFeature
from twotower.data.sources.simulated import SimulatedConfig
from twotower.data.split import SplitConfig, SplitDataset, load_split
from twotower.model.config import LabelConfig, ModelConfig, RankingConfig, RetrievalConfig, TowerConfig
from twotower.model.joint import PIECE, JointModel, _columns, _draw_tables
from twotower.training.alarms import allowed_items
from twotower.training.config import TrainConfig
from twotower.training.plan import Planner, blank
from twotower.training.progress import Trained
from twotower.training.step import Stepper, _dealt, decayed
from twotower.training.train import build_model, sample_inputs, train

SEQUENCE = (SequenceFeature(kind="sequence", length=10, blocks=1),)
ITEM = IdFeature(kind="id", column="item_id", dim=16)
GENRES = MultiCategoryFeature(kind="multi_category", column="genres", dim=4)
MODEL = ModelConfig(
    query=(HistoryFeature(kind="history", length=10, pools=2),),
    candidate=(ITEM, GENRES),
    embedding_dim=16,
    query_tower=TowerConfig(layers=(16,)),
    ranking=RankingConfig(
        labels=(LabelConfig(name="met", kind="listwise", weight=0.2), LabelConfig(name="rating", kind="regression")),
        layers=(16,),
        dim=4,
    ),
)
SAMPLED = RetrievalConfig(negatives="sampled", in_batch_negatives=32, uniform_negatives=32)
Fit = Callable[..., Trained]


@pytest.fixture(scope="module")
def dataset(
    prepare_into: Callable[..., Path],
    split_into: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> SplitDataset:
    """150 users, 100 items, 2,500 interactions."""
    world = SimulatedConfig(users=150, items=100, interactions=2_500, clusters=4)
    directory = tmp_path_factory.mktemp("small")
    prepared = prepare_into(directory / "prepared", PrepareConfig(simulated=world, positives="rating >= 3"))
    return load_split(split_into(directory / "split", SplitConfig(validation=0.1), prepared=prepared))


@pytest.fixture
def fit(dataset: SplitDataset, tmp_path: Path) -> Fit:
    """Trains a model for two epochs."""

    def run(model: ModelConfig, **settings: Any) -> Trained:
        return train(
            TrainConfig(epochs=2, batch_size=64, steps_per_call=25, embedding_learning_rate=0.1, **settings),
            model_config=model,
            dataset=dataset,
            seed=1,
            checkpoint=tmp_path / "checkpoint",
            resume=False,
            report=lambda progress: None,
        )

    return run


def falls(trained: Trained, *tasks: str) -> bool:
    first, last = trained.history
    return all(last[task] < first[task] for task in tasks)


def weighed(trained: Trained) -> list[dict[str, float]]:
    return [{name[7:]: value for name, value in entry.items() if "weight_" in name} for entry in trained.history]


def test_a_sequence_with_experts_and_balanced_tasks_learns_and_moves_its_temperature(fit: Fit) -> None:
    trained = fit(
        replace(
            MODEL,
            query=SEQUENCE,
            retrieval=RetrievalConfig(learn_temperature=True, temperature=0.5),
            ranking=replace(MODEL.ranking, experts=3),
            task_weights="balanced",
        ),
        schedule="cosine",
    )
    assert falls(trained, "retrieval", "met")
    assert abs(trained.model.temperature() - 0.5) > 0.001
    for entry, weights in zip(trained.history, weighed(trained), strict=True):
        assert weights.keys() == {"retrieval", "met", "rating"}
        assert sum(weights.values()) == pytest.approx(1 + 0.2 + 1, rel=1e-4), "as many as the recipe's"
        assert all(entry[f"gradient_norm_{task}"] > 0 for task in weights)
    # After the first epoch the pull of each, weight times norm, is as the recipe asks for.
    first = trained.history[0]
    pull = {task: first[f"weight_{task}"] * first[f"gradient_norm_{task}"] for task in ("retrieval", "met", "rating")}
    assert pull["met"] / pull["retrieval"] == pytest.approx(0.2, rel=1e-3)
    assert pull["rating"] / pull["retrieval"] == pytest.approx(1.0, rel=1e-3)


def test_gbce_without_memory_and_trends_learns_and_finds_how_noisy_its_tasks_are(fit: Fit) -> None:
    retrieval = replace(SAMPLED, loss="gbce", in_batch_negatives=0, mask_positives=True)
    ranking = replace(MODEL.ranking, memory=0, trends=False)
    trained = fit(replace(MODEL, retrieval=retrieval, ranking=ranking, task_weights="uncertainty"))
    assert falls(trained, "retrieval", "met", "rating")
    assert trained.model.layers.keys() == {"query", "candidate", "retrieval", "ranking", "tasks"}
    first, last = weighed(trained)
    # Tasks begin at variance 1, a regression's weight being half of that of the others.
    assert first["rating"] == pytest.approx(0.5, abs=0.05)
    assert first["met"] == pytest.approx(1.0, abs=0.1)
    assert last["met"] < first["met"] < 1, "a loss above 1 / 2 is found to be noisy"


def test_cosine_contrast_learns_and_serves_cosines(fit: Fit) -> None:
    trained = fit(replace(MODEL, retrieval=RetrievalConfig(loss="cosine_contrastive", item_bias=False)))
    assert falls(trained, "retrieval", "met", "rating")
    assert trained.model.temperature() == 1.0
    assert trained.model.dim == 16
    assert weighed(trained) == [pytest.approx({"retrieval": 1.0, "met": 0.2, "rating": 1.0})] * 2


@pytest.mark.parametrize("correction", ["sampled", "batch"])
def test_a_sequence_learns_from_drawn_negatives_too(fit: Fit, correction: str) -> None:
    retrieval = replace(SAMPLED, correction=correction)  # type: ignore[arg-type]
    trained = fit(replace(MODEL, query=SEQUENCE, retrieval=retrieval, ranking=RankingConfig(labels=())))
    assert falls(trained, "retrieval")
    assert not weighed(trained)[0], "one task needs no weights"


def test_a_head_may_ask_for_more_hard_negatives_than_there_are_items(fit: Fit) -> None:
    ranking = replace(MODEL.ranking, labels=MODEL.ranking.labels[:1], hard_negatives=300)
    assert falls(fit(replace(MODEL, ranking=ranking)), "met")


def stepper_of(model: JointModel, arrays: TrainingArrays) -> Stepper:
    return Stepper(
        model,
        arrays,
        optimizer=keras.optimizers.Adam(),
        embedding_learning_rate=0.1,
        accumulator="row",
        decay_steps=0,
        seed=1,
    )


@pytest.mark.parametrize("query", [MODEL.query, SEQUENCE], ids=["history", "sequence"])
def test_layers_that_were_only_traced_begin_as_if_they_had_been_called(
    dataset: SplitDataset, query: tuple[HistoryFeature | SequenceFeature, ...]
) -> None:
    config = replace(
        MODEL,
        query=query,
        query_tower=TowerConfig(network="cross", layers=(16,)),
        ranking=replace(MODEL.ranking, experts=2),
        task_weights="uncertainty",
    )
    features = fit_features(config.query, config.candidate, dataset=dataset)
    inputs = sample_inputs(features, dataset)
    traced = JointModel(config, features=features, items=10, seed=1)
    traced.build(*inputs, label_means=np.array([0.5, 3.0], np.float32))
    called = JointModel(config, features=features, items=10, seed=1)
    called.call_once(*inputs, called.tables)
    called.layers["ranking"].begin_at([0.5, 3.0])
    jax.tree.map(np.testing.assert_array_equal, traced.weights(), called.weights())
    jax.tree.map(np.testing.assert_array_equal, traced.states(), called.states())


def test_a_model_begins_at_the_temperature_of_its_catalogues_size(dataset: SplitDataset) -> None:
    features = fit_features(MODEL.query, MODEL.candidate, dataset=dataset)
    config = replace(MODEL, retrieval=replace(MODEL.retrieval, temperature="auto"))
    for items, temperature in ((10, 0.25), (20_000, 1 / np.log(20_000))):
        model = JointModel(config, features=features, items=items, seed=1)
        assert model.temperature() == pytest.approx(temperature)


def test_steps_are_compiled_before_there_are_tables_and_gradient_norms_beside_them(dataset: SplitDataset) -> None:
    ranking = replace(MODEL.ranking, labels=MODEL.ranking.labels[1:], memory=0, trends=False)
    model, arrays = build_model(replace(MODEL, ranking=ranking), dataset=dataset, seed=1)
    stepper = stepper_of(model, arrays)
    plan = Planner(arrays, batch_size=64, sequence=None, seed=1).epoch(0)
    compiled = list[str]()

    def listen(event: str, duration_secs: float, **told: str | int) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(str(told.get("fun_name", "")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    stepper.compile(blank(2, batch_size=64, windows=0)).result()
    assert "tables" not in vars(model)
    state = stepper.start()
    stepper.expect_gradient_norms(state, plan)
    state, _ = stepper.run(state, plan.part(0, 2))
    stepper.expect_gradient_norms(state, plan)
    norms = stepper.gradient_norms(state, plan)
    jax.monitoring.unregister_event_duration_listener(listen)
    assert all(norm > 0 for norm in norms.values())
    assert [name for name in compiled if "norms" in name or "scan" in name] == ["jit(_scan)", "jit(_gradient_norms)"]


@pytest.mark.parametrize(
    ("config", "precision", "capability"),
    [
        (replace(MODEL, query=SEQUENCE), None, "8.0"),
        (replace(MODEL, retrieval=SAMPLED), None, "9.0"),
        (replace(MODEL, retrieval=SAMPLED), "float32", "9.0"),
        (replace(MODEL, retrieval=SAMPLED), None, "7.5"),
        (replace(MODEL, retrieval=SAMPLED), None, "gfx90a"),
    ],
    ids=["sequence", "sampled", "told", "too old", "AMD's"],
)
def test_for_a_gpu_that_can_products_take_rounded_factors_unless_jax_is_told_otherwise(
    dataset: SplitDataset,
    config: ModelConfig,
    precision: str | None,
    capability: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, arrays = build_model(config, dataset=dataset, seed=1)
    stepper = stepper_of(model, arrays)
    windows = 8 if config.query == SEQUENCE else 0
    given = stepper.start(), _dealt(blank(2, batch_size=64, windows=windows)), stepper.arrays
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [SimpleNamespace(compute_capability=capability)])
    with jax.default_matmul_precision(precision):  # type: ignore[arg-type]
        programs = [
            jax.jit(traced).trace(*given).lower(lowering_platforms=("cuda",)).as_text()
            for traced in (stepper._scan, stepper._gradient_norms)
        ]
    for program in programs:
        products = [line for line in program.splitlines() if "stablehlo.dot_general" in line]
        assert len(products) > 10
        rounded = [line for line in products if re.search("lhs_.*= bf16, rhs_.*= bf16, accumulation.*= f32", line)]
        assert rounded == (products if precision is None and capability in ("8.0", "9.0") else [])


def first_batch(stepper: Stepper, arrays: TrainingArrays, *, seed: int) -> tuple[Any, dict[str, Any]]:
    """The examples of an epoch's first step, and what is gathered for them."""
    plan = Planner(arrays, batch_size=64, sequence=None, seed=1).epoch(0)
    first = jax.tree.map(lambda values: jnp.asarray(values[0]), plan)
    return first.examples, stepper._gather(first, stepper.arrays, key=jax.random.key(seed))


def test_training_hides_the_share_of_ids_that_dropout_asks_for(dataset: SplitDataset) -> None:
    model, arrays = build_model(replace(MODEL, candidate=(replace(ITEM, dropout=0.4), GENRES)), dataset=dataset, seed=1)
    stepper = stepper_of(model, arrays)
    assert stepper.hidden_ids == [("candidate", "id_item_id", 0.4)]
    one, other = (first_batch(stepper, arrays, seed=seed)[1]["candidate"] for seed in (0, 1))
    hidden = np.asarray(one["id_item_id"]) == 0
    assert 0.2 < hidden.mean() < 0.6
    assert not np.array_equal(hidden, np.asarray(other["id_item_id"]) == 0), "others in every step"
    np.testing.assert_array_equal(np.asarray(one["id_item_id"])[~hidden], arrays.items["id_item_id"][~hidden])
    np.testing.assert_array_equal(one["multi_category_genres"], arrays.items["multi_category_genres"])


@pytest.mark.parametrize("training", ["earlier", "others"])
@pytest.mark.parametrize("mask_absent", [True, False])
@pytest.mark.parametrize("mask_positives", [True, False])
def test_guessing_is_told_by_what_is_left_of_the_items(
    dataset: SplitDataset, training: Any, mask_absent: bool, mask_positives: bool
) -> None:
    retrieval = RetrievalConfig(mask_absent=mask_absent, mask_positives=mask_positives)
    query = (HistoryFeature(kind="history", length=10, training=training),)
    model, arrays = build_model(replace(MODEL, query=query, retrieval=retrieval), dataset=dataset, seed=1)
    examples, batch = first_batch(stepper_of(model, arrays), arrays, seed=1)
    everything = jnp.arange(len(arrays.appeared))
    left_out = model._left_out(batch | {"columns": _columns(batch, everything)}, everything)
    kept: Any = len(arrays.appeared)
    if left_out is not None:  # The loss keeps an example's own item, marked or not.
        own = np.arange(len(arrays.appeared)) == np.asarray(batch["item"])[:, None]
        kept = (~np.asarray(left_out) | own).sum(axis=1)
    rows = np.asarray(examples)
    names = ("positive", "item", "second", "first", "end", "last")
    drawn = replace(arrays, **{name: getattr(arrays, name)[rows] for name in names})
    expected = np.log(np.broadcast_to(kept, len(rows))[drawn.positive > 0]).mean()
    found = allowed_items(drawn, retrieval, reads_others=training == "others")
    assert found == pytest.approx(np.exp(expected), rel=1e-6)


def test_others_beyond_a_short_history_are_no_negatives_either(dataset: SplitDataset) -> None:
    others = HistoryFeature(kind="history", length=3, training="others")
    model, arrays = build_model(replace(MODEL, query=(others,)), dataset=dataset, seed=1)
    examples, batch = first_batch(stepper_of(model, arrays), arrays, seed=1)
    assert batch["query"]["history_items"].shape == (64, 3)
    for example, met in zip(np.asarray(examples).tolist(), np.asarray(batch["met"]), strict=True):
        log = arrays.met[arrays.first[example] : arrays.last[example]]
        assert sorted(met[met >= 0].tolist()) == sorted(log[log != arrays.item[example]].tolist())


def test_a_history_of_others_shows_earlier_and_later_items_but_never_the_example_itself(dataset: SplitDataset) -> None:
    others = HistoryFeature(kind="history", length=200, training="others")
    model, arrays = build_model(replace(MODEL, query=(others,)), dataset=dataset, seed=1)
    stepper = stepper_of(model, arrays)
    seen: dict[int, set[int]] = {}
    shares = []
    for seed in range(20):
        examples, batch = first_batch(stepper, arrays, seed=seed)
        rows, met = np.asarray(batch["query"]["history_items"]), np.asarray(batch["met"])
        for place, example in enumerate(np.asarray(examples).tolist()):
            own = arrays.item[example]
            log = arrays.met[arrays.first[example] : arrays.last[example]]
            # What is kept from the negatives is all else that the user met, shown or not.
            assert sorted(met[place][met[place] >= 0].tolist()) == sorted(log[log != own].tolist())
            of_row = dict(zip(arrays.history_rows[arrays.first[example] : arrays.last[example]], log, strict=True))
            shown = {of_row[row] for row in rows[place][rows[place] >= 0].tolist()}
            assert own not in shown
            seen.setdefault(example, set()).update(shown)
            shares += [len(shown) / (log != own).sum()] if (log != own).any() else []
    for example, shown in seen.items():
        log = arrays.met[arrays.first[example] : arrays.last[example]]
        assert shown == set(log[log != arrays.item[example]].tolist()), "over the steps all of them, also later ones"
    assert np.histogram(shares, bins=4, range=(0, 1))[0] / len(shares) == pytest.approx([0.25] * 4, abs=0.1)


@pytest.mark.parametrize("mask_positives", [True, False])
def test_no_negative_is_an_item_that_nobody_had_met_by_then(dataset: SplitDataset, mask_positives: bool) -> None:
    config = replace(MODEL, retrieval=RetrievalConfig(mask_absent=True, mask_positives=mask_positives))
    model, arrays = build_model(config, dataset=dataset, seed=1)
    examples, batch = first_batch(stepper_of(model, arrays), arrays, seed=1)
    everything = np.arange(len(arrays.catalogue_row))
    columns = _columns(batch, jnp.asarray(everything))
    left_out = np.asarray(model._left_out(batch | {"columns": columns}, jnp.asarray(everything)))
    for example, row in zip(np.asarray(examples).tolist(), left_out, strict=True):
        by_then = arrays.item[arrays.second <= arrays.second[example]]
        met = arrays.met[arrays.first[example] : arrays.end[example]]
        allowed = np.setdiff1d(by_then, met) if mask_positives else np.unique(by_then)
        np.testing.assert_array_equal(everything[~row], allowed)
    assert left_out.any()


def test_a_history_of_others_learns(fit: Fit) -> None:
    query = (HistoryFeature(kind="history", length=50, pools=1, training="others"),)
    assert falls(
        fit(replace(MODEL, query=query, retrieval=RetrievalConfig(mask_absent=True))), "retrieval", "met", "rating"
    )


def test_items_known_by_their_features_alone_are_told_apart_by_these(dataset: SplitDataset) -> None:
    model, _ = build_model(MODEL, dataset=dataset, seed=1)
    genres = dataset.items["genres"].to_pylist()[:2]
    items = dataset.items.slice(0, 4).set_column(
        dataset.items.column_names.index("genres"), "genres", [[genres[0], "Never Heard Of", genres[0], None]]
    )
    items = items.set_column(items.column_names.index("item_id"), "item_id", [[f"new-{row}" for row in range(4)]])
    found = np.asarray(model.layers["candidate"](model.features.candidate_inputs(items), model.tables))
    np.testing.assert_array_equal(found[0], found[2])
    assert np.abs(found[0, :16] - found[1, :16]).max() > 0.01


def test_a_step_size_falls_by_half_a_cosine() -> None:
    # From 1 down to a hundredth over 10 steps; half way between the two in the middle.
    found = [float(decayed(jnp.array(step), 10)) for step in (0, 5, 10, 99)]
    assert found == pytest.approx([1.0, 0.505, 0.01, 0.01])
    assert decayed(jnp.array(7), 0) == 1.0


IDS = ModelConfig(
    query=(IdFeature(kind="id", column="user_id", dim=16),),
    candidate=(ITEM,),
    embedding_dim=16,
    retrieval=replace(SAMPLED, mask_positives=False, mask_absent=False),
    ranking=RankingConfig(
        labels=(LabelConfig(name="rating", kind="regression"),), layers=(16,), dim=4, memory=0, trends=False
    ),
)
READ = {
    "nothing": (IDS, set()),
    "what was met, which is no negative": (
        replace(IDS, retrieval=replace(IDS.retrieval, mask_positives=True)),
        {"first", "end", "last", "history_rows", "history_seconds", "met", "second"},
    ),
    "when items appeared": (replace(IDS, retrieval=replace(IDS.retrieval, mask_absent=True)), {"second"}),
    "trends": (replace(IDS, ranking=replace(IDS.ranking, trends=True)), {"snapshot"}),
    "everything": (MODEL, {"first", "end", "last", "history_rows", "history_seconds", "met", "second", "snapshot"}),
}


@pytest.mark.parametrize("reads", READ)
def test_only_what_steps_read_of_the_log_is_built(dataset: SplitDataset, reads: str) -> None:
    config, expected = READ[reads]
    _, arrays = build_model(config, dataset=dataset, seed=1)
    names = ("first", "end", "last", "history_rows", "history_seconds", "met", "second", "snapshot")
    assert {name for name in names if len(getattr(arrays, name))} == expected
    assert (arrays.trends is not None) == ("snapshot" in expected)


def test_a_model_that_reads_nothing_of_the_log_learns(fit: Fit) -> None:
    trained = fit(IDS)
    assert falls(trained, "retrieval")
    assert not trained.trend_block


def test_a_large_table_is_drawn_as_a_small_one_is() -> None:
    rows, dim = PIECE + 5, 3
    (table,) = _draw_tables({"table": (rows, dim)}, seed=7).values()
    expected = 0.05 * np.random.default_rng([7, 0]).standard_normal((rows, dim), np.float32)
    expected[0] = 0
    np.testing.assert_array_equal(np.asarray(table), expected)
