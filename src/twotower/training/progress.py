"""What a training run tells while it goes on, and what it gives in the end."""

from dataclasses import dataclass
from typing import Any

from twotower.model.joint import JointModel
from twotower.training.warm_start import CarriedOver


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
    """Interactions in a block of the trends that it learned from; 0 where it reads none."""
    carried_over: CarriedOver | None
    """What the model began with, where it was started from another."""
