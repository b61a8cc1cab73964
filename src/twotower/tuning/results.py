"""What was tried and what it gave: a table, the best recipe, and a page to look at."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twotower.recipe import Recipe, recipe_toml
from twotower.tuning.space import Dimension, as_text, with_values
from twotower.tuning.study import BEST_EPOCH, FAULT, OWN, SECONDS, is_error, was_cut_off

if TYPE_CHECKING:
    import optuna

BEST, TABLE, PAGE = "best.toml", "trials.csv", "study.html"
STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRow:
    """One trial that has ended."""

    number: int
    """From 0, in the order of their beginning."""
    state: str
    """"complete", "pruned" or "failed"."""
    value: float | None
    """The metric of the best epoch; of a pruned one, of those that it had. None where there was none."""
    epochs: int
    """How many it went through."""
    best_epoch: int | None
    seconds: float | None
    values: dict[str, Any]
    """By dotted key, as the recipe takes them."""
    fault: str
    """Why it failed, or ""."""
    is_own: bool
    """Whether these are the recipe's own values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """All trials of a study."""

    metric: str
    less_is_better: bool
    space: tuple[Dimension, ...]
    trials: tuple[TrialRow, ...]
    best: TrialRow | None
    """The best that came to its end."""
    recipe: Recipe | None
    """With the best values."""

    def own(self) -> TrialRow | None:
        """How the recipe's own values did, where they were tried to the end."""
        return next((row for row in self.trials if row.is_own and row.state == "complete"), None)

    def ranked(self) -> list[TrialRow]:
        """The complete ones, best first, then the others in their order."""
        sign = 1 if self.less_is_better else -1
        return sorted(self.trials, key=lambda row: (row.state != "complete", sign * (row.value or 0), row.number))

    def summary(self) -> str:
        """The result in one sentence, with all that was tried for it."""
        assert self.best is not None
        counts = [sum(row.state == state for row in self.trials) for state in STATES.values()]
        own = self.own()
        beside = "" if own is None else f", the recipe's own settings {own.value:.4f}"
        return (
            f"validation {self.metric} {self.best.value:.4f}{beside}: the best of {len(self.trials)} trials "
            f"({counts[0]} complete, {counts[1]} pruned, {counts[2]} failed)"
        )

    def why_none(self) -> str:
        """Where none came to its end, the first reason."""
        faults = [row for row in self.trials if row.fault]
        return (
            f"Trial {faults[0].number}: {faults[0].fault}" if faults else "All were pruned; set tune.pruner = 'none'."
        )


def results_of(recipe: Recipe, study: "optuna.Study", *, space: Sequence[Dimension]) -> Results:
    """What the study holds, apart from what was cut off."""
    less = is_error(recipe.train.metric)
    ended = [each for each in study.get_trials(deepcopy=False) if each.state.is_finished() and not was_cut_off(each)]
    rows = tuple(_row(each, space, less_is_better=less) for each in ended)
    complete = [row for row in rows if row.state == "complete" and row.value is not None]
    sign = 1 if less else -1
    best = min(complete, key=lambda row: (sign * (row.value or 0), row.number)) if complete else None
    return Results(
        metric=recipe.train.metric,
        less_is_better=less,
        space=tuple(space),
        trials=rows,
        best=best,
        recipe=None if best is None else with_values(recipe, best.values, where=f"trial {best.number}"),
    )


def write_results(results: Results, out: Path) -> None:
    """Write best.toml, trials.csv and study.html, each whole or not at all."""
    from twotower.tuning.page import render_page

    assert results.recipe is not None
    assert results.best is not None
    head = f"# Trial {results.best.number}: {results.summary()}.\n"
    _replace(out / BEST, head + recipe_toml(results.recipe))
    _replace(out / TABLE, trials_table(results))
    _replace(out / PAGE, render_page(results))


def trials_table(results: Results) -> str:
    """All trials as CSV, in their order."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    keys = [each.key for each in results.space]
    writer.writerow(["trial", "state", results.metric, "best_epoch", "epochs", "seconds", *keys, "fault"])
    for row in results.trials:
        facts = [row.number, row.state, row.value, row.best_epoch, row.epochs, row.seconds]
        values = [as_text(row.values[key]) if key in row.values else "" for key in keys]
        writer.writerow(["" if fact is None else fact for fact in facts] + values + [row.fault])
    return text.getvalue()


def _row(trial: "optuna.trial.FrozenTrial", space: Sequence[Dimension], *, less_is_better: bool) -> TrialRow:
    seen = trial.intermediate_values.values()
    value = trial.value
    if value is None and seen:
        value = min(seen) if less_is_better else max(seen)
    return TrialRow(
        number=trial.number,
        state=STATES[trial.state.name],
        value=value,
        epochs=len(seen),
        best_epoch=trial.user_attrs.get(BEST_EPOCH),
        seconds=trial.user_attrs.get(SECONDS),
        values={each.key: each.value(trial.params[each.key]) for each in space if each.key in trial.params},
        fault=trial.user_attrs.get(FAULT, ""),
        is_own=OWN in trial.user_attrs,
    )


def _replace(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
