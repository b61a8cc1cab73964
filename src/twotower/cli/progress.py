"""How far a long step is, on stderr: a bar on a terminal, a line an epoch elsewhere."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.progress import Progress

    from twotower.training.progress import TrainProgress

Watch = Callable[["TrainProgress | str"], None]
LOG_TIME = "TWOTOWER_LOG_TIME"
"""Environment variable: set, an epoch's line begins with its moment, for who reads the log by machine."""


def tell(line: str) -> None:
    """A line about progress."""
    click.echo(line, file=sys.stderr)


@contextmanager
def watching(is_telling: bool = True) -> Iterator[Watch]:
    """Something to hand to a step as its `watch`; told an empty text, it clears the bar. May be silent."""
    if not is_telling:
        yield _say_nothing
        return
    if not sys.stderr.isatty():
        yield _tell_epoch
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield _Bar(bar)


class _Bar:
    """Draws what it is told; an epoch's end stays on the screen."""

    def __init__(self, bar: "Progress") -> None:
        self._bar = bar
        self._task = bar.add_task("", total=None, visible=False)

    def __call__(self, progress: "TrainProgress | str") -> None:
        if isinstance(progress, str):
            self._bar.update(self._task, description=progress, total=None, visible=bool(progress))
            return
        short = f"{progress.speed()}  loss {progress.losses['loss']:.3f}"
        self._bar.update(self._task, description=short, completed=progress.step, total=progress.steps, visible=True)
        if progress.validation is not None:
            self._bar.console.print(progress.line(), highlight=False, markup=False)


def _say_nothing(progress: "TrainProgress | str") -> None:
    """For whoever another process speaks for."""


def _tell_epoch(progress: "TrainProgress | str") -> None:
    if not isinstance(progress, str) and progress.validation is not None:
        moment = f"{datetime.now(UTC).isoformat()} " if os.environ.get(LOG_TIME) else ""
        tell(moment + progress.line())
