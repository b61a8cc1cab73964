"""How far a run on a server is, on stderr: a table that changes on a terminal, a line for each change elsewhere."""

import contextlib
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from twotower.cli.progress import tell

if TYPE_CHECKING:
    from rich.table import Table

    from twotower.pipeline.follow import RunState, Watch
    from twotower.pipeline.tasks import TaskState

COLUMNS = ("task", "state", "started", "took", "")
STYLES = {"succeeded": "green", "cached": "green", "failed": "red", "canceled": "red", "running": "cyan"}


@contextlib.contextmanager
def shown() -> "Iterator[Watch]":
    """Something to hand to a following as its `watch`."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), transient=True) as live:

        def watch(run: "RunState | str") -> None:
            if isinstance(run, str):
                live.console.print(run, markup=False, highlight=False)
            else:
                live.update(_table(run))

        yield watch


class _Lines:
    """Tells each change of a task once."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[str, str]] = {}

    def __call__(self, run: "RunState | str") -> None:
        now = datetime.now(UTC)
        if isinstance(run, str):
            tell(f"{_clock(now)}  {run}")
            return
        for task in run.tasks:
            if self._seen.get(task.name, ("waiting", "")) != (task.state, task.message):
                self._seen[task.name] = (task.state, task.message)
                _, state, _, took, message = cells(task, now)
                tell("  ".join(cell for cell in (_clock(now), task.name, state, took, message) if cell))


def _table(run: "RunState") -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    now = datetime.now(UTC)
    table = Table(
        *COLUMNS, title=Text(title(run), style="bold"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for task in run.tasks:
        name, state, *others = cells(task, now)
        table.add_row(Text(name), Text(state, style=STYLES.get(state, "dim")), *(Text(cell) for cell in others))
    return table


def cells(task: "TaskState", now: datetime) -> list[str]:
    """A row of the table."""
    took = task.seconds(now)
    started = _clock(task.started) if took is not None and task.started else ""
    return [task.name, task.state, started, _duration(took) if took is not None else "", task.message]


def _clock(moment: datetime) -> str:
    return f"{moment.astimezone():%H:%M:%S}"


def _duration(took: float) -> str:
    whole = round(took)
    hours, minutes = divmod(whole // 60, 60)
    parts = [(hours, "h"), (minutes, "min"), (whole % 60, "s")]
    return " ".join(f"{number} {unit}" for number, unit in parts if number) or "0 s"


def title(run: "RunState") -> str:
    """The run's name and state, and how long it took."""
    words = f"{run.name}: {run.state.lower().replace('_', ' ')}"
    if run.started is None or run.ended is None:
        return words
    return f"{words}, {_duration((run.ended - run.started).total_seconds())}"
