"""The report's charts as Vega-Lite specifications; colours of text and axes come from the page, light or dark."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from twotower.evaluation.names import CHAMPION, NAMES, TRAINED_ALONE

Spec = dict[str, Any]
MODEL, OTHER, BEST = "#2f6feb", "#9aa4b2", "#1a9c6b"
"""The model, what it is measured against, and the best possible."""
CONTENDERS = {
    "two_stage": MODEL,
    "retrieval": "#7fb0ff",
    CHAMPION: "#8a63d2",
    TRAINED_ALONE: "#b79be8",
    "ials": "#e08a2e",
    "ease": "#d0457b",
    "item_knn": "#0fa3b1",
    "markov": "#9a6a1f",
    "popularity": "#6b7686",
    "recent_popularity": "#b3bac4",
    "oracle": BEST,
}
"""Contender -> its colour in every chart."""
TASKS = (MODEL, "#e08a2e", "#d0457b", "#0fa3b1", "#8a63d2", "#9a6a1f", OTHER)
"""Colours of the tasks, in their order."""
MOST_TICKS = 12
"""Epochs that an axis names."""


def contenders_chart(rows: list[dict[str, Any]], *, metric: str) -> Spec:
    """A metric of every contender as bars with their 95% intervals.

    Args:
        rows: `{"contender", "kind", "value", "low", "high"}`, best first; `low` and `high` may be None.
    """
    order = [row["contender"] for row in rows]
    base = _chart(rows).encode(y=alt.Y("contender:N", sort=order, title=None, axis=_names(padding=5)))
    bars = base.mark_bar(cornerRadiusEnd=3, height={"band": 0.62}).encode(
        x=alt.X("value:Q", title=metric, axis=alt.Axis(format=".3", tickCount=5)),
        color=_contenders(order, legend=None),
        tooltip=["contender:N", alt.Tooltip("value:Q", format=".4f")],
    )
    whiskers = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=2).encode(x="low:Q", x2="high:Q")
    return _spec(alt.layer(bars, whiskers), height=44 * len(rows))


def cutoffs_chart(rows: list[dict[str, Any]], *, metric: str) -> Spec:
    """A metric of every contender against the cut-off; the model's lines are bold, dashed without ranking, and on top.

    Args:
        rows: `{"contender", "kind", "k", "value"}`, the best contender first.
    """
    names = list(dict.fromkeys(row["contender"] for row in sorted(rows, key=lambda row: row["kind"] != "model")))
    ks = sorted({row["k"] for row in rows})
    base = _chart(rows).encode(
        x=alt.X("k:Q", scale=alt.Scale(type="log"), axis=alt.Axis(values=ks, grid=False), title="k (log scale)"),
        y=alt.Y("value:Q", title=f"{metric}@k"),
        color=_contenders(names, legend=_legend()),
        tooltip=["contender:N", "k:Q", alt.Tooltip("value:Q", format=".4f")],
    )
    layers = [
        base.transform_filter("datum.kind != 'model'").mark_line(point=alt.OverlayMarkDef(size=24), strokeWidth=1.5)
    ]
    for stage, look in (("two_stage", {"strokeWidth": 4}), ("retrieval", {"strokeWidth": 3, "strokeDash": [7, 5]})):
        own = base.transform_filter(alt.FieldEqualPredicate(field="contender", equal=NAMES[stage]))
        layers.append(own.mark_line(point=alt.OverlayMarkDef(size=52), **look))
    return _spec(alt.layer(*layers), height=260)


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
        color=_contenders(names, legend=_legend()),
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
    colours = [TASKS[place % len(TASKS)] for place in range(len(tasks))]
    chart = (
        _chart(rows)
        .mark_line(point=alt.OverlayMarkDef(size=36), strokeWidth=2)
        .encode(
            x=_epochs(rows),
            y=alt.Y("value:Q", scale=alt.Scale(type="log"), title="gradient norm (log scale)"),
            color=alt.Color("task:N", sort=tasks, scale=alt.Scale(domain=tasks, range=colours), legend=_legend()),
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
            x=_epochs(rows),
            # As many digits as the values need: those of a weight are 0.2 and the like.
            y=alt.Y("value:Q", title=metric, scale=alt.Scale(zero=False), axis=alt.Axis(format="~g")),
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


def _contenders(names: Sequence[str], *, legend: alt.Legend | None) -> alt.Color:
    """The colours of contenders by the names that readers know them by."""
    colours = {NAMES[contender]: colour for contender, colour in CONTENDERS.items()}
    scale = alt.Scale(domain=list(names), range=[colours.get(name, OTHER) for name in names])
    return alt.Color("contender:N", sort=list(names), scale=scale, legend=legend)


def _epochs(rows: Sequence[Mapping[str, Any]]) -> alt.X:
    """An axis that names whole epochs, each once."""
    epochs = sorted({row["epoch"] for row in rows})
    return alt.X("epoch:Q", axis=alt.Axis(values=epochs[:: -(-len(epochs) // MOST_TICKS)], grid=False, format="d"))


def _legend() -> alt.Legend:
    return alt.Legend(title=None, orient="top", columns=2, labelLimit=170, symbolLimit=0)


def _spec(chart: alt.Chart | alt.LayerChart | alt.FacetChart, *, height: int) -> Spec:
    spec: Spec = chart.properties(width="container", height=height).to_dict()
    spec["autosize"] = {"type": "fit-x", "contains": "padding"}
    spec.pop("config", None)  # The page gives one for light and one for dark.
    return spec
