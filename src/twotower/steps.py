"""The path, as functions from directories to directories.

    locate -> fetch -> validate -> prepare -> split -> train -> choose -> champion -> evaluate, index -> gate
        -> bundle -> smoke_test -> register -> deploy; summarize, however it ended

Each step loads what the one before wrote, calls one function of its room, and saves the result whole or not at all.
Commands and pipeline components call these and nothing else. `run` goes the short path on one machine: prepare, split,
train, evaluate, index, bundle; it leaves out what is up to date.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from twotower import artifact, made_from, storage
from twotower.errors import ArtifactError, TrainingError
from twotower.made_from import KIND_OF, writing
from twotower.recipe import Recipe, recipe_toml

if TYPE_CHECKING:
    from twotower.champion import Champion
    from twotower.data.split import SplitDataset
    from twotower.evaluation.gate import Verdict
    from twotower.release.summary import Outcome

VERBS = ("prepare", "split", "train", "evaluate", "index", "bundle")
"""The steps of `run`, in order: the same word in function, command and recipe section."""
STEPS = (
    *("locate", "fetch", "validate", "prepare", "split", "train", "choose", "champion", "evaluate", "index", "gate"),
    *("bundle", "smoke_test", "register", "deploy", "summarize"),
)
"""The steps of the pipeline, in order: the same word in function, command and pipeline task."""
INDEX_SAMPLE = 1_000
"""Test queries by which the index is measured."""

Watch = Callable[[Any], None]
"""Told how far a long step is; a value of `TrainProgress`, or a line of text."""


def unwatched(progress: Any) -> None:
    """Say nothing."""


def locate(recipe: Recipe, *, data: str = "") -> str:
    """Which version of the data lies where the recipe, or `data`, says: a hash that changes when the data does."""
    from twotower.data.located import source_version

    return source_version(recipe.prepare, data, seed=recipe.seed)


def fetch(recipe: Recipe, *, data: str = "", out: Path) -> None:
    """The source, wherever it lies -> its raw tables here; a simulated world is made."""
    from twotower.data.located import at_address
    from twotower.data.prepare import fetch

    with at_address(recipe.prepare, data) as config:
        made = (
            made_from.source(recipe) if not data else {"data": storage.shown(data), "prepare": asdict(recipe.prepare)}
        )
        with writing(out, step="fetch", made_from=made) as (to, metadata):
            metadata |= fetch(config, seed=recipe.seed, out=to)
            if data and config.source == "files":  # Faults name what the user named, not the copy that is gone then.
                metadata["source"] = storage.shown(data)


def validate(recipe: Recipe, *, raw: Path | None = None, out: Path) -> tuple[str, ...]:
    """Raw tables -> their profile, as a page and as JSON; gives the faults, which `prepare` will refuse."""
    from twotower.data.profile import profile
    from twotower.data.profile_page import write_profile

    found = profile(recipe.prepare, seed=recipe.seed, raw_from=raw)
    with writing(out, step="validate", made_from=made_from.raw_tables(recipe, raw)) as (to, _):
        write_profile(found, to)
    return found.faults


def prepare(recipe: Recipe, *, raw: Path | None = None, out: Path) -> None:
    """Raw tables -> prepared tables."""
    from twotower.data.prepare import prepare

    with writing(out, step="prepare", made_from=made_from.raw_tables(recipe, raw)) as (to, metadata):
        metadata |= prepare(recipe.prepare, seed=recipe.seed, out=to, raw_from=raw)


def split(recipe: Recipe, *, prepared: Path, out: Path) -> None:
    """Prepared tables -> the same with each interaction's part."""
    from twotower.data.split import split

    with writing(out, step="split", made_from=made_from.split(recipe, prepared)) as (to, metadata):
        metadata |= split(recipe.split, seed=recipe.seed, prepared=prepared, out=to)


