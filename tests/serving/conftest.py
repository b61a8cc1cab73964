"""A model small enough to check by hand, in a real bundle: the graphs are written out, the rest is the real path."""

import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from twotower.artifact import write_artifact
from twotower.bundle import BundleConfig, write_bundle
from twotower.data.fitted_features import FittedFeatures, fit_features
from twotower.data.schema import CategoryFeature, HistoryFeature, IdFeature, NumberFeature
from twotower.data.split import TEST, TRAIN, SplitDataset
from twotower.data.trends import TREND_FEATURES
from twotower.index.build import IndexConfig, build_index
from twotower.model.exported import ExportedModel
from twotower.serve_config import DEFAULTS, ServeConfig
from twotower.serving.recommender import Recommender

USERS, ITEMS, DIM, WIDTH, LENGTH, BLOCK = 25, 40, 4, 6, 5, 20
"""Users 23 and 24 met nothing; of 24 nothing is known at all. Items 38 and 39 were met by nobody."""
SECOND = 1_000_000
CANDIDATES = 12


@dataclass(frozen=True)
class World:
    """A dataset, the weights of a model over it, and the steps' directories."""

    dataset: SplitDataset
    features: FittedFeatures
    tables: dict[str, NDArray[np.float32]]
    directory: Path

    def query(
        self, *, history: Sequence[str] = (), gender: str | None = None, age: float | None = None
    ) -> NDArray[np.float32]:
        """`[WIDTH]` the query tower, as the graph has it, worked out again."""
        inputs = self.features.query_inputs(
            columns={"gender": [gender], "age": [age]},
            timestamp=np.zeros(1, np.int64),
            history=[(history, [0] * len(history))],
        )
        rows = inputs["history_items"][0]
        items = self.tables["items"][rows[rows > 0]].sum(axis=0)
        return (
            items + self.tables["genders"][inputs["category_gender"][0]] + inputs["number_age"][0] @ self.tables["age"]
        )

    def candidates(self) -> NDArray[np.float32]:
        """`[ITEMS, WIDTH]` the candidate tower's output by catalogue row."""
        return self.tables["items"][self.features.candidate_inputs(self.dataset.items)["id_item_id"]]

    def logits(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        """`[ITEMS, 2]` the ranking head: `met`, then `rating`."""
        return (self.candidates() * query) @ self.tables["head"] + self.tables["bias"] + self.fortunes()

    def fortunes(self) -> NDArray[np.float32]:
        """`[ITEMS, 2]` what the head makes of how often each item stands in the last block of the log."""
        latest = np.bincount(self.dataset.item[self.dataset.positive][-BLOCK:], minlength=ITEMS)
        return np.outer(np.log1p(latest) - np.log1p(BLOCK / ITEMS), self.tables["trends"][0]).astype(np.float32)

    def write(self, target: Path, *, index: Path | None = None, serve: ServeConfig = DEFAULTS) -> Path:
        """A sealed bundle of it."""
        metadata: dict[str, object] = {}
        with write_artifact(target, kind="bundle", metadata=metadata) as out:
            metadata |= write_bundle(
                BundleConfig(popular_interactions=60),
                serve=serve,
                name="tiny",
                dataset=self.dataset,
                model=self.directory / "model",
                index=index or self.directory / "index",
                recipe='name = "tiny"\n',
                candidates=CANDIDATES,
                out=out,
            )
            (out / "report").mkdir()
            for name in ("report.json", "report.html", "card.md"):
                (out / "report" / name).write_text(f"the {name}", encoding="utf-8")
        return target


def make_dataset() -> SplitDataset:
    generator = np.random.default_rng(7)
    pairs = np.unique(generator.integers([USERS - 2, ITEMS - 2], size=(260, 2)), axis=0)
    pairs = generator.permutation(pairs)
    count = len(pairs)
    genders = [str(value) for value in generator.choice(["f", "m"], USERS - 1)]
    return SplitDataset(
        user_ids=np.array([f"u{row}" for row in range(USERS)], object),
        item_ids=np.array([f"i{row}" for row in range(ITEMS)], object),
        users=pa.table(
            {
                "user_id": [f"u{row}" for row in range(USERS)],
                "gender": [*genders, None],
                "age": [*generator.integers(18, 70, USERS - 1).astype(float).tolist(), None],
            }
        ),
        items=pa.table(
            {"item_id": [f"i{row}" for row in range(ITEMS)], "title": [f"Film {row}" for row in range(ITEMS)]}
        ),
        user=pairs[:, 0].astype(np.int32),
        item=pairs[:, 1].astype(np.int32),
        timestamp=np.sort(generator.integers(0, 10_000, count)) * SECOND,
        positive=generator.random(count) < 0.8,
        part=np.where(np.arange(count) < 0.9 * count, TRAIN, TEST).astype(np.int8),
        labels={"rating": generator.integers(1, 6, count).astype(np.float32)},
        context=pa.table({"device": ["tv"] * count}),
        metadata={"protocol": "time", "title_column": "title", "source": "test"},
    )


def query_graph(tables: dict[str, NDArray[np.float32]]) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Max", ["history_items", "zero"], ["rows"]),
        helper.make_node("Gather", ["items", "rows"], ["met"]),
        helper.make_node("ReduceSum", ["met", "one"], ["history"], keepdims=0),
        helper.make_node("Gather", ["genders", "category_gender"], ["gender"]),
        helper.make_node("MatMul", ["number_age", "age"], ["aged"]),
        helper.make_node("Sum", ["history", "gender", "aged"], ["output"]),
    ]
    inputs = {"history_items": (np.int32, LENGTH), "category_gender": (np.int32, 0), "number_age": (np.float32, 2)}
    constants = {name: tables[name] for name in ("items", "genders", "age")}
    return graph(nodes, inputs, constants | {"zero": np.int32(0), "one": np.array([1], np.int64)})


