"""The README's Python works as printed."""

import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest


def test_the_python_of_the_readme_runs_on_a_real_bundle(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    # The tiny world has fewer viewers than the one that the README speaks of.
    exec(block.replace("runs/simulated", tiny_run.as_posix()).replace('"838"', '"8"'), names)
    assert len(names["answer"].items) == 10
    assert set(pq.read_table("all-users.parquet").column_names) == {"user_id", "item_id", "score", "rank"}
