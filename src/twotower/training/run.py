"""A training run's position and its epochs: compiled steps, validation, early stopping, checkpoints."""

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from numpy.typing import NDArray

from twotower.artifact import hash_json
from twotower.data.batches import TrainingArrays
from twotower.data.pieces import digest
from twotower.data.split import VALIDATION, SplitDataset
from twotower.errors import TrainingError
from twotower.evaluation.names import LABEL_METRICS
from twotower.model.backend import keras
from twotower.model.joint import JointModel
from twotower.model.task_weights import gradient_balanced, uncertainty_weights
from twotower.training.alarms import allowed_items, loss_alarms, popularity_alarms
from twotower.training.checkpoints import load_checkpoint, save_checkpoint
from twotower.training.config import TrainConfig
from twotower.training.distributed import agree, bring_back, gather_tables, replicate, sees_the_same, take_home
from twotower.training.progress import Trained, TrainProgress
from twotower.training.step import BY_ROWS, LEAST, Plan, Stepper, TrainState, static_weights
from twotower.training.supply import Supply
from twotower.training.validation import Validator
from twotower.training.warm_start import CarriedOver

BALANCE_DECAY = 0.5
"""How much of the past epochs' gradient norms counts, a step of the average being an epoch."""


class _Unread(NamedTuple):
    """A compiled call that was begun, and whose losses nobody has looked at."""

    losses: dict[str, Array]
    """Each `[steps]`."""
    epoch: int
    """From 0."""
    step: int
    """The first one's place in its epoch."""
    examples: int

    @property
    def steps(self) -> int:
        return len(self.losses["loss"])


