"""What a server tells over HTTP is what the model says where it is trained: in Keras, on JAX, by the trained weights.

The world below has a column for every kind of feature wherever one can come from, with gaps in all of them, users and
items that training never met, and labels of every kind. The training side works each answer out from the dataset and
the weights: neither the bundle nor the ONNX graphs are read, nor is a query put together by the server's lines.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import httpx
import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from twotower import steps
from twotower.artifact import write_artifact
from twotower.bundle import write_bundle
from twotower.data.batches import QueryArrays
from twotower.data.histories import UserLog
from twotower.data.schema import CandidateFeature, QueryFeature
from twotower.data.split import TRAIN, load_split
from twotower.data.trends import Trends, lookup, unmet
from twotower.model.calibrated import Calibration
from twotower.model.config import RETRIEVAL
from twotower.model.exported import DESCRIPTION
from twotower.model.network import WEIGHTS
from twotower.recipe import Recipe, parse_recipe
from twotower.serving.load.child import serving
from twotower.training.train import build_model

USERS, ITEMS, MET, HIDDEN = 1_040, 300, 14, 6
ASKED, K, CANDIDATES, BATCH = 1_000, 20, 100, 50
Numbers = NDArray[np.float64]
SECOND, DAY_US = 1_000_000, 86_400_000_000
BEGIN, DAYS = 1_700_000_000, 200
TOLERANCE = 1e-5
"""Of a number's own size where that is above 1: float32 tells seven digits."""

COLUMNS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("id", {"dim": 4}),
    ("category", {"dim": 4}),
    ("multi_category", {"dim": 4, "length": 3}),
    ("multi_category", {"dim": 4, "combiner": "sum"}),
    ("number", {}),
    ("number", {"bins": 6}),
    ("text", {"dim": 4, "buckets": 200}),
    ("timestamp", {}),
    ("embedding", {"width": 5}),
)
"""Kind and settings of the features that read a column, in each of the tables."""


def features(table: str, *chosen: str) -> list[dict[str, Any]]:
    """The features that read the columns of a table; by default all."""
    declared = [
        {"kind": kind, "column": f"{table}_{kind}_{place}", **settings}
        for place, (kind, settings) in enumerate(COLUMNS)
    ]
    return [each for each in declared if not chosen or each["kind"] in chosen]


ITEM = {"kind": "id", "column": "item_id", "dim": 16, "dropout": 0.1}
MODELS: dict[str, dict[str, Any]] = {
    "pools": {
        "embedding_dim": 16,
        "query": [
            {"kind": "history", "length": 10, "pools": 3, "training": "others"},
            {"kind": "id", "column": "user_id", "dim": 8},
            {"kind": "timestamp", "column": "timestamp"},
            *features("user"),
            *features("context"),
        ],
        "candidate": [ITEM, *features("item")],
        "query_tower": {"network": "cross", "layers": [32]},
        "candidate_tower": {"layers": [32]},
        "retrieval": {"learn_temperature": True},
        "ranking": {
            "labels": [
                {"name": "met", "kind": "listwise", "weight": 0.2},
                {"name": "rating", "kind": "regression"},
                {"name": "liked", "kind": "binary"},
            ],
            "order": {"retrieval": 0.5, "met": 0.5, "rating": 0.3, "liked": 0.2},
            "layers": [32, 16],
            "dropout": 0.1,
        },
    },
    "sequence": {
        "embedding_dim": 16,
        "query": [
            {"kind": "sequence", "length": 12, "blocks": 2, "heads": 2},
            *features("user", "category", "number", "embedding"),
        ],
        "candidate": [ITEM, *features("item", "text", "embedding")],
        "retrieval": {"item_bias": False},
        "ranking": {
            "labels": [
                {"name": "met", "kind": "binary"},
                {"name": "liked", "kind": "binary"},
                {"name": "minutes", "kind": "regression", "weight": 0.1},
            ],
            "order": {"retrieval": 0.7, "met": 0.3, "minutes": 0.1},
            "layers": [32],
            "experts": 3,
        },
    },
}


def recipe_of(name: str, *, data_dir: Path | None = None) -> Recipe:
    tree = {
        "name": name,
        "prepare": {
            "source": "files",
            "data_dir": None if data_dir is None else str(data_dir),
            "labels": {"liked": "rating >= 4"},
            "positives": "rating >= 2",
            "missing_labels": "keep",
            "files": {
                **{table: f"{table}.parquet" for table in ("interactions", "users", "items")},
                "labels": ["rating", "minutes"],
                "context": [each["column"] for each in features("context")],
            },
        },
        "split": {"validation": 0.1},
        "model": MODELS[name],
        "train": {"epochs": 2, "batch_size": 512, "steps_per_call": 25},
        "evaluate": {"candidates": CANDIDATES},
    }
    return parse_recipe(tree, where="test")


