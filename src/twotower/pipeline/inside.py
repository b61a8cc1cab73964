"""What the bodies of the components share: it runs inside of a task, on a laptop and on a cluster alike.

Artifacts arrive as kfp's objects, whose `path` is a file or folder of this machine. What a person wants to see in the
Kubeflow Pipelines UI goes into `Metrics`, `ClassificationMetrics`, `HTML` and `Markdown` artifacts; each of these also
gets a file, without which the local cache would take it for lost.
"""

import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w

from twotower import artifact, steps, storage
from twotower.errors import ArtifactError, RecipeError, TwotowerError
from twotower.evaluation.gate import refuse_bad_gate
from twotower.pipeline.local_log import FAULT, SAID
from twotower.recipe import Recipe, load_recipe, read_recipe, recipe_toml, recipe_tree

PROMOTED, REFUSED = "promoted", "refused"
"""The gate's verdict, as the pipeline's condition reads it."""
STATES = {"COMPLETE": "SUCCEEDED", "SUCCEEDED": "SUCCEEDED", "FAILED": "FAILED", "CANCELED": "CANCELLED"}
"""How kfp's local runner, and the metadata store behind a server, call a run's end -> our word; others stay."""
LONGEST_METADATA = 300
"""Characters of a metadata value; what is longer belongs into a file."""


class Located(NamedTuple):
    """What `locate` hands on; the last name is the one by which kfp's local runner finds a list to loop over."""

    recipe: str
    """The whole recipe as TOML, with everything that the run was told put in."""
    tables: str
    """The part of it that makes the tables."""
    protocol: str
    """The part that splits."""
    judging: str
    """The part that evaluates."""
    search: str
    """The part that builds the index."""
    version: str
    """Of the data."""
    Output: list[dict[str, str]]
    """Each training: `recipe`, the part of a variant that trains, and `start`, the address of a model or ""."""


class Rival(NamedTuple):
    """What `champion` hands on."""

    version: str
    withdrawn: str


@contextmanager
def step(name: str) -> Iterator[None]:
    """The frame of a task: a fault that the user can mend is one line and code 2, a bug keeps its traceback."""
    started = time.perf_counter()
    try:
        yield
    except TwotowerError as fault:
        # A cache knows that an artifact is there, not that it is whole.
        cached = " If it came from a cache, run once with --no-cache." if isinstance(fault, ArtifactError) else ""
        say(f"{FAULT}{name}: {fault}{cached}")
        sys.exit(2)
    say(f"{name} took {time.perf_counter() - started:.1f} s")


def say(progress: Any) -> None:
    """A line of the task's log: text as it is; of training, a line an epoch."""
    if isinstance(progress, str) or progress.validation is not None:
        sys.stdout.write(f"{SAID}{progress if isinstance(progress, str) else progress.line()}\n")
        sys.stdout.flush()


def read(recipe: str) -> Recipe:
    """The recipe, or the part of one, that `locate` handed on."""
    return read_recipe(recipe)


def recipe_of_run(recipe: str, settings: Mapping[str, Any], *, until: str, window_days: float) -> Recipe:
    """The recipe with the run's settings and its window of data over it.

    A server that does not put its clock into a recurring run's parameters (kubeflow/pipelines#12494) leaves the
    placeholder, `[[ScheduledTime...]]`, as it is; the moment at which this task runs is as good.
    """
    if until.startswith("[["):
        until = datetime.now(UTC).isoformat(timespec="seconds")
    window = ({"prepare.until": until} if until else {}) | ({"prepare.window_days": window_days} if window_days else {})
    return load_recipe(recipe, {**settings, **{key: json.dumps(value) for key, value in window.items()}})


def start_of(recipe: Recipe, registry: str) -> str:
    """Address of the champion's model, to start from; "" where there is none."""
    from twotower.release.registry import Registry

    known = Registry(address=registry, name=recipe.name)
    last = known.champion()
    return known.model_address(last.version) if last else ""


