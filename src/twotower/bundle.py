"""Everything that answering needs, sealed in one directory: the only thing a server reads.

The model, the index over its embeddings, the catalogue, the users with their histories, what is popular, the report
and the recipe travel together, so that retrieval and ranking are never of different versions. Arrays are memory-mapped,
nothing in a bundle can run code, and every file is hashed: one that differs is refused by name.
"""

import json
import shutil
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from twotower import artifact
from twotower.bundle_config import KIND, BundleConfig, bundle_id
from twotower.data.histories import UserLog
from twotower.data.item_columns import readable_items
from twotower.data.pieces import trends_of
from twotower.data.split import TEST, TRAIN, VALIDATION, SplitDataset
from twotower.errors import ArtifactError
from twotower.golden import Parts, write_golden
from twotower.index.build import load_index
from twotower.index.contract import Index
from twotower.model.exported import (
    CANDIDATE_GRAPH,
    QUERY_GRAPH,
    RANKING_GRAPH,
    ExportedModel,
)
from twotower.model.exported import (
    DESCRIPTION as MODEL_DESCRIPTION,
)
from twotower.model.graph_file import refuse_bad_weights
from twotower.serve_config import DEFAULTS, ServeConfig
from twotower.serve_refusals import refuse_bad_rules

DESCRIPTION = "bundle.json"
SERVE = "serve.json"
"""How a server is to answer. The description says that it is there: bundles from before there were rules have none."""
EXPORTED = (MODEL_DESCRIPTION, QUERY_GRAPH, CANDIDATE_GRAPH, RANKING_GRAPH, "features.json")
"""Files of a model directory that answering needs; the weights and the training curve stay behind."""
LIBRARIES = ("twotower", "faiss-cpu", "numpy", "onnxruntime", "pyarrow")
"""What answers; their versions are kept with the bundle."""
EMBEDDED_AT_ONCE = 8192
"""Items that go through the candidate tower together, which bounds memory."""
ROUNDING = 1e-3
"""Difference between two runs of one model that still counts as none; another model is further off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """An open bundle: `I` items and `U` users by row. Nothing in it changes, so threads may share it."""

    directory: Path
    id: str
    """Name and the beginning of a hash over the files' hashes: bundles of equal content have equal ids."""
    metadata: dict[str, Any]
    """What the manifest says: `name`, `created`, `versions`, `counts`, `index`, `candidates`, `title_column`, ..."""
    model: ExportedModel
    index: Index
    candidates: NDArray[np.float32]
    """`[I, R]` what the ranking head reads of each item."""
    trends: NDArray[np.float32]
    """`[I, F]` how popular and how old each item was at the end of the log, which the head reads too."""
    items: pa.Table
    """`I` rows: `item_id` and features."""
    users: pa.Table
    """`U` rows: `user_id` and features."""
    popularity: NDArray[np.float64]
    """`[I]` orders the popular fallback: interactions in the latest window, plus a fraction that parts equals."""
    log: UserLog
    """What every user met, of all parts: nothing is held back from a server."""
    positive: NDArray[np.bool_]
    """By place of the log: whether a history may hold it."""
    serve: ServeConfig
    """How a server is to answer."""

    @classmethod
    def load(cls, directory: Path, *, verify: bool = True) -> "Bundle":
        """Open a bundle.

        Args:
            directory: What `twotower bundle` wrote.
            verify: Hash every file first; without, only shapes are compared.

        Raises:
            ArtifactError: no bundle there, of another format version, or damaged; the message names the file.
        """
        manifest = artifact.read_manifest(directory, kind=KIND)
        if not isinstance(manifest.get("files"), dict) or not isinstance(manifest.get("metadata"), dict):
            raise ArtifactError(f"{directory / artifact.MANIFEST}: damaged (no files or metadata). Build it again.")
        if verify:
            artifact.verify(directory, kind=KIND)
        metadata = manifest["metadata"]
        _refuse_other_metadata(directory, metadata)
        log, positive = _load_log(directory / "histories")
        bundle = cls(
            directory=directory,
            id=bundle_id(manifest),
            metadata=metadata,
            # One thread a call: another gains nothing on a hundred candidates, and spins away half of its core.
            model=ExportedModel(directory / "model", threads=1),
            index=load_index(directory / "index"),
            candidates=_load_array(directory / "candidates.npy"),
            trends=_load_array(directory / "trends.npy"),
            items=_load_table(directory / "items.parquet"),
            users=_load_table(directory / "users.parquet"),
            popularity=_load_array(directory / "popularity.npy"),
            log=log,
            positive=positive,
            serve=_load_serve(directory / SERVE) if metadata.get("serve") else DEFAULTS,
        )
        _refuse_other_sizes(bundle)
        return bundle


