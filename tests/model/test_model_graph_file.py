"""ONNX files read without the onnx package, held against the onnx package."""

import contextlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from twotower.errors import ArtifactError
from twotower.model.graph_file import read_tensors, refuse_bad_weights, refuse_other_files


def tensors_everywhere() -> onnx.ModelProto:
    """A tensor in each place that ONNX has for one, written in each way that it has for numbers."""
    raw = numpy_helper.from_array(np.array([[1, 2], [3, np.nan]], np.float32), "raw")
    listed = helper.make_tensor("listed", TensorProto.FLOAT, [3], [1.0, -np.inf, np.inf])
    wide = helper.make_tensor("wide", TensorProto.DOUBLE, [2], [0.5, np.nan])
    half = numpy_helper.from_array(np.array([1, 2], np.float16), "half")
    whole = numpy_helper.from_array(np.array([7], np.int64), "whole")
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["y"], value=numpy_helper.from_array(np.ones((1, 2), np.float32), "deep"))],
        "inner",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.array([5], np.float32), "sparse"),
        numpy_helper.from_array(np.array([3], np.int64), "places"),
        [9],
    )
    nodes = [helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)]
    graph = helper.make_graph(nodes, "outer", [], [], [raw, listed, wide, half, whole], sparse_initializer=[sparse])
    own = helper.make_function(
        "own", "F", [], ["y"], inner.node, opset_imports=[helper.make_opsetid("", 17)], attributes=[]
    )
    return helper.make_model(graph, functions=[own])


def test_every_tensor_is_found_wherever_it_stands_and_however_it_is_written() -> None:
    found = sorted(read_tensors(tensors_everywhere().SerializeToString()), key=lambda tensor: tensor.name)
    assert [(tensor.name, tensor.shape) for tensor in found] == [
        *[("deep", (1, 2))] * 3,
        ("half", (2,)),
        ("listed", (3,)),
        ("places", (1,)),
        ("raw", (2, 2)),
        ("sparse", (1,)),
        ("whole", (1,)),
        ("wide", (2,)),
    ]
    numbers = {tensor.name: tensor.numbers for tensor in found}
    np.testing.assert_array_equal(numbers["raw"], np.array([1, 2, 3, np.nan], np.float32))
    np.testing.assert_array_equal(numbers["listed"], np.array([1, -np.inf, np.inf], np.float32))
    np.testing.assert_array_equal(numbers["wide"], [0.5, np.nan])
    np.testing.assert_array_equal(numbers["half"], np.array([1, 2], np.float16))
    assert numbers["whole"] is None


@pytest.mark.parametrize(
    ("numbers", "bad"),
    [
        ([1.0, np.nan], True),
        ([np.inf, 0.0], True),
        ([-np.inf, 0.0], False),  # What a mask holds.
        ([np.nan], False),  # What a graph compares with.
        ([], False),
    ],
)
def test_a_weight_that_is_no_number_is_refused_and_a_constant_is_not(
    tmp_path: Path, numbers: list[float], bad: bool
) -> None:
    tensor = numpy_helper.from_array(np.array(numbers, np.float32), "weights")
    path = tmp_path / "graph.onnx"
    onnx.save(helper.make_model(helper.make_graph([], "graph", [], [], [tensor])), path)
    if bad:
        with pytest.raises(ArtifactError, match=r"graph\.onnx: 1 of the 2 weights in 'weights' are NaN or infinite"):
            refuse_bad_weights(path)
    else:
        assert [found.name for found in refuse_bad_weights(path)] == ["weights"]


@pytest.mark.parametrize("told", ["location", "place alone", "nothing"])
def test_numbers_in_another_file_are_found_however_the_file_is_told(told: str) -> None:
    model = tensors_everywhere()
    (branch, _) = model.graph.node[0].attribute
    tensor = branch.g.node[0].attribute[0].t
    tensor.ClearField("raw_data")
    if told == "location":
        tensor.external_data.add(key="location", value="../weights.bin")
    if told == "place alone":
        tensor.external_data.add(key="offset", value="0")
    tensor.data_location = TensorProto.EXTERNAL
    named = r"\.\./weights\.bin" if told == "location" else "unnamed"
    with pytest.raises(ArtifactError, match=rf"the numbers of 'deep' in another file \('{named}'\)"):
        refuse_other_files(Path("graph.onnx"), model.SerializeToString())


@given(st.binary(max_size=200))
def test_what_is_no_message_is_refused_and_nothing_worse(content: bytes) -> None:
    with contextlib.suppress(ValueError):
        list(read_tensors(content))


@given(st.data())
def test_a_damaged_graph_is_read_or_refused_and_nothing_worse(data: st.DataObject) -> None:
    content = bytearray(tensors_everywhere().SerializeToString())
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ValueError):
        list(read_tensors(bytes(content[: data.draw(st.integers(0, len(content)))])))
