"""A process that trains one trial after another: it has loaded the split and compiled what trials share."""

import gc
import os
import signal
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twotower.errors import TrainingError, TwotowerError
from twotower.recipe import Recipe, read_recipe
from twotower.tuning.space import with_values

if TYPE_CHECKING:
    from twotower.data.split import SplitDataset
    from twotower.training.progress import TrainProgress


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """A worker tells how a trial stands after an epoch, and waits to hear whether it goes on."""

    epoch: int
    """From 1."""
    epochs: int
    value: float
    """The validation metric."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A worker tells that a trial has gone its way to the end, early stopping included."""

    value: float
    """The best epoch's metric."""
    best_epoch: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """A worker tells that a trial ended before its time: it was pruned, or it cannot be."""

    fault: str
    """What is wrong with its settings; "" where it was pruned."""
    seconds: float


class PrunedError(Exception):
    """Ends a training from within its report: the trial is not worth going on."""


def work(pipe: Connection, recipe: str, *, split: Path, scratch: Path, shares: bool) -> None:
    """Train what comes through the pipe until nothing does, or until whoever sends it has died.

    Args:
        pipe: Brings each trial's values by dotted key, then whether it goes on, epoch by epoch; takes `Epoch`, `Done`
            and `Stopped`.
        recipe: As TOML.
        split: What `split` wrote.
        scratch: Folder for checkpoints, which do not outlive their trial.
        shares: Whether other workers use the same device.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C reaches all of a terminal; the one who asks ends us.
    threading.Thread(target=_die_with_parent, daemon=True).start()
    if shares:  # JAX would take most of a GPU's memory for the first worker.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from twotower.data.split import load_split

    base, dataset = read_recipe(recipe), load_split(split)
    while (values := pipe.recv()) is not None:
        began = time.monotonic()
        try:
            value, best_epoch = _train(base, values, dataset=dataset, pipe=pipe, scratch=scratch)
        except PrunedError:
            pipe.send(Stopped(fault="", seconds=time.monotonic() - began))
        except TwotowerError as fault:
            pipe.send(Stopped(fault=str(fault), seconds=time.monotonic() - began))
        else:
            pipe.send(Done(value=value, best_epoch=best_epoch, seconds=time.monotonic() - began))
        _forget()


def _train(
    base: Recipe, values: Mapping[str, Any], *, dataset: "SplitDataset", pipe: Connection, scratch: Path
) -> tuple[float, int]:
    """Train one trial; gives the metric of the best epoch, and which one that was.

    Nothing is exported: the recipe that wins is run again, whole.
    """
    from twotower.training.compiled import keep_compiled
    from twotower.training.train import train

    keep_compiled()
    recipe = with_values(base, values, where="trial")
    metric = recipe.train.metric

    def report(progress: "TrainProgress") -> None:
        if progress.validation is None:
            return
        pipe.send(Epoch(epoch=progress.epoch, epochs=progress.epochs, value=progress.validation[metric]))
        if not pipe.recv():
            raise PrunedError

    with tempfile.TemporaryDirectory(prefix="trial-", dir=scratch) as folder:
        trained = train(
            recipe.train,
            model_config=recipe.model,
            dataset=dataset,
            seed=recipe.seed,
            checkpoint=Path(folder) / "checkpoint",
            resume=False,
            report=report,
        )
    value = trained.history[trained.best_epoch - 1].get(f"validation_{metric}")
    if value is None:
        raise TrainingError(
            f"train.metric: the validation part asks for nothing by which {metric} could be measured. "
            "Raise split.validation."
        )
    return float(value), trained.best_epoch


def _forget() -> None:
    """Let go of what was compiled for a trial: it holds that trial's settings, and no other one calls it."""
    import jax

    jax.clear_caches()
    gc.collect()


def _die_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