def located(recipe: Recipe, variants: Sequence[Mapping[str, Any]], *, data: str, start: str) -> Located:
    """What the run will work on; a recipe without variants is the only one."""
    refuse_bad_gate(recipe.gate, recipe.evaluate)
    trainings = [_variant(recipe, variant) for variant in variants] or [recipe]
    return Located(
        recipe=recipe_toml(recipe),
        tables=_part(recipe, "prepare"),
        protocol=_part(recipe, "split"),
        judging=_part(recipe, "name", "evaluate"),
        search=_part(recipe, "index"),
        version=steps.locate(recipe, data=data),
        Output=[{"recipe": _part(one, "model", "train"), "start": start} for one in trainings],
    )


def train(training: Mapping[str, str], *, parts: Any, train_job: Mapping[str, Any], model: Any) -> None:
    """Train one variant: in this task, or by a TrainJob that reads and writes the artifacts where they lie."""
    if train_job:
        _train_by_job(training, parts=parts, train_job=dict(train_job), model=model)
        return
    start = training["start"]
    with _scratch() as scratch:
        warm = storage.download(start, scratch / "start") if start else None
        recipe = read(training["recipe"])
        steps.train(recipe, split=Path(parts.path), out=Path(model.path), warm_start=warm, watch=say)


def with_settings_of(trained: str, recipe: str) -> Recipe:
    """The whole recipe with the settings by which the best model was trained."""
    best = read(trained)
    return replace(read(recipe), model=best.model, train=best.train)


@contextmanager
def bundle_of(recipe: str, version: str, registry: str) -> Iterator[Path | None]:
    """A version's bundle here, gone when the block ends; None where no version is named."""
    from twotower.release.registry import Registry

    if not version:
        yield None
        return
    with _scratch() as scratch:
        address = Registry(address=registry, name=read(recipe).name).version_address(version)
        yield storage.download(address, scratch / "bundle")


def outcome(recipe: str, settings: Mapping[str, Any], status: Any) -> Any:
    """How the run ended, from Kubeflow's own words; a recipe that cannot be read leaves the name empty."""
    from twotower.release.summary import Outcome

    try:
        name = load_recipe(recipe, dict(settings)).name
    except TwotowerError:
        name = ""
    run = str(status.pipeline_job_resource_name).rpartition("/")[2]
    state = STATES.get(str(status.state).upper(), str(status.state))
    error = str(status.error_message or "")
    if state == "FAILED" and not error:
        error = "a task failed; the run's page shows which"
    return Outcome(run=run, name=name, state=state, error=error)


@contextmanager
def shown(file: str, page: Any) -> Iterator[Path]:
    """A folder for a step to write into, of which one file is shown in the UI, however the step ends."""
    with _scratch() as scratch:
        out = scratch / "out"
        try:
            yield out
        finally:
            if (out / file).is_file():
                show(out / file, page)


def show(source: Path, page: Any) -> None:
    """Make a file the content of an HTML or Markdown artifact."""
    target = Path(page.path)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def note(output: Any, **more: str) -> None:
    """Put what the directory's manifest says into the artifact's metadata, for a person to see in the UI."""
    manifest = json.loads((Path(output.path) / artifact.MANIFEST).read_text(encoding="utf-8"))
    more = {key: storage.shown(value) for key, value in more.items()}
    found = {
        **manifest["metadata"],
        **more,
        "kind": manifest["kind"],
        "fingerprint": artifact.fingerprint(Path(output.path)),
    }
    for key, value in found.items():
        text = value if isinstance(value, str | int | float | bool) else json.dumps(value)
        if text != "null" and len(str(text)) <= LONGEST_METADATA:
            output.metadata[key] = text


def log_training(model: Any, metrics: Any) -> None:
    """The best epoch's figures as Metrics."""
    history = json.loads((Path(model.path) / "history.json").read_text(encoding="utf-8"))
    best = int(model.metadata["best_epoch"])
    _log(
        metrics,
        {"epochs": len(history), "best_epoch": best} | {k: v for k, v in history[best - 1].items() if k != "epoch"},
    )


