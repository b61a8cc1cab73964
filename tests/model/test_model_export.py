"""What is served equals what was trained, for every kind of feature."""

from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from twotower.data.batches import QueryArrays
from twotower.data.schema import HistoryFeature, SequenceFeature
from twotower.data.split import TRAIN, load_split
from twotower.data.trends import TREND_FEATURES
from twotower.evaluation.model_contender import ModelContender
from twotower.model.export import export_model
from twotower.model.exported import ExportedModel
from twotower.model.joint import JointModel
from twotower.recipe import Recipe
from twotower.training.train import build_model, sample_inputs

SEQUENCE = SequenceFeature(kind="sequence", length=10, blocks=2, heads=2)


@pytest.fixture(scope="module", params=["pools", "sequence"])
def joint(request: pytest.FixtureRequest, tiny_recipe: Recipe, tiny_split: Path) -> JointModel:
    """The model of every kind of feature, with tables drawn wide enough that each input matters."""
    config = replace(tiny_recipe.model, retrieval=replace(tiny_recipe.model.retrieval, learn_temperature=True))
    if request.param == "sequence":
        others = [feature for feature in config.query if not isinstance(feature, HistoryFeature)]
        config = replace(config, query=(SEQUENCE, *others))
    model, _ = build_model(config, dataset=load_split(tiny_split), seed=3)
    model.layers["retrieval"].logarithm.assign(np.log(0.4))  # As if training had moved it from 0.25.
    generator = np.random.default_rng(0)
    model.tables = {
        name: jnp.asarray(generator.normal(size=table.shape).astype(np.float32)) for name, table in model.tables.items()
    }
    return model


@pytest.fixture(scope="module")
def exported(joint: JointModel, tiny_split: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportedModel:
    directory = tmp_path_factory.mktemp("exported")
    query, candidate = sample_inputs(joint.features, load_split(tiny_split))
    export_model(joint, directory, query_inputs=query, candidate_inputs=candidate, trend_block=24)
    return ExportedModel.load(directory)


def drawn_trends(*shape: int) -> np.ndarray:
    return np.random.default_rng(4).normal(size=(*shape, TREND_FEATURES)).astype(np.float32)


def test_exported_towers_and_head_equal_the_trained_ones(
    joint: JointModel, exported: ExportedModel, tiny_split: Path
) -> None:
    dataset = load_split(tiny_split)
    rows = np.random.default_rng(1).integers(0, len(dataset.item), 200)
    arrays = QueryArrays.build(dataset, joint.features, log=dataset.user_log(TRAIN, positives_only=True))
    inputs = arrays.inputs(dataset.user[rows], dataset.timestamp[rows], log_row=rows)
    assert {0, 10} <= set((inputs["history_items"] >= 0).sum(axis=1)), "histories are of every length, none and all"
    candidates = joint.features.candidate_inputs(dataset.items)
    query = np.asarray(joint.embed_query(joint.call_layers, inputs, joint.tables))
    candidate = np.asarray(joint.layers["candidate"](candidates, joint.tables))
    served_query, served_candidate = exported.embed_queries(inputs), exported.embed_candidates(candidates)
    assert np.abs(served_query.whole - query).max() < 2e-5
    assert np.abs(served_candidate.whole - candidate).max() < 1e-5
    asked = np.stack([dataset.item[rows], dataset.item[rows[::-1]]], axis=1)
    trends = drawn_trends(*asked.shape)
    logits = np.asarray(joint.rank(joint.call_layers, query, candidate[asked], trends=trends))
    answer = exported.rank(served_query.ranking, served_candidate.ranking[asked], trends=trends)
    assert np.abs(answer["rating"] - logits[:, :, 1]).max() < 1e-4
    similarity = np.einsum("bd,bcd->bc", query[:, :17], candidate[asked][:, :, :17])
    assert np.abs(answer["met"] - logits[:, :, 0]).max() < 1e-4, "a listwise label is told as its logit"
    # By default a quarter of the head's logit, three quarters of retrieval's: similarity over the temperature, 0.4.
    assert np.abs(answer["score"] - (0.25 * logits[:, :, 0] + 0.75 * similarity / 0.4)).max() < 1e-4
    assert np.abs(exported.rank_raw(query, candidate[asked], trends=-trends)["met"] - answer["met"]).max() > 1e-3


def test_embeddings_have_length_one_and_stand_beside_a_bias(exported: ExportedModel, tiny_split: Path) -> None:
    dataset = load_split(tiny_split)
    contender = ModelContender(exported, dataset=dataset)
    embedding = contender.candidates.embedding
    assert embedding.shape == (len(dataset.item_ids), 16 + 1)
    assert np.linalg.norm(embedding[:, :16], axis=1) == pytest.approx(1.0, abs=1e-4)
    rows = np.arange(5)
    arrays = QueryArrays.build(dataset, exported.features, log=dataset.user_log(TRAIN))
    query = exported.embed_queries(arrays.inputs(dataset.user[rows], dataset.timestamp[rows], log_row=rows)).embedding
    assert (query[:, 16] == 1.0).all()


def test_a_candidate_is_scored_by_itself(joint: JointModel, exported: ExportedModel, tiny_split: Path) -> None:
    contender = ModelContender(exported, dataset=load_split(tiny_split))
    width, trends = joint.output_dim + joint.layers["memory"].size, drawn_trends(2, 40)
    query = np.random.default_rng(2).normal(size=(2, width)).astype(np.float32)
    candidates = contender.candidates.ranking[None, :40].repeat(2, axis=0)
    few = exported.rank(query, candidates[:, :3], trends=trends[:, :3])
    many = exported.rank(query, candidates, trends=trends)
    assert np.abs(few["score"] - many["score"][:, :3]).max() < 1e-4


@pytest.mark.parametrize("has_context", [True, False], ids=["at an interaction", "between interactions"])
def test_a_request_is_answered_as_the_evaluation_asked(
    exported: ExportedModel, tiny_split: Path, has_context: bool
) -> None:
    dataset = load_split(tiny_split)
    log = dataset.user_log(TRAIN, positives_only=True)
    user = int(np.argmax(np.diff(log.start)))
    now = np.array([dataset.timestamp[-1] + 1])
    arrays = QueryArrays.build(dataset, exported.features, log=log)
    row = np.array([len(dataset.item) - 1 if has_context else -1])
    evaluated = exported.embed_queries(arrays.inputs(np.array([user], np.int32), now, log_row=row))
    places = slice(log.start[user], log.start[user + 1])
    features = dataset.users.slice(user, 1).to_pydict()
    request = exported.features.query_inputs(
        columns=features,
        timestamp=now,
        history=[(dataset.item_ids[log.item[places]].tolist(), log.timestamp[places].tolist())],
    )
    assert np.abs(exported.embed_queries(request).whole - evaluated.whole).max() < 1e-4
