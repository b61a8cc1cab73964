"""The report to be read: one self-contained page, one JSON file, one model card."""

import json
import math
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from twotower.evaluation import charts
from twotower.evaluation.names import CHAMPION, LABEL_BASELINES, LABEL_METRICS, NAMES, TRAINED_ALONE, metric_name

NOTHING, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
BOUNDS = ("ceiling", "best possible")
PULL = "gradient_norm_"
"""Begins the keys of a training history that tell how hard a task pulls on what all tasks share."""
SAME_ORDER = (
    "Both stages come out equal: ranking kept the order of retrieval. It does so where the validation part "
    "found nothing that the ranking heads' predictions add to that order; they stand beside each item all the same."
)
PROTOCOLS = {"successive": "Successive", "static": "Static"}
MEANINGS = {
    "successive": (
        "Every positive test interaction is a query at its own moment. The model stays as trained; the histories, and "
        "the window of recent popularity, hold what was known up to that moment, for all contenders alike."
    ),
    "static": (
        "One query per test user, with nothing of the test part known. All items that the user took in the test part "
        "are relevant."
    ),
}


def write_report(report: dict[str, Any], out: Path) -> None:
    """Write `report.json`, `report.html` and `card.md` into an open directory.

    Args:
        report: From `evaluate`; shown where they were added: `training` (a list of `{"epoch", ...}`, in it
            `gradient_norm_<task>`), `index`, `alarms` (lines), `audit` (a list of `{"name", "passed", "detail"}`) and
            the `notes` of `joining` (lines).
    """
    clean = _without_nan(report)
    text = json.dumps(clean, indent=1, allow_nan=False)
    (out / "report.json").write_text(text + "\n", encoding="utf-8")
    (out / "report.html").write_text(render_page(clean), encoding="utf-8")
    (out / "card.md").write_text(render_card(clean), encoding="utf-8")


def render_page(report: dict[str, Any]) -> str:
    """The report as one HTML page without any reference outside itself."""
    specifications = _charts(report)
    template = _environment().get_template("report.html")
    return template.render(
        report=report,
        main=report["protocols"][report["main_protocol"]],
        sentence=headline_sentence(report),
        tables=_tables(report),
        stages=_stages(report),
        segments=_segment_table(report),
        lists=_list_table(report),
        charts=specifications,
        training=[name for name in specifications if name.startswith("training-")],
        alarms=_alarms(report),
        audit=report.get("audit") or [],
        joining=report.get("joining") or {},
        pull=_pull_table(report),
        bundle=Markup(charts.bundle()),
        names=NAMES,
        label_names=LABEL_BASELINES,
        beaten=_beaten(report),
        same_order=SAME_ORDER,
    )


def render_card(report: dict[str, Any]) -> str:
    """The report as a model card in Markdown."""
    template = _environment().get_template("card.md")
    return template.render(
        report=report,
        main=report["protocols"][report["main_protocol"]],
        sentence=headline_sentence(report),
        tables=_tables(report),
        stages=_stages(report),
        segments=_segment_table(report),
        alarms=_alarms(report),
        audit=report.get("audit") or [],
        joining=report.get("joining") or {},
        names=NAMES,
        label_names=LABEL_BASELINES,
        beaten=_beaten(report),
        same_order=SAME_ORDER,
    )


def headline_sentence(report: dict[str, Any]) -> str:
    """The main result in one sentence, said as plainly where the model loses as where it wins."""
    head, main = report["headline"], report["protocols"][report["main_protocol"]]
    metric = metric_name(head["ndcg"])
    value, best = head["two_stage_ndcg"], head["best_baseline_ndcg"]
    where = f"over {main['queries']:,} queries and {report['data']['items']:,} items"
    if best is None:
        return f"The model reaches {metric} {value:.4f} {where}; no baseline was asked for."
    verdict = _verdict(main, metric=head["ndcg"], baseline=best["name"])
    gain = f", {100 * (value / best['value'] - 1):+.0f}%" if best["value"] > 0 else ""
    name = NAMES.get(best["name"], best["name"])
    figures = f"{metric} {value:.4f} against {best['value']:.4f}{gain}"
    return f"The model {verdict} the best baseline, {name}: {figures}, {where}."


