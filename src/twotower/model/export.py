"""A trained model -> ONNX graphs that run without Keras and JAX."""

import importlib
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from jax2onnx import to_onnx
from jax2onnx.plugins import plugin_system
from onnx import numpy_helper

from twotower.data.feature_encoders import Inputs
from twotower.data.trends import TREND_FEATURES
from twotower.model.encoders import lookups
from twotower.model.exported import CANDIDATE_GRAPH, DESCRIPTION, QUERY_GRAPH, RANKING_GRAPH
from twotower.model.joint import JointModel

UNUSED = ("equinox", "dm_pix", *(f"jax2onnx.plugins.{name}" for name in ("flax", "equinox", "dm_pix", "examples")))
"""Libraries whose layers jax2onnx knows too. Our graphs hold none of them, and loading them takes ten seconds."""


def export_model(
    model: JointModel, directory: Path, *, query_inputs: Inputs, candidate_inputs: Inputs, trend_block: int
) -> None:
    """Write the graphs, `model.json` and the fitted features, as `ExportedModel` reads them.

    Args:
        model: Its layers and tables hold the weights to be exported.
        directory: An empty directory.
        query_inputs: A few rows of the query tower's inputs, for names, types and widths.
        candidate_inputs: Likewise for the candidate tower.
        trend_block: Interactions in a block of the trends that the model learned from; 0 where it reads none.
    """
    model.features.save(directory)
    for part, inputs, graph in (("query", query_inputs, QUERY_GRAPH), ("candidate", candidate_inputs, CANDIDATE_GRAPH)):
        used = sorted(set(lookups(model.features)[part].values()))
        tables = {name: np.asarray(model.tables[name]) for name in used}
        (directory / graph).write_bytes(_tower_graph(model, part, inputs, tables))
    if "ranking" in model.layers:
        (directory / RANKING_GRAPH).write_bytes(_ranking_graph(model))
    config = model.config
    description = {
        "embedding_dim": model.dim,
        "item_bias": config.retrieval.item_bias,
        "temperature": model.temperature(),
        "labels": {label.name: label.kind for label in config.ranking.labels},
        "order": config.ranking.ordered_by(),
        "trend_block": trend_block,
    }
    (directory / DESCRIPTION).write_text(json.dumps(description, indent=1), encoding="utf-8")


def _tower_graph(model: JointModel, part: str, inputs: Inputs, tables: Mapping[str, np.ndarray[Any, Any]]) -> bytes:
    """A tower with its tables inside.

    The tables are traced as inputs and turned into constants afterwards: tracing then costs the same for any size.
    """
    names, table_names = list(inputs), list(tables)

    def run(*arrays: Any) -> Any:
        given = dict(zip(names, arrays[: len(names)], strict=True))
        tables = dict(zip(table_names, arrays[len(names) :], strict=True))
        if part == "query":
            return model.embed_query(model.call_layers, given, tables)
        return model.layers[part](given, tables)

    shapes: list[tuple[Any, Any]] = [(("n", *values.shape[1:]), values.dtype) for values in inputs.values()]
    shapes += [(table.shape, table.dtype) for table in tables.values()]
    graph = _trace(run, shapes, names + table_names)
    kept = [entry for entry in graph.graph.input if entry.name in names]
    del graph.graph.input[:]
    graph.graph.input.extend(kept)
    graph.graph.initializer.extend(numpy_helper.from_array(table, name) for name, table in tables.items())
    return bytes(graph.SerializeToString())


def _ranking_graph(model: JointModel) -> bytes:
    """The ranking head over `b` queries with `c` candidates each."""
    memory = model.layers["memory"].size if "memory" in model.layers else 0
    shapes: list[tuple[Any, Any]] = [
        (("b", model.output_dim + memory), np.dtype(np.float32)),
        (("b", "c", model.output_dim), np.dtype(np.float32)),
    ]
    names = ["query", "candidate"]
    if model.config.ranking.trends:
        shapes.append((("b", "c", TREND_FEATURES), np.dtype(np.float32)))
        names.append("trends")

    def run(query: Any, candidate: Any, trends: Any = None) -> Any:
        return model.rank(model.call_layers, query, candidate, trends=trends)

    return bytes(_trace(run, shapes, names).SerializeToString())


def _trace(run: Callable[..., Any], shapes: list[tuple[Any, Any]], names: list[str]) -> onnx.ModelProto:
    with _without(*UNUSED):
        plugin_system.import_all_plugins()
    for name in ("flax.linen", "flax.nnx"):  # jax2onnx patches functions of these while it traces.
        importlib.import_module(name)
    described = [jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)) for shape, dtype in shapes]
    graph = to_onnx(run, described, input_names=names, output_names=["output"])
    assert isinstance(graph, onnx.ModelProto)
    return graph


@contextmanager
def _without(*modules: str) -> Iterator[None]:
    """Let the modules named be not importable for a while; jax2onnx passes over what it then cannot load."""
    blocked = [name for name in modules if name not in sys.modules]
    log = logging.getLogger(plugin_system.__name__)
    level = log.level
    log.setLevel(logging.CRITICAL)
    sys.modules.update(dict.fromkeys(blocked))  # type: ignore[arg-type]  # None is Python's own mark for "not to be had"
    try:
        yield
    finally:
        for name in blocked:
            del sys.modules[name]
        log.setLevel(level)
