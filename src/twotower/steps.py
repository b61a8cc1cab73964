"""The path, as functions from directories to directories: prepare, split, train, evaluate, index, bundle.

Each step loads what the one before wrote, calls one function of its room, and saves the result whole or not at all.
Commands and pipeline components call these and nothing else. `run` goes the whole path, and leaves out what is up to
date: a directory remembers the hash of all that it was made from.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from twotower import artifact
from twotower.errors import ArtifactError
from twotower.recipe import Recipe, recipe_toml

VERBS = ("prepare", "split", "train", "evaluate", "index", "bundle")
"""The steps in order: the same word in function, command and recipe section."""
KIND_OF = {
    "prepare": "prepared",
    "split": "split",
    "train": "model",
    "evaluate": "report",
    "index": "index",
    "bundle": "bundle",
}
"""Step -> the directory that it writes in a run's directory, and that directory's kind."""
INDEX_SAMPLE = 1_000
"""Test queries by which the index is measured."""

Watch = Callable[[Any], None]
"""Told how far a long step is; a value of `TrainProgress`, or a line of text."""


def unwatched(progress: Any) -> None:
    """Say nothing."""


def prepare(recipe: Recipe, *, out: Path) -> None:
    """Raw tables -> prepared tables."""
    from twotower.data.prepare import prepare

    with _writing(out, step="prepare", made_from=_prepare_inputs(recipe)) as (to, metadata):
        metadata |= prepare(recipe.prepare, seed=recipe.seed, out=to)


def split(recipe: Recipe, *, prepared: Path, out: Path) -> None:
    """Prepared tables -> the same with each interaction's part."""
    from twotower.data.split import split

    with _writing(out, step="split", made_from=_split_inputs(recipe, prepared)) as (to, metadata):
        metadata |= split(recipe.split, seed=recipe.seed, prepared=prepared, out=to)


def train(recipe: Recipe, *, split: Path, out: Path, resume: bool = False, watch: Watch = unwatched) -> None:
    """A split -> the joint model, fitted and exported."""
    from twotower.data.split import load_split
    from twotower.model.export import export_model
    from twotower.training.train import sample_inputs, train

    dataset = load_split(split)
    checkpoint = out.parent / f"{out.name}.checkpoint"
    with _writing(out, step="train", made_from=_train_inputs(recipe, split)) as (to, metadata):
        trained = train(
            recipe.train,
            model_config=recipe.model,
            dataset=dataset,
            seed=recipe.seed,
            checkpoint=checkpoint,
            resume=resume,
            report=watch,
        )
        query, candidate = sample_inputs(trained.model.features, dataset)
        export_model(trained.model, to, query_inputs=query, candidate_inputs=candidate)
        (to / "history.json").write_text(json.dumps(trained.history, indent=1), encoding="utf-8")
        metadata["best_epoch"] = trained.best_epoch
    shutil.rmtree(checkpoint, ignore_errors=True)


def evaluate(recipe: Recipe, *, split: Path, model: Path, out: Path, watch: Watch = unwatched) -> None:
    """A split and a model -> the report: report.json, report.html, card.md."""
    from twotower.data.split import load_split
    from twotower.evaluation.evaluate import evaluate
    from twotower.evaluation.model_contender import ModelContender
    from twotower.evaluation.report import write_report
    from twotower.model.exported import ExportedModel

    dataset = load_split(split)
    artifact.read_manifest(model, kind=KIND_OF["train"])
    with _writing(out, step="evaluate", made_from=_evaluate_inputs(recipe, split, model)) as (to, _):
        contender = ModelContender(ExportedModel.load(model), dataset=dataset)
        report = evaluate(
            recipe.evaluate,
            dataset=dataset,
            model=contender,
            seed=recipe.seed,
            progress=lambda what, done, total: watch(f"{what}: {done:,} of {total:,} queries"),
        )
        report["training"] = json.loads((model / "history.json").read_text(encoding="utf-8"))
        report["name"] = recipe.name
        write_report(report, to)


def index(recipe: Recipe, *, split: Path, model: Path, out: Path) -> None:
    """A split's catalogue and a model -> the index over the candidates' embeddings, measured against the exact one."""
    from twotower.data.split import TEST, load_split
    from twotower.evaluation.model_contender import ModelContender
    from twotower.evaluation.queries import labelled
    from twotower.index.build import build_index
    from twotower.model.exported import ExportedModel

    dataset = load_split(split)
    artifact.read_manifest(model, kind=KIND_OF["train"])
    with _writing(out, step="index", made_from=_index_inputs(recipe, split, model)) as (to, metadata):
        contender = ModelContender(ExportedModel.load(model), dataset=dataset)
        rows = np.flatnonzero(dataset.part == TEST)
        sample = np.random.default_rng(recipe.seed).permutation(rows)[:INDEX_SAMPLE]
        queries = contender.embed(labelled(dataset, sample)).embedding
        metadata |= build_index(recipe.index, embeddings=contender.candidates.embedding, queries=queries, out=to)