def train(
    recipe: Recipe,
    *,
    split: Path,
    out: Path,
    resume: bool = False,
    warm_start: Path | None = None,
    watch: Watch = unwatched,
) -> None:
    """A split -> the joint model, fitted and exported; with `warm_start`, begun where an earlier model ended.

    Where the recipe asks for models of one task each, they lie below it, each a model directory of its own.
    """
    from twotower.data.split import load_split
    from twotower.training.compiled import keep_compiled
    from twotower.training.distributed import is_first, own_place
    from twotower.training.single_tasks import SINGLE, directory_of, refuse_head_start, single_tasks
    from twotower.training.warm_start import refuse_leak

    keep_compiled()
    dataset, version = load_split(split), artifact.fingerprint(split)
    singles = single_tasks(recipe.train, recipe.model, dataset=dataset)
    if warm_start is not None:
        refuse_leak(warm_start, dataset=dataset, split=version)
        refuse_head_start(warm_start, singles)
    fit = partial(_fit, dataset=dataset, split=version, resume=resume)
    joint, single = out.parent / f"{out.name}.checkpoint", out.parent / f"{out.name}.{SINGLE}.checkpoint"
    told = _naming(watch, "joint") if singles else watch
    made = made_from.train(recipe, split, warm_start)
    with own_place(out) as place, writing(place, step="train", made_from=made) as (to, metadata):
        metadata |= fit(recipe, out=to, checkpoint=joint, warm_start=warm_start, watch=told)
        for task, (config, model) in singles.items():
            name, facts = directory_of(task), dict[str, Any]()
            with artifact.write_artifact(to / name, kind=KIND_OF["train"], metadata=facts) as below:
                facts |= fit(
                    replace(recipe, train=config, model=model),
                    out=below,
                    checkpoint=single / Path(name).name,
                    warm_start=None if warm_start is None else warm_start / name,
                    watch=_naming(watch, f"{task} alone"),
                )
        if singles:
            metadata["single_tasks"] = [{"task": task, "directory": directory_of(task)} for task in singles]
    if is_first():
        for checkpoint in (joint, single):
            artifact.remove(checkpoint)


def _fit(
    recipe: Recipe,
    *,
    dataset: "SplitDataset",
    split: str,
    out: Path,
    checkpoint: Path,
    resume: bool,
    warm_start: Path | None,
    watch: Watch,
) -> dict[str, Any]:
    """One model in an open directory, with the recipe that made it; gives what its manifest says."""
    from twotower.training.fit import fit

    metadata = fit(
        recipe.train,
        model_config=recipe.model,
        dataset=dataset,
        seed=recipe.seed,
        out=out,
        checkpoint=checkpoint,
        resume=resume,
        report=watch,
        warm_start=warm_start,
    )
    (out / "recipe.toml").write_text(recipe_toml(recipe), encoding="utf-8")
    return metadata | {"split": split}


def _naming(watch: Watch, model: str) -> Watch:
    """Tells a watch which of several models is being trained."""
    return lambda progress: watch(replace(progress, model=model))


def _train_by(processes: int, recipe: Recipe, *, split: Path, out: Path, resume: bool, watch: Watch) -> None:
    """Train in this process, or by several workers of their own."""
    from twotower.training.launch import launch_training

    if processes == 1:
        train(recipe, split=split, out=out, resume=resume, watch=watch)
    else:
        launch_training(recipe_toml(recipe), split=str(split), out=str(out), processes=processes, resume=resume)


def choose(models: Sequence[Path], *, out: Path) -> str:
    """Models of several recipes -> a copy of the best one by its validation metric; gives its recipe as TOML.

    Raises:
        TrainingError: several models that cannot be compared: no validation part, or different metrics.
    """
    from twotower.evaluation.names import LABEL_METRICS

    facts = [artifact.verify(model, kind=KIND_OF["train"])["metadata"] for model in models]
    if not facts:
        raise TrainingError("choose: no model was given. Name at least one.")
    metrics = {fact["metric"] for fact in facts}
    values = [fact["validation"] for fact in facts]
    if len(models) > 1 and (len(metrics) > 1 or None in values):
        raise TrainingError(
            f"choose: {len(models)} models with {' and '.join(sorted(metrics))} cannot be compared. Give the split a "
            "validation part, and all variants the same train.metric."
        )
    sign = -1 if metrics <= set(LABEL_METRICS.values()) else 1
    best = (
        models[max(range(len(models)), key=lambda place: (sign * values[place], -place))] if values[1:] else models[0]
    )
    with artifact.write_artifact(
        out, kind=KIND_OF["train"], metadata=artifact.read_manifest(best, kind="model")["metadata"]
    ) as to:
        shutil.copytree(best, to, dirs_exist_ok=True)
        (to / artifact.MANIFEST).unlink()  # Its own only: those of models of one task, below, are files of this one.
    return (out / "recipe.toml").read_text(encoding="utf-8")


