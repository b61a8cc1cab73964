"""Results on the screen, as tables."""

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from twotower.serving.answers.results import Recommendation, SimilarItems

PIPE_WIDTH = 120
"""Columns where the output is no terminal, so that a table in a file does not depend on one."""


def console() -> "Console":
    """Where results are printed."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under a title; a column whose name begins with `#` is right-aligned, without the sign."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column.lstrip("#"), justify="right" if column.startswith("#") else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console().print(table)


def print_recommendation(answer: "Recommendation", *, title: str) -> None:
    """The items of an answer, with both stages' ranks and scores."""
    labels = sorted({label for item in answer.items for label in item.labels})
    columns = [
        "#rank",
        "item",
        "title",
        "#score",
        "#retrieval rank",
        "#retrieval score",
        *(f"#{name}" for name in labels),
    ]
    rows = [
        [
            str(item.rank),
            item.item_id,
            item.title or "",
            f"{item.score:.3f}",
            _whole(item.retrieval_rank),
            _number(item.retrieval_score),
            *(_number(item.labels.get(label)) for label in labels),
        ]
        for item in answer.items
    ]
    if answer.fallback is not None:
        title += f" (fallback: {answer.fallback})"
    print_table(title, columns, rows)


def print_similar(answer: "SimilarItems") -> None:
    """The neighbours of an item."""
    rows = [[str(item.rank), item.item_id, item.title or "", f"{item.score:.3f}"] for item in answer.items]
    print_table(f"Similar to {answer.title or answer.item_id}", ["#rank", "item", "title", "#cosine"], rows)


def print_report(report: Mapping[str, Any]) -> None:
    """The main result in one sentence, and every contender of the main protocol by the metrics that lead.

    The first metric has its 95% interval beside it; those of the others are in the report.
    """
    from twotower.evaluation.report import headline_sentence, protocol_table

    found = dict(report)
    table = protocol_table(found, report["main_protocol"])
    first, *others = table["metrics"]
    rows = []
    for row in table["rows"]:
        leading, *cells = row["cells"]
        values = [f"{cell['value']:.4f}" for cell in cells]
        rows.append([row["title"], f"{leading['value']:.4f}", _interval(leading["interval"]), *values])
    columns = ["", f"#{first}", "#95% interval", *(f"#{metric}" for metric in others)]
    print_table(f"{table['title']} evaluation", columns, rows)
    console().print(headline_sentence(found), markup=False)


def _interval(bounds: Sequence[float] | None) -> str:
    return "" if bounds is None else f"{bounds[0]:.4f}-{bounds[1]:.4f}"


def _whole(value: int | None) -> str:
    return "" if value is None else str(value)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
