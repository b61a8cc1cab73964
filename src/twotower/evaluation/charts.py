"""The report's charts as Vega-Lite specifications; colours of text and axes come from the page, light or dark."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

Spec = dict[str, Any]
MODEL, OTHER, BEST = "#2f6feb", "#9aa4b2", "#1a9c6b"
"""The model, what it is measured against, and the best possible."""
KINDS = {"model": MODEL, "other model": "#8a63d2", "baseline": OTHER, "best possible": BEST}
"""Kind of contender -> its colour. An other model is the champion, or one that learned retrieval alone."""
LINES = (MODEL, "#8db4ff", "#e08a2e", "#c2557a", "#3f9e7c", "#9aa4b2", BEST)
"""Both stages, retrieval, then the baselines, best first."""


def contenders_chart(rows: list[dict[str, Any]], *, metric: str) -> Spec:
    """A metric of every contender as bars with their 95% intervals.

    Args:
        rows: `{"contender", "kind", "value", "low", "high"}`, best first; `low` and `high` may be None.
    """
    order = [row["contender"] for row in rows]
    base = _chart(rows).encode(y=alt.Y("contender:N", sort=order, title=None, axis=_names(padding=5)))
    bars = base.mark_bar(cornerRadiusEnd=3, height={"band": 0.62}).encode(
        x=alt.X("value:Q", title=metric, axis=alt.Axis(format=".3", tickCount=5)),
        color=_kinds(),
        tooltip=["contender:N", alt.Tooltip("value:Q", format=".4f")],
    )
    whiskers = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=2).encode(x="low:Q", x2="high:Q")
    return _spec(alt.layer(bars, whiskers), height=44 * len(rows))


def cutoffs_chart(rows: list[dict[str, Any]], *, metric: str) -> Spec:
    """A metric of every contender against the cut-off.

    Args:
        rows: `{"contender", "kind", "k", "value"}`, the best contender first.
    """
    kinds = {row["contender"]: row["kind"] for row in rows}
    names = sorted(kinds, key=lambda name: list(KINDS).index(kinds[name]))
    ks = sorted({row["k"] for row in rows})
    chart = (
        _chart(rows)
        .mark_line(point=alt.OverlayMarkDef(size=36), strokeWidth=2)
        .encode(
            x=alt.X("k:Q", scale=alt.Scale(type="log"), axis=alt.Axis(values=ks, grid=False), title="k (log scale)"),
            y=alt.Y("value:Q", title=f"{metric}@k"),
            color=alt.Color("contender:N", scale=alt.Scale(domain=names, range=LINES[: len(names)]), legend=_legend()),
            tooltip=["contender:N", "k:Q", alt.Tooltip("value:Q", format=".4f")],
        )
    )
    return _spec(chart, height=260)


def segments_chart(rows: list[dict[str, Any]], *, metric: str) -> Spec:
    """A metric per segment, for the model and its best baseline.

    Args:
        rows: `{"segment", "contender", "value"}` in the order to be shown.
    """
    segments = list(dict.fromkeys(row["segment"] for row in rows))
    names = list(dict.fromkeys(row["contender"] for row in rows))
    base = _chart(rows).encode(
        y=alt.Y("segment:N", sort=segments, title=None, axis=_names(padding=12)),
    )
    span = base.mark_rule(opacity=0.35).encode(x="min(value):Q", x2="max(value):Q")
    points = base.mark_point(filled=True, size=90, opacity=1).encode(
        x=alt.X("value:Q", title=metric),
        color=alt.Color(
            "contender:N", sort=names, scale=alt.Scale(domain=names, range=LINES[: len(names)]), legend=_legend()
        ),
        shape=alt.Shape("contender:N", sort=names, scale=alt.Scale(domain=names), legend=_legend()),
        tooltip=["segment:N", "contender:N", alt.Tooltip("value:Q", format=".4f")],
    )
    return _spec(alt.layer(span, points), height=30 * len(segments))


def calibration_chart(points: list[dict[str, float]], *, label: str) -> Spec:
    """Predicted against actual: on the diagonal a prediction can be taken literally."""
    values = [point[side] for point in points for side in ("predicted", "actual")]
    ends = [{"x": edge, "y": edge} for edge in (min(values), max(values))]
    scale = alt.Scale(zero=False, nice=True)
    diagonal = _chart(ends).mark_line(strokeDash=[4, 4], opacity=0.6, color=OTHER)
    curve = _chart(points).mark_line(point=alt.OverlayMarkDef(size=50, color=MODEL), color=MODEL)
    return _spec(
        alt.layer(
            diagonal.encode(
                x=alt.X("x:Q", scale=scale, title=f"predicted {label}"),
                y=alt.Y("y:Q", scale=scale, title="mean in the test part"),
            ),
            curve.encode(
                x=alt.X("predicted:Q", scale=scale),
                y=alt.Y("actual:Q", scale=scale),
                tooltip=[
                    alt.Tooltip("predicted:Q", format=".3f"),
                    alt.Tooltip("actual:Q", format=".3f"),
                    "count:Q",
                ],
            ),
        ),
        height=240,
    )


def tasks_chart(rows: list[dict[str, Any]]) -> Spec:
    """A figure of every task against the epoch, on a log scale: tasks pull with forces of unlike size.

    Args:
        rows: `{"epoch", "task", "value"}`, each value above 0.
    """
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    chart = (
        _chart(rows)
        .mark_line(point=alt.OverlayMarkDef(size=36), strokeWidth=2)
        .encode(
            x=alt.X("epoch:Q", axis=alt.Axis(tickMinStep=1, grid=False)),
            y=alt.Y("value:Q", scale=alt.Scale(type="log"), title="gradient norm (log scale)"),
            color=alt.Color(
                "task:N", sort=tasks, scale=alt.Scale(domain=tasks, range=LINES[: len(tasks)]), legend=_legend()
            ),
            tooltip=["task:N", "epoch:Q", alt.Tooltip("value:Q", format=".3e")],
        )
    )
    return _spec(chart, height=220)


def training_chart(rows: list[dict[str, Any]], *, metric: str) -> Spec:
    """One figure of training over the epochs.

    Args:
        rows: `{"epoch", "value"}`.
    """
    chart = (
        _chart(rows)
        .mark_line(point=alt.OverlayMarkDef(size=40, color=MODEL), color=MODEL)
        .encode(
            x=alt.X("epoch:Q", axis=alt.Axis(tickMinStep=1, grid=False, format="d")),
            y=alt.Y("value:Q", title=metric, scale=alt.Scale(zero=False)),
            tooltip=["epoch:Q", alt.Tooltip("value:Q", format=".4f")],
        )
    )
    return _spec(chart, height=200)


def bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, so that the page needs no network."""
    import vl_convert

    version = ".".join(alt.SCHEMA_VERSION.split(".")[:2])
    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version)
    return script.replace("</script", "<\\/script")


def _chart(rows: Sequence[Mapping[str, Any]]) -> alt.Chart:
    return alt.Chart(alt.InlineData(values=list(rows)))


def _names(*, padding: int) -> alt.Axis:
    return alt.Axis(labelLimit=170, labelPadding=padding, ticks=False, domain=False)


def _kinds() -> alt.Color:
    return alt.Color("kind:N", scale=alt.Scale(domain=list(KINDS), range=list(KINDS.values())), legend=None)


def _legend() -> alt.Legend:
    return alt.Legend(title=None, orient="top", columns=2, labelLimit=170, symbolLimit=0)


def _spec(chart: alt.Chart | alt.LayerChart | alt.FacetChart, *, height: int) -> Spec:
    spec: Spec = chart.properties(width="container", height=height).to_dict()
    spec["autosize"] = {"type": "fit-x", "contains": "padding"}
    spec.pop("config", None)  # The page gives one for light and one for dark.
    return spec