def test_the_recipes_hold_every_kind_of_feature_in_both_towers() -> None:
    for tower, union in (("query", QueryFeature), ("candidate", CandidateFeature)):
        known = {get_args(kind.__annotations__["kind"])[0] for kind in get_args(get_args(union)[0])}
        declared = {feature["kind"] for model in MODELS.values() for feature in model[tower]}
        assert declared == known, f"{tower} tower: add what is missing to COLUMNS or MODELS"


def columns(table: str, hidden: Numbers, generator: np.random.Generator) -> dict[str, pa.Array]:
    """A column for each of the features of a table, in which every tenth value is missing."""
    positive = [[f"m{place}" for place in np.flatnonzero(row > 0)] for row in hidden]
    values: list[list[Any]] = [
        (4 * hidden[:, 0]).astype(int).tolist(),
        [f"kind {place}" for place in hidden.argmax(axis=1)],
        positive,
        ["|".join(each) for each in positive],
        (40 + 10 * hidden[:, 1]).tolist(),
        np.exp(hidden[:, 2]).tolist(),
        [" ".join(f"word{place}" for place in np.argsort(row)[:3]) for row in hidden],
        [datetime.fromtimestamp(BEGIN + int(1e7 * value), UTC) for value in hidden[:, 3]],
        hidden[:, :5].tolist(),
    ]
    is_missing = generator.random((len(COLUMNS), len(hidden))) < 0.1
    return {
        feature["column"]: pa.array([None if gap else value for value, gap in zip(each, gaps, strict=True)])
        for feature, each, gaps in zip(features(table), values, is_missing, strict=True)
    }


def write_tables(folder: Path) -> None:
    """Users who like items that point where they do. The last of both come late, the very last are never met."""
    generator = np.random.default_rng(5)
    taste, style = (generator.normal(size=(size, HIDDEN)) for size in (USERS, ITEMS))
    user_ids = np.array([f"user №{row:04}" for row in range(USERS)])
    item_ids = np.array([f"item №{row:03}" for row in range(ITEMS)])
    user = np.repeat(np.arange(USERS - 3), MET)
    began = np.where(np.arange(USERS) < USERS - 20, generator.uniform(0, 0.9, USERS), 0.97)[user]
    moment = began + (1 - began) * generator.random(len(user))
    wish = taste @ style.T + generator.gumbel(size=(USERS, ITEMS))
    wish[:, ITEMS - 20 :] = -np.inf
    item = np.argsort(-wish, axis=1)[: USERS - 3, :MET].ravel()
    late = moment > 0.95
    item[late] = generator.integers(ITEMS - 20, ITEMS - 2, np.count_nonzero(late))
    likes = np.einsum("nd,nd->n", taste[user], style[item]) / HIDDEN**0.5
    minutes = np.exp(3 + 0.3 * likes)
    minutes[::9] = np.nan
    tables = {
        "users": {"user_id": user_ids, **columns("user", taste, generator)},
        "items": {"item_id": item_ids, **columns("item", style, generator)},
        "interactions": {
            "user_id": user_ids[user],
            "item_id": item_ids[item],
            "timestamp": pa.array(BEGIN * SECOND + (moment * DAYS * DAY_US).astype(np.int64), pa.timestamp("us")),
            "rating": np.clip(np.round(3.3 + likes + 0.6 * generator.normal(size=len(user))), 1, 5),
            "minutes": pa.array(minutes, from_pandas=True),
            **columns("context", taste[user] + generator.normal(size=(len(user), HIDDEN)), generator),
        },
    }
    for name, table in tables.items():
        pq.write_table(pa.table(table), folder / f"{name}.parquet")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """`q` queries."""

    user: NDArray[np.int32]
    """`[q]` user rows."""
    log_row: NDArray[np.int64]
    """`[q]` the interaction whose context is told; -1 tells none."""
    moment: NDArray[np.int64]
    """`[q]` what a server takes for now: a second after the last that it knows of, in microseconds."""

    def part(self, start: int, stop: int) -> "Asked":
        return Asked(user=self.user[start:stop], log_row=self.log_row[start:stop], moment=self.moment[start:stop])


Answers = dict[str, Numbers]
"""`score`, `retrieval_score` and each label -> `[q, c]` what is said of `c` items."""


