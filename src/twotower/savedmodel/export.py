"""A bundle and the model that it was made from -> a SavedModel that answers alike, as TensorFlow Serving takes it."""

import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twotower import artifact
from twotower.bundle import Bundle
from twotower.bundle_config import MODEL_KEY
from twotower.errors import ArtifactError, MissingExtraError
from twotower.savedmodel.tables import CHECKED, REFUSED, part_of, write_tables
from twotower.serve_config import RulesConfig

KIND = "savedmodel"
ROUNDING = 1e-4
"""Difference from the bundle's own numbers that still counts as none; another model is further off."""


def export_savedmodel(
    bundle: Path, *, model: Path, out: Path, python: Path, version: int | None, watch: Callable[[str], None]
) -> Path:
    """Build the SavedModel `OUT/VERSION` and compare its towers and scores with the bundle's; gives its directory.

    Args:
        bundle: What answers.
        model: What `train` wrote: it holds the weights.
        out: Where TensorFlow Serving looks for versions.
        python: The interpreter of an environment that holds TensorFlow.
        version: Number of the version; None takes the next one.
        watch: Told what the SavedModel leaves out of what the bundle asks for.

    Raises:
        ArtifactError: a bundle or a model that is damaged, two that do not belong together, or numbers that differ.
        MissingExtraError: no TensorFlow there.
    """
    opened = Bundle.load(bundle)
    if not (model / artifact.MANIFEST).is_file():
        raise ArtifactError(
            f"{model}: no model there, and a bundle holds no weights. Name what `train` wrote by --model: "
            "model/ of a run, or registry/NAME/models/VERSION where the pipeline ran."
        )
    artifact.verify(model, kind="model")
    if opened.metadata.get(MODEL_KEY) != artifact.fingerprint(model):
        raise ArtifactError(f"{model}: not the model that {bundle} was made from. Name that one by --model.")
    if opened.serve.rules != RulesConfig():
        watch("The bundle's rules (serve.rules) are laid over its order by our server alone: the SavedModel has none.")
    target = out / str(version or _next_version(out))
    with (
        tempfile.TemporaryDirectory(prefix="twotower-") as folder,
        artifact.write_artifact(target, kind=KIND, metadata={"bundle": opened.id}) as to,
    ):
        tables = Path(folder)
        write_tables(opened, tables)
        _build(python, model.resolve(), tables, to.resolve())
        _refuse_other_numbers(opened, tables / CHECKED)
    return target


def _next_version(out: Path) -> int:
    versions = [int(path.name) for path in out.glob("*") if path.name.isdecimal()]
    return max(versions, default=0) + 1


def _build(python: Path, *directories: Path) -> None:
    """Let a process on TensorFlow do the work; its chatter is kept back unless it fails."""
    # Nothing here gains by a GPU, and TensorFlow would take all of its memory.
    ours = {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": "-1"}
    command = [str(python), "-m", "twotower.savedmodel.build", *map(str, directories)]
    done = subprocess.run(command, env=os.environ | ours, capture_output=True, text=True, check=False)
    if not done.returncode:
        return
    last = done.stderr.strip().rpartition("\n")[2]
    if missing := re.search(r"No module named '([\w.]+)'", last):
        raise MissingExtraError(
            f"{python}: {missing[1]} is not installed there, and building a SavedModel needs it: "
            'pip install "twotower[tensorflow]", here or in an environment whose Python you name by --python.'
        )
    if done.returncode == REFUSED:
        raise ArtifactError(last)
    raise RuntimeError(f"the TensorFlow process ended with {done.returncode}:\n{done.stderr}")


def _refuse_other_numbers(bundle: Bundle, path: Path) -> None:
    """Compare what TensorFlow made of a sample with what the bundle makes of it."""
    with np.load(path, allow_pickle=False) as checked:
        found = {name: checked[name] for name in checked.files}
    query = bundle.model.embed_queries(part_of(found, "inputs"))
    users, items = found["score"].shape
    several = [np.repeat(array[None, :items], users, axis=0) for array in (bundle.candidates, bundle.trends)]
    ranked = bundle.model.rank_raw(query.ranking, several[0], trends=several[1])
    expected: dict[str, NDArray[np.float32]] = {"query": query.whole, "candidate": bundle.candidates}
    for name, ours in (expected | {"score": ranked["score"]}).items():
        if not np.allclose(found[name], ours, atol=ROUNDING, rtol=ROUNDING):
            raise ArtifactError(
                f"{bundle.directory}: TensorFlow's {name} differs from the bundle's by up to "
                f"{np.abs(found[name] - ours).max():.2g}. Write a layer of your own in Keras' operations alone."
            )
