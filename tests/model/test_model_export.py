"""What is served equals what was trained, for every kind of feature."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from twotower.data.batches import QueryArrays
from twotower.data.split import TRAIN, load_split
from twotower.evaluation.model_contender import ModelContender
from twotower.model.export import export_model
from twotower.model.exported import ExportedModel
from twotower.model.joint import JointModel
from twotower.recipe import Recipe
from twotower.training.train import build_model, sample_inputs


@pytest.fixture(scope="module")
def joint(tiny_recipe: Recipe, tiny_split: Path) -> JointModel:
    """The model of every kind of feature, with tables drawn wide enough that each input matters."""
    model, _ = build_model(tiny_recipe.model, dataset=load_split(tiny_split), seed=3)
    generator = np.random.default_rng(0)
    model.tables = {
        name: jnp.asarray(generator.normal(size=table.shape).astype(np.float32)) for name, table in model.tables.items()
    }
    return model


@pytest.fixture(scope="module")
def exported(joint: JointModel, tiny_split: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportedModel:
    directory = tmp_path_factory.mktemp("exported")
    query, candidate = sample_inputs(joint.features, load_split(tiny_split))
    export_model(joint, directory, query_inputs=query, candidate_inputs=candidate)
    return ExportedModel.load(directory)


def test_exported_towers_and_head_equal_the_trained_ones(
    joint: JointModel, exported: ExportedModel, tiny_split: Path
) -> None:
    dataset = load_split(tiny_split)
    rows = np.random.default_rng(1).integers(0, len(dataset.item), 200)
    arrays = QueryArrays.build(dataset, joint.features, log=dataset.user_log(TRAIN, positives_only=True))
    inputs = arrays.inputs(dataset.user[rows], dataset.timestamp[rows], log_row=rows)
    candidates = joint.features.candidate_inputs(dataset.items)
    query = np.asarray(joint.layers["query"](inputs, joint.tables))
    candidate = np.asarray(joint.layers["candidate"](candidates, joint.tables))
    served_query, served_candidate = exported.embed_queries(inputs), exported.embed_candidates(candidates)
    assert np.abs(served_query.whole - query).max() < 1e-5
    assert np.abs(served_candidate.whole - candidate).max() < 1e-5
    logits = np.asarray(joint.layers["ranking"](query, candidate[dataset.item[rows]]))
    answer = exported.rank(served_query.ranking, served_candidate.ranking[dataset.item[rows], None])
    assert np.abs(answer["rating"][:, 0] - logits[:, 1]).max() < 1e-4
    similarity = np.sum(query[:, :17] * candidate[dataset.item[rows], :17], axis=1)
    assert np.abs(answer["met"][:, 0] - logits[:, 0]).max() < 1e-4, "a listwise label is told as its logit"
    # By default a quarter of the head's logit, three quarters of retrieval's: similarity over the temperature, 0.25.
    assert np.abs(answer["score"][:, 0] - (0.25 * logits[:, 0] + 0.75 * similarity / 0.25)).max() < 1e-4


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


def test_a_candidate_is_scored_by_itself(exported: ExportedModel, tiny_split: Path) -> None:
    contender = ModelContender(exported, dataset=load_split(tiny_split))
    generator = np.random.default_rng(2)
    query = generator.normal(size=(2, contender.candidates.whole.shape[1])).astype(np.float32)
    few = exported.rank(query, contender.candidates.ranking[None, :3].repeat(2, axis=0))
    many = exported.rank(query, contender.candidates.ranking[None, :40].repeat(2, axis=0))
    assert np.abs(few["score"] - many["score"][:, :3]).max() < 1e-5


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
