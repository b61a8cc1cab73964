"""The machine goes away: `kill -9` at random moments, then `--resume`."""

import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from twotower.artifact import read_manifest

KILLS = 20
SETTINGS = ("--set", "train.epochs=12", "--set", "train.checkpoint_steps=5", "--set", "train.steps_per_call=5")


def command(split: Path, out: Path, *, memory_rows: int) -> list[str]:
    recipe = Path(__file__).parents[1] / "tiny.toml"
    return [
        sys.executable,
        "-m",
        "twotower",
        "train",
        str(recipe),
        *SETTINGS,
        "--set",
        f"train.memory_rows={memory_rows}",
        "--split",
        str(split),
        "--out",
        str(out),
        "--resume",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("memory_rows", [20_000_000, 3_000], ids=["in memory", "streamed"])
def test_twenty_kills_at_random_moments_end_in_the_same_weights(
    tiny_split: Path, tmp_path: Path, memory_rows: int
) -> None:
    run = partial(command, tiny_split, memory_rows=memory_rows)
    # Compiled programs are kept between the processes: most of each one's life is then training.
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    whole = tmp_path / "whole" / "model"
    for directory in ("warm-up", "whole"):
        began = time.monotonic()
        subprocess.run(run(tmp_path / directory / "model"), check=True, env=environment, capture_output=True)
        seconds = time.monotonic() - began
    killed = tmp_path / "killed" / "model"
    generator = random.Random(0)
    positions = set[str]()
    for _ in range(KILLS):
        process = subprocess.Popen(run(killed), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(generator.uniform(0.3 * seconds, 0.9 * seconds))
        if process.poll() is not None:  # Done before the kill fell: begin another one.
            assert process.returncode == 0
            assert read_manifest(killed, kind="model")["files"] == read_manifest(whole, kind="model")["files"]
            killed = killed.parent.with_name(f"killed-{len(positions)}") / "model"
            continue
        process.send_signal(signal.SIGKILL)
        process.wait()
        checkpoint = killed.with_name("model.checkpoint") / "position.json"
        positions.add(checkpoint.read_text(encoding="utf-8") if checkpoint.is_file() else "")
    assert len(positions) > 2, "the kills fell at several points of the training"
    subprocess.run(run(killed), check=True, env=environment, capture_output=True)
    assert read_manifest(killed, kind="model")["files"] == read_manifest(whole, kind="model")["files"]
