"""Fit the joint model: epochs of compiled steps, validation, early stopping, checkpoints."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import keras
import numpy as np
from numpy.typing import NDArray

from twotower.artifact import hash_json, recover
from twotower.data.batches import QueryArrays, TrainingArrays
from twotower.data.feature_encoders import Inputs
from twotower.data.fitted_features import FittedFeatures, fit_features
from twotower.data.split import TRAIN, VALIDATION, SplitDataset
from twotower.errors import TrainingError
from twotower.evaluation.names import LABEL_METRICS
from twotower.model.config import MET, ModelConfig, RetrievalConfig
from twotower.model.encoders import sequence_of
from twotower.model.joint import JointModel
from twotower.model.task_weights import gradient_balanced, uncertainty_weights
from twotower.training.alarms import loss_alarms, popularity_alarms
from twotower.training.checkpoints import load_checkpoint, save_checkpoint
from twotower.training.config import TrainConfig
from twotower.training.plan import Planner
from twotower.training.refusals import refuse_bad_model
from twotower.training.step import LEAST, Plan, Stepper, TrainState, static_weights
from twotower.training.validation import Validator
from twotower.training.warm_start import CarriedOver, carry_over


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainProgress:
    """How far a run is, for whoever draws it."""

    epoch: int
    """From 1."""
    epochs: int
    step: int
    """Steps taken in all."""
    steps: int
    """Steps that all epochs would take."""
    examples_per_second: float
    losses: dict[str, float]
    """Means over the steps since the last report."""
    validation: dict[str, float] | None
    """After an epoch: the validation metrics."""
    model: str = ""
    """Which of several models this is; "" where there is one."""

    def line(self) -> str:
        """Epoch, speed, losses and validation in one line."""
        measured = {**self.losses, **(self.validation or {})}
        return "  ".join([self.speed(), *(f"{name} {value:.4f}" for name, value in measured.items())])

    def speed(self) -> str:
        """Which model, epoch and speed."""
        model = f"{self.model}  " if self.model else ""
        return f"{model}epoch {self.epoch}/{self.epochs}  {self.examples_per_second:,.0f} examples/s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A fitted model: its layers hold the best epoch's weights, its tables too."""

    model: JointModel
    history: list[dict[str, Any]]
    """One entry an epoch: epoch, losses, validation metrics."""
    best_epoch: int
    alarms: list[str]
    """What a reader must know before trusting it."""
    trend_block: int
    """Interactions in a block of the trends that it learned from."""
    carried_over: CarriedOver | None
    """What the model began with, where it was started from another."""


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
    model, arrays = build_model(model_config, dataset=dataset, seed=seed)
    carried_over = None if warm_start is None else carry_over(model, warm_start)
    run = _Run(config, model, arrays, dataset=dataset, seed=seed, checkpoint=checkpoint, report=report)
    recover(checkpoint)
    if resume and checkpoint.exists():
        run.load()
    while run.wants_more():
        run.epoch()
    return run.finish(carried_over)


def build_model(config: ModelConfig, *, dataset: SplitDataset, seed: int) -> tuple[JointModel, TrainingArrays]:
    """The model with its first weights, and the arrays that it trains on."""
    refuse_bad_model(config, dataset=dataset)
    labels = tuple(label.name for label in config.ranking.labels)
    features = fit_features(config.query, config.candidate, dataset=dataset)
    columns = dataset.labels | {MET: np.full(len(dataset.item), np.nan, np.float32)}
    arrays = TrainingArrays.build(dataset, features, labels=[columns[name] for name in labels])
    model = JointModel(config, features=features, seed=seed)
    query, candidate = sample_inputs(features, dataset)
    model.build(query, candidate, label_means=first_predictions(model_config=config, labels=arrays.labels))
    return model, arrays


def sample_inputs(features: FittedFeatures, dataset: SplitDataset) -> tuple[Inputs, Inputs]:
    """A query's and a candidate's inputs, by which layers and graphs learn names, types and widths."""
    first = np.zeros(1, np.int64)
    arrays = QueryArrays.build(dataset, features, log=dataset.user_log(TRAIN, positives_only=True))
    query = arrays.inputs(dataset.user[:1], dataset.timestamp[:1], log_row=first)
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


WEIGHED = 1_000
"""Examples at most that `allowed_items` looks at, evenly from all."""