def champion(recipe: Recipe, *, registry: str, model: Path) -> tuple[str, str]:
    """The version that a model has to beat, and the version of this very model that was rolled back; "" for none."""
    from twotower.release.registry import Registry

    known, fingerprint = Registry(address=registry, name=recipe.name), artifact.fingerprint(model)
    return known.rival_of(fingerprint), known.withdrawn(fingerprint)


def evaluate(
    recipe: Recipe,
    *,
    split: Path,
    model: Path,
    out: Path,
    champion: Path | None = None,
    watch: Watch = unwatched,
) -> None:
    """A split and a model -> the report: report.json, report.html, card.md; with the champion's bundle, both judged."""
    from twotower.data.asked import asked_of
    from twotower.data.columns import MAPPED_ROWS
    from twotower.data.split import TEST, load_split
    from twotower.evaluation.audit import audit, gather_facts
    from twotower.evaluation.evaluate import evaluate
    from twotower.evaluation.joining import Alone
    from twotower.evaluation.model_contender import ModelContender
    from twotower.evaluation.report import write_report
    from twotower.model.exported import ExportedModel

    facts = artifact.read_manifest(model, kind=KIND_OF["train"])["metadata"]
    dataset, exported = load_split(split), ExportedModel.load(model)
    if (drawn := recipe.evaluate.max_queries) and len(dataset.user) > MAPPED_ROWS:
        # Ten times as many as are asked, so that the queries are drawn from many users.
        dataset = asked_of(dataset, TEST, most=MAPPED_ROWS, seed=recipe.seed, enough=10 * drawn)
    if champion is not None:
        artifact.verify(champion, kind=KIND_OF["bundle"])
    rival, unread = None, ""
    if champion is not None:
        try:
            rival = ModelContender(ExportedModel.load(champion / "model"), dataset=dataset)
        except ArtifactError as fault:  # Of an earlier release: it must not keep every later model from its place.
            unread = f"The champion cannot be read by this release, so nobody was measured against it: {fault}"
    alone: dict[str, Alone] = {}
    for below in facts.get("single_tasks", ()):
        single = ExportedModel.load(model / below["directory"])
        alone[below["task"]] = Alone(model=ModelContender(single, dataset=dataset), calibration=single.calibration)
    made = made_from.evaluate(recipe, split, model, champion)
    with writing(out, step="evaluate", made_from=made) as (to, _):
        report = evaluate(
            recipe.evaluate,
            dataset=dataset,
            model=ModelContender(exported, dataset=dataset),
            champion=rival,
            calibration=exported.calibration,
            alone=alone,
            seed=recipe.seed,
            progress=lambda what, done, total: watch(f"{what}: {done:,} of {total:,} queries"),
        )
        report["training"] = json.loads((model / "history.json").read_text(encoding="utf-8"))
        watch("looking for leaks")
        gathered = gather_facts(dataset, exported.features)
        checks = audit(dataset, exported.features, facts=gathered, seed=recipe.seed)
        report["audit"] = [asdict(check) for check in checks]
        report["alarms"] = facts["alarms"]
        if dataset.whole is not None:
            report["notes"].append(
                f"Of the {len(dataset.whole.user):,} interactions, the {len(dataset.user):,} of users drawn by chance "
                "are asked, looked through for leaks, and what the simple predictions of labels learn from."
            )
        if alone:
            report["joining"]["notes"] = _how_trained(model, facts["single_tasks"])
        report["name"] = recipe.name
        if unread:
            report["alarms"].append(unread)
        if rival is not None and (missing := rival.missing_columns()):
            report["notes"].append(f"The champion reads {', '.join(missing)}, which the data no longer has.")
        write_report(report, to)


def _how_trained(model: Path, singles: list[dict[str, str]]) -> list[str]:
    """When the joint model and those of one task were at their best, and what alarmed of the latter."""
    notes = []
    places = {"joint": model} | {f"{below['task']} alone": model / below["directory"] for below in singles}
    for name, place in places.items():
        facts = artifact.read_manifest(place, kind=KIND_OF["train"])["metadata"]
        epochs = len(json.loads((place / "history.json").read_text(encoding="utf-8")))
        chosen = "the last" if facts["validation"] is None else f"the best by validation {facts['metric']}"
        notes.append(f"{name}: epoch {facts['best_epoch']} of {epochs}, {chosen}.")
        notes += [f"{name}: {alarm}" for alarm in facts["alarms"] if place != model]  # The joint one's stand on top.
    return notes


