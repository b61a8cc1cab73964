"""`twotower events`: what a server has recorded, for the next training; and the page that tells of it."""

import re
import shlex
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from twotower.cli.main import main
from twotower.errors import StorageError
from twotower.serving.store.contract import Event, ItemChange, open_store

NOON = 1_700_000_000_000_000
"""2023-11-14 22:13:20."""


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store `events.sqlite` in the working directory: two interactions an hour apart, an impression, an item."""
    monkeypatch.chdir(tmp_path)
    opened = open_store("events.sqlite")
    opened.add_events(
        [
            Event(event_id=str(number), kind=kind, user_id="7", item_id="i", timestamp=NOON + number * 3_600_000_000)
            for number, kind in enumerate(("interaction", "interaction", "impression"))
        ]
    )
    opened.write_items([ItemChange(item_id="i", features={"year": 1999}), ItemChange(item_id="j", features=None)])
    opened.close()


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["events", *arguments])


def test_export_writes_both_tables_and_says_what_they_hold() -> None:
    result = call("export", "events.sqlite", "--out", "e.parquet", "--items", "i.parquet")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "e.parquet: 2 interactions; event_id, user_id, item_id, timestamp",
        "i.parquet: 1 items, up to write 2; item_id, year",
    ]
    assert pq.read_table("i.parquet").to_pylist() == [{"item_id": "i", "year": 1999}]


@pytest.mark.parametrize("since", ["2023-11-14T23:00:00", "2023-11-15T00:00+01:00", "2023-11-14 23:13:20"])
def test_since_is_a_moment_in_utc_unless_it_names_a_zone(since: str) -> None:
    assert call("export", "events.sqlite", "--out", "e.parquet", "--since", since).exit_code == 0
    assert pq.read_table("e.parquet")["event_id"].to_pylist() == ["1"]


def test_prune_removes_what_is_older_and_forgets_items() -> None:
    result = call("prune", "events.sqlite", "--before", "2023-11-14T23:00:00", "--items-until", "2")
    assert result.stdout.splitlines() == ["1 events removed", "1 items forgotten"]
    opened = open_store("events.sqlite")
    assert [met.timestamp for met in opened.history("7", after=0, limit=9)] == [NOON + 3_600_000_000]
    assert [write.item_id for write in opened.items_after(0)] == ["j"]
    opened.close()


def test_a_mistyped_store_is_refused_and_not_made(tmp_path: Path) -> None:
    for arguments in (
        ["export", "absent.sqlite", "--out", "e.parquet"],
        ["prune", "absent.sqlite", "--before", "2023-01-01"],
    ):
        result = call(*arguments)
        assert (result.exit_code, result.stderr.startswith("Error: absent.sqlite: no such store.")) == (2, True)
    assert not (tmp_path / "absent.sqlite").exists()


def state(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".parquet"}


def test_an_export_leaves_the_store_and_its_folder_as_they_are(tmp_path: Path) -> None:
    before = state(tmp_path)
    assert list(before) == ["events.sqlite"]
    assert call("export", "events.sqlite", "--out", "e.parquet", "--items", "i.parquet").exit_code == 0
    assert state(tmp_path) == before


def test_an_export_reads_what_a_running_server_has_not_yet_moved_out_of_its_log(tmp_path: Path) -> None:
    serving = open_store("events.sqlite")
    serving.add_events([Event(event_id="late", kind="interaction", user_id="7", item_id="j", timestamp=NOON)])
    log = (tmp_path / "events.sqlite-wal").read_bytes()
    assert call("export", "events.sqlite", "--out", "e.parquet").exit_code == 0
    assert pq.read_table("e.parquet")["event_id"].to_pylist() == ["0", "1", "late"]
    assert (tmp_path / "events.sqlite-wal").read_bytes() == log
    serving.add_events([Event(event_id="later", kind="interaction", user_id="7", item_id="j", timestamp=NOON)])
    serving.close()


def test_a_store_that_a_server_opens_during_an_export_is_told() -> None:
    reading = open_store("events.sqlite", read_only=True)
    _, items = reading.items()
    serving = open_store("events.sqlite")
    with pytest.raises(StorageError, match=r"events.sqlite: a server has opened it meanwhile. Try again"):
        list(items)
    with pytest.raises(StorageError, match="readonly"):
        reading.write_items([ItemChange(item_id="k", features={})])
    for opened in (serving, reading):
        opened.close()


def test_what_holds_no_tables_is_no_store_and_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "empty.sqlite").touch()
    serving = open_store("served.sqlite")  # Until it is closed, its tables are in its log alone.
    shutil.copy("served.sqlite", "copied.sqlite")
    serving.close()
    for name in ("empty", "copied"):
        held = (tmp_path / f"{name}.sqlite").read_bytes()
        for task in (["export", "--out", "e.parquet"], ["prune", "--before", "2023-01-01"]):
            result = call(task[0], f"{name}.sqlite", *task[1:])
            assert result.exit_code == 2
            assert f"{name}.sqlite: no store, as it holds no tables." in result.stderr
            assert f"copy {name}.sqlite-wal too" in result.stderr
            assert (tmp_path / f"{name}.sqlite").read_bytes() == held


def test_a_call_without_a_task_or_with_a_faulty_moment_is_refused() -> None:
    assert "Name a file by --out, by --items, or by both." in call("export", "events.sqlite").stderr
    assert "Say --before, --items-until, or both." in call("prune", "events.sqlite").stderr
    assert "'soon' is no moment. Write it as 2026-11-01" in call("prune", "events.sqlite", "--before", "soon").stderr


def test_the_commands_of_the_page_on_events_work_as_printed() -> None:
    page = (Path(__file__).parents[2] / "docs" / "events.md").read_text(encoding="utf-8")
    commands = [line.partition("#")[0] for line in page.splitlines() if re.match(r"twotower events ", line)]
    assert len(commands) >= 3
    for command in commands:
        result = CliRunner().invoke(main, shlex.split(command)[1:])
        assert result.exit_code == 0, f"{command}: {result.output}"
