"""What can be told of the images without Docker: the Dockerfile's own rules, and that the locks agree."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
LOCKS = ("serve", "pipeline", "build")


def locked(name: str) -> dict[str, str]:
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    return dict(re.findall(r"^([\w.-]+)==(\S+)", text, flags=re.MULTILINE))


def declared(*extras: str) -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    return {re.split(r"[^\w.-]", line)[0].lower().replace("_", "-") for line in named}


@pytest.mark.parametrize("name", LOCKS)
def test_an_image_gets_the_versions_that_the_tests_ran_with(name: str) -> None:
    tested = locked("dev")
    assert {package: version for package, version in locked(name).items() if tested.get(package) != version} == {}


@pytest.mark.parametrize("name", LOCKS)
def test_the_lock_of_an_image_has_hashes_and_names_no_host(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    entries = re.split(r"\n(?=\S)", text.strip())
    assert [entry.splitlines()[0] for entry in entries if "--hash=sha256:" not in entry] == []
    assert "://" not in text


def test_the_locks_hold_what_the_images_need_and_serving_no_more() -> None:
    assert declared("serve") <= locked("serve").keys()
    assert declared("train", "serve", "pipeline") <= locked("pipeline").keys()
    assert locked("serve").keys() & (declared("train", "pipeline") - declared("serve")) == set()


def test_the_builder_of_the_images_has_to_pull_nothing_but_the_base() -> None:
    assert re.search(r"^#\s*syntax", DOCKERFILE, re.MULTILINE) is None
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE)
    known = {"${BASE}", *(name for _, name in stages)}
    assert {base for base, _ in stages} <= known
    assert {"serve", "pipeline"} <= known


def test_what_the_package_is_built_from_reaches_the_builder_and_data_do_not() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    allowed = {line[1:] for line in lines if line.startswith("!")}
    assert "*" in lines
    assert {"src", "pyproject.toml", "README.md", "LICENSE", "requirements"} <= allowed
    assert allowed & {"runs", "tests", "shared", "build", ".git", ".venv"} == set()