class TrainingSide:
    """The Keras model on JAX with the weights that training left, over the dataset that it was trained on."""

    def __init__(self, recipe: Recipe, *, split: Path, model: Path) -> None:
        self.dataset = load_split(split)
        self.model, arrays = build_model(recipe.model, dataset=self.dataset, seed=recipe.seed)
        with np.load(model / WEIGHTS, allow_pickle=False) as stored:
            self.model.assign_stored(stored)
            self.model.tables = {name: jnp.asarray(stored[f"table/{name}"]) for name in self.model.tables}
        self.calibration: dict[str, Any] = json.loads((model / DESCRIPTION).read_text(encoding="utf-8"))["calibration"]
        self.last = int(self.dataset.timestamp[-1])
        self.items = self.embed_items(self.dataset.items)
        positive = self.dataset.positive
        self.user, self.met = self.dataset.user[positive], self.dataset.item[positive]
        self.when = self.dataset.timestamp[positive]
        trends = Trends.build(self.met, self.when // SECOND, items=ITEMS, block=arrays.trends.block)
        now = trends.snapshot_at(np.array([self.last // SECOND + 1]))
        self.trends = np.asarray(lookup(jnp, trends.arrays, now, np.arange(ITEMS)[None])[0])
        """`[I, F]` the fortunes of all items at the moment of asking."""
        self.unmet = unmet(len(self.met), items=ITEMS, block=trends.block)

    def embed_items(self, items: pa.Table) -> NDArray[np.float32]:
        inputs = self.model.features.candidate_inputs(items)
        return np.asarray(self.model.layers["candidate"](inputs, self.model.tables))

    def answers(
        self, asked: Asked, items: NDArray[np.float32], trends: NDArray[np.float32], *, log: UserLog | None = None
    ) -> Answers:
        """What the model says of all `c` items, `[c, R]` and `[c, F]`, to each query; the log is the dataset's."""
        log = log or UserLog.from_columns(self.user, self.met, self.when, users=USERS)
        queries = QueryArrays.build(self.dataset, self.model.features, log=log)
        parts = [
            self._answers(queries, asked.part(start, start + BATCH), items, trends)
            for start in range(0, len(asked.user), BATCH)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _answers(
        self, queries: QueryArrays, asked: Asked, items: NDArray[np.float32], trends: NDArray[np.float32]
    ) -> Answers:
        model, call, order = self.model, self.model.call_layers, self.model.config.ranking.order
        inputs = queries.inputs(asked.user, asked.moment, log_row=asked.log_row)
        query = model.embed_query(call, inputs, model.tables)
        products = query[:, : model.dim] @ items[:, : model.dim].T
        for_each = [jnp.broadcast_to(values, (len(asked.user), *values.shape)) for values in (items, trends)]
        logits = model.rank(call, query, for_each[0], trends=for_each[1])
        score = order[RETRIEVAL] * model.to_logits(call, products)
        found = {}
        for place, label in enumerate(model.config.ranking.labels):
            logit = logits[:, :, place]
            score += order.get(label.name, 0.0) * logit
            told = np.asarray(jax.nn.sigmoid(logit) if label.kind == "binary" else logit)
            if label.name in self.calibration:
                told = Calibration.from_json(self.calibration[label.name]).apply(told)
            found[label.name] = told
        named = found | {"score": score, "retrieval_score": products}
        return {name: np.asarray(values, np.float64) for name, values in named.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tables and the split of them lie, which both recipes read."""
    folder = tmp_path_factory.mktemp("every_kind")
    write_tables(folder)
    recipe = recipe_of("pools", data_dir=folder)
    steps.prepare(recipe, out=folder / "prepared")
    steps.split(recipe, prepared=folder / "prepared", out=folder / "split")
    return folder


@pytest.fixture(scope="module", params=list(MODELS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def side(name: str, folder: Path) -> TrainingSide:
    recipe, split, model = recipe_of(name, data_dir=folder), folder / "split", folder / name / "model"
    steps.train(recipe, split=split, out=model)
    return TrainingSide(recipe, split=split, model=model)


@pytest.fixture(scope="module")
def api(name: str, folder: Path, side: TrainingSide) -> Iterator[httpx.Client]:
    """A server on the model's bundle."""
    recipe, split, model = recipe_of(name, data_dir=folder), folder / "split", folder / name / "model"
    index, bundle = folder / name / "index", folder / name / "bundle"
    steps.index(recipe, split=split, model=model, out=index)
    metadata: dict[str, Any] = {}
    with write_artifact(bundle, kind="bundle", metadata=metadata) as out:
        metadata |= write_bundle(
            recipe.bundle,
            name=name,
            dataset=side.dataset,
            model=model,
            index=index,
            recipe="",
            candidates=CANDIDATES,
            out=out,
        )
    store = folder / name / "store.db"
    with serving(bundle, "--store", str(store)) as child, httpx.Client(base_url=child.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def asked(side: TrainingSide) -> Asked:
    """The last thousand users, each second of them with the context of an interaction, where one is read."""
    user = np.arange(USERS - ASKED, USERS, dtype=np.int32)
    latest = np.full(USERS, -1)
    latest[side.dataset.user] = np.arange(len(side.dataset.user))
    has_context = any(feature.column.startswith("context") for feature in side.model.features.query)
    log_row = np.where(has_context & (user % 2 == 0), latest[user], -1)
    return Asked(user=user, log_row=log_row, moment=np.full(ASKED, side.last + SECOND))


def question(side: TrainingSide, asked: Asked, place: int) -> dict[str, Any]:
    """Who asks, as it goes over the wire: a moment in microseconds for some, as text for the others."""
    row, context = int(asked.log_row[place]), {}
    if row >= 0:
        told = side.dataset.context.slice(row, 1)
        moment = pa.int64() if place % 4 else pa.string()
        context = {
            name: (values.cast(moment) if pa.types.is_timestamp(values.type) else values)[0].as_py()
            for name, values in zip(told.column_names, told.columns, strict=True)
        }
    return {"user_id": str(side.dataset.user_ids[asked.user[place]]), "context": context}


def call(api: httpx.Client, method: str, path: str, **body: Any) -> Any:
    answer = api.request(method, path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def told(lists: Sequence[Any]) -> Answers:
    """What a server said of the items of `q` lists of equal length, in their order."""
    flat = [
        [{name: item[name] for name in ("score", "retrieval_score")} | item["labels"] for item in items]
        for items in lists
    ]
    return {name: np.array([[item[name] for item in items] for items in flat], float) for name in flat[0][0]}


def rows_of(ids: Iterable[str], lists: Sequence[Any]) -> NDArray[np.int64]:
    """`[q, n]` where the items of `q` lists stand among ids."""
    row = {item_id: row for row, item_id in enumerate(ids)}
    return np.array([[row[item["item_id"]] for item in items] for items in lists])


def of_items(answers: Answers, rows: NDArray[np.int64]) -> Answers:
    """What was said of the items in these rows, `[q, n]`."""
    return {name: np.take_along_axis(values, rows, axis=1) for name, values in answers.items()}


def furthest(served: Answers, trained: Answers) -> dict[str, float]:
    """What is told -> the largest difference between both sides, as `TOLERANCE` counts it."""
    assert served.keys() == trained.keys()
    return {
        name: float(np.max(np.abs(served[name] - trained[name]) / np.maximum(1, np.abs(trained[name]))))
        for name in trained
    }


def test_a_thousand_users_are_told_what_the_trained_model_says(
    side: TrainingSide, api: httpx.Client, asked: Asked
) -> None:
    requests = [question(side, asked, place) | {"k": K} for place in range(ASKED)]
    responses = [
        response
        for start in range(0, ASKED, BATCH)
        for response in call(api, "POST", "/v1/recommend:batch", requests=requests[start : start + BATCH])["responses"]
    ]
    assert {response["fallback"] for response in responses} == {None}
    lists = [response["items"] for response in responses]
    served, rows = told(lists), rows_of(side.dataset.item_ids, lists)
    assert rows.shape == (ASKED, K)
    trained = side.answers(asked, side.items, side.trends)
    assert side.calibration, "one of the labels is told as its calibration maps it"
    found = furthest(served, of_items(trained, rows))
    assert max(found.values()) <= TOLERANCE, found
    assert np.ptp(served["score"], axis=1).min() > 0.01, "scores that are all alike would say little"
    # By the training side alone, both stages bring the same scores, place by place; near-equals may change places.
    left = trained["retrieval_score"].copy()
    is_asked = np.isin(side.dataset.user, asked.user)
    left[side.dataset.user[is_asked] - asked.user[0], side.dataset.item[is_asked]] = -np.inf
    retrieved = np.argsort(-left, axis=1)[:, :CANDIDATES]
    best = -np.sort(-of_items(trained, retrieved)["score"], axis=1)[:, :K]
    assert np.max(np.abs(served["score"] - best) / np.maximum(1, np.abs(best))) <= TOLERANCE


def test_a_score_does_not_depend_on_what_else_is_asked_about(
    side: TrainingSide, api: httpx.Client, asked: Asked
) -> None:
    ids, generator = side.dataset.item_ids.tolist(), np.random.default_rng(3)
    some = asked.part(ASKED - 8, ASKED)  # Late users, whom training never met; of the last, no log tells anything.
    assert not np.isin(some.user, side.dataset.user[side.dataset.part == TRAIN]).any()
    trained = side.answers(some, side.items, side.trends)
    for place in range(8):
        who = question(side, some, place)

        def ranked(items: Sequence[str], who: dict[str, Any] = who) -> Any:
            return call(api, "POST", "/v1/rank", items=items, **who)["items"]

        best = call(api, "POST", "/v1/recommend", k=K, **who)["items"]
        named = [item["item_id"] for item in best]
        ten = [*named[:5], *[item_id for item_id in ids if item_id not in named][-5:]]
        among_ten, among_all = ranked(generator.permutation(ten).tolist()), ranked(generator.permutation(ids).tolist())
        alone = [ranked([item_id])[0] for item_id in named]
        assert [len(items) for items in (alone, among_ten, among_all)] == [K, 10, ITEMS]
        rows = rows_of(ids, [among_all])
        of_all = {name: values[[place]] for name, values in trained.items()}
        found = furthest(told([among_all]), of_items(of_all, rows))
        assert max(found.values()) <= TOLERANCE, found
        for items in (alone, among_ten, best):
            among = np.argsort(rows)[:, rows_of(ids, [items])[0]]
            found = furthest(told([items]), of_items(told([among_all]), among))
            assert max(found.values()) <= TOLERANCE, found


def test_what_happened_since_is_read_as_a_longer_log_would_be(side: TrainingSide, api: httpx.Client) -> None:
    # Four events each of users who are asked about nowhere else. The third is no positive: it ends the time before the
    # moment of asking at most, and is in no history.
    generator, ids = np.random.default_rng(6), side.dataset.item_ids.tolist()
    user, item = np.repeat(np.arange(8, dtype=np.int32), 4), generator.integers(0, ITEMS, 32).astype(np.int32)
    when, rating = side.last + generator.integers(1, 30 * DAY_US, 32), np.tile([5, 4, 1, 2], 8)
    events = [
        {
            "event_id": f"since {place}",
            "user_id": side.dataset.user_ids[user[place]],
            "item_id": ids[item[place]],
            "timestamp": int(when[place]),
            "labels": {"rating": int(rating[place])},
        }
        for place in range(32)
    ]
    assert call(api, "POST", "/v1/events", events=events)["accepted"] == 32
    held = rating >= 2
    longer = UserLog.from_columns(
        np.append(side.user, user[held]), np.append(side.met, item[held]), np.append(side.when, when[held]), users=USERS
    )
    some = Asked(user=np.arange(8, dtype=np.int32), log_row=np.full(8, -1), moment=when.reshape(8, 4).max(1) + SECOND)
    lists = [call(api, "POST", "/v1/rank", items=ids, **question(side, some, place))["items"] for place in range(8)]
    trained = side.answers(some, side.items, side.trends, log=longer)
    found = furthest(told(lists), of_items(trained, rows_of(ids, lists)))
    assert max(found.values()) <= TOLERANCE, found


def test_an_item_put_since_is_scored_as_the_trained_model_reads_its_features(
    side: TrainingSide, api: httpx.Client, asked: Asked
) -> None:
    # Each column for itself in another order: items that were never there, with gaps of their own.
    generator, items, count = np.random.default_rng(4), side.dataset.items, 40
    new = {name: items[name].take(pa.array(generator.permutation(ITEMS)[:count])) for name in items.column_names}
    new["item_id"] = pa.chunked_array([[f"new №{row}" for row in range(count)]])
    plain = pa.table(
        {name: each.cast(pa.string()) if pa.types.is_timestamp(each.type) else each for name, each in new.items()}
    )
    written = [{"item_id": row.pop("item_id"), "features": row} for row in plain.to_pylist()]
    ids = [each["item_id"] for each in written]
    some = asked.part(0, 8)
    trained = side.answers(some, side.embed_items(pa.table(new)), np.tile(side.unmet, (count, 1)))
    assert call(api, "PUT", "/v1/items", items=written)["items"] == ITEMS + count
    try:
        lists = [call(api, "POST", "/v1/rank", items=ids, **question(side, some, place))["items"] for place in range(8)]
    finally:
        call(api, "DELETE", "/v1/items", item_ids=ids)
    found = furthest(told(lists), of_items(trained, rows_of(ids, lists)))
    assert max(found.values()) <= TOLERANCE, found
