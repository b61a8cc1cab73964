"""Whether a bundle may answer: every file is hashed, opened and held against the others before anything is swapped.

A hash tells that a file is the one that was sealed, not that it is right. So what a bundle holds is looked at as well:
shapes, numbers, ids, the graphs' weights; and it must answer its own golden queries as it did when it was made.
"""

import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from twotower import artifact
from twotower.bundle import Bundle
from twotower.bundle_config import KIND
from twotower.data.feature_encoders import FeatureEncoder, MultiCategoryEncoder, VocabularyEncoder
from twotower.data.trends import TREND_FEATURES
from twotower.errors import ArtifactError
from twotower.golden import Parts, refuse_other_answers
from twotower.model.config import RETRIEVAL
from twotower.model.graph_file import GraphTensor, refuse_bad_weights

BLOCK = 1 << 22
"""Numbers looked at together: what is mapped into memory is never copied as a whole."""
ROUNDING = 1e-3
"""Difference between the two places that hold an item's embedding that still counts as none."""


def check(directory: Path) -> Bundle:
    """Open a bundle that may answer.

    Raises:
        ArtifactError: no bundle, or a damaged one; names the file and what is wrong with it.
    """
    try:
        artifact.verify(directory, kind=KIND)
        bundle = Bundle.load(directory, verify=False)
        _check_metadata(bundle)
        _check_recipe(directory / "recipe.toml")
        _check_ids(bundle)
        _check_log(bundle)
        _check_arrays(bundle)
        _check_model(bundle)
        refuse_other_answers(
            Parts(
                directory=directory,
                model=bundle.model,
                index=bundle.index,
                candidates=bundle.candidates,
                trends=bundle.trends,
                items=bundle.items,
            )
        )
    except ArtifactError:
        raise
    except Exception as fault:  # Whatever else a strange file brings about: it must not answer, nor end the server.
        reason = " ".join(str(fault).split())[:200]
        raise ArtifactError(
            f"{directory}: cannot be opened ({type(fault).__name__}: {reason}). Build the bundle again."
        ) from fault
    return bundle


def _check_metadata(bundle: Bundle) -> None:
    metadata, columns = bundle.metadata, bundle.items.column_names
    counts = {"users": bundle.users.num_rows, "items": bundle.items.num_rows, "interactions": len(bundle.log.item)}
    title, candidates = metadata.get("title_column"), metadata.get("candidates")
    told = metadata.get("counts")
    faults = {
        "name": not isinstance(metadata.get("name"), str),
        "last_us": type(metadata.get("last_us")) is not int,
        "candidates": type(candidates) is not int or candidates < 1,
        "title_column": title is not None and title not in columns,
        "counts": not isinstance(told, dict) or any(told.get(key) != count for key, count in counts.items()),
    }
    for name, is_wrong in faults.items():
        if is_wrong:
            raise _refusal(bundle, "bundle.json", f"'{name}' is {metadata.get(name)!r:.100}, which cannot be")


def _check_recipe(path: Path) -> None:
    try:
        tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise ArtifactError(f"{path}: not readable ({fault}). Build the bundle again.") from fault


def _check_ids(bundle: Bundle) -> None:
    for name, table, column in (("items", bundle.items, "item_id"), ("users", bundle.users, "user_id")):
        if column not in table.column_names or table[column].type not in (pa.string(), pa.large_string()):
            raise _refusal(bundle, f"{name}.parquet", f"has no column '{column}' of text")
        if fault := _repeated(table[column]):
            raise _refusal(bundle, f"{name}.parquet", f"column '{column}' {fault}")
    for tower, encoder in _with_vocabulary(bundle):
        if fault := _repeated(encoder.vocabulary.values):
            name = f"model/vocabularies/{tower}_{encoder.key}.parquet"
            raise _refusal(bundle, name, f"column 'value' {fault}")


def _check_log(bundle: Bundle) -> None:
    """What every user met: whole, of items that there are, in the order of time."""
    log, items, count = bundle.log, bundle.items.num_rows, len(bundle.log.item)
    for name, array, kind in (
        ("start", log.start, np.int64),
        ("timestamp", log.timestamp, np.int64),
        ("item", log.item, np.int32),
        ("positive", bundle.positive, np.bool_),
    ):
        _check_shape(bundle, f"histories/{name}.npy", array, kind=kind, shape=(len(array),))
    start = np.asarray(log.start)
    if start[0] != 0 or start[-1] != count or (np.diff(start) < 0).any():
        raise _refusal(bundle, "histories/start.npy", f"does not part {count} interactions among the users")
    for _, block in _blocks(log.item):
        if block.min() < 0 or block.max() >= items:
            raise _refusal(bundle, "histories/item.npy", f"names an item that is not among {items}")
    for first, block in _blocks(log.timestamp, overlap=1):
        falls = np.flatnonzero(np.diff(block) < 0) + first + 1
        if len(falls) and not np.isin(falls, start).all():
            raise _refusal(bundle, "histories/timestamp.npy", "is not in the order of time within a user")


