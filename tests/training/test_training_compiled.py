"""Compiled programs are kept between processes, for their owner alone, and within a bound."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from twotower.training import compiled
from twotower.training.compiled import compiled_folder, forget_oldest, is_private, keep_compiled

COMPILES = """
import collections, json
import jax, jax.numpy as jnp
from twotower.training.compiled import keep_compiled
counts = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: counts.update([name.rpartition("/")[2]]))
folder = keep_compiled()
value = float(jax.jit(lambda x: jnp.sin(x).sum())(jnp.arange(8.0)))
print(json.dumps([folder and str(folder), counts["cache_hits"], counts["cache_misses"], value]))
"""


def compile_in_a_process(cache: str, **variables: str) -> tuple[str | None, int, int, float]:
    unset = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    inherited = {name: value for name, value in os.environ.items() if name not in unset}
    ran = subprocess.run(
        [sys.executable, "-c", COMPILES],
        env=inherited | {compiled.VARIABLE: cache} | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    folder, hits, misses, value = json.loads(ran.stdout)
    return folder, hits, misses, value


def test_what_one_process_compiled_the_next_one_finds_and_a_damaged_one_is_compiled_again(tmp_path: Path) -> None:
    folder, hits, misses, value = compile_in_a_process(str(tmp_path))
    assert folder is not None
    assert Path(folder).parent == tmp_path / "compiled"
    assert hits == 0
    assert misses > 0
    assert compile_in_a_process(str(tmp_path)) == (folder, misses, 0, value)
    for file in Path(folder).rglob("*-cache"):
        file.write_bytes(file.read_bytes()[:20])
    assert compile_in_a_process(str(tmp_path))[3] == value


def test_a_folder_that_jax_was_told_stays_its_own(tmp_path: Path) -> None:
    own = tmp_path / "own"
    assert compile_in_a_process(str(tmp_path), JAX_COMPILATION_CACHE_DIR=str(own))[0] is None
    assert not (tmp_path / "compiled").exists()


def test_nothing_is_kept_where_the_variable_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compiled.VARIABLE, "")
    assert keep_compiled() is None


def test_a_home_that_cannot_be_written_is_no_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(compiled.VARIABLE, str(tmp_path / "file"))
    assert compiled_folder() is None


@pytest.mark.skipif(os.name == "nt", reason="rights are told otherwise there")
def test_a_folder_that_others_can_write_is_not_read_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(compiled.VARIABLE, str(tmp_path))
    folder = compiled_folder()
    assert folder is not None
    assert is_private(folder)
    folder.chmod(0o777)
    assert compiled_folder() is None


def test_what_was_not_read_for_longest_goes_first(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    for age, (name, size) in enumerate({"new": 3, "below/middle": 3, "old": 3, "stopped": 0}.items()):
        (tmp_path / name).write_bytes(b"x" * size)
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    os.utime(tmp_path / "old", (2000, 997))  # Written first of all, but read last.
    forget_oldest(tmp_path, most=6)
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["new", "old"]