def index(recipe: Recipe, *, split: Path, model: Path, out: Path) -> None:
    """A split's catalogue and a model -> the index over the candidates' embeddings, measured against the exact one."""
    from twotower.data.asked import asked_of
    from twotower.data.columns import MAPPED_ROWS
    from twotower.data.split import TEST, load_split
    from twotower.evaluation.model_contender import ModelContender
    from twotower.evaluation.queries import labelled
    from twotower.index.build import build_index
    from twotower.model.exported import ExportedModel

    dataset = asked_of(load_split(split), TEST, most=MAPPED_ROWS, seed=recipe.seed)
    artifact.read_manifest(model, kind=KIND_OF["train"])
    with writing(out, step="index", made_from=made_from.index(recipe, split, model)) as (to, metadata):
        contender = ModelContender(ExportedModel.load(model), dataset=dataset)
        rows = np.flatnonzero(dataset.part == TEST)
        sample = np.random.default_rng(recipe.seed).permutation(rows)[:INDEX_SAMPLE]
        queries = contender.embed(labelled(dataset, sample)).embedding
        metadata |= build_index(
            recipe.index,
            embeddings=contender.candidates.embedding,
            queries=queries,
            candidates=recipe.evaluate.candidates,
            out=to,
        )


def gate(recipe: Recipe, *, report: Path, index: Path, champion: str = "", withdrawn: str = "", out: Path) -> "Verdict":
    """A report and an index -> whether the candidate takes the champion's place: gate.json and card.md.

    Args:
        recipe: Holds the rules.
        report: What `evaluate` wrote, with the champion where there is one.
        index: What `index` wrote.
        champion: The version that the report holds as champion, for the card.
        withdrawn: The version of this very model that was rolled back, which forbids it.
        out: Where the verdict goes.
    """
    from twotower.evaluation.gate import gate, gate_card, refuse_bad_gate

    refuse_bad_gate(recipe.gate, recipe.evaluate)
    artifact.verify(report, kind=KIND_OF["evaluate"])
    facts = artifact.read_manifest(index, kind=KIND_OF["index"])["metadata"]
    made = made_from.directories(recipe, report=report, index=index)
    with writing(out, step="gate", made_from=made) as (to, metadata):
        content = json.loads((report / "report.json").read_text(encoding="utf-8"))
        verdict = gate(recipe.gate, report=content, index=facts, withdrawn=withdrawn)
        metadata |= {"promoted": verdict.promoted, "reason": verdict.reason, "champion": champion}
        (to / "gate.json").write_text(json.dumps(asdict(verdict) | metadata, indent=1), encoding="utf-8")
        (to / "card.md").write_text(gate_card(verdict, name=recipe.name, champion=champion), encoding="utf-8")
    return verdict


def bundle(recipe: Recipe, *, split: Path, model: Path, index: Path, report: Path, out: Path) -> None:
    """All that answering needs -> one sealed directory; its report also tells what was measured of the index."""
    from twotower.bundle import write_bundle
    from twotower.bundle_config import MODEL_KEY
    from twotower.data.split import load_split
    from twotower.evaluation.report import write_report

    dataset = load_split(split)
    for directory, step in ((model, "train"), (index, "index"), (report, "evaluate")):
        artifact.read_manifest(directory, kind=KIND_OF[step])
    made = made_from.directories(recipe, split=split, model=model, index=index, report=report)
    with writing(out, step="bundle", made_from=made) as (to, metadata):
        metadata |= write_bundle(
            recipe.bundle,
            serve=recipe.serve,
            name=recipe.name,
            dataset=dataset,
            model=model,
            index=index,
            recipe=recipe_toml(recipe),
            candidates=recipe.evaluate.candidates,
            out=to,
        )
        metadata[MODEL_KEY] = artifact.fingerprint(model)
        content = json.loads((report / "report.json").read_text(encoding="utf-8"))
        content["index"] = artifact.read_manifest(index, kind=KIND_OF["index"])["metadata"]
        (to / "report").mkdir()
        write_report(content, to / "report")


