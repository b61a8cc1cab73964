"""Models that learn one task each by the joint model's own settings: beside them a reader sees what joining does."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import numpy as np

from twotower.artifact import MANIFEST
from twotower.data.split import VALIDATION, SplitDataset
from twotower.errors import RecipeError, TrainingError
from twotower.evaluation.names import LABEL_METRICS
from twotower.model.config import MET, RETRIEVAL, LabelConfig, ModelConfig
from twotower.training.config import TrainConfig
from twotower.training.refusals import refuse_bad_model

SINGLE = "single"
"""Of a model's directory: where the models of one task lie, each a model directory of its own."""


def single_tasks(
    config: TrainConfig, model: ModelConfig, *, dataset: SplitDataset
) -> dict[str, tuple[TrainConfig, ModelConfig]]:
    """Task -> the settings under which it is learned alone; none where the recipe does not ask for it.

    Everything else stays as it is: towers, head, data, seed and the most epochs. Each is stopped by a metric of its own
    task, and its weight is 1, as there is nothing to weigh it against. `met` is learned among what a retrieval brings,
    so there is no model of it alone. What the joint model does not learn, by a weight of 0, is not learned here either.

    Args:
        config: The joint model's run.
        model: The joint model.
        dataset: What is learned from.

    Raises:
        RecipeError: the joint model cannot be, learns one task only, or the validation part has nothing to stop a
            label by.
    """
    if not config.single_tasks:
        return {}
    refuse_bad_model(model, dataset=dataset)
    learned = [task for task, weight in model.tasks().items() if weight]
    if len(learned) < 2:
        raise RecipeError(
            f"train.single_tasks: the model learns '{' '.join(learned)}' and nothing else, so there is no joint model "
            "to set it beside. Leave it out, or add a label to model.ranking.labels."
        )
    labels = [label for label in model.ranking.labels if label.name in learned and label.name != MET]
    for label in labels:
        _refuse_unlabelled(label, dataset=dataset)
    found = {label.name: (_run(config, LABEL_METRICS[label.kind]), _label_alone(model, label)) for label in labels}
    if RETRIEVAL not in learned:
        return found
    metric = TrainConfig().metric if config.metric in LABEL_METRICS.values() else config.metric
    return {RETRIEVAL: (_run(config, metric), _retrieval_alone(model))} | found


def directory_of(task: str) -> str:
    """The place of a task's own model below the joint one's, whatever characters a label's name has."""
    return f"{SINGLE}/{quote(task, safe='').replace('.', '%2E')}"


def refuse_head_start(earlier: Path, tasks: Collection[str]) -> None:
    """Refuse to begin the joint model where an earlier one ended, and the others from nothing.

    Args:
        earlier: The model to begin with.
        tasks: What is learned alone.

    Raises:
        TrainingError: the earlier one has no model of one of these tasks.
    """
    for task in tasks:
        if not (earlier / directory_of(task) / MANIFEST).is_file():
            raise TrainingError(
                f"{earlier}: holds no model of '{task}' alone, so the joint model alone would have a head start. "
                "Start afresh, or set train.single_tasks = false."
            )


def _run(config: TrainConfig, metric: str) -> TrainConfig:
    return replace(config, metric=metric, single_tasks=False)


def _retrieval_alone(model: ModelConfig) -> ModelConfig:
    ranking = replace(model.ranking, labels=(), order={})
    return replace(model, retrieval=replace(model.retrieval, weight=1.0), ranking=ranking, task_weights="static")


def _label_alone(model: ModelConfig, label: LabelConfig) -> ModelConfig:
    ranking = replace(model.ranking, labels=(replace(label, weight=1.0),), order={})
    return replace(model, retrieval=replace(model.retrieval, weight=0.0), ranking=ranking, task_weights="static")


def _refuse_unlabelled(label: LabelConfig, *, dataset: SplitDataset) -> None:
    rows = dataset.part == VALIDATION
    if rows.any() and np.isnan(dataset.labels[label.name][rows]).all():
        raise RecipeError(
            f"train.single_tasks: a model of '{label.name}' alone is stopped by its {LABEL_METRICS[label.kind]}, but "
            "the validation part has no such label. Give it some, or set train.single_tasks = false."
        )