def log_report(report: Any, *, metrics: Any, curve: Any) -> None:
    """The report's headline as Metrics; of the first label of the ranking head, ROC and confusion."""
    content = json.loads((Path(report.path) / "report.json").read_text(encoding="utf-8"))
    main = content["protocols"][content["main_protocol"]]["contenders"]
    figures = {
        f"{name} {metric}": contender["metrics"][metric]
        for name, contender in main.items()
        for metric in content["lead_metrics"][:2]
    }
    labels = {
        f"{label} {name}": value
        for label, one in content["labels"].items()
        for name, value in one.get("metrics", {}).items()
    }
    _log(metrics, figures | labels)
    read_as = [one["as_classifier"] for one in content["labels"].values() if "as_classifier" in one]
    _log_curve(curve, read_as[0] if read_as else None)


def log_index(found: Any, metrics: Any) -> None:
    """The index's recall and speed as Metrics."""
    facts = artifact.read_manifest(Path(found.path), kind="index")["metadata"]
    recall = {f"recall@{k}": value for k, value in facts.get("recall", {}).items()}
    speed = {f"{kind} ms": value for kind, value in facts.get("ms_per_query", {}).items()}
    _log(metrics, {"items": facts["items"], **recall, **speed})


def log_smoke(out: Path, metrics: Any) -> None:
    """How fast the server started and answered, as Metrics."""
    asked = json.loads((out / "smoke.json").read_text(encoding="utf-8"))
    _log(metrics, {"ready seconds": asked["ready_seconds"], "ms per request": asked["ms_per_request"]})


def _variant(recipe: Recipe, variant: Mapping[str, Any]) -> Recipe:
    """The recipe with a variant's settings over it: of the model and its training, since the data is shared.

    Raises:
        RecipeError: a setting of another section, or one that does not fit.
    """
    for key in variant:
        if key.partition(".")[0] not in ("model", "train"):
            raise RecipeError(f"variant {key!r}: variants share their data and judge. Set keys of model or train only.")
    return load_recipe(recipe_toml(recipe), dict(variant)) if variant else recipe


def _part(recipe: Recipe, *sections: str) -> str:
    """Seed and sections of the recipe as TOML; what reads it takes the defaults for the others.

    A task is given no more than it reads, so that another setting leaves its cache as it is.
    """
    tree = recipe_tree(recipe)
    return tomli_w.dumps({"seed": recipe.seed, **{section: tree[section] for section in sections}})


def _train_by_job(training: Mapping[str, str], *, parts: Any, train_job: Mapping[str, Any], model: Any) -> None:
    """Launch the job, wait for it, and bring the model here; numbers come from Kubeflow as floats."""
    from twotower.pipeline.trainjob import TrainJobSpec, launch_train_job

    spec = TrainJobSpec(
        name=f"twotower-{artifact.hash_json([training, model.uri])[:12]}",
        namespace=train_job["namespace"],
        image=train_job["image"],
        recipe=training["recipe"],
        split=parts.uri,
        out=model.uri,
        nodes=int(train_job["nodes"]),
        runtime=train_job["runtime"],
        arguments=("--warm-start", training["start"]) if training["start"] else (),
        requests=train_job["requests"],
        limits=train_job["limits"],
        env=train_job["env"],
        secret_env={name: (secret, key) for name, (secret, key) in train_job["secret_env"].items()},
        service_account=train_job["service_account"] or None,
        node_selector=train_job["node_selector"],
        tolerations=train_job["tolerations"],
        image_pull_secrets=train_job["image_pull_secrets"],
    )
    launch_train_job(spec, report=say, timeout=60.0 * train_job["timeout_minutes"])
    storage.download(model.uri, Path(model.path))


def _log(metrics: Any, figures: Mapping[str, Any]) -> None:
    """Numbers under names that the UI and MLMD take."""
    kept = {
        name.replace("@", " at ").replace(" ", "_"): float(value)
        for name, value in figures.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }
    for name, value in kept.items():
        metrics.log_metric(name, value)
    _to_file(metrics, kept)


def _log_curve(curve: Any, read_as: Mapping[str, Any] | None) -> None:
    if read_as is not None:
        roc = read_as["roc"]
        if roc["threshold"]:
            curve.log_roc_curve(roc["false_positive_rate"], roc["true_positive_rate"], roc["threshold"])
        curve.log_confusion_matrix(read_as["categories"], read_as["confusion"])
    _to_file(curve, read_as or {})


def _to_file(output: Any, content: Mapping[str, Any]) -> None:
    path = Path(output.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="twotower-") as folder:
        yield Path(folder)
