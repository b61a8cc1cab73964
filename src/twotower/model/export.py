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
from twotower.model.encoders import lookups
from twotower.model.exported import CANDIDATE_GRAPH, DESCRIPTION, QUERY_GRAPH, RANKING_GRAPH
from twotower.model.joint import JointModel

UNUSED = ("equinox", "dm_pix", *(f"jax2onnx.plugins.{name}" for name in ("flax", "equinox", "dm_pix", "examples")))
"""Libraries whose layers jax2onnx knows too. Our graphs hold none of them, and loading them takes ten seconds."""


def export_model(model: JointModel, directory: Path, *, query_inputs: Inputs, candidate_inputs: Inputs) -> None:
    """Write the graphs, `model.json` and the fitted features, as `ExportedModel` reads them.

    Args:
        model: Its layers and tables hold the weights to be exported.
        directory: An empty directory.
        query_inputs: A few rows of the query tower's inputs, for names, types and widths.
        candidate_inputs: Likewise for the candidate tower.
    """
    model.features.save(directory)
    for part, inputs, graph in (("query", query_inputs, QUERY_GRAPH), ("candidate", candidate_inputs, CANDIDATE_GRAPH)):
        used = sorted(set(lookups(model.features)[part].values()))
        tables = {name: np.asarray(model.tables[name]) for name in used}
        (directory / graph).write_bytes(_tower_graph(model.layers[part], inputs, tables))
    if "ranking" in model.layers:
        (directory / RANKING_GRAPH).write_bytes(_ranking_graph(model.layers["ranking"], model.output_dim))
    config = model.config
    description = {
        "embedding_dim": model.dim,
        "item_bias": config.retrieval.item_bias,
        "temperature": config.retrieval.temperature,
        "labels": {label.name: label.kind for label in config.ranking.labels},
        "order": config.ranking.ordered_by(),
    }
    (directory / DESCRIPTION).write_text(json.dumps(description, indent=1), encoding="utf-8")


def _tower_graph(layer: Any, inputs: Inputs, tables: Mapping[str, np.ndarray[Any, Any]]) -> bytes:
    """A tower with its tables inside.

    The tables are traced as inputs and turned into constants afterwards: tracing then costs the same for any size.
    """
    names, table_names = list(inputs), list(tables)

    def run(*arrays: Any) -> Any:
        given = dict(zip(names, arrays[: len(names)], strict=True))
        return layer(given, dict(zip(table_names, arrays[len(names) :], strict=True)))

    shapes: list[tuple[Any, Any]] = [(("n", *values.shape[1:]), values.dtype) for values in inputs.values()]
    shapes += [(table.shape, table.dtype) for table in tables.values()]
    graph = _trace(run, shapes, names + table_names)
    kept = [entry for entry in graph.graph.input if entry.name in names]
    del graph.graph.input[:]
    graph.graph.input.extend(kept)
    graph.graph.initializer.extend(numpy_helper.from_array(table, name) for name, table in tables.items())
    return bytes(graph.SerializeToString())


def _ranking_graph(layer: Any, width: int) -> bytes:
    """The ranking head over `n` pairs."""
    shapes = [(("n", width), np.dtype(np.float32))] * 2

    def run(query: Any, candidate: Any) -> Any:
        return layer(query, candidate)

    return bytes(_trace(run, shapes, ["query", "candidate"]).SerializeToString())


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