def _check_arrays(bundle: Bundle) -> None:
    """What both stages read of the items: as wide as the model says, numbers throughout, and of one model."""
    items, dim, width = bundle.items.num_rows, bundle.model.embedding_dim, bundle.candidates.shape[-1]
    embeddings = bundle.index.embeddings
    arrays: dict[str, tuple[NDArray[Any], type, tuple[int, ...]]] = {
        "index/embeddings.npy": (embeddings, np.float32, (items, dim)),
        "candidates.npy": (bundle.candidates, np.float32, (items, max(width, dim))),
        "trends.npy": (bundle.trends, np.float32, (items, TREND_FEATURES)),
        "popularity.npy": (bundle.popularity, np.float64, (items,)),
    }
    for name, (array, kind, shape) in arrays.items():
        _check_shape(bundle, name, array, kind=kind, shape=shape)
        for first, block in _blocks(array):
            if not np.isfinite(block).all():
                row = first + int(np.argwhere(~np.isfinite(block))[0][0])
                raise _refusal(bundle, name, f"holds NaN or infinity (first: row {row})")
    for first, block in _blocks(embeddings):
        held = bundle.candidates[first : first + len(block), :dim]
        if not np.allclose(block, held, rtol=ROUNDING, atol=ROUNDING):
            raise _refusal(bundle, "index/embeddings.npy", "holds other embeddings than candidates.npy")


def _check_model(bundle: Bundle) -> None:
    """What the model says of itself, and the weights in its graphs; that they can be run is for the golden queries."""
    model = bundle.model
    name = "model/model.json"
    if not (isinstance(model.temperature, int | float) and np.isfinite(model.temperature) and model.temperature > 0):
        raise _refusal(bundle, name, f"the temperature is {model.temperature!r}")
    if strange := sorted(set(model.order) - {*model.labels, RETRIEVAL}):
        raise _refusal(bundle, name, f"orders by '{strange[0]}', which is no label of it")
    tensors = {graph.name: refuse_bad_weights(graph) for graph in model.graphs}
    query, candidate = (tensors[graph.name] for graph in model.graphs[:2])
    features = model.features
    for encoder in features.query:
        _check_table(model.graphs[0], f"query_{encoder.key}", encoder.table_rows, tensors=query)
    for encoder in features.candidate:
        _check_table(model.graphs[1], f"candidate_{encoder.key}", encoder.table_rows, tensors=candidate)
    if features.history is not None:
        _check_table(model.graphs[0], "candidate_id_item_id", features.history.items.size, tensors=query)


def _check_table(graph: Path, name: str, rows: int | None, *, tensors: Sequence[GraphTensor]) -> None:
    """A feature's embedding table has a row for each value of its vocabulary; our own exports name it so."""
    if rows is None:
        return
    named = [tensor for tensor in tensors if tensor.name == name] or tensors
    if not any(tensor.shape[:1] == (rows,) for tensor in named):
        raise ArtifactError(f"{graph}: no table '{name}' of {rows:,} rows for its feature. Train the model again.")


def _check_shape(
    bundle: Bundle, name: str, array: NDArray[Any], *, kind: type[np.generic], shape: tuple[int, ...]
) -> None:
    if array.dtype != kind or array.shape != shape:
        wanted = f"{np.dtype(kind)} {shape}"
        raise _refusal(bundle, name, f"holds {array.dtype} {array.shape}, the rest of the bundle expects {wanted}")


def _blocks(array: NDArray[Any], *, overlap: int = 0) -> Iterator[tuple[int, NDArray[Any]]]:
    """An array's rows in pieces, each with its first row."""
    step = max(1, BLOCK // max(1, int(np.prod(array.shape[1:]))))
    for first in range(0, len(array), step):
        yield first, array[first : first + step + overlap]


def _repeated(ids: pa.Array | pa.ChunkedArray) -> str:
    """What is wrong with values that have to be distinct; empty where nothing is."""
    if ids.null_count:
        return f"has {ids.null_count} empty values"
    twice = len(ids) - int(pc.count_distinct(ids).as_py())
    return f"holds {twice} values twice" if twice else ""


def _with_vocabulary(bundle: Bundle) -> Iterator[tuple[str, VocabularyEncoder | MultiCategoryEncoder]]:
    towers: Sequence[tuple[str, Sequence[FeatureEncoder]]] = (
        ("query", bundle.model.features.query),
        ("candidate", bundle.model.features.candidate),
    )
    for tower, encoders in towers:
        for encoder in encoders:
            if isinstance(encoder, VocabularyEncoder | MultiCategoryEncoder):
                yield tower, encoder


def _refusal(bundle: Bundle, name: str, what: str) -> ArtifactError:
    return ArtifactError(f"{bundle.directory / name}: {what}. Build the bundle again.")
