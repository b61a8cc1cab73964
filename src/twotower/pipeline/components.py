"""One thin component per step of `twotower.steps`: it names inputs and outputs, and nothing else.

Each body runs in a container, or in a process of its own, where only this package and kfp are installed; what they
share is in `inside.py`. The image is set when the pipeline is compiled.
"""

from typing import Any, NamedTuple

from kfp import dsl
from kfp.dsl import (
    HTML,
    Artifact,
    ClassificationMetrics,
    Dataset,
    Input,
    Markdown,
    Metrics,
    Model,
    Output,
    PipelineTaskFinalStatus,
)

IMAGE = "twotower-pipeline"
"""The image of every step; its tag comes from the profile."""


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def locate(
    recipe: str,
    settings: dict,
    data: str,
    until: str,
    window_days: float,
    variants: list,
    registry: str,
    warm_start: bool,
) -> NamedTuple(  # type: ignore[valid-type]
    "Located",
    [
        ("recipe", str),
        ("tables", str),
        ("protocol", str),
        ("judging", str),
        ("search", str),
        ("version", str),
        ("Output", list),
    ],
):
    """Which recipes, which version of the data, and which model to start from; see `twotower.steps.locate`."""
    from twotower.pipeline import inside

    with inside.step("locate"):
        chosen = inside.recipe_of_run(recipe, settings, until=until, window_days=window_days)
        start = inside.start_of(chosen, registry) if warm_start else ""
        return inside.located(chosen, variants, data=data, start=start)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def fetch(recipe: str, data: str, version: str, raw: Output[Dataset]) -> None:
    """Copy the source's tables, or make the simulated world; see `twotower.steps.fetch`."""
    from pathlib import Path

    from twotower import steps
    from twotower.pipeline import inside

    with inside.step("fetch"):
        steps.fetch(inside.read(recipe), data=data, out=Path(raw.path))
        inside.note(raw, data=data or "as the recipe says", version=version)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def validate(recipe: str, raw: Input[Dataset], page: Output[HTML]) -> None:
    """Profile the tables; what is wrong with them stops `prepare`. See `twotower.steps.validate`."""
    from pathlib import Path

    from twotower import steps
    from twotower.pipeline import inside

    with inside.step("validate"), inside.shown("profile.html", page) as out:
        for fault in steps.validate(inside.read(recipe), raw=Path(raw.path), out=out):
            inside.say(f"fault: {fault}")


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def prepare(recipe: str, raw: Input[Dataset], prepared: Output[Dataset]) -> None:
    """Turn raw tables into checked ones; see `twotower.steps.prepare`."""
    from pathlib import Path

    from twotower import steps
    from twotower.pipeline import inside

    with inside.step("prepare"):
        steps.prepare(inside.read(recipe), raw=Path(raw.path), out=Path(prepared.path))
        inside.note(prepared)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def split(recipe: str, prepared: Input[Dataset], parts: Output[Dataset]) -> None:
    """Say what trains, validates and tests; see `twotower.steps.split`."""
    from pathlib import Path

    from twotower import steps
    from twotower.pipeline import inside

    with inside.step("split"):
        steps.split(inside.read(recipe), prepared=Path(prepared.path), out=Path(parts.path))
        inside.note(parts)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train(
    training: dict,
    parts: Input[Dataset],
    train_job: dict,
    model: Output[Model],
    metrics: Output[Metrics],
) -> None:
    """Fit the joint model here, or by a TrainJob; see `twotower.steps.train`."""
    from twotower.pipeline import inside

    with inside.step("train"):
        inside.train(training, parts=parts, train_job=train_job, model=model)
        inside.note(model)
        inside.log_training(model, metrics)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def choose(models: Input[list[Model]], best: Output[Model]) -> str:
    """Keep the best model by validation, and the settings that it was trained by; see `twotower.steps.choose`."""
    from pathlib import Path

    from twotower import steps
    from twotower.pipeline import inside

    with inside.step("choose"):
        trained = steps.choose([Path(model.path) for model in models], out=Path(best.path))
        inside.note(best)
        return trained


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def champion(recipe: str, registry: str, best: Input[Model]) -> NamedTuple(  # type: ignore[valid-type]
    "Rival", [("version", str), ("withdrawn", str)]
):
    """Look up the version that answers now; see `twotower.steps.champion`."""
    from pathlib import Path

    from twotower import steps
    from twotower.pipeline import inside

    with inside.step("champion"):
        rival = steps.champion(inside.read(recipe), registry=registry, model=Path(best.path))
        return inside.Rival(*rival)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    recipe: str,
    parts: Input[Dataset],
    best: Input[Model],
    champion: str,
    registry: str,
    report: Output[Artifact],
    metrics: Output[Metrics],
    curve: Output[ClassificationMetrics],
    page: Output[HTML],
    card: Output[Markdown],
) -> None:
    """Judge the model, its baselines and the champion; see `twotower.steps.evaluate`."""
    from pathlib import Path

    from twotower import steps
    from twotower.pipeline import inside

    with inside.step("evaluate"), inside.bundle_of(recipe, champion, registry) as rival:
        steps.evaluate(
            inside.read(recipe), split=Path(parts.path), model=Path(best.path), champion=rival, out=Path(report.path)
        )
        inside.note(report)
        inside.log_report(report, metrics=metrics, curve=curve)
        inside.show(Path(report.path) / "report.html", page)
        inside.show(Path(report.path) / "card.md", card)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def index(
    recipe: str, parts: Input[Dataset], best: Input[Model], found: Output[Artifact], metrics: Output[Metrics]
) -> None:
    """Embed every candidate and build the index; see `twotower.steps.index`."""
    from pathlib import Path

    from twotower import steps
    from twotower.pipeline import inside

    with inside.step("index"):
        steps.index(inside.read(recipe), split=Path(parts.path), model=Path(best.path), out=Path(found.path))
        inside.note(found)
        inside.log_index(found, metrics)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def gate(
    recipe: str,
    report: Input[Artifact],
    found: Input[Artifact],
    champion: str,
    withdrawn: str,
    card: Output[Markdown],
) -> str:
    """Promote or refuse the candidate; see `twotower.steps.gate`."""
    from pathlib import Path

    from twotower import steps
    from twotower.pipeline import inside

    with inside.step("gate"), inside.shown("card.md", card) as out:
        verdict = steps.gate(
            inside.read(recipe),
            report=Path(report.path),
            index=Path(found.path),
            champion=champion,
            withdrawn=withdrawn,
            out=out,
        )
        inside.say(verdict.reason)
        return inside.PROMOTED if verdict.promoted else inside.REFUSED


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def bundle(
    recipe: str,
    trained: str,
    parts: Input[Dataset],
    best: Input[Model],
    found: Input[Artifact],
    report: Input[Artifact],
    sealed: Output[Model],
) -> None:
    """Seal all that answering needs; see `twotower.steps.bundle`."""
    from pathlib import Path

    from twotower import steps
    from twotower.pipeline import inside

    with inside.step("bundle"):
        steps.bundle(
            inside.with_settings_of(trained, recipe),
            split=Path(parts.path),
            model=Path(best.path),
            index=Path(found.path),
            report=Path(report.path),
            out=Path(sealed.path),
        )
        inside.note(sealed)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def smoke_test(sealed: Input[Model], card: Output[Markdown], metrics: Output[Metrics]) -> None:
    """Ask a real server on the bundle; see `twotower.steps.smoke_test`."""
    from pathlib import Path

    from twotower import steps
    from twotower.pipeline import inside

    with inside.step("smoke_test"), inside.shown("card.md", card) as out:
        steps.smoke_test(Path(sealed.path), out=out)
        inside.log_smoke(out, metrics)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def register(recipe: str, sealed: Input[Model], best: Input[Model], registry: str) -> str:
    """Keep the bundle as a version; see `twotower.steps.register`."""
    from pathlib import Path

    from twotower import steps
    from twotower.pipeline import inside

    with inside.step("register"):
        return steps.register(inside.read(recipe), bundle=Path(sealed.path), model=Path(best.path), registry=registry)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def deploy(recipe: str, version: str, registry: str, champion: str, to: str, image: str) -> str:
    """Let the version answer; see `twotower.steps.deploy`."""
    from twotower import steps
    from twotower.pipeline import inside

    with inside.step("deploy"):
        deployed = steps.deploy(
            inside.read(recipe),
            version=version,
            registry=registry,
            champion=champion,
            to=to,
            image=image,
            watch=inside.say,
        )
        return deployed.version


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def summarize(
    recipe: str, settings: dict, registry: str, webhook: str, card: Output[Markdown], status: PipelineTaskFinalStatus
) -> None:
    """Tell how the run ended, however it ended; see `twotower.steps.summarize`."""
    from twotower import steps
    from twotower.pipeline import inside

    with inside.step("summarize"), inside.shown("summary.md", card) as out:
        outcome = inside.outcome(recipe, settings, status)
        steps.summarize(outcome, registry=registry, webhook=webhook, out=out)


COMPONENTS: dict[str, Any] = {
    "locate": locate,
    "fetch": fetch,
    "validate": validate,
    "prepare": prepare,
    "split": split,
    "train": train,
    "choose": choose,
    "champion": champion,
    "evaluate": evaluate,
    "index": index,
    "gate": gate,
    "bundle": bundle,
    "smoke_test": smoke_test,
    "register": register,
    "deploy": deploy,
    "summarize": summarize,
}
"""Step -> its component."""
