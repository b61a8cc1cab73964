"""The study to be looked at: one self-contained page with trials over time and a chart for each setting."""

from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from twotower.evaluation.charts import bundle
from twotower.tuning import charts
from twotower.tuning.results import Results
from twotower.tuning.space import Dimension, as_text


def render_page(results: Results) -> str:
    """The page, without any reference outside itself."""
    # Style and script are those of the evaluation's report.
    loader = ChoiceLoader([PackageLoader("twotower.tuning"), PackageLoader("twotower.evaluation")])
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    specifications = {"trials": _over_time(results)} | {
        f"setting-{place}": _of_setting(results, each) for place, each in enumerate(results.space)
    }
    return environment.get_template("study.html").render(
        results=results,
        settings=[name for name in specifications if name != "trials"],
        bounds=[(each.key, bounds_text(each)) for each in results.space],
        text=value_text,
        charts=specifications,
        bundle=Markup(bundle()),
    )


def bounds_text(dimension: Dimension) -> str:
    """Where a setting was looked for, in words."""
    if dimension.choices is not None:
        return ", ".join(dimension.choices)
    ends = f"{value_text(dimension.low)} to {value_text(dimension.high)}"
    stepped = "" if dimension.step is None else f", in steps of {value_text(dimension.step)}"
    return ends + (", evenly over orders of magnitude" if dimension.log else stepped)


def value_text(value: Any) -> str:
    """A value in a table: four digits of a number."""
    return f"{value:.4g}" if isinstance(value, float) else as_text(value)


def _over_time(results: Results) -> charts.Spec:
    rows: list[dict[str, Any]] = []
    best: float | None = None
    better = min if results.less_is_better else max
    for row in results.trials:
        if row.value is None:
            continue
        if row.state == "complete":
            best = row.value if best is None else better(best, row.value)
        rows.append({"trial": row.number, "state": row.state, "value": row.value, "best": best})
    return charts.trials_chart(rows, metric=results.metric)


def _of_setting(results: Results, dimension: Dimension) -> charts.Spec:
    listed = dimension.choices is not None
    rows = [
        {"trial": row.number, "state": row.state, "value": row.value}
        | {"setting": as_text(row.values[dimension.key]) if listed else row.values[dimension.key]}
        for row in results.trials
        if row.value is not None and dimension.key in row.values
    ]
    return charts.setting_chart(
        rows,
        key=dimension.key,
        metric=results.metric,
        log=dimension.log,
        order=None if dimension.choices is None else list(dimension.choices),
    )
