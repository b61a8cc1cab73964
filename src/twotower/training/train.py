"""Fit the joint model: what it learns from, what it begins with, and the run itself."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twotower.artifact import recover, remove
from twotower.data.asked import asked_of
from twotower.data.batches import QueryArrays, TrainingArrays
from twotower.data.examples import Shared
from twotower.data.feature_encoders import Inputs
from twotower.data.fitted_features import FittedFeatures, fit_features
from twotower.data.pieces import count_rows, narrowed
from twotower.data.shards import open_shards
from twotower.data.split import TRAIN, VALIDATION, SplitDataset
from twotower.errors import RecipeError
from twotower.model.config import MET, ModelConfig
from twotower.model.encoders import sequence_of
from twotower.model.joint import JointModel
from twotower.training.config import TrainConfig
from twotower.training.distributed import agree, first_alone, is_first, refuse_uneven
from twotower.training.progress import Trained, TrainProgress
from twotower.training.refusals import refuse_bad_model
from twotower.training.run import Run
from twotower.training.step import reads_of
from twotower.training.supply import SHARDS_AT_ONCE, FromDisk, InMemory, Supply
from twotower.training.warm_start import CarriedOver, carry_over

LEAST_BATCHES = 16
"""Batches that `memory_rows` has to hold: a window is half of it."""


def train(
    config: TrainConfig,
    *,
    model_config: ModelConfig,
    dataset: SplitDataset,
    seed: int,
    checkpoint: Path,
    resume: bool,
    report: Callable[[TrainProgress], None],
    warm_start: Path | None = None,
) -> Trained:
    """Fit the joint model on the train part.

    Args:
        config: The run.
        model_config: What is fitted.
        dataset: The parts.
        seed: Decides weights, order of examples and negatives.
        checkpoint: Directory of the run's checkpoint; it stays when the run ends, for the caller to remove.
        resume: Go on from the checkpoint where there is one.
        report: Called after each compiled call.
        warm_start: An earlier model's directory, whose weights this one begins with.

    Raises:
        TrainingError: a loss is no number, or the checkpoint is another run's.
        RecipeError: settings that cannot be, or a label or column that the data does not have.
    """
    run, carried_over = open_run(
        config,
        model_config=model_config,
        dataset=dataset,
        seed=seed,
        checkpoint=checkpoint,
        report=report,
        warm_start=warm_start,
    )
    if agree(lambda: resume and run.keeps and _is_there(checkpoint)):
        run.load()
    while run.wants_more():
        run.epoch()
    if is_first() or not run.keeps:  # Nodes without a common folder have shards each.
        remove(_shards_beside(checkpoint))
    return run.finish(carried_over)


def open_run(
    config: TrainConfig,
    *,
    model_config: ModelConfig,
    dataset: SplitDataset,
    seed: int,
    checkpoint: Path,
    report: Callable[[TrainProgress], None],
    warm_start: Path | None = None,
) -> tuple[Run, CarriedOver | None]:
    """A run before its first step, and what it begins with of an earlier model; arguments and errors are `train`'s."""
    refuse_bad_model(model_config, dataset=dataset)
    features = fit_features(model_config.query, model_config.candidate, dataset=dataset)
    shards = _shards_beside(checkpoint)
    supply = open_supply(config, model_config, dataset=dataset, features=features, shards=shards, seed=seed)
    refuse_uneven(supply.batch_size)
    sample = supply.sample()
    model = first_model(model_config, dataset=dataset, features=features, sample=sample, seed=seed)
    carried_over = None if warm_start is None else carry_over(model, warm_start)
    asked = asked_of(dataset, VALIDATION, most=config.memory_rows, seed=seed)
    return (
        Run(config, model, supply, sample=sample, dataset=asked, seed=seed, checkpoint=checkpoint, report=report),
        carried_over,
    )


def _shards_beside(checkpoint: Path) -> Path:
    """Where the train part lies that outgrows the memory."""
    return checkpoint.with_name(f"{checkpoint.name}.shards")


def _is_there(checkpoint: Path) -> bool:
    recover(checkpoint)
    return checkpoint.exists()


