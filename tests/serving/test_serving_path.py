"""What was judged is what is served: the real steps train a small model, and both sides must answer alike."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twotower import steps
from twotower.artifact import write_artifact
from twotower.bundle import write_bundle
from twotower.data.feature_encoders import SECOND
from twotower.data.split import load_split
from twotower.data.trends import Trends, lookup
from twotower.evaluation.model_contender import ModelContender
from twotower.evaluation.queries import successive
from twotower.model.exported import ExportedModel
from twotower.recipe import Recipe, parse_recipe
from twotower.serving.live.checking import check
from twotower.serving.recommender import Recommender

CANDIDATES, K = 30, 10
RECIPE = {
    "name": "tiny",
    "train": {"epochs": 1, "batch_size": 256},
    "model": {
        "embedding_dim": 16,
        "query": [
            {"kind": "id", "column": "user_id", "dim": 16},
            {"kind": "history", "length": 20},
            {"kind": "category", "column": "region"},
            {"kind": "number", "column": "age"},
            {"kind": "timestamp", "column": "timestamp"},
        ],
        "candidate": [
            {"kind": "id", "column": "item_id", "dim": 16},
            {"kind": "multi_category", "column": "genres"},
            {"kind": "text", "column": "title"},
        ],
        "query_tower": {"layers": [32]},
        "ranking": {
            "labels": [{"name": "met", "kind": "binary"}, {"name": "rating", "kind": "regression"}],
            "order": {"met": 1.0, "rating": 1.0},
        },
    },
}


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return parse_recipe(RECIPE, where="test")


@pytest.fixture(scope="module")
def model(recipe: Recipe, tiny_split: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("serving") / "model"
    steps.train(recipe, split=tiny_split, out=out)
    return out


@pytest.fixture(scope="module")
def recommender(recipe: Recipe, tiny_split: Path, model: Path) -> Recommender:
    index, bundle = model.parent / "index", model.parent / "bundle"
    steps.index(recipe, split=tiny_split, model=model, out=index)
    metadata: dict[str, Any] = {}
    with write_artifact(bundle, kind="bundle", metadata=metadata) as out:
        metadata |= write_bundle(
            recipe.bundle,
            name=recipe.name,
            dataset=load_split(tiny_split),
            model=model,
            index=index,
            recipe="",
            candidates=CANDIDATES,
            out=out,
        )
    return Recommender.load(bundle)


def test_a_server_answers_as_the_evaluation_judged(recommender: Recommender, tiny_split: Path, model: Path) -> None:
    # Every third test query: the server, asked at the same moment, must bring the same items in the same order. Its
    # bundle tells how popular items are at the log's end, so each is given what it would have told at that moment.
    dataset = load_split(tiny_split)
    queries = successive(dataset)
    contender = ModelContender(ExportedModel.load(model), dataset=dataset)
    retrieval = contender.score(queries)
    for place, (user, moment) in enumerate(zip(queries.user, queries.timestamp, strict=True)):
        retrieval[place, dataset.item[(dataset.user == user) & (dataset.timestamp < moment)]] = -np.inf
    candidates = np.argsort(-retrieval, axis=1, kind="stable")[:, :CANDIDATES].astype(np.int32)
    scores = contender.rank(queries, candidates)
    log, catalogue = queries.known_positives, np.arange(len(dataset.item_ids))[None]
    order = np.argsort(log.timestamp, kind="stable")
    trends = Trends.build(
        log.item[order],
        log.timestamp[order] // SECOND,
        items=len(dataset.item_ids),
        block=recommender.bundle.model.trend_block,
    )
    np.testing.assert_array_equal(recommender.bundle.trends, trends.latest())
    differing = 0
    for place in range(0, len(queries), 3):
        snapshot = trends.snapshot_at(queries.timestamp[place : place + 1] // SECOND)
        then = Recommender(replace(recommender.bundle, trends=lookup(np, trends.arrays, snapshot, catalogue)[0]))
        now = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=int(queries.timestamp[place]))
        answer = then.recommend(dataset.user_ids[queries.user[place]], k=K, now=now)
        assert answer.fallback is None
        order = np.argsort(-scores[place], kind="stable")[:K]
        np.testing.assert_allclose([item.score for item in answer.items], scores[place][order], rtol=1e-4, atol=1e-4)
        wanted = dataset.item_ids[candidates[place][order]].tolist()
        differing += [item.item_id for item in answer.items] != wanted  # Rounding may turn two near-equals round.
    assert len(queries) > 300
    assert differing <= 1


def test_a_bundle_of_a_trained_model_passes_every_check(recommender: Recommender) -> None:
    assert check(recommender.bundle.directory).id == recommender.bundle.id


def test_a_batch_of_the_trained_model_answers_as_one_by_one(recommender: Recommender) -> None:
    table = recommender.recommend_batch(k=K)
    users = recommender.bundle.users["user_id"].to_pylist()
    singles = [recommender.recommend(user_id, k=K) for user_id in users[::7]]
    batch = dict.fromkeys(users, ())
    for row in table.to_pylist():
        batch[row["user_id"]] += ((row["item_id"], pytest.approx(row["score"], rel=1e-4, abs=1e-4)),)
    differing = sum(
        tuple((item.item_id, item.score) for item in single.items) != batch[single.user_id] for single in singles
    )
    assert differing <= 1


def test_a_trained_score_does_not_depend_on_the_other_candidates(recommender: Recommender) -> None:
    everything = {item.item_id: item.score for item in recommender.recommend(history=["1", "2", "3"], k=190).items}
    few = recommender.recommend(history=["1", "2", "3"], k=1, exclude=list(everything)[:50]).items
    assert few[0].score == pytest.approx(everything[few[0].item_id], rel=1e-5)