class Run:
    """A training run's position; every epoch starts from here, so a resumed run repeats nothing and skips nothing."""

    def __init__(
        self,
        config: TrainConfig,
        model: JointModel,
        supply: Supply,
        *,
        sample: TrainingArrays,
        dataset: SplitDataset,
        seed: int,
        checkpoint: Path,
        report: Callable[[TrainProgress], None],
    ) -> None:
        self.config, self.model, self.seed = config, model, seed
        self.checkpoint, self.report = checkpoint, report
        self.supply, self.steps, self.trend_block = supply, supply.steps, sample.trends.block if sample.trends else 0
        decay_steps = config.epochs * self.steps if config.schedule == "cosine" else 0
        rate: Any = config.learning_rate
        if decay_steps:
            rate = keras.optimizers.schedules.CosineDecay(rate, decay_steps, alpha=LEAST)
        optimizer = keras.optimizers.get({"class_name": config.optimizer, "config": {"learning_rate": rate}})
        self.stepper = Stepper(
            model,
            sample,
            optimizer=optimizer,
            embedding_learning_rate=config.embedding_learning_rate,
            accumulator=config.accumulator,
            decay_steps=decay_steps,
            seed=seed,
        )
        compiling = self.stepper.compile(supply.blank(config.steps_per_call))
        self.allowed = allowed_items(sample, model.config.retrieval, reads_others=self.stepper.reads_others)
        self.validator = Validator.build(config, model, dataset=dataset, trends=sample.trends, seed=seed)
        compiling.result()  # Before there are tables.
        self.identity = hash_json(
            {
                "train": asdict(config), "model": asdict(model.config), "seed": seed, "examples": supply.examples,
                "start": digest(*map(np.asarray, jax.tree.leaves((model.weights(), model.tables)))),
                "data": [supply.identity(), digest(*_validation_columns(dataset))],
            }
        )  # fmt: skip
        self.rows = {name: len(table) for name, table in model.tables.items()}
        self.state = self.stepper.start()
        model.tables = {}  # The state has them, each process its rows.
        self.best = self._weights()
        self.best_epoch, self.best_value = 0, -np.inf
        self.history: list[dict[str, Any]] = []
        self.step_in_epoch = 0
        self.partial: dict[str, float] = {}
        self.unread: _Unread | None = None
        self.last_read = 0.0
        self.keeps = sees_the_same(checkpoint.parent)

    def wants_more(self) -> bool:
        """Whether another epoch follows: neither the last one nor patience has been reached."""
        done = len(self.history)
        waited = done - self.best_epoch
        return done < self.config.epochs and (self.validator is None or done == 0 or waited < self.config.patience)

    def epoch(self) -> None:
        """Go through the examples once, in an order that the seed and the epoch's number decide; then validate."""
        number = len(self.history)
        began = time.perf_counter()
        since_checkpoint = 0
        for part in self.supply.epoch(number, step=self.step_in_epoch):
            if part.arrays is not None:
                self.stepper.arrays = replicate(dict(part.arrays))
            if len(self.model.tasks) > 1:
                self.stepper.expect_gradient_norms(self.state, part.plan)
            for start in range(0, part.plan.steps, self.config.steps_per_call):
                chunk = part.plan.part(start, start + self.config.steps_per_call)
                self._call(chunk, number)
                self.step_in_epoch += chunk.steps
                since_checkpoint += chunk.steps
                if since_checkpoint >= self.config.checkpoint_steps and self.step_in_epoch < self.steps:
                    since_checkpoint = 0
                    self._read()
                    self.save()
            self._read()  # Before the next part is waited for: what runs holds the arrays of this one.
        entry: dict[str, Any] = {"epoch": number + 1}
        entry |= {name: total / self.steps for name, total in self.partial.items()}
        entry |= self._weigh(self.supply.probe(number), entry)
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
            variances = dict(zip(tasks, np.asarray(self.state.weights["tasks"][0]), strict=True))
            weights = {
                task: float(each) for task, each in uncertainty_weights(variances, kinds=self.model.kinds).items()
            }
        if config.task_weights == "balanced":
            losses = {task: jax.numpy.asarray(entry[task]) for task in tasks}
            balanced, balance = gradient_balanced(
                jax.device_get(self.state.balance),
                {task: jax.numpy.asarray(norm) for task, norm in norms.items()},
                losses=losses,
                weights=weights,
                decay=BALANCE_DECAY,
            )
            found = {"task_weights": jax.numpy.stack([balanced[task] for task in tasks]), "balance": balance}
            self.state = self.state._replace(**replicate(found))
            weights = {task: float(balanced[task]) for task in tasks}
        return {f"gradient_norm_{task}": norms[task] for task in tasks} | {
            f"weight_{task}": weights[task] for task in tasks
        }

    def _call(self, chunk: Plan, number: int) -> None:
        """Begin one compiled call; the losses of the one before are read while it runs, so that no device waits."""
        if self.unread is None:
            self.last_read = time.perf_counter()
        self.state, losses = self.stepper.run(self.state, chunk)
        begun = _Unread(losses, number, self.step_in_epoch, int((chunk.examples >= 0).sum()))
        self._read()
        self.unread = begun

    def _read(self) -> None:
        """Wait for the call that was begun last: add its losses to the epoch's, and report them."""
        if self.unread is None:
            return
        call, self.unread = self.unread, None
        losses = {name: np.asarray(values) for name, values in jax.device_get(call.losses).items()}
        before = call.epoch * self.steps + call.step
        bad = ~np.isfinite(losses["loss"])
        if bad.any():
            raise TrainingError(
                f"train: the loss is no number at step {before + int(np.argmax(bad)) + 1} (epoch {call.epoch + 1}). "
                f"Lower train.embedding_learning_rate (now {self.config.embedding_learning_rate}) or "
                f"train.learning_rate (now {self.config.learning_rate})."
            )
        means = {name: float(values.mean()) for name, values in losses.items()}
        for name, value in means.items():
            self.partial[name] = self.partial.get(name, 0.0) + value * call.steps
        began, self.last_read = self.last_read, time.perf_counter()
        self.report(
            TrainProgress(
                epoch=call.epoch + 1,
                epochs=self.config.epochs,
                step=before + call.steps,
                steps=self.config.epochs * self.steps,
                examples_per_second=call.examples / (self.last_read - began),
                losses=means,
                validation=None,
            )
        )

    def _judge(self, entry: dict[str, Any], *, seconds: float) -> None:
        """Add the epoch to the history, with its validation metrics; keep its weights where they are the best."""
        if self.validator is None:
            self.history.append(entry)
            self.best, self.best_epoch = self._weights(), len(self.history)
            return
        metrics = self.validator.metrics(self.state)
        value = metrics[self.config.metric] * (-1 if self.config.metric in LABEL_METRICS.values() else 1)
        self.history.append(entry | {f"validation_{name}": number for name, number in metrics.items()})
        if value > self.best_value:
            self.best, self.best_epoch, self.best_value = self._weights(), len(self.history), value
        self.report(
            TrainProgress(
                epoch=entry["epoch"],
                epochs=self.config.epochs,
                step=entry["epoch"] * self.steps,
                steps=self.config.epochs * self.steps,
                examples_per_second=self.supply.examples / seconds,
                losses={name: entry[name] for name in entry if name != "epoch"},
                validation=metrics,
            )
        )

    def _weights(self) -> dict[str, Any]:
        """A copy of all that makes a model, of tables this process's rows."""
        state = self._at_home()
        # The next step writes into the state's own arrays.
        return {part: jax.tree.map(lambda leaf: leaf.copy(), state[part]) for part in ("weights", "states", "tables")}

    def _at_home(self) -> dict[str, Any]:
        """The state's fields in this process's memory, of tables its rows."""
        fields = self.state._asdict()
        dealt = {
            field: {name: take_home(table, rows=self.rows[name]) for name, table in fields.pop(field).items()}
            for field in BY_ROWS
        }
        return {field: jax.tree.map(take_home, tree) for field, tree in fields.items()} | dealt

    def save(self) -> None:
        """Write the checkpoint, where all processes see one folder."""
        if not self.keeps:
            return
        position = {
            "history": self.history, "best_epoch": self.best_epoch, "best_value": float(self.best_value),
            "step_in_epoch": self.step_in_epoch, "partial": self.partial,
        }  # fmt: skip
        trees = {"state": self._at_home(), "best": self.best}
        save_checkpoint(self.checkpoint, trees, run=self.identity, position=position)

    def load(self) -> None:
        """Go on where the checkpoint stands."""
        templates = {"state": self._at_home(), "best": self.best}
        trees, position = load_checkpoint(self.checkpoint, templates, run=self.identity)
        self.state, self.best = TrainState(**jax.tree.map(bring_back, trees["state"])), trees["best"]
        self.history, self.best_epoch, self.best_value = (
            position["history"],
            position["best_epoch"],
            position["best_value"],
        )
        self.step_in_epoch, self.partial = position["step_in_epoch"], position["partial"]

    def finish(self, carried_over: CarriedOver | None) -> Trained:
        """The model with the best epoch's weights."""
        del self.state  # It holds tables, and so does what follows.
        self.model.assign(self.best["weights"], self.best["states"])
        self.model.tables = gather_tables(self.best["tables"])
        return Trained(
            model=self.model,
            history=self.history,
            best_epoch=self.best_epoch,
            alarms=agree(self._alarms),
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
            return 1 + min(config.in_batch_negatives, self.supply.batch_size) + config.uniform_negatives
        return None


def _validation_columns(dataset: SplitDataset) -> list[NDArray[Any]]:
    """What early stopping depends on."""
    rows = dataset.part == VALIDATION
    columns: list[NDArray[Any]] = [dataset.user, dataset.item, dataset.timestamp, dataset.positive]
    columns += dataset.labels.values()
    return [column[rows] for column in columns]
