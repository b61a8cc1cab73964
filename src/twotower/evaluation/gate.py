"""Whether a candidate may take the champion's place: rules over the report, each with what it found.

The differences and their intervals are the report's own: paired over the same resamples of users, on the same queries.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from twotower.errors import RecipeError
from twotower.evaluation.config import EvaluateConfig, GateConfig
from twotower.evaluation.names import CHAMPION, NAMES, lead_metrics, metric_name

RECALL_DEPTH = "100"
"""The depth at which the approximate index is held against the exact one."""


def refuse_bad_gate(config: GateConfig, evaluate: EvaluateConfig) -> None:
    """Tell before anything is computed what the gate would miss in the report.

    Raises:
        RecipeError: a metric that does not lead, a baseline that is not evaluated, or no intervals.
    """
    _refuse_other_metric(config, lead_metrics(evaluate.ks))
    if missing := [name for name in config.baselines if name not in evaluate.baselines]:
        raise RecipeError(f"gate.baselines: {missing[0]!r} is not evaluated. Add it to evaluate.baselines.")
    if not evaluate.bootstrap:
        raise RecipeError("gate: evaluate.bootstrap = 0 gives no intervals to judge by. Set it, 1000 by default.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One rule, and whether it held."""

    rule: str
    found: str
    passed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """All checks; the candidate is promoted when each of them passed."""

    checks: tuple[Check, ...]

    @property
    def promoted(self) -> bool:
        """Whether the candidate takes the champion's place."""
        return all(check.passed for check in self.checks)

    @property
    def reason(self) -> str:
        """The outcome in one sentence."""
        failed = [check for check in self.checks if not check.passed]
        if not failed:
            return f"Promoted: all {len(self.checks)} checks passed."
        return "Refused: " + "; ".join(f"{check.rule}: {check.found}" for check in failed) + "."


def gate(config: GateConfig, *, report: dict[str, Any], index: dict[str, Any], withdrawn: str = "") -> Verdict:
    """Judge a candidate by its report and by what was measured of its index.

    Args:
        config: The rules.
        report: The content of `report.json`; it holds the champion where there is one.
        index: The index's facts, as `build_index` gives them.
        withdrawn: The version of this very model that was rolled back, where one was.

    Raises:
        RecipeError: a rule names a metric, baseline or segment that the report does not have, or the report has no
            intervals.
    """
    _refuse_other_metric(config, report["lead_metrics"])
    main = report["protocols"][report["main_protocol"]]
    checks = [_beats(config, main, rival) for rival in config.baselines]
    if config.champion and CHAMPION in main["contenders"]:
        checks.append(_beats(config, main, CHAMPION))
    checks += [_reaches(config, main, segment, floor) for segment, floor in config.floors.items()]
    checks.append(_finds(config, index))
    if withdrawn:
        found = f"{withdrawn} was rolled back; `twotower deploy` brings it back"
        checks.append(Check(rule="this model was not withdrawn", found=found, passed=False))
    return Verdict(checks=tuple(checks))


def gate_card(verdict: Verdict, *, name: str, champion: str) -> str:
    """The verdict as Markdown, for a person."""
    rows = [
        f"| {'passed' if check.passed else '**failed**'} | {check.rule} | {check.found} |" for check in verdict.checks
    ]
    against = f"The champion it was held against: `{champion}`." if champion else "Nothing is deployed yet."
    heading = "Promoted" if verdict.promoted else "Refused"
    ending = (
        "It takes the champion's place."
        if verdict.promoted
        else "Nothing that is deployed was changed. The candidate's report says more."
    )
    lines = [f"# {heading}: {name}", "", verdict.reason, "", against, "", "| | Rule | Found |", "|---|---|---|", *rows]
    return "\n".join([*lines, "", ending, ""])


def _refuse_other_metric(config: GateConfig, leading: Sequence[str]) -> None:
    if config.metric not in leading:
        there = ", ".join(leading)
        raise RecipeError(f"gate.metric = {config.metric!r}: the report leads with {there}. Name one of these.")


def _beats(config: GateConfig, main: dict[str, Any], rival: str) -> Check:
    row = next(
        (
            row
            for row in main["differences"]
            if (row["metric"], row["of"], row["minus"]) == (config.metric, "two_stage", rival)
        ),
        None,
    )
    if row is None:
        raise RecipeError(
            f"gate.baselines: the report has no {rival!r}, which was left out of it; its notes say why. Name another."
        )
    if "interval" not in row:
        raise RecipeError("gate: the report has no intervals. Set evaluate.bootstrap above 0, 1000 by default.")
    low, high = row["interval"]
    above = f" by more than {config.margin:g}" if config.margin else ""
    return Check(
        rule=f"{metric_name(config.metric)} beats {NAMES.get(rival, rival)}{above}, beyond the 95% interval",
        found=f"{row['value']:+.4f} ({low:+.4f} to {high:+.4f})",
        passed=bool(low > config.margin),
    )


def _reaches(config: GateConfig, main: dict[str, Any], segment: str, floor: float) -> Check:
    reached = main["contenders"]["two_stage"]["segments"]
    if segment not in reached:
        raise RecipeError(f"gate.floors: no segment {segment!r}; there are {', '.join(reached)}. Name one of these.")
    rule = f"{metric_name(config.metric)} of {segment} is at least {floor:g}"
    if reached[segment] is None:
        return Check(rule=rule, found="no query of this segment, so nothing to judge", passed=True)
    value = reached[segment][config.metric]
    return Check(rule=rule, found=f"{value:.4f}", passed=bool(value >= floor))


def _finds(config: GateConfig, index: dict[str, Any]) -> Check:
    rule = f"the index finds {100 * config.index_recall:g}% of the exact best {RECALL_DEPTH}"
    if index["kind"] == "exact":
        return Check(rule=rule, found="the index is exact", passed=True)
    if "recall" not in index:
        return Check(rule=rule, found="not measured: no test query", passed=False)
    recall = index["recall"][RECALL_DEPTH]
    return Check(rule=rule, found=f"{100 * recall:.1f}%", passed=bool(recall >= config.index_recall))
