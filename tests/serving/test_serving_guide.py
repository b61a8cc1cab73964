"""The lines of docs/serving.md and of the README's part on HTTP work as printed, one after the other."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
OVER_HTTP = README.partition("## Over HTTP\n")[2].partition("\n## ")[0]

pytestmark = pytest.mark.skipif(
    os.name == "nt" or shutil.which("curl") is None, reason="the lines are a POSIX shell's, with curl"
)


def blocks(page: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    return [block for language, block in found if language != "python"]


def commands(page: str, program: str) -> list[str]:
    """The page's lines that run a program; one goes on to the next line at a backslash or within quotes."""
    found: list[str] = []
    for block in blocks(page):
        whole = ""
        for line in block.splitlines():
            whole = f"{whole}\n{line}" if whole else line
            if not line.endswith("\\") and whole.count("'") % 2 == 0:
                found.append(whole)
                whole = ""
        assert not whole
    return [line for line in found if line.removeprefix(".venv/bin/").startswith(f"{program} ")]


@pytest.fixture(scope="module")
def server(tiny_run: Path, start_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("started")
    (folder / "runs").mkdir()
    shutil.copytree(tiny_run, folder / "runs" / "simulated")
    with start_server("runs/simulated/bundle", cwd=folder) as started:  # The store is the default one.
        yield started


def adapted(text: str, server: Any) -> str:
    """The tiny world has a name of its own, and fewer users and items than the one that the pages speak of."""
    text = text.replace("localhost:8000", server.url.removeprefix("http://"))
    text = text.replace("localhost:8001", server.admin_url.removeprefix("http://"))
    text = text.replace("models/simulated", "models/tiny")
    return re.sub(r'"(\d+)"', lambda found: f'"{int(found[1]) % 200 + 1}"', text)


@pytest.mark.parametrize("page", ["docs/serving.md", "README.md"])
def test_every_curl_line_is_answered(server: Any, page: str) -> None:
    lines = commands(GUIDE if page == "docs/serving.md" else OVER_HTTP, "curl")
    assert len(lines) >= (20 if page == "docs/serving.md" else 1)
    for line in lines:
        told = subprocess.run(
            ["sh", "-c", f"{adapted(line, server)} --write-out '\\n%{{http_code}}'"],
            env=os.environ | {"KEY": "none is needed here"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        body, _, status = told.rpartition("\n")
        assert status == "200", f"{line}\n{body}"
        if "/metrics" not in line:
            answer = json.loads(body)
            assert answer.get("items") != [], line


def test_the_python_of_the_guide_runs(server: Any) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(adapted(block, server), names)
    assert len(names["answer"].items) == 5


def test_the_names_that_the_guide_gives_to_figures_are_there(server: Any) -> None:
    figures = subprocess.run(["curl", "-s", f"{server.url}/metrics"], capture_output=True, text=True, check=True).stdout
    named = re.findall(r"`(twotower_\w+)`", GUIDE)
    assert len(named) == 5
    assert [name for name in named if f"# TYPE {name.removesuffix('_total')}" not in figures] == []


def test_the_limits_of_the_guide_are_the_server_s(server: Any) -> None:
    told = subprocess.run(["curl", "-s", f"{server.url}/v1/info"], capture_output=True, text=True, check=True).stdout
    limits = json.loads(told)["limits"]
    table = GUIDE.partition("## Limits")[2].partition("## ")[0]
    for name in ("k", "history", "exclude", "batch", "writes", "filter"):
        assert f"{limits[name]:,}" in table


def test_the_commands_of_the_guide_have_the_options_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    from twotower.cli.main import main

    monkeypatch.chdir(tmp_path)
    lines = commands(GUIDE, "twotower")
    assert len(lines) == 4
    for line in lines:
        _, *words = line.split()
        if words[0] == "keys":
            result = CliRunner().invoke(main, words)
            assert (result.exit_code, result.stderr) == (0, ""), line
        else:
            known = {option for parameter in main.commands[words[0]].params for option in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= known
