"""Write docs/quality.md from the results that were kept: `python benchmarks/quality/page.py`; --check only compares.

Reads `rows.toml` and `results/NAME.json` beside this file with the standard library alone.
"""

import json
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
PAGE = FOLDER.parent.parent / "docs" / "quality.md"
HEAD = """# Quality, measured

How good the recommendations are: one command a row, the baselines beside it, and what others published on the same
protocol. `must` is what a row has to show, `aim` what it is after. Figures are means over seeds, with their 95%
interval over seeds (Student's t), or over users where there is one seed. Nothing is tuned on a test part: a slice of
the train part decides when training stops, and recipes were chosen on such slices.

*Written by `python benchmarks/quality/page.py` from `benchmarks/quality/results`; a test fails where it is out of
date. To renew a row: its command with `--keep` among its arguments, then that line.*
"""
NAMES = {
    "popularity": "popularity",
    "recent_popularity": "recent popularity",
    "item_knn": "item-kNN",
    "ease": "EASE",
    "ials": "iALS",
    "markov": "Markov chains",
    "oracle": "oracle, the best possible",
}
NOT_YET = "not measured yet"
FEW = 20
"""Models whose epochs are told one by one."""

Tree = Mapping[str, Any]


def main() -> int:
    """Write or check the page."""
    rows = tomllib.loads((FOLDER / "rows.toml").read_text(encoding="utf-8"))["row"]
    kept = {row["name"]: FOLDER / "results" / f"{row['name']}.json" for row in rows}
    found = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in kept.items() if path.is_file()}
    page = render(rows, found)
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(page, encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page:
        print(f"docs/{PAGE.name}: differs from the results. Run: python benchmarks/quality/page.py", file=sys.stderr)
        return 1
    return 0


def render(rows: list[Tree], found: Mapping[str, Tree]) -> str:
    """The page: a summary, then a section a row.

    Args:
        rows: What `rows.toml` says.
        found: Name of a row -> its raw result.
    """
    lines = [HEAD, "| row | figure | must | aim | measured | verdict |", "|---|---|---|---|---|---|"]
    for row in rows:
        lines += [_summary(row, target, found.get(row["name"])) for target in row["targets"]]
    if read := [f"[`{row['name']}`](#{row['name']})" for row in rows if not row["targets"]]:
        lines += ["", f"Without a target, to be read: {', '.join(read)}."]
    for row in rows:
        lines += ["", *_section(row, found.get(row["name"]))]
    return "\n".join(lines) + "\n"


def verdict(target: Tree, figures: Mapping[str, Tree]) -> str:
    """Whether a figure reaches its target: by its mean, and whether all of its interval does too.

    Beside a target that is another figure an interval of one of them says little; the difference of both has its own.
    """
    figure, sign = figures[target["key"]], -1 if target.get("lower") else 1
    unit = figures[target["over"]]["mean"] if "over" in target else 1.0
    value, worse = figure["mean"], figure["high" if target.get("lower") else "low"]
    for name in ("aim", "must"):
        if name not in target or sign * value <= sign * target[name] * unit:
            continue
        sure = worse is None or "over" in target or sign * worse > sign * target[name] * unit
        return f"**{name} reached**" + ("" if sure else ", not by the whole interval")
    return f"missed by {_number(abs(target['must'] * unit - value))}"


def _summary(row: Tree, target: Tree, result: Tree | None) -> str:
    name = row["name"]
    figures = None if result is None else result["figures"]
    cells = [
        f"[`{name}`](#{name})",
        f"`{target['key']}`",
        _wanted(target, "must"),
        _wanted(target, "aim"),
        NOT_YET if figures is None else _with_interval(figures[target["key"]]),
        "" if figures is None else verdict(target, figures),
    ]
    return f"| {' | '.join(cells)} |"


def _wanted(target: Tree, name: str) -> str:
    if name not in target:
        return "-"
    sign = "below" if target.get("lower") else "above"
    factor = "" if target[name] == 1 else f"{target[name]:g} x "
    return f"{sign} {factor}`{target['over']}`" if "over" in target else f"{sign} {target[name]:g}"


def _section(row: Tree, result: Tree | None) -> Iterator[str]:
    """A row's protocol, how it was measured, and everybody's figures."""
    yield f"## {row['name']}"
    yield ""
    yield f"- **Data**: {row['data']}."
    yield f"- **Protocol**: {row['protocol']}"
    if result is None:
        yield f"- **Command**: `make bench NAME={row['name']}`; {NOT_YET}."
    else:
        yield from _how(row, result)
        yield ""
        yield from _settings(result["settings"])
        yield from _figures(result["figures"])
        for title, table in result["tables"].items():
            yield from _table(title, table)
    if row["published"]:
        yield ""
        yield "Others on this protocol, or as near to it as there is:"
        yield ""
        yield "| who | figures | source | |"
        yield "|---|---|---|---|"
        for one in row["published"]:
            yield f"| {one['who']} | {one['figures']} | {one['source']} | {one['how']} |"


def _how(row: Tree, result: Tree) -> Iterator[str]:
    machine, seconds = result["machine"], result["seconds"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items() if version)
    total, prepare, train = (sum(seconds[part]) / len(seconds[part]) for part in ("total", "prepare", "train"))
    budget = f" (budget: {row['budget_minutes']} minutes)" if "budget_minutes" in row else ""
    epochs = [one["epochs"] for run in result["runs"] for one in run["training"].values()]
    shown = ", ".join(map(str, epochs)) if len(epochs) <= FEW else f"{min(epochs)} to {max(epochs)} a model"
    yield f"- **Command**: `{result['command']}`"
    yield f"- **Seeds**: {', '.join(map(str, result['seeds']))}"
    yield f"- **Time**: {total:.0f} s a seed{budget}, of these {prepare:.0f} s preparing and {train:.0f} s training"
    yield f"- **Epochs**: {shown}"
    yield f"- **Measured**: {result['at'][:10]}, commit `{result['commit'] or 'unknown'}`"
    yield f"- **Machine**: {machine['cores']} cores ({machine['processor']}), Python {machine['python']}, {versions}"
    for note in dict.fromkeys(note for run in result["runs"] for note in run["notes"]):
        yield f"- {note}"


def _settings(settings: Mapping[str, Tree]) -> Iterator[str]:
    """What differs from the recipe's defaults, a recipe a block."""
    for name, one in settings.items():
        yield f"Settings{f' ({name})' if name else ''} that differ from the defaults:"
        yield ""
        yield "```"
        for key, value in one["changed"].items():
            yield f"{key} = {json.dumps(value)}"
        yield "```"
        yield ""


def _figures(figures: Mapping[str, Tree]) -> Iterator[str]:
    yield "| figure | mean | 95% interval | over | by seed |"
    yield "|---|---|---|---|---|"
    for key, one in figures.items():
        ends = "-" if one["low"] is None else f"{_number(one['low'])} to {_number(one['high'])}"
        values = ", ".join(_number(value) for value in one.get("values", ())) or "-"
        over = "-" if one["low"] is None and one["over"] == "seeds" else one["over"]
        yield f"| `{key}` | {_number(one['mean'])} | {ends} | {over} | {values} |"


def _table(title: str, table: Mapping[str, Mapping[str, Tree]]) -> Iterator[str]:
    metrics = list(dict.fromkeys(metric for one in table.values() for metric in one))
    yield ""
    yield f"{title[0].upper()}{title[1:]}:"
    yield ""
    yield f"| | {' | '.join(metrics)} |"
    yield f"|---|{'---|' * len(metrics)}"
    for name, one in table.items():
        cells = [_with_interval(one[metric]) if metric in one else "-" for metric in metrics]
        yield f"| {NAMES.get(name, name)} | {' | '.join(cells)} |"


def _with_interval(figure: Tree) -> str:
    ends = "" if figure["low"] is None else f" ({_number(figure['low'])} to {_number(figure['high'])})"
    return f"{_number(figure['mean'])}{ends}"


def _number(value: float) -> str:
    return f"{value:.4f}"


if __name__ == "__main__":
    sys.exit(main())