def smoke_test(bundle: Path, *, out: Path) -> None:
    """A bundle -> what a real server, started on it, answered to real questions: smoke.json and card.md.

    Raises:
        ArtifactError: a question was not answered as it must be; nothing is deployed then.
    """
    from twotower.release.smoke import ask_server, smoke_card

    made = {"bundle": artifact.fingerprint(bundle)}
    with writing(out, step="smoke_test", made_from=made) as (to, metadata):
        asked = ask_server(bundle)
        metadata |= {"passed": asked.passed, "ms_per_request": asked.ms_per_request}
        (to / "smoke.json").write_text(json.dumps(asdict(asked), indent=1), encoding="utf-8")
        (to / "card.md").write_text(smoke_card(asked), encoding="utf-8")
    if not asked.passed:
        raise ArtifactError(f"{bundle}: a server on it fails: {asked.first_fault}. Nothing is deployed.")


def register(recipe: Recipe, *, bundle: Path, model: Path, registry: str) -> str:
    """A bundle, and the model that it was made from -> a version in the registry; gives the version's name."""
    from twotower.release.registry import Registry

    return Registry(address=registry, name=recipe.name).add(bundle, model=model)


def deploy(
    recipe: Recipe,
    *,
    version: str,
    registry: str,
    champion: str | None = None,
    to: str = "",
    image: str = "",
    watch: Watch = unwatched,
) -> "Champion":
    """A registered version -> the one that answers.

    Args:
        recipe: Names the recommender.
        version: As `register` gave it.
        registry: Where it is kept.
        champion: The version that it was held against, "" for none; another champion since then is a fault. None by
            whoever deploys by hand.
        to: Where it is to answer from: a folder that is replaced as a whole, `kubernetes:NAMESPACE`, or "" for the
            registry's own record alone.
        image: The serving image, for Kubernetes.
        watch: Told how the rollout goes on.

    Raises:
        ArtifactError: there is no such version, or another one was promoted meanwhile.
        ClusterError: the rollout failed; the version before is back in place, and stays the champion.
    """
    from twotower.release.registry import Registry
    from twotower.release.target import put_in_place

    found = Registry(address=registry, name=recipe.name)
    found.refuse_promotion(version, rival=champion)
    put_in_place(version, to, registry=found, image=image, report=watch)
    return found.promote(version, rival=champion)


def summarize(outcome: "Outcome", *, registry: str, webhook: str = "", out: Path) -> None:
    """How a run ended -> its summary, summary.json and summary.md, told to a webhook where there is one."""
    from twotower.release.summary import write_summary

    write_summary(outcome, registry=registry, webhook=webhook, out=out)


@dataclass(frozen=True, slots=True)
class Ran:
    """What became of one step of a run."""

    step: str
    directory: Path
    is_fresh: bool
    """False where the directory was up to date and left as it was."""


def run(
    recipe: Recipe, *, out: Path, resume: bool = False, processes: int = 1, watch: Watch = unwatched
) -> Iterator[Ran]:
    """Go the short path below one directory, step by step; leave out what is up to date.

    Args:
        recipe: What to run.
        out: The run's directory; each step writes into one of its own below it.
        resume: Let an interrupted training go on from its checkpoint.
        processes: Workers that train together; several tell of their progress themselves, on stderr.
        watch: Told how far training and evaluation are.

    Yields:
        Each step as it ends.
    """
    at = {step: out / KIND_OF[step] for step in VERBS}
    prepared, parts, model, report, found = (at[step] for step in VERBS[:-1])
    read = {"split": parts, "model": model, "index": found, "report": report}
    calls: dict[str, tuple[Callable[[], dict[str, Any]], Callable[[], None]]] = {
        "prepare": (lambda: made_from.source(recipe), lambda: prepare(recipe, out=prepared)),
        "split": (lambda: made_from.split(recipe, prepared), lambda: split(recipe, prepared=prepared, out=parts)),
        "train": (
            lambda: made_from.train(recipe, parts),
            partial(_train_by, processes, recipe, split=parts, out=model, resume=resume, watch=watch),
        ),
        "evaluate": (
            lambda: made_from.evaluate(recipe, parts, model),
            lambda: evaluate(recipe, split=parts, model=model, out=report, watch=watch),
        ),
        "index": (
            lambda: made_from.index(recipe, parts, model),
            lambda: index(recipe, split=parts, model=model, out=found),
        ),
        "bundle": (
            lambda: made_from.directories(recipe, **read),
            lambda: bundle(recipe, split=parts, model=model, index=found, report=report, out=at["bundle"]),
        ),
    }
    for step in VERBS:
        inputs, call = calls[step]
        fresh = not made_from.is_up_to_date(at[step], step=step, made_from=inputs())
        if fresh:
            call()
        yield Ran(step, at[step], fresh)