def candidate_graph(tables: dict[str, NDArray[np.float32]]) -> onnx.ModelProto:
    nodes = [helper.make_node("Gather", ["items", "id_item_id"], ["output"])]
    return graph(nodes, {"id_item_id": (np.int32, 0)}, {"items": tables["items"]})


def ranking_graph(tables: dict[str, NDArray[np.float32]]) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Unsqueeze", ["query", "one"], ["asked"]),
        helper.make_node("Mul", ["asked", "candidate"], ["product"]),
        helper.make_node("MatMul", ["product", "head"], ["weighted"]),
        helper.make_node("MatMul", ["trends", "fortunes"], ["added"]),
        helper.make_node("Sum", ["weighted", "added", "bias"], ["output"]),
    ]
    inputs = {"query": (np.float32, WIDTH), "candidate": (np.float32, -WIDTH), "trends": (np.float32, -TREND_FEATURES)}
    constants = {"head": tables["head"], "bias": tables["bias"], "fortunes": tables["trends"]}
    return graph(nodes, inputs, constants | {"one": np.array([1], np.int64)})


def graph(
    nodes: list[onnx.NodeProto], inputs: dict[str, tuple[type, int]], constants: dict[str, np.ndarray]
) -> onnx.ModelProto:
    """Inputs are `[n]` of width 0, `[n, width]` of one above it, and `[n, m, -width]` of one below it."""
    types = {np.int32: TensorProto.INT32, np.float32: TensorProto.FLOAT}
    shapes = {name: ["n", *["m"] * (width < 0), *[abs(width)] * (width != 0)] for name, (_, width) in inputs.items()}
    described = [helper.make_tensor_value_info(name, types[kind], shapes[name]) for name, (kind, _) in inputs.items()]
    whole = helper.make_graph(
        nodes,
        "graph",
        described,
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(whole, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def write_model(out: Path, features: FittedFeatures, tables: dict[str, NDArray[np.float32]]) -> None:
    features.save(out)
    onnx.save(query_graph(tables), out / "query_tower.onnx")
    onnx.save(candidate_graph(tables), out / "candidate_tower.onnx")
    onnx.save(ranking_graph(tables), out / "ranking.onnx")
    labels = {"met": "binary", "rating": "regression"}
    description = {
        "embedding_dim": DIM,
        "item_bias": False,
        "temperature": 1.0,
        "labels": labels,
        "order": {"met": 1.0},
        "trend_block": BLOCK,
    }
    (out / "model.json").write_text(json.dumps(description), encoding="utf-8")
    (out / "history.json").write_text("[]", encoding="utf-8")


def write_index(out: Path, model: Path, dataset: SplitDataset, *, kind: str) -> None:
    exported = ExportedModel.load(model)
    embeddings = exported.embed_candidates(exported.features.candidate_inputs(dataset.items)).embedding
    config = IndexConfig(kind=kind)  # type: ignore[arg-type]
    build_index(config, embeddings=embeddings, queries=embeddings[:4], out=out)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    directory = tmp_path_factory.mktemp("world")
    dataset = make_dataset()
    query = (
        HistoryFeature(kind="history", length=LENGTH),
        CategoryFeature(kind="category", column="gender"),
        NumberFeature(kind="number", column="age"),
    )
    features = fit_features(query, (IdFeature(kind="id", column="item_id"),), dataset=dataset)
    generator = np.random.default_rng(1)
    tables = {
        "items": generator.normal(size=(features.candidate[0].table_rows or 0, WIDTH)).astype(np.float32),
        "genders": generator.normal(size=(features.query[0].table_rows or 0, WIDTH)).astype(np.float32),
        "age": generator.normal(size=(2, WIDTH)).astype(np.float32),
        "head": generator.normal(size=(WIDTH, 2)).astype(np.float32),
        "bias": np.array([0.1, 3.0], np.float32),
        "trends": np.array([[0.7, -0.3], *[[0, 0]] * (TREND_FEATURES - 1)], np.float32),
    }
    tables["items"][0] = tables["genders"][0] = 0
    with write_artifact(directory / "model", kind="model") as out:
        write_model(out, features, tables)
    for kind, name in (("exact", "index"), ("hnsw", "hnsw")):
        with write_artifact(directory / name, kind="index") as out:
            write_index(out, directory / "model", dataset, kind=kind)
    return World(dataset=dataset, features=features, tables=tables, directory=directory)


@pytest.fixture(scope="session")
def bundle_directory(world: World) -> Path:
    return world.write(world.directory / "bundle")


@pytest.fixture(scope="session")
def recommender(bundle_directory: Path) -> Recommender:
    return Recommender.load(bundle_directory)


READY = re.compile(r"(?:Serving (\S+)|Admin) on (http://\S+:\d+)\n")
"""What a server says once it answers, for each port."""


@dataclass(frozen=True)
class RunningServer:
    """A `twotower serve` in a process of its own."""

    process: "subprocess.Popen[bytes]"
    url: str
    admin_url: str
    bundle_id: str


@pytest.fixture(scope="session")
def start_server() -> Any:
    """Runs the real command: `with start_server(bundle, "--store", path, keys={...}, cwd=folder) as server`."""
    return _running


@contextmanager
def _running(
    bundle: Path | str, *options: str, keys: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Iterator[RunningServer]:
    """Both ports, until they answer; what is still running at the end is killed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TWOTOWER_")}
    command = [sys.executable, "-m", "twotower", "serve", str(bundle), "--port", "0", "--admin-port", "0", *options]
    # Into a file: a pipe that nobody reads would fill up and stop the server.
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "stderr").open("wb") as told:
        process = subprocess.Popen(command, env=environment | dict(keys or {}), cwd=cwd, stderr=told)
        try:
            while len(found := READY.findall(text := Path(told.name).read_text(encoding="utf-8"))) < 2:
                assert process.poll() is None, text
                time.sleep(0.05)
            urls = dict(found)
            bundle_id = next(filter(None, urls))
            yield RunningServer(process, urls[bundle_id], urls[""], bundle_id)
        finally:
            process.kill()
            process.wait(60)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Any]:
    """A running `PostgresServer` of the tests' own."""
    where = Path(__file__).with_name("postgres_server.py")
    specification = importlib.util.spec_from_file_location("postgres_server", where)
    assert specification is not None
    assert specification.loader is not None
    module = sys.modules["postgres_server"] = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    with module.running_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def new_database(postgres: Any) -> Callable[[], str]:
    """Makes an empty database and gives its address."""
    numbers = itertools.count()

    def make() -> str:
        name = f"films_{next(numbers)}"
        postgres.sql(f"CREATE DATABASE {name}")
        return str(postgres.uri(name))

    return make