def build_model(config: ModelConfig, *, dataset: SplitDataset, seed: int) -> tuple[JointModel, TrainingArrays]:
    """The model with its first weights, and the arrays of a train part that fits the memory."""
    refuse_bad_model(config, dataset=dataset)
    features = fit_features(config.query, config.candidate, dataset=dataset)
    arrays = all_examples(config, dataset=dataset, features=features)
    return first_model(config, dataset=dataset, features=features, sample=arrays, seed=seed), arrays


def open_supply(
    config: TrainConfig,
    model: ModelConfig,
    *,
    dataset: SplitDataset,
    features: FittedFeatures,
    shards: Path,
    seed: int,
) -> Supply:
    """The train part in memory, or where it has more than `memory_rows` interactions, on disk.

    Raises:
        RecipeError: `memory_rows` is too small for windows of a few batches.
    """
    sequence = sequence_of(features)
    rows = int(count_rows(dataset, TRAIN, by="item").sum())
    if rows <= config.memory_rows:
        arrays = all_examples(model, dataset=dataset, features=features)
        return InMemory(arrays, batch_size=config.batch_size, sequence=sequence, seed=seed)
    if config.memory_rows < LEAST_BATCHES * config.batch_size:
        raise RecipeError(
            f"train.memory_rows = {config.memory_rows:,} holds less than {LEAST_BATCHES} batches of "
            f"{config.batch_size:,}, so there is little to shuffle. Raise it, or lower train.batch_size."
        )
    count = SHARDS_AT_ONCE * -(-2 * rows // config.memory_rows)
    labels = [label.name for label in model.ranking.labels]
    written = first_alone(lambda: open_shards(shards, dataset, labels=labels, count=count, seed=seed))
    shared = Shared.build(dataset, features, reads=reads_of(model))
    return FromDisk(written, shared=shared, batch_size=config.batch_size, sequence=sequence, seed=seed)


def all_examples(config: ModelConfig, *, dataset: SplitDataset, features: FittedFeatures) -> TrainingArrays:
    """The whole train part as arrays."""
    columns = dataset.labels | {MET: np.full(len(dataset.item), np.nan, np.float32)}
    labels = [columns[label.name] for label in config.ranking.labels]
    return TrainingArrays.build(dataset, features, labels=labels, reads=reads_of(config))


def first_model(
    config: ModelConfig, *, dataset: SplitDataset, features: FittedFeatures, sample: TrainingArrays, seed: int
) -> JointModel:
    """The model with its first weights.

    Args:
        config: What is fitted.
        dataset: The parts.
        features: Fitted on the train part.
        sample: The train part, or a fair sample of it.
        seed: Decides the weights.
    """
    model = JointModel(config, features=features, items=len(sample.catalogue_row), seed=seed)
    query, candidate = sample_inputs(features, dataset)
    model.build(query, candidate, label_means=first_predictions(model_config=config, labels=sample.labels))
    return model


def sample_inputs(features: FittedFeatures, dataset: SplitDataset) -> tuple[Inputs, Inputs]:
    """A query's and a candidate's inputs, by which layers and graphs learn names, types and widths."""
    first = np.zeros(1, np.int64)
    one = narrowed(dataset, np.arange(len(dataset.user_ids)) == dataset.user[0])
    arrays = QueryArrays.build(one, features, log=one.user_log(TRAIN, positives_only=True))
    query = arrays.inputs(one.user[:1], one.timestamp[:1], log_row=first)
    return query, features.candidate_inputs(dataset.items.slice(0, 1))


def first_predictions(*, model_config: ModelConfig, labels: NDArray[np.float32]) -> NDArray[np.float32]:
    """`[L]` what the head predicts before it has learned: the mean of a regression label, the log odds of a binary."""
    first = np.zeros(labels.shape[1], np.float32)
    for place, label in enumerate(model_config.ranking.labels):
        known = labels[:, place][~np.isnan(labels[:, place])]
        if len(known):
            mean = float(known.mean())
            share = min(max(mean, 1e-4), 1 - 1e-4)
            first[place] = mean if label.kind == "regression" else np.log(share / (1 - share))
    return first
