"""A log too long for the memory: its columns are mapped from a file, and evaluation asks some of its users."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from twotower import steps
from twotower.data import columns
from twotower.data.columns import read_columns
from twotower.data.split import load_split
from twotower.recipe import Recipe


def test_mapped_columns_are_those_in_memory_and_leave_no_file(
    tiny_split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = load_split(tiny_split)
    monkeypatch.setattr(columns, "MAPPED_ROWS", 1_000)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mapped = load_split(tiny_split)
    for name in ("user", "item", "timestamp", "positive", "part"):
        one, other = getattr(here, name), getattr(mapped, name)
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)
    assert np.array_equal(here.labels["rating"], mapped.labels["rating"], equal_nan=True)
    assert list(tmp_path.iterdir()) == []


def test_context_columns_are_mapped_across_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = 2_500
    ids = pa.chunked_array([pa.array(["a", "b", "c"])])
    table = pa.table(
        {
            "user_id": pa.array([("c", "a")[row % 2] for row in range(rows)]),
            "item_id": pa.array(["b"] * rows),
            "timestamp": pa.array(np.arange(rows)).cast(pa.timestamp("us")),
            "positive": pa.array([True] * rows),
            "part": pa.array(np.zeros(rows, np.int8)),
            "device": pa.array([None if row == 7 else f"phone {row}" for row in range(rows)]),
        }
    )
    pq.write_table(table, tmp_path / "log.parquet", row_group_size=300)
    monkeypatch.setattr(columns, "MAPPED_ROWS", 1_000)
    found = read_columns(tmp_path / "log.parquet", user_ids=ids, item_ids=ids, labels=(), context=("device",))
    assert found.context["device"].to_pylist() == table["device"].to_pylist()
    assert found.user[:3].tolist() == [2, 0, 2]
    assert set(found.item.tolist()) == {1}


def test_of_a_long_log_some_users_are_asked_and_the_report_says_so(
    tiny_recipe: Recipe, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(tiny_recipe, evaluate=replace(tiny_recipe.evaluate, max_queries=20, bootstrap=0))
    reports: list[dict[str, Any]] = []
    for most in (columns.MAPPED_ROWS, 4_000):
        monkeypatch.setattr(columns, "MAPPED_ROWS", most)
        out = tmp_path / str(most)
        steps.evaluate(recipe, split=tiny_run / "split", model=tiny_run / "model", out=out)
        reports.append(json.loads((out / "report.json").read_text(encoding="utf-8")))
    whole, drawn = reports
    assert drawn["data"] == whole["data"], "what is told of the data is told of all"
    assert [check["name"] for check in drawn["audit"] if not check["passed"]] == []
    assert any("of users drawn by chance are asked" in note for note in drawn["notes"])
    popular = "popularity"
    for report in reports:
        assert report["protocols"][report["main_protocol"]]["contenders"][popular]["metrics"]["recall@100"] > 0