def allowed_items(arrays: TrainingArrays, config: RetrievalConfig, *, reads_others: bool) -> float:
    """Among how many items, itself included, a positive stands on average, in the sense of its loss: exp(mean ln).

    Args:
        arrays: The train part.
        config: Says what is left out of the negatives.
        reads_others: Whether what a user met later is left out with what came earlier.
    """
    stop = arrays.last if reads_others else arrays.end
    examples = np.flatnonzero(arrays.positive)
    logarithms = []
    for example in examples[:: -(-len(examples) // WEIGHED)].tolist():
        by_then = (
            arrays.appeared <= arrays.second[example] if config.mask_absent else np.ones(len(arrays.appeared), bool)
        )
        if config.mask_positives:
            by_then[arrays.met[arrays.first[example] : stop[example]]] = False
        by_then[arrays.item[example]] = True
        logarithms.append(np.log(by_then.sum()))
    return float(np.exp(np.mean(logarithms)))


BALANCE_DECAY = 0.5
"""How much of the past epochs' gradient norms counts, a step of the average being an epoch."""


class _Run:
    """A training run's position; every epoch starts from here, so a resumed run repeats nothing and skips nothing."""

    def __init__(
        self,
        config: TrainConfig,
        model: JointModel,
        arrays: TrainingArrays,
        *,
        dataset: SplitDataset,
        seed: int,
        checkpoint: Path,
        report: Callable[[TrainProgress], None],
    ) -> None:
        self.config, self.model, self.seed = config, model, seed
        self.checkpoint, self.report = checkpoint, report
        self.examples, self.trend_block = len(arrays.item), arrays.trends.block
        self.batch_size = min(config.batch_size, self.examples)
        self.planner = Planner(arrays, batch_size=self.batch_size, sequence=sequence_of(model.features), seed=seed)
        self.steps = self.planner.steps
        decay_steps = config.epochs * self.steps if config.schedule == "cosine" else 0
        rate: Any = config.learning_rate
        if decay_steps:
            rate = keras.optimizers.schedules.CosineDecay(rate, decay_steps, alpha=LEAST)
        optimizer = keras.optimizers.get({"class_name": config.optimizer, "config": {"learning_rate": rate}})
        self.stepper = Stepper(
            model,
            arrays,
            optimizer=optimizer,
            embedding_learning_rate=config.embedding_learning_rate,
            accumulator=config.accumulator,
            decay_steps=decay_steps,
            seed=seed,
        )
        self.allowed = allowed_items(arrays, model.config.retrieval, reads_others=self.stepper.reads_others)
        self.validator = Validator.build(config, model, dataset=dataset, trends=arrays.trends, seed=seed)
        self.state = self.stepper.start()
        self.best = jax.device_get(self.state)
        self.best_epoch, self.best_value = 0, -np.inf
        self.history: list[dict[str, Any]] = []
        self.step_in_epoch = 0
        self.partial: dict[str, float] = {}
        self.identity = hash_json(
            {
                "train": asdict(config), "model": asdict(model.config), "seed": seed, "examples": self.examples,
                "start": _digest(*jax.tree.leaves((model.weights(), model.tables))),
                "data": _digest(*jax.tree.leaves(self.stepper.arrays), *_validation_columns(dataset)),
            }
        )  # fmt: skip

    def wants_more(self) -> bool:
        """Whether another epoch follows: neither the last one nor patience has been reached."""
        done = len(self.history)
        waited = done - self.best_epoch
        return done < self.config.epochs and (self.validator is None or done == 0 or waited < self.config.patience)

    def epoch(self) -> None:
        """Go through the examples once, in an order that the seed and the epoch's number decide; then validate."""
        number = len(self.history)
        plan = self.planner.epoch(number)
        began = time.perf_counter()
        sums = self.partial
        since_checkpoint = 0
        while self.step_in_epoch < self.steps:
            chunk = plan.part(self.step_in_epoch, self.step_in_epoch + self.config.steps_per_call)
            losses = self._call(chunk, number)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value * chunk.steps
            self.step_in_epoch += chunk.steps
            since_checkpoint += chunk.steps
            if since_checkpoint >= self.config.checkpoint_steps and self.step_in_epoch < self.steps:
                self.partial, since_checkpoint = sums, 0
                self.save()
        entry: dict[str, Any] = {"epoch": number + 1}
        entry |= {name: total / self.steps for name, total in sums.items()}
        entry |= self._weigh(plan.part(0, 1), entry)
        self._judge(entry, seconds=time.perf_counter() - began)
        self.partial, self.step_in_epoch = {}, 0
        self.save()

    def _weigh(self, plan: Plan, entry: dict[str, Any]) -> dict[str, float]:
        """How hard each task pulls at what all share, and the weights that follow; nothing where there is one task."""
        tasks, config = self.model.tasks, self.model.config
        if len(tasks) == 1:
            return {}
        norms = self.stepper.gradient_norms(self.state, plan)
        weights = dict(zip(tasks, static_weights(config).tolist(), strict=True))
        if config.task_weights == "uncertainty":
            variances = dict(zip(tasks, self.state.weights["tasks"][0], strict=True))
            weights = {
                task: float(each) for task, each in uncertainty_weights(variances, kinds=self.model.kinds).items()
            }
        if config.task_weights == "balanced":
            losses = {task: jax.numpy.asarray(entry[task]) for task in tasks}
            balanced, balance = gradient_balanced(
                self.state.balance,
                {task: jax.numpy.asarray(norm) for task, norm in norms.items()},
                losses=losses,
                weights=weights,
                decay=BALANCE_DECAY,
            )
            self.state = self.state._replace(
                task_weights=jax.numpy.stack([balanced[task] for task in tasks]), balance=balance
            )
            weights = {task: float(balanced[task]) for task in tasks}
        return {f"gradient_norm_{task}": norms[task] for task in tasks} | {
            f"weight_{task}": weights[task] for task in tasks
        }

    def _call(self, chunk: Plan, number: int) -> dict[str, float]:
        """One compiled call; the means of its losses."""
        began = time.perf_counter()
        self.state, traced = self.stepper.run(self.state, chunk)
        losses = {name: np.asarray(values) for name, values in traced.items()}
        bad = ~np.isfinite(losses["loss"])
        if bad.any():
            step = number * self.steps + self.step_in_epoch + int(np.argmax(bad)) + 1
            raise TrainingError(
                f"train: the loss is no number at step {step} (epoch {number + 1}). Lower "
                f"train.embedding_learning_rate (now {self.config.embedding_learning_rate}) or train.learning_rate "
                f"(now {self.config.learning_rate})."
            )
        means = {name: float(values.mean()) for name, values in losses.items()}
        self.report(
            TrainProgress(
                epoch=number + 1,
                epochs=self.config.epochs,
                step=number * self.steps + self.step_in_epoch + chunk.steps,
                steps=self.config.epochs * self.steps,
                examples_per_second=int((chunk.examples >= 0).sum()) / (time.perf_counter() - began),
                losses=means,
                validation=None,
            )
        )
        return means

    def _judge(self, entry: dict[str, Any], *, seconds: float) -> None:
        """Add the epoch to the history, with its validation metrics; keep its weights where they are the best."""
        if self.validator is None:
            self.history.append(entry)
            self.best, self.best_epoch = jax.device_get(self.state), len(self.history)
            return
        metrics = self.validator.metrics(self.state)
        value = metrics[self.config.metric] * (-1 if self.config.metric in LABEL_METRICS.values() else 1)
        self.history.append(entry | {f"validation_{name}": number for name, number in metrics.items()})
        if value > self.best_value:
            self.best, self.best_epoch, self.best_value = jax.device_get(self.state), len(self.history), value
        self.report(
            TrainProgress(
                epoch=entry["epoch"],
                epochs=self.config.epochs,
                step=entry["epoch"] * self.steps,
                steps=self.config.epochs * self.steps,
                examples_per_second=self.examples / seconds,
                losses={name: entry[name] for name in entry if name != "epoch"},
                validation=metrics,
            )
        )

    def save(self) -> None:
        """Write the checkpoint."""
        position = {
            "history": self.history, "best_epoch": self.best_epoch, "best_value": float(self.best_value),
            "step_in_epoch": self.step_in_epoch, "partial": self.partial,
        }  # fmt: skip
        save_checkpoint(self.checkpoint, {"state": self.state, "best": self.best}, run=self.identity, position=position)

    def load(self) -> None:
        """Go on where the checkpoint stands."""
        templates = {"state": self.state, "best": self.best}
        trees, position = load_checkpoint(self.checkpoint, templates, run=self.identity)
        self.state, self.best = jax.tree.map(jax.numpy.array, trees["state"]), trees["best"]
        self.history, self.best_epoch, self.best_value = (
            position["history"],
            position["best_epoch"],
            position["best_value"],
        )
        self.step_in_epoch, self.partial = position["step_in_epoch"], position["partial"]

    def finish(self, carried_over: CarriedOver | None) -> Trained:
        """The model with the best epoch's weights."""
        best: TrainState = self.best
        self.model.assign(best.weights, best.states)
        self.model.tables = {name: jax.numpy.asarray(table) for name, table in best.tables.items()}
        return Trained(
            model=self.model,
            history=self.history,
            best_epoch=self.best_epoch,
            alarms=self._alarms(),
            trend_block=self.trend_block,
            carried_over=carried_over,
        )

    def _alarms(self) -> list[str]:
        found: list[str] = []
        if (candidates := self._even_chances()) is not None:
            found += loss_alarms(self.history, best_epoch=self.best_epoch, candidates=candidates)
        if self.validator is not None and self.config.metric not in LABEL_METRICS.values():
            best = self.history[self.best_epoch - 1][f"validation_{self.config.metric}"]
            popularity = self.validator.popularity[self.config.metric]
            found += popularity_alarms(self.config.metric, model=best, popularity=popularity)
        return found

    def _even_chances(self) -> float | None:
        """Among how many a model that has learned nothing picks, as its loss tells it; None where it does not tell."""
        config = self.model.config.retrieval
        if config.loss != "softmax" or not config.weight:
            return None
        if self.stepper.is_all or config.correction == "sampled":
            return self.allowed
        if config.correction == "none" and not (config.mask_positives or config.mask_absent):
            return 1 + min(config.in_batch_negatives, self.batch_size) + config.uniform_negatives
        return None


def _validation_columns(dataset: SplitDataset) -> list[NDArray[Any]]:
    """What early stopping depends on."""
    rows = dataset.part == VALIDATION
    columns: list[NDArray[Any]] = [dataset.user, dataset.item, dataset.timestamp, dataset.positive]
    columns += dataset.labels.values()
    return [column[rows] for column in columns]


def _digest(*arrays: NDArray[Any]) -> str:
    """A hash of the arrays' bytes: a checkpoint must not go on with other data."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
