"""The plots of `growth` as SVG files, drawn from its raw figures."""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import altair as alt

MODEL, OTHER = "#2f6feb", "#9aa4b2"
KINDS = {"in memory": OTHER, "streamed": MODEL}


def draw(raw: Mapping[str, Any], *, to: Path) -> None:
    """Write `tables.svg`, `interactions.svg` and `memory.svg`."""
    to.mkdir(parents=True, exist_ok=True)
    steps = [
        {"x": table["rows"], "y": 1000 * statistics.median(table["seconds"]), "kind": "in memory"}
        for table in raw["tables"]
    ]
    epochs, memory = [], []
    for log in raw["logs"]:
        kind = "streamed" if log["streamed"] else "in memory"
        at = {"x": log["interactions"], "kind": kind}
        epochs.append(at | {"y": log["interactions"] * log["seconds_per_interaction"]})
        memory.append(at | {"y": log["peak_gb"]})
    _line(steps, x="rows of the user table", y="milliseconds a step").save(to / "tables.svg")
    _line(epochs, x="interactions", y="seconds an epoch", log=True).save(to / "interactions.svg")
    _line(memory, x="interactions", y="peak memory, GB").save(to / "memory.svg")


def _line(rows: list[dict[str, Any]], *, x: str, y: str, log: bool = False) -> Any:
    scale = alt.Scale(type="log") if log else alt.Scale(zero=True)
    kinds = alt.Scale(domain=list(KINDS), range=list(KINDS.values()))
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X("x:Q", title=x, scale=alt.Scale(type="log"), axis=alt.Axis(format="~s", grid=False)),
        y=alt.Y("y:Q", title=y, scale=scale),
    )
    points = base.mark_point(filled=True, size=70, opacity=1).encode(
        color=alt.Color("kind:N", scale=kinds, legend=alt.Legend(title=None, orient="top"))
    )
    return alt.layer(base.mark_line(color=OTHER), points).properties(width=460, height=220)
