"""What an ONNX file says of its weights, read without running it and without the onnx package.

A server has ONNX Runtime alone, and that opens a graph only to run it: by then it would have followed a tensor into
another file. An ONNX file is a protobuf message; only the fields that lead to a tensor are read here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twotower.errors import ArtifactError

BLOCK = 1 << 22
"""Numbers looked at together, which bounds memory."""

_BELOW: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
"""Message -> number of a field -> the message in it. All of ONNX's that a tensor can lie in."""
_DIMS, _TYPE, _FLOATS, _NAME, _RAW, _DOUBLES, _ELSEWHERE, _LOCATION = 1, 2, 4, 8, 9, 10, 13, 14
"""Fields of a tensor."""
_FLOATING = {1: "<f4", 10: "<f2", 11: "<f8"}
"""A tensor's type -> NumPy's."""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
"""Protobuf's ways to write a field."""
_MOST_BITS = 63


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphTensor:
    """One tensor of a graph."""

    name: str
    shape: tuple[int, ...]
    numbers: NDArray[np.floating[Any]] | None
    """`[n]`, where they are fractions and stand in the file; None otherwise."""
    elsewhere: str
    """Where its numbers stand, if not in the file."""


def read_tensors(content: bytes | memoryview) -> Iterator[GraphTensor]:
    """Every tensor of an ONNX file, wherever in the graph it stands.

    Raises:
        ValueError: no protobuf message.
    """
    open_ = [("model", memoryview(content))]
    while open_:
        kind, message = open_.pop()
        for number, _, value in _fields(message):
            below = _BELOW[kind].get(number)
            if below is None or isinstance(value, int):
                continue
            if below == "tensor":
                yield _tensor(value)
            else:
                open_.append((below, value))


def refuse_other_files(path: Path, content: bytes) -> None:
    """Tell of a tensor whose numbers stand in another file: a graph must not lead out of its bundle.

    Raises:
        ArtifactError: names the graph, the tensor and the file; or the graph is no ONNX file.
    """
    for tensor in _readable(path, content):
        if tensor.elsewhere:
            raise ArtifactError(
                f"{path}: keeps the numbers of '{tensor.name}' in another file ('{tensor.elsewhere}'), which is not "
                "read. Export the graph as one file."
            )


def refuse_bad_weights(path: Path) -> list[GraphTensor]:
    """The graph's tensors, once none of them holds NaN or infinity as a weight.

    A tensor of one number may: exported graphs compare with such constants. Minus infinity is what masks hold.

    Raises:
        ArtifactError: names the graph and the tensor; or the graph is no ONNX file.
    """
    try:
        content = np.memmap(path, np.uint8, mode="r").data
    except (OSError, ValueError) as fault:
        raise ArtifactError(f"{path}: not readable ({fault}). Build the bundle again.") from fault
    tensors = list(_readable(path, content))
    for tensor in tensors:
        if tensor.numbers is not None and len(tensor.numbers) > 1 and (count := _count_bad(tensor.numbers)):
            raise ArtifactError(
                f"{path}: {count:,} of the {len(tensor.numbers):,} weights in '{tensor.name}' are NaN or infinite. "
                "Train the model again."
            )
    return tensors


def _count_bad(numbers: NDArray[np.floating[Any]]) -> int:
    count = 0
    for start in range(0, len(numbers), BLOCK):
        block = numbers[start : start + BLOCK]
        if not np.isfinite(block).all():
            count += int(np.count_nonzero(np.isnan(block) | np.isposinf(block)))
    return count


def _readable(path: Path, content: bytes | memoryview) -> Iterator[GraphTensor]:
    try:
        yield from read_tensors(content)
    except ValueError as fault:
        raise ArtifactError(f"{path}: no ONNX graph ({fault}). Train the model again.") from fault


def _tensor(message: memoryview) -> GraphTensor:
    """One tensor. Its numbers stand in one field of bytes, or in one of floats."""
    shape: list[int] = []
    kind, name, elsewhere = 0, "", ""
    parts: list[memoryview] = []
    for number, wire, value in _fields(message):
        if number == _DIMS:
            shape += [value] if isinstance(value, int) else _varints(value)
        elif isinstance(value, int):
            if number == _TYPE:
                kind = value
            elif number == _LOCATION and value:
                elsewhere = elsewhere or "unnamed"
        elif number == _NAME:
            name = _text(value)
        elif number == _ELSEWHERE:
            elsewhere = _location(value) or elsewhere or "unnamed"
        elif number in (_RAW, _FLOATS, _DOUBLES) and wire in (_BYTES, _FIXED32, _FIXED64):
            parts.append(value)
    numbers = None
    if kind in _FLOATING and not elsewhere:
        whole = parts[0] if len(parts) == 1 else b"".join(parts)
        numbers = np.frombuffer(whole, _FLOATING[kind])
    return GraphTensor(name=name, shape=tuple(shape), numbers=numbers, elsewhere=elsewhere)


def _location(entry: memoryview) -> str:
    """The file's name, of an entry that tells it."""
    told = {number: _text(value) for number, _, value in _fields(entry) if not isinstance(value, int)}
    return told.get(2, "") if told.get(1) == "location" else ""


def _text(value: memoryview) -> str:
    return bytes(value).decode("utf-8", "replace")


def _fields(message: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """Number, way of writing and value of each field; fixed ones as their bytes."""
    place, end = 0, len(message)
    while place < end:
        key, place = _varint(message, place)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, place = _varint(message, place)
            yield number, wire, value
            continue
        if wire == _BYTES:
            size, place = _varint(message, place)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"a field is written in way {wire}, which protobuf does not have")
        if place + size > end:
            raise ValueError("it ends within a field")
        yield number, wire, message[place : place + size]
        place += size


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """A whole number of seven bits a byte, and the place after it."""
    value = shift = 0
    while shift <= _MOST_BITS:
        if place >= len(message):
            raise ValueError("it ends within a number")
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
    raise ValueError("a number has too many bytes")


def _varints(packed: memoryview) -> list[int]:
    numbers, place = [], 0
    while place < len(packed):
        number, place = _varint(packed, place)
        numbers.append(number)
    return numbers