def protocol_table(report: dict[str, Any], protocol: str) -> dict[str, Any]:
    """The contenders of a protocol, best first, by the metrics that lead."""
    found = report["protocols"][protocol]
    metrics = report["lead_metrics"]
    first = metrics[0]
    rows = []
    for name, contender in found["contenders"].items():
        intervals = found["intervals"].get(name, {})
        cells = [
            {"value": contender["metrics"][metric], "interval": intervals.get(metric), "metric": metric_name(metric)}
            for metric in metrics
        ]
        rows.append({"name": name, "title": NAMES.get(name, name), "kind": kind_of(name), "cells": cells})
    # Bounds stand below the contenders: nobody competes with them.
    rows.sort(key=lambda row: (row["kind"] in BOUNDS, -found["contenders"][row["name"]]["metrics"][first]))
    return {
        "protocol": protocol,
        "title": PROTOCOLS.get(protocol, protocol),
        "meaning": MEANINGS.get(protocol, ""),
        "metrics": [metric_name(metric) for metric in metrics],
        "rows": rows,
        "facts": found,
    }


def _tables(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The table of every protocol, the main one first."""
    main = report["main_protocol"]
    return [protocol_table(report, name) for name in (main, *(other for other in report["protocols"] if other != main))]


def kind_of(name: str) -> str:
    """What colour and weight a contender gets."""
    if name in ("two_stage", "retrieval"):
        return "model"
    if name in (CHAMPION, TRAINED_ALONE):
        return "other model"
    return {"ceiling": "ceiling", "oracle": "best possible"}.get(name, "baseline")


def _verdict(main: dict[str, Any], *, metric: str, baseline: str) -> str:
    row = next(
        row
        for row in main["differences"]
        if (row["metric"], row["of"], row["minus"]) == (metric, "two_stage", baseline)
    )
    low, high = row.get("interval", (row["value"], row["value"]))
    if low > 0:
        return "beats"
    return "loses to" if high < 0 else "is level with"


def _stages(report: dict[str, Any]) -> dict[str, Any]:
    """What retrieval alone, both stages, and a perfect ranking of the candidates reach, and what each stage adds."""
    head, main = report["headline"], report["protocols"][report["main_protocol"]]
    gain = next(row for row in main["differences"] if row["metric"] == head["ndcg"] and row["minus"] == "retrieval")
    lead = (head["ndcg"], head["recall"])
    told = [row for row in main["differences"] if row["metric"] in lead and row["minus"] != TRAINED_ALONE]
    both, alone = (main["contenders"][name]["metrics"] for name in ("two_stage", "retrieval"))
    adds = [row for row in told if "retrieval" in (row["of"], row["minus"])]
    return {
        "adds": sorted(adds, key=lambda row: lead.index(row["metric"])),
        "metric": metric_name(head["ndcg"]),
        "recall_metric": metric_name(head["recall"]),
        "gain": gain,
        "is_same_order": all(both[metric] == alone[metric] for metric in report["lead_metrics"]),
        "candidates": report["config"]["candidates"],
    }


def _alarms(report: dict[str, Any]) -> list[str]:
    """What should keep a reader from trusting the model: what training told, and every leak."""
    leaks = [f"Leak, {check['name']}: {check['detail']}" for check in report.get("audit") or [] if not check["passed"]]
    return [*leaks, *(report.get("alarms") or [])]


def _beaten(report: dict[str, Any]) -> dict[str, str]:
    """Label -> a sentence, where a baseline predicts it better than the model does."""
    told = {}
    for label, judged in report["labels"].items():
        metric = LABEL_METRICS.get(judged["kind"])
        if metric is None or "metrics" not in judged:
            continue
        ours = judged["metrics"][metric]
        rivals = {name: values[metric] for name, values in judged["baselines"].items() if values[metric] is not None}
        best = min(rivals, key=rivals.__getitem__, default=None)
        if best is not None and ours is not None and rivals[best] < ours:
            name = LABEL_BASELINES.get(best, best)
            told[label] = (
                f"{name} predicts {label} better than the model does: {metric_name(metric)} {rivals[best]:.4f} "
                f"against {ours:.4f}; less is better."
            )
    return told


def _pull_table(report: dict[str, Any]) -> dict[str, Any]:
    """Each task's gradient norm on the shared weights, and its ratio to the first task's, after the last epoch."""
    told = [row for row in report.get("training") or [] if any(key.startswith(PULL) for key in row)]
    last: dict[str, Any] = told[-1] if told else {}
    norms = {key.removeprefix(PULL): value for key, value in last.items() if key.startswith(PULL)}
    first = next(iter(norms.values()), None)
    rows = [
        {"task": task, "norm": norm, "ratio": norm / first if first and norm is not None else None}
        for task, norm in norms.items()
    ]
    return {"epoch": last.get("epoch"), "rows": rows}


def _segment_table(report: dict[str, Any]) -> dict[str, Any]:
    """The leading metric per segment, for both stages, retrieval and the best baseline."""
    head, main = report["headline"], report["protocols"][report["main_protocol"]]
    best = head["best_baseline_ndcg"]
    columns = ["two_stage", "retrieval", *([best["name"]] if best else [])]
    rows = [
        segment
        | {
            "values": [
                (main["contenders"][name]["segments"][segment["name"]] or {}).get(head["ndcg"]) for name in columns
            ]
        }
        for segment in main["segments"]
        if segment["relevant"]
    ]
    return {"metric": metric_name(head["ndcg"]), "columns": [NAMES.get(name, name) for name in columns], "rows": rows}


def _list_table(report: dict[str, Any]) -> list[dict[str, Any]]:
    contenders = report["protocols"][report["main_protocol"]]["contenders"]
    rows = protocol_table(report, report["main_protocol"])["rows"]
    return [row | contenders[row["name"]]["lists"] for row in rows if contenders[row["name"]]["lists"]]


def _charts(report: dict[str, Any]) -> dict[str, Any]:
    """Name -> specification; the page shows those that exist."""
    head, main = report["headline"], report["protocols"][report["main_protocol"]]
    table = protocol_table(report, report["main_protocol"])
    compared = [row for row in table["rows"] if row["kind"] != "ceiling"]
    bars = [
        {"contender": row["title"], "kind": row["kind"], "value": row["cells"][0]["value"]}
        | dict(zip(("low", "high"), row["cells"][0]["interval"] or (None, None), strict=True))
        for row in compared
    ]
    found = main["contenders"]
    curves = [
        {"contender": row["title"], "kind": row["kind"], "k": k, "value": found[row["name"]]["metrics"][f"recall@{k}"]}
        for row in compared
        for k in report["config"]["ks"]
    ]
    segments = _segment_table(report)
    points = [
        {"segment": row["name"], "contender": name, "value": value}
        for row in segments["rows"]
        for name, value in zip(segments["columns"], row["values"], strict=True)
    ]
    specifications = {
        "contenders": charts.contenders_chart(bars, metric=metric_name(head["ndcg"])),
        "cutoffs": charts.cutoffs_chart(curves, metric="Recall"),
        "segments": charts.segments_chart(points, metric=segments["metric"]),
    }
    for label, judged in report["labels"].items():
        if judged.get("calibration"):
            specifications[f"calibration-{label}"] = charts.calibration_chart(judged["calibration"], label=label)
    return specifications | _training_charts(report.get("training") or [])


def _training_charts(training: list[dict[str, Any]]) -> dict[str, Any]:
    """One chart for each figure that training kept per epoch, and one for the pull of all tasks."""
    keys = [key for key in (training[0] if training else {}) if key != "epoch" and not key.startswith(PULL)]
    found = {}
    for key in keys:
        rows = [
            {"epoch": row["epoch"], "value": row[key]} for row in training if isinstance(row.get(key), (int, float))
        ]
        if rows:
            found[f"training-{key}"] = charts.training_chart(rows, metric=key.replace("_", " "))
    pulls = [
        {"epoch": row["epoch"], "task": key.removeprefix(PULL), "value": value}
        for row in training
        for key, value in row.items()
        if key.startswith(PULL) and isinstance(value, (int, float)) and value > 0
    ]
    return found | ({"pull": charts.tasks_chart(pulls)} if pulls else {})


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("twotower.evaluation"),
        autoescape=select_autoescape(("html",), default=False),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "percent": _percent, "signed": _signed, "metric": metric_name}
    return environment


def _number(value: float | None, digits: int = 4) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"


def _percent(value: float | None, digits: int = 1) -> str:
    return NOTHING if value is None else f"{100 * value:.{digits}f}%"


def _signed(value: float | None, digits: int = 4) -> str:
    return NOTHING if value is None else f"{value:+.{digits}f}".replace("-", MINUS)


def _without_nan(value: Any) -> Any:
    """A copy that strict JSON can hold: what is no number becomes null."""
    if isinstance(value, dict):
        return {str(key): _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
