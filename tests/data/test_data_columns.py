"""A log too long for the memory: its columns are mapped from a file, and evaluation asks some of its users."""

import json
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from twotower import steps
from twotower.artifact import read_manifest, write_artifact
from twotower.data import columns
from twotower.data.columns import _Kept, _reserve, read_columns
from twotower.data.split import TEST, TRAIN, VALIDATION, load_split
from twotower.data.tables import INTERACTIONS, ITEMS, PART, USERS
from twotower.errors import DataError
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
        assert isinstance(other.base, np.memmap)
        assert not isinstance(one.base, np.memmap)
    assert np.array_equal(here.labels["rating"], mapped.labels["rating"], equal_nan=True)
    assert list(tmp_path.iterdir()) == []


def test_context_columns_lie_in_a_file_without_a_name_and_in_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    kept, phones = _Kept(mapped=True), [f"phone {row}" for row in range(10_000)]
    for _ in range(3):
        kept.write(pa.table({"device": phones}))
        assert list(tmp_path.iterdir()) == []
    held = pa.total_allocated_bytes()
    table = kept.table()
    assert pa.total_allocated_bytes() - held < 1_000
    del kept
    assert table["device"].to_pylist() == phones * 3


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system has no call that takes room on disk")
def test_room_on_disk_is_taken_before_it_is_mapped() -> None:
    with tempfile.TemporaryFile() as file:
        _reserve(file, 3_000_000)
        assert os.fstat(file.fileno()).st_blocks * 512 >= 3_000_000


def test_a_system_that_cannot_take_room_is_asked_how_much_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    with tempfile.TemporaryFile() as file:
        _reserve(file, 1)
        with pytest.raises(OSError, match="No space left"):
            _reserve(file, 10**18)


def test_a_log_for_which_there_is_no_room_is_refused_in_one_line(
    tiny_split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = pytest.importorskip("resource", reason="Windows has no such limit")
    monkeypatch.setattr(columns, "MAPPED_ROWS", 1_000)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    kept = _Kept(mapped=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # No file grows beyond, as on a disk that is full.
    try:
        with pytest.raises(DataError) as of_columns:
            load_split(tiny_split)
        with pytest.raises(DataError) as of_context:
            kept.write(pa.table({"device": ["phone"] * 100_000}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    for fault in (of_columns, of_context):
        assert str(fault.value).startswith(f"{tmp_path}: a log of more than 1,000 interactions does not fit")
        assert "TMPDIR" in str(fault.value)
        assert "\n" not in str(fault.value)


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


def test_a_long_log_is_evaluated_where_those_who_are_tested_did_nothing_before(
    tiny_recipe: Recipe, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = tiny_run / "split"
    table, metadata = pq.read_table(split / INTERACTIONS), read_manifest(split, kind="split")["metadata"]
    is_tested = np.array([user.endswith(("1", "3", "5")) for user in table["user_id"].to_pylist()])
    before = np.where(table[PART].to_numpy() == TRAIN, TRAIN, VALIDATION)
    part = pa.array(np.where(is_tested, TEST, before).astype(np.int8))
    with write_artifact(tmp_path / "split", kind="split", metadata=metadata | {"protocol": "given"}) as out:
        pq.write_table(table.set_column(table.column_names.index(PART), PART, part), out / INTERACTIONS)
        for name in (USERS, ITEMS):
            shutil.copyfile(split / name, out / name)
    monkeypatch.setattr(columns, "MAPPED_ROWS", 4_000)
    asked = replace(tiny_recipe.evaluate, max_queries=20, bootstrap=0, baselines=("popularity", "markov"))
    recipe = replace(tiny_recipe, evaluate=asked)
    steps.evaluate(recipe, split=tmp_path / "split", model=tiny_run / "model", out=tmp_path / "report")
    report = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert report["protocols"]["static"]["queries"] > 0
    assert report["baselines"]["markov"]["validation"]["queries"] > 0
