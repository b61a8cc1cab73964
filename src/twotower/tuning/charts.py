"""The study's charts as Vega-Lite specifications; colours of text and axes come from the page, light or dark."""

from typing import Any

import altair as alt

from twotower.evaluation.charts import BEST, MODEL, OTHER

Spec = dict[str, Any]
COLOURS = {"complete": MODEL, "pruned": OTHER}
"""State of a trial that has a value -> its colour."""
FEW = 15
"""Trials each of which has a number on the axis."""


def trials_chart(rows: list[dict[str, Any]], *, metric: str) -> Spec:
    """What each trial reached, and the best of all complete ones up to it.

    Args:
        rows: `{"trial", "state", "value", "best"}` in the order of the trials; `best` may be None.
    """
    numbers = [row["trial"] for row in rows]
    few = numbers if len(numbers) <= FEW else alt.Undefined  # Else half trials would have a number too.
    axis = alt.Axis(grid=False, format="d", values=few)
    base = alt.Chart(alt.InlineData(values=rows)).encode(x=alt.X("trial:Q", axis=axis))
    line = base.transform_filter("isValid(datum.best)").mark_line(interpolate="step-after", color=BEST, strokeWidth=2)
    points = base.mark_point(filled=True, size=60, opacity=0.9)
    y = alt.Y("value:Q", title=f"validation {metric}", scale=alt.Scale(zero=False))
    tooltip = ["trial:Q", "state:N", alt.Tooltip("value:Q", format=".4f")]
    both = alt.layer(
        line.encode(y=alt.Y("best:Q")),
        points.encode(y=y, color=_states(legend=alt.Legend(title=None, orient="top")), tooltip=tooltip),
    )
    return _finished(both, height=280)


def setting_chart(rows: list[dict[str, Any]], *, key: str, metric: str, log: bool, order: list[str] | None) -> Spec:
    """What trials reached against one setting's value.

    Args:
        rows: `{"trial", "state", "value", "setting"}`.
        key: The setting.
        metric: What they reached.
        log: Whether its axis is logarithmic.
        order: Its values, where it has no bounds but choices.
    """
    scale = alt.Scale(type="log") if log else alt.Scale(zero=False)
    listed = alt.X("setting:N", title=key, sort=order, axis=alt.Axis(labelAngle=0))
    bounded = alt.X("setting:Q", title=key, scale=scale, axis=alt.Axis(grid=False, tickCount=6))
    chart = (
        alt.Chart(alt.InlineData(values=rows))
        .mark_point(filled=True, size=60, opacity=0.8)
        .encode(
            x=listed if order else bounded,
            y=alt.Y("value:Q", title=metric, scale=alt.Scale(zero=False)),
            color=_states(legend=None),
            tooltip=["trial:Q", f"setting:{'N' if order else 'Q'}", alt.Tooltip("value:Q", format=".4f"), "state:N"],
        )
    )
    return _finished(chart, height=200)


def _states(*, legend: alt.Legend | None) -> alt.Color:
    scale = alt.Scale(domain=list(COLOURS), range=list(COLOURS.values()))
    return alt.Color("state:N", scale=scale, legend=legend)


def _finished(chart: alt.Chart | alt.LayerChart | alt.FacetChart, *, height: int) -> Spec:
    spec: Spec = chart.properties(width="container", height=height).to_dict()
    spec["autosize"] = {"type": "fit-x", "contains": "padding"}
    spec.pop("config", None)  # The page gives one for light and one for dark.
    return spec
