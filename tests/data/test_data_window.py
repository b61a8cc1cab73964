"""A window of the log by date, on five rows that are counted by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from twotower.artifact import read_manifest
from twotower.data.config import FilesConfig, PrepareConfig
from twotower.data.profile import profile
from twotower.data.tables import INTERACTIONS
from twotower.errors import DataError, RecipeError

Into = Callable[..., Path]

LOG = """user_id,item_id,timestamp
ann,first,2026-10-01T00:00:00Z
bob,second,2026-10-30T23:59:59Z
ann,third,2026-10-31T00:00:00Z
bob,fourth,2026-10-31T12:00:00Z
ann,fifth,2026-11-01T00:00:00Z
"""


def config_for(folder: Path, **settings: Any) -> PrepareConfig:
    (folder / "log.csv").write_text(LOG, encoding="utf-8")
    return PrepareConfig(source="files", data_dir=str(folder), files=FilesConfig(interactions="log.csv"), **settings)


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, ["first", "second", "third", "fourth", "fifth"]),
        # From the moment itself on nothing is kept.
        ({"until": "2026-11-01"}, ["first", "second", "third", "fourth"]),
        ({"until": "2026-10-31T12:00:01"}, ["first", "second", "third", "fourth"]),
        ({"until": "2026-10-31T12:00:00"}, ["first", "second", "third"]),
        # Half past one in the morning, two hours east of Greenwich, is half an hour before midnight.
        ({"until": "2026-10-31T01:59:59+02:00"}, ["first"]),
        ({"until": "2026-10-31T02:00:00+02:00"}, ["first", "second"]),
        ({"until": "2026-10-31T00:00:00Z"}, ["first", "second"]),
        # Days up to the moment: its first instant is in, and up to the end of the log that one too.
        ({"until": "2026-11-01", "window_days": 1}, ["third", "fourth"]),
        ({"until": "2026-11-01", "window_days": 0.5}, ["fourth"]),
        ({"window_days": 1}, ["third", "fourth", "fifth"]),
        ({"window_days": 0.25}, ["fifth"]),
        # Longer than the log, and longer than there are years.
        ({"window_days": 32}, ["first", "second", "third", "fourth", "fifth"]),
        ({"window_days": 1e7}, ["first", "second", "third", "fourth", "fifth"]),
        ({"until": "2027-01-01", "window_days": 1e12}, ["first", "second", "third", "fourth", "fifth"]),
    ],
)
def test_a_window_keeps_what_lies_in_it(
    tmp_path: Path, prepare_into: Into, settings: dict[str, Any], kept: list[str]
) -> None:
    prepared = prepare_into(tmp_path / "p", config_for(tmp_path, **settings))
    assert pq.read_table(prepared / INTERACTIONS)["item_id"].to_pylist() == kept
    dropped = read_manifest(prepared, kind="prepared")["metadata"]["counts"]["dropped"]
    assert dropped == ({"prepare.until, window_days": 5 - len(kept)} if settings else {})


def test_the_window_goes_before_what_counts_within_it(tmp_path: Path, prepare_into: Into) -> None:
    # In the whole log Ann has three and Bob two; before November both have two.
    prepared = prepare_into(tmp_path / "p", config_for(tmp_path, until="2026-11-01", min_user_interactions=2))
    assert pq.read_table(prepared / INTERACTIONS)["user_id"].to_pylist() == ["ann", "bob", "ann", "bob"]
    with pytest.raises(DataError, match=r"min_user_interactions.* drops all of the 2 interactions"):
        prepare_into(tmp_path / "q", config_for(tmp_path, until="2026-10-31", min_user_interactions=2))


@pytest.mark.parametrize("until", ["soon", "2026-13-01", "0001-01-01T00:00:00+10:00", "[[ScheduledTime]]"])
def test_an_end_that_is_no_moment_is_refused_and_stands_in_the_profile(
    tmp_path: Path, prepare_into: Into, until: str
) -> None:
    config = config_for(tmp_path, until=until)
    with pytest.raises(RecipeError) as fault:
        prepare_into(tmp_path / "p", config)
    assert str(fault.value) == f"prepare.until = {until!r}: no moment. Write it as 2026-11-01."
    assert profile(config).faults == (str(fault.value),)


def test_a_window_without_interactions_is_refused(tmp_path: Path, prepare_into: Into) -> None:
    with pytest.raises(DataError, match=r"prepare.until, window_days drops all of the 5 interactions"):
        prepare_into(tmp_path / "p", config_for(tmp_path, until="2020-01-01"))
