"""Several processes learn what one does, and end together: real processes, real kills."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twotower.errors import TrainingError
from twotower.training.checkpoints import _read_rows
from twotower.training.distributed import Rows, joined
from twotower.training.launch import FAULT, _culprit, _free_port, launch, launch_training

RECIPE = Path(__file__).with_name("processes.toml")
LOSSES = ("loss", "retrieval", "rating", "validation_ndcg@10")
LONG = ("--set", "train.epochs=2000")
pytestmark = pytest.mark.skipif(os.name == "nt", reason="on Windows a training has one process")


def command(split: Path, out: Path, *options: str) -> list[str]:
    return [
        *(sys.executable, "-m", "twotower", "train", str(RECIPE), "--split", str(split), "--out", str(out)),
        *options,
    ]


def trained(split: Path, out: Path, *options: str) -> list[dict[str, Any]]:
    """The history of a training that ended well."""
    subprocess.run(command(split, out, *options), check=True, capture_output=True)
    history: list[dict[str, Any]] = json.loads((out / "history.json").read_text(encoding="utf-8"))
    return history


def curve(history: Sequence[dict[str, Any]]) -> list[float]:
    return [entry[name] for entry in history for name in LOSSES]


def workers_of(launcher: int) -> list[int]:
    """The launcher's workers, in their order."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except FileNotFoundError:
            continue
        if parent == launcher:
            found.append(int(stat.parent.name))
    return sorted(found)


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(processes: Sequence[int], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while any(map(is_alive, processes)):
        assert time.monotonic() < end, "a worker stays"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def alone(tiny_split: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What one process learns."""
    return trained(tiny_split, tmp_path_factory.mktemp("alone") / "model")


def test_two_workers_learn_what_one_process_does(
    alone: Any, tiny_split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: Any
) -> None:
    kept = tmp_path_factory.mktemp("kept")
    monkeypatch.setenv("TWOTOWER_CACHE", str(kept))
    together = trained(tiny_split, tmp_path / "model", "--processes", "2")
    assert curve(together) == pytest.approx(curve(alone), abs=1e-3)
    assert [path.name for path in tmp_path.iterdir()] == ["model"], "workers leave nothing beside the model"
    assert not list(kept.iterdir()), "what reaches over processes is compiled anew each time"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the workers in /proc")
def test_a_killed_worker_ends_the_job_and_one_process_goes_on_from_its_checkpoint(
    alone: Any, tiny_split: Path, tmp_path: Path
) -> None:
    out, checkpoint = tmp_path / "model", tmp_path / "model.checkpoint"
    launcher = subprocess.Popen(
        command(tiny_split, out, "--processes", "2", *LONG), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not (checkpoint / "position.json").is_file():
        assert launcher.poll() is None, launcher.communicate()[1]
        time.sleep(0.01)
    workers = workers_of(launcher.pid)
    os.kill(workers[1], signal.SIGKILL)
    fault = launcher.communicate()[1].splitlines()[-1]
    assert launcher.returncode == 2
    assert fault.startswith("Error: train: worker 2 of 2 was killed (SIGKILL")
    assert fault.endswith("The checkpoint is kept: go on with --resume.")
    wait_until_gone(workers)
    # The same run, but for the number of processes; the epochs that it was killed in are among those of `alone`.
    position = json.loads((checkpoint / "position.json").read_text(encoding="utf-8"))
    begun = len(position["history"])
    stopped = subprocess.Popen(command(tiny_split, out, "--resume", *LONG), stderr=subprocess.PIPE, text=True)
    assert stopped.stderr is not None
    first = stopped.stderr.readline()
    stopped.kill()
    stopped.communicate()
    assert first.startswith(f"epoch {begun + 1}/2000"), first
    if begun < len(alone):
        loss = first.partition("  loss ")[2].split()[0]
        assert float(loss) == pytest.approx(alone[begun]["loss"], abs=1e-3)


@pytest.mark.slow
def test_a_checkpoint_of_four_goes_on_in_one_and_in_two(alone: Any, tiny_split: Path, tmp_path: Path) -> None:
    generator = random.Random(0)
    for processes in ("1", "2", "4"):
        out = tmp_path / processes / "model"
        for killed in range(3):
            launcher = subprocess.Popen(
                command(tiny_split, out, "--processes", "4", "--resume"), stderr=subprocess.PIPE, text=True
            )
            checkpoint = out.with_name("model.checkpoint") / "position.json"
            while not checkpoint.is_file() and launcher.poll() is None:
                time.sleep(0.01)
            time.sleep(generator.uniform(0.0, 0.3))
            if workers := workers_of(launcher.pid):
                os.kill(workers[generator.randrange(len(workers))], signal.SIGKILL)
            launcher.communicate()
            wait_until_gone(workers)
            if not checkpoint.is_file():
                assert killed, "the first kill falls on a training"
                break
        assert curve(trained(tiny_split, out, "--processes", processes, "--resume")) == pytest.approx(
            curve(alone), abs=1e-3
        )


@pytest.mark.slow
def test_two_nodes_with_the_variables_of_kubeflow_trainer_join_by_themselves(
    alone: Any, tiny_split: Path, tmp_path: Path
) -> None:
    # As its JAX runtime sets them; each node has a disk of its own.
    job = os.environ | {"JAX_NUM_PROCESSES": "2", "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{_free_port()}"}
    nodes = [
        subprocess.Popen(command(tiny_split, tmp_path / number / "model"), env=job | {"JAX_PROCESS_ID": number})
        for number in ("0", "1")
    ]
    assert [node.wait() for node in nodes] == [0, 0]
    history = json.loads((tmp_path / "0" / "model" / "history.json").read_text(encoding="utf-8"))
    assert curve(history) == pytest.approx(curve(alone), abs=1e-3)
    assert not (tmp_path / "1" / "model").exists(), "the first node writes"


@pytest.mark.slow
def test_a_step_on_two_devices_carries_no_table(tiny_split: Path) -> None:
    script = Path(__file__).with_name("dealt_out.py")
    told = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | {"SPLIT": str(tiny_split), "RECIPE": str(RECIPE)},
        check=True,
        capture_output=True,
        text=True,
    )
    found = json.loads(told.stdout.splitlines()[-1])
    assert (found["devices"], found["survives"]) == (2, True)
    even, uneven = found["refusals"]
    assert even == ""
    assert uneven.startswith("train.batch_size: batches of 7 cannot be dealt out evenly to 2 devices of 1 processes")
    assert found["carried"], "the devices do work together"
    assert not set(found["carried"]) & set(found["tables"])


@pytest.mark.slow
def test_the_first_of_two_gathers_a_whole_table_piece_by_piece(tmp_path: Path) -> None:
    table = np.arange(23 * 3, dtype=np.float32).reshape(23, 3)
    body = f"""
    import numpy as np
    import twotower.training.distributed as distributed
    distributed.PIECE = 5
    with distributed.joined():
        table = np.arange(23 * 3, dtype=np.float32).reshape(23, 3)
        own = distributed.take_home(distributed.deal_rows(table), rows=23)
        found = distributed.gather_tables({{'table': own}})
        if first:
            np.save({str(tmp_path / "found.npy")!r}, found['table'])
        else:
            assert not found
    """
    launch([sys.executable, "-c", PRELUDE + body], 2, folder=tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / "found.npy"), table)


# Checkpoints


@given(st.data())
def test_rows_written_in_any_parts_are_read_in_any_others(data: st.DataObject) -> None:
    total = data.draw(st.integers(1, 40))
    table = np.arange(total * 2, dtype=np.float32).reshape(total, 2)
    cuts = sorted(data.draw(st.sets(st.integers(1, total))))
    stored = {begin: (lambda part=part: part) for begin, part in zip([0, *cuts], np.split(table, cuts), strict=True)}
    start = data.draw(st.integers(0, total))
    stop = data.draw(st.integers(start, total))

    found = _read_rows(Rows(np.zeros_like(table[start:stop]), start, total), stored)

    assert np.array_equal(found.values, table[start:stop])
    assert (found.start, found.total) == (start, total)


# The launcher, with workers that compute nothing

PRELUDE = """
import os, signal, sys, time
from twotower.errors import RecipeError
from twotower.training.launch import as_worker
first = os.environ["JAX_PROCESS_ID"] == "0"
with as_worker():
"""


def worker(body: str) -> list[str]:
    return [sys.executable, "-c", PRELUDE + f"    {body}"]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("time.sleep(60 * first); os.kill(os.getpid(), signal.SIGKILL)", r"worker 2 of 2 was killed \(SIGKILL"),
        ("time.sleep(60 * first); os.abort()", r"worker 2 of 2 was killed \(SIGABRT\); the others were stopped"),
        ("time.sleep(60 * first); {}['row']", r"worker 2 of 2 failed \(KeyError: 'row'\)"),
        (
            "fault = ValueError('too wide'); fault.add_note('Left out.'); time.sleep(60 * first); raise fault",
            r"worker 2 of 2 failed \(ValueError: too wide\)",
        ),
        ("time.sleep(60 * first); sys.exit(3)", r"worker 2 of 2 failed \(SystemExit: 3\)"),
        ("raise RecipeError('model: not so. Do this.')", r"^model: not so\. Do this\.$"),
    ],
)
def test_how_a_worker_ended_is_told_in_one_line(body: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=told) as caught:
        launch(worker(body), 2, folder=tmp_path)
    assert "\n" not in str(caught.value)


def test_the_killed_worker_is_named_though_another_that_misses_it_was_seen_to_fail_before() -> None:
    ends = ("os.kill(os.getpid(), signal.SIGTERM)", "sys.exit(1)", "os.abort()", f"sys.exit({FAULT})")
    workers = [subprocess.Popen([sys.executable, "-c", f"import os, signal, sys; {end}"]) for end in ends]
    for each in workers:
        each.wait()
    assert [_culprit(number, workers) for number in range(4)] == [0, 0, 0, 3]
    assert [_culprit(number, workers[1:]) for number in range(3)] == [0, 1, 2]


def test_workers_that_end_well_end_the_launch(tmp_path: Path) -> None:
    body = f"open(os.path.join({str(tmp_path)!r}, 'of-' + os.environ['JAX_PROCESS_ID']), 'w').close()"
    launch(worker(body), 3, folder=tmp_path)
    assert sorted(path.name for path in tmp_path.glob("of-*")) == ["of-0", "of-1", "of-2"]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the workers in /proc")
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_no_worker_outlives_its_launcher(name: str, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from twotower.training.launch import launch; "
        f"launch({worker('time.sleep(60)')!r}, 3, folder=Path({str(tmp_path)!r}))"
    )
    launcher = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    while len(workers := workers_of(launcher.pid)) < 3:
        time.sleep(0.02)
    time.sleep(0.2)
    launcher.send_signal(signal.Signals[name])
    launcher.wait()
    wait_until_gone(workers)


def test_a_worker_for_which_there_is_no_device_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    body = "from twotower.training.distributed import joined; joined().__enter__()"
    with pytest.raises(TrainingError, match=r"^process [01] of 2 finds no device of its own: .*JAX_PLATFORMS=cpu\.$"):
        launch(worker(body), 2, folder=tmp_path)


def test_what_the_command_line_chose_is_not_overridden_anew_in_a_worker(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TWOTOWER__TRAIN__EPOCHS", "7")
    launch(worker("assert 'TWOTOWER__TRAIN__EPOCHS' not in os.environ"), 1, folder=tmp_path)


def test_a_job_without_a_checkpoint_is_not_told_to_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONHOME", str(tmp_path))  # No interpreter starts.
    with pytest.raises(TrainingError, match=r"worker \d of 2 .*No checkpoint was written: begin anew\.$"):
        launch_training("", split="nowhere", out=str(tmp_path / "model"), processes=2)


# A cluster's variables


def test_a_variable_that_is_no_number_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(TrainingError, match="JAX_NUM_PROCESSES = 'two' in the environment is no number"), joined():
        pass


def test_variables_that_do_not_belong_together_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.delenv("JAX_PROCESS_ID", raising=False)
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "films-node-0-0.films:29500")
    with pytest.raises(TrainingError, match="JAX_NUM_PROCESSES = 2, but JAX_PROCESS_ID is not set"), joined():
        pass
