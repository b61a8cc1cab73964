"""The pipeline: which step follows which. What a task may use, and where it runs, is the profile's."""

from collections.abc import Callable
from typing import Any

from kfp import dsl

from twotower.pipeline import components
from twotower.pipeline.inside import PROMOTED

NAME = "twotower"

Dress = Callable[[dsl.PipelineTask, str], dsl.PipelineTask]
"""Given a task and its step's name, gives it resources, retries, a timeout and whatever else the profile says."""

UNCACHED = frozenset({"locate", "champion", "register", "deploy", "summarize"})
"""Steps that look at, or change, what is outside of the run: their result does not follow from their inputs."""


def build_pipeline(dress: Dress, *, registry: str, deploy_to: str, serve_image: str, train_job: dict[str, Any]) -> Any:
    """The pipeline, ready to be compiled or run.

    Args:
        dress: Applied to every task.
        registry: Where versions are kept, unless a run says otherwise.
        deploy_to: Where a promoted version answers from, unless a run says otherwise.
        serve_image: What serves on Kubernetes, unless a run says otherwise.
        train_job: Settings of a Kubeflow TrainJob that trains; empty to train in the task's own pod.
    """

    def task(step: str, **inputs: Any) -> dsl.PipelineTask:
        made = components.COMPONENTS[step](**inputs)
        made.set_caching_options(step not in UNCACHED)
        return dress(made, step)

    @dsl.pipeline(
        name=NAME,
        description="From a log of interactions to a served two-stage recommender: retrieval selects, ranking orders.",
    )
    def twotower(
        recipe: str = "simulated",
        settings: dict = {},  # noqa: B006 - kfp reads the default; nothing changes it
        data: str = "",
        until: str = "",
        window_days: float = 0.0,
        variants: list = [{}],  # noqa: B006
        registry: str = registry,
        warm_start: bool = False,
        deploy_to: str = deploy_to,
        serve_image: str = serve_image,
        webhook: str = "",
    ) -> None:
        ended = task("summarize", recipe=recipe, settings=settings, registry=registry, webhook=webhook)
        with dsl.ExitHandler(ended, name="run"):
            located = task(
                "locate",
                recipe=recipe,
                settings=settings,
                data=data,
                until=until,
                window_days=window_days,
                variants=variants,
                registry=registry,
                warm_start=warm_start,
            )
            # Each task is given the part of the recipe that it reads: another setting leaves its cache as it is.
            whole, tables = located.outputs["recipe"], located.outputs["tables"]
            raw = task("fetch", recipe=tables, data=data, version=located.outputs["version"]).outputs["raw"]
            checked = task("validate", recipe=tables, raw=raw)
            prepared = task("prepare", recipe=tables, raw=raw).after(checked).outputs["prepared"]
            parts = task("split", recipe=located.outputs["protocol"], prepared=prepared).outputs["parts"]
            # kfp's local runner gives a task in a loop nothing but the item and what is no parameter of another task,
            # and finds a list, or what a condition compares, only under the name `Output` (kfp 2.17).
            with dsl.ParallelFor(located.outputs["Output"], name="variants") as training:
                model = task("train", training=training, parts=parts, train_job=train_job).outputs["model"]
            chosen = task("choose", models=dsl.Collected(model))
            best = chosen.outputs["best"]
            rival = task("champion", recipe=whole, registry=registry, best=best).outputs
            judging, search = located.outputs["judging"], located.outputs["search"]
            report = task(
                "evaluate", recipe=judging, parts=parts, best=best, champion=rival["version"], registry=registry
            ).outputs["report"]
            found = task("index", recipe=search, parts=parts, best=best).outputs["found"]
            held = {"champion": rival["version"], "withdrawn": rival["withdrawn"]}
            gated = task("gate", recipe=whole, report=report, found=found, **held)
            with dsl.If(gated.outputs["Output"] == PROMOTED, name=PROMOTED):
                made_of = {"parts": parts, "best": best, "found": found, "report": report}
                sealed = task("bundle", recipe=whole, trained=chosen.outputs["Output"], **made_of).outputs["sealed"]
                asked = task("smoke_test", sealed=sealed)
                kept = task("register", recipe=whole, sealed=sealed, best=best, registry=registry).after(asked)
                target = {"to": deploy_to, "image": serve_image, "champion": rival["version"]}
                task("deploy", recipe=whole, version=kept.output, registry=registry, **target)

    return twotower
