"""The benchmarks' names and keys are an interface: others read the last line of each."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"


def dispatch(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(BENCHMARKS / "run.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def listing() -> dict[str, str]:
    """Name -> keys, as the dispatcher lists them when it is given no name."""
    found = dispatch()
    assert found.returncode == 0, found.stderr
    return dict(line.split(": ") for line in found.stdout.splitlines())


def test_the_readme_and_the_dispatcher_name_the_same_benchmarks_and_keys(listing: dict[str, str]) -> None:
    readme = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    assert dict(re.findall(r"^\| `([a-z0-9-]+)` \| `([a-z0-9_ ]+)` \|", readme, flags=re.MULTILINE)) == listing


def test_every_benchmark_has_a_section_in_the_readme_or_on_the_page_on_quality(listing: dict[str, str]) -> None:
    readme = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    quality = (ROOT / "docs" / "quality.md").read_text(encoding="utf-8")
    told = re.findall(r"^## ([a-z0-9-]+): ", readme, flags=re.MULTILINE)
    told += re.findall(r"^## (quality-[a-z0-9-]+)$", quality, flags=re.MULTILINE)
    assert sorted(told) == sorted(listing)


def test_an_unknown_name_is_refused_with_the_known_ones(listing: dict[str, str]) -> None:
    found = dispatch("speed-of-light")
    assert (found.returncode, found.stdout) == (2, "")
    assert all(name in found.stderr for name in listing)


def test_a_benchmark_says_what_it_takes_without_running(listing: dict[str, str]) -> None:
    for name in listing:
        found = dispatch(name, "--help")
        assert found.returncode == 0, found.stderr
        assert f"run.py {name}" in found.stdout


def test_the_lock_of_the_peer_has_a_hash_for_every_package_and_names_no_host() -> None:
    lock = (BENCHMARKS / "tfrs" / "requirements.txt").read_text(encoding="utf-8")
    packages = re.findall(r"^\S+==\S+.*(?:\n    --hash=sha256:[0-9a-f]{64}.*)*", lock, flags=re.MULTILINE)
    assert len(packages) == len(re.findall(r"^[^\s#]", lock, flags=re.MULTILINE)) > 20
    assert all("--hash=sha256:" in package for package in packages)
    assert "://" not in lock
    for pin in (BENCHMARKS / "tfrs" / "requirements.in").read_text(encoding="utf-8").split():
        assert f"\n{pin}" in f"\n{lock}"