def bundle(recipe: Recipe, *, split: Path, model: Path, index: Path, report: Path, out: Path) -> None:
    """All that answering needs -> one sealed directory; its report also tells what was measured of the index."""
    from twotower.bundle import write_bundle
    from twotower.data.split import load_split
    from twotower.evaluation.report import write_report

    dataset = load_split(split)
    for directory, step in ((model, "train"), (index, "index"), (report, "evaluate")):
        artifact.read_manifest(directory, kind=KIND_OF[step])
    with _writing(out, step="bundle", made_from=_bundle_inputs(recipe, split, model, index, report)) as (to, metadata):
        metadata |= write_bundle(
            recipe.bundle,
            name=recipe.name,
            dataset=dataset,
            model=model,
            index=index,
            recipe=recipe_toml(recipe),
            candidates=recipe.evaluate.candidates,
            out=to,
        )
        content = json.loads((report / "report.json").read_text(encoding="utf-8"))
        content["index"] = artifact.read_manifest(index, kind=KIND_OF["index"])["metadata"]
        (to / "report").mkdir()
        write_report(content, to / "report")


@dataclass(frozen=True, slots=True)
class Ran:
    """What became of one step of a run."""

    step: str
    directory: Path
    is_fresh: bool
    """False where the directory was up to date and left as it was."""


def run(recipe: Recipe, *, out: Path, resume: bool = False, watch: Watch = unwatched) -> Iterator[Ran]:
    """Go the whole path below one directory, step by step; leave out what is up to date.

    Args:
        recipe: What to run.
        out: The run's directory; each step writes into one of its own below it.
        resume: Let an interrupted training go on from its checkpoint.
        watch: Told how far training and evaluation are.

    Yields:
        Each step as it ends.
    """
    at = {step: out / KIND_OF[step] for step in VERBS}
    prepared, parts, model, report, found = (at[step] for step in VERBS[:-1])
    calls: dict[str, tuple[Callable[[], dict[str, Any]], Callable[[], None]]] = {
        "prepare": (lambda: _prepare_inputs(recipe), lambda: prepare(recipe, out=prepared)),
        "split": (lambda: _split_inputs(recipe, prepared), lambda: split(recipe, prepared=prepared, out=parts)),
        "train": (
            lambda: _train_inputs(recipe, parts),
            lambda: train(recipe, split=parts, out=model, resume=resume, watch=watch),
        ),
        "evaluate": (
            lambda: _evaluate_inputs(recipe, parts, model),
            lambda: evaluate(recipe, split=parts, model=model, out=report, watch=watch),
        ),
        "index": (
            lambda: _index_inputs(recipe, parts, model),
            lambda: index(recipe, split=parts, model=model, out=found),
        ),
        "bundle": (
            lambda: _bundle_inputs(recipe, parts, model, found, report),
            lambda: bundle(recipe, split=parts, model=model, index=found, report=report, out=at["bundle"]),
        ),
    }
    for step in VERBS:
        made_from, call = calls[step]
        fresh = not _is_up_to_date(at[step], step=step, made_from=made_from())
        if fresh:
            call()
        yield Ran(step, at[step], fresh)


@contextmanager
def _writing(out: Path, *, step: str, made_from: dict[str, Any]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """An open directory and its metadata; sealed with the hash of what it was made from."""
    metadata: dict[str, Any] = {}
    with artifact.write_artifact(out, kind=KIND_OF[step], metadata=metadata) as to:
        yield to, metadata
        metadata["made_from"] = _hash_inputs(made_from)


def _is_up_to_date(directory: Path, *, step: str, made_from: dict[str, Any]) -> bool:
    if not (directory / artifact.MANIFEST).is_file():
        return False
    try:
        manifest = artifact.verify(directory, kind=KIND_OF[step])
    except ArtifactError:
        return False
    return bool(manifest["metadata"].get("made_from") == _hash_inputs(made_from))


def _hash_inputs(made_from: dict[str, Any]) -> str:
    return artifact.hash_json(made_from | {"version": version("twotower"), "code": _code()})


@cache
def _code() -> str:
    """A hash of the package's own source: what other code wrote is not up to date."""
    package = Path(__file__).parent
    return artifact.hash_json({str(path.relative_to(package)): artifact.sha256(path) for path in package.rglob("*.py")})


def _prepare_inputs(recipe: Recipe) -> dict[str, Any]:
    from twotower.data.fingerprint import fingerprint_source

    return {"prepare": asdict(recipe.prepare), "seed": recipe.seed, "source": fingerprint_source(recipe.prepare)}


def _split_inputs(recipe: Recipe, prepared: Path) -> dict[str, Any]:
    return {"split": asdict(recipe.split), "seed": recipe.seed, "prepared": artifact.fingerprint(prepared)}


def _train_inputs(recipe: Recipe, split: Path) -> dict[str, Any]:
    settings = {"train": asdict(recipe.train), "model": asdict(recipe.model), "seed": recipe.seed}
    return settings | {"split": artifact.fingerprint(split)}


def _evaluate_inputs(recipe: Recipe, split: Path, model: Path) -> dict[str, Any]:
    settings = {"evaluate": asdict(recipe.evaluate), "seed": recipe.seed, "name": recipe.name}
    return settings | {"split": artifact.fingerprint(split), "model": artifact.fingerprint(model)}


def _index_inputs(recipe: Recipe, split: Path, model: Path) -> dict[str, Any]:
    settings = {"index": asdict(recipe.index), "seed": recipe.seed}
    return settings | {"split": artifact.fingerprint(split), "model": artifact.fingerprint(model)}


def _bundle_inputs(recipe: Recipe, split: Path, model: Path, index: Path, report: Path) -> dict[str, Any]:
    directories = {"split": split, "model": model, "index": index, "report": report}
    return {"recipe": asdict(recipe)} | {name: artifact.fingerprint(path) for name, path in directories.items()}