def write_bundle(
    config: BundleConfig,
    *,
    serve: ServeConfig = DEFAULTS,
    name: str,
    dataset: SplitDataset,
    model: Path,
    index: Path,
    recipe: str,
    candidates: int,
    out: Path,
) -> dict[str, Any]:
    """Put together what a server reads; the caller adds `report/` and seals the directory.

    Args:
        config: The recipe's section.
        serve: The recipe's section on answering.
        name: The run's name, which begins the bundle's id.
        dataset: The whole log; the bundle keeps all parts of it.
        model: Model directory, of which the exported part is taken.
        index: Index directory, built from that model's embeddings of the dataset's items.
        recipe: The recipe as TOML.
        candidates: How many items retrieval hands to ranking, as the report judged it.
        out: Open directory to write into.

    Returns:
        The manifest's metadata.

    Raises:
        ArtifactError: the index is not one over this model's embeddings of these items, or the model has weights or
            answers that are no numbers.
        RecipeError: a rule does not fit the catalogue; see `refuse_bad_rules`.
    """
    exported = ExportedModel.load(model)
    for graph in exported.graphs:
        refuse_bad_weights(graph)
    refuse_bad_rules(serve.rules, readable_items(dataset.items, exported.features))
    found = load_index(index)
    vectors = _candidate_vectors(exported, dataset.items, index=found, where=index)
    trends = _latest_trends(dataset, block=exported.trend_block)
    _copy_exported(model, out / "model")
    _copy_tree(index, out / "index")
    np.save(out / "candidates.npy", vectors, allow_pickle=False)
    np.save(out / "trends.npy", trends, allow_pickle=False)
    np.save(out / "popularity.npy", popularity(dataset, latest=config.popular_interactions), allow_pickle=False)
    pq.write_table(dataset.items, out / "items.parquet")
    pq.write_table(dataset.users, out / "users.parquet")
    _write_log(dataset, out / "histories")
    (out / SERVE).write_text(json.dumps(asdict(serve), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    (out / "recipe.toml").write_text(recipe, encoding="utf-8")
    description = _describe(dataset, index=found, name=name, candidates=candidates)
    (out / DESCRIPTION).write_text(json.dumps(description, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    parts = Parts(directory=out, model=exported, index=found, candidates=vectors, trends=trends, items=dataset.items)
    write_golden(dataset, parts)
    return description | {"created": datetime.now(UTC).isoformat(timespec="seconds")}


def popularity(dataset: SplitDataset, *, latest: int) -> NDArray[np.float64]:
    """`[I]` how often each item stands in the latest positive interactions; the whole log decides among equals."""
    items = len(dataset.item_ids)
    positives = dataset.item[dataset.positive]
    ever = np.bincount(positives, minlength=items)
    return np.asarray(np.bincount(positives[-latest:], minlength=items) + ever / (ever.sum() + 1), np.float64)


def _latest_trends(dataset: SplitDataset, *, block: int) -> NDArray[np.float32]:
    """`[I, F]` popularity and age of the items at the end of the log, in blocks as the model learned them."""
    return trends_of(dataset, TRAIN, VALIDATION, TEST, block=block or None).latest()


def _describe(dataset: SplitDataset, *, index: Index, name: str, candidates: int) -> dict[str, Any]:
    """What the bundle says of itself, but for the moment of writing: equal content gives an equal description."""
    return {
        "name": name,
        "candidates": candidates,
        "title_column": dataset.metadata.get("title_column"),
        "positives": dataset.metadata.get("positives", "true"),
        "label_columns": list(dataset.labels),
        "last_us": int(dataset.timestamp[-1]),
        "index": index.kind,
        "serve": True,
        "counts": {
            "users": len(dataset.user_ids),
            "items": len(dataset.item_ids),
            "interactions": len(dataset.item),
            "positives": int(dataset.positive.sum()),
        },
        "versions": {library: version(library) for library in LIBRARIES},
    }


def _candidate_vectors(model: ExportedModel, items: pa.Table, *, index: Index, where: Path) -> NDArray[np.float32]:
    """`[I, R]` what the ranking head reads of the items, once it is certain that the index is over the same model."""
    if index.embeddings.shape[0] != items.num_rows:
        raise ArtifactError(
            f"{where}: holds {index.embeddings.shape[0]} items, the catalogue {items.num_rows}. Build the index again."
        )
    parts = []
    for start in range(0, items.num_rows, EMBEDDED_AT_ONCE):
        block = items.slice(start, EMBEDDED_AT_ONCE)
        vectors = model.embed_candidates(model.features.candidate_inputs(block))
        held = index.embeddings[start : start + EMBEDDED_AT_ONCE]
        if held.shape != vectors.embedding.shape or not np.allclose(
            held, vectors.embedding, atol=ROUNDING, rtol=ROUNDING
        ):
            raise ArtifactError(f"{where}: holds embeddings of another model or catalogue. Build the index again.")
        parts.append(vectors.ranking)
    return np.concatenate(parts).astype(np.float32, copy=False)


def _write_log(dataset: SplitDataset, directory: Path) -> None:
    """Every user's interactions side by side (`UserLog`), an array a file so that they can be memory-mapped."""
    places = np.arange(len(dataset.item), dtype=np.int32)
    log = UserLog.from_columns(dataset.user, places, dataset.timestamp, users=len(dataset.user_ids))
    directory.mkdir()
    np.save(directory / "start.npy", log.start, allow_pickle=False)
    np.save(directory / "timestamp.npy", log.timestamp, allow_pickle=False)
    np.save(directory / "item.npy", dataset.item[log.item], allow_pickle=False)
    np.save(directory / "positive.npy", dataset.positive[log.item], allow_pickle=False)


def _load_log(directory: Path) -> tuple[UserLog, NDArray[np.bool_]]:
    log = UserLog(
        item=_load_array(directory / "item.npy"),
        timestamp=_load_array(directory / "timestamp.npy"),
        start=_load_array(directory / "start.npy"),
    )
    return log, _load_array(directory / "positive.npy")


def _load_array(path: Path) -> NDArray[Any]:
    try:
        array = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        if not array.ndim:
            raise ValueError("one number, no array")
        return array
    except (OSError, ValueError) as fault:
        raise ArtifactError(f"{path}: not readable ({fault}). Build the bundle again.") from fault


def _load_table(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException) as fault:
        reason = str(fault).splitlines()[0][:200]
        raise ArtifactError(f"{path}: not readable ({reason}). Build the bundle again.") from fault


def _load_serve(path: Path) -> ServeConfig:
    try:
        return TypeAdapter(ServeConfig).validate_json(path.read_bytes())
    except (OSError, ValidationError) as fault:
        reason = fault.errors()[0]["msg"] if isinstance(fault, ValidationError) else fault
        raise ArtifactError(f"{path}: not readable ({reason}). Build the bundle again, or update twotower.") from fault


def _copy_exported(source: Path, target: Path) -> None:
    """Copy what `ExportedModel` reads; a model without labels has no ranking graph."""
    shutil.copytree(source / "vocabularies", target / "vocabularies")
    for name in EXPORTED:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _copy_tree(source: Path, target: Path) -> None:
    """Copy a step's directory without its manifest: the bundle's own covers the files."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(artifact.MANIFEST))


def _refuse_other_metadata(directory: Path, metadata: dict[str, Any]) -> None:
    """The manifest itself is hashed nowhere; what it says must be what the hashed description says."""
    path = directory / DESCRIPTION
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise ArtifactError(f"{path}: not readable ({fault}). Build the bundle again.") from fault
    for key, value in description.items():
        if metadata.get(key) != value:
            raise ArtifactError(f"{directory / artifact.MANIFEST}: '{key}' differs from {DESCRIPTION}. Build it again.")


def _refuse_other_sizes(bundle: Bundle) -> None:
    items, users = bundle.items.num_rows, bundle.users.num_rows
    interactions = int(np.sum(bundle.log.start.ravel()[-1:]))
    sizes = {
        "index": (len(bundle.index.embeddings), items),
        "candidates.npy": (len(bundle.candidates), items),
        "trends.npy": (len(bundle.trends), items),
        "popularity.npy": (len(bundle.popularity), items),
        "histories/start.npy": (len(bundle.log.start), users + 1),
        "histories/item.npy": (len(bundle.log.item), interactions),
        "histories/timestamp.npy": (len(bundle.log.timestamp), interactions),
        "histories/positive.npy": (len(bundle.positive), interactions),
    }
    for name, (found, expected) in sizes.items():
        if found != expected:
            raise ArtifactError(f"{bundle.directory / name}: holds {found} rows, expected {expected}. Build it again.")
