"""The tree keeps its own rules: places, names, examples, pages and locks."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import click
import pytest

from twotower.cli.main import EXTRA_OF, main
from twotower.steps import STEPS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "twotower"
TEXT = {".py", ".md", ".toml", ".txt", ".html", ".json", ".jinja", ".css", ".js", ".yml", ".yaml", ""}
OURS = ("src", "tests", "docs", "benchmarks", "examples", "requirements", "deploy", ".ci", ".github")


def our_files() -> list[Path]:
    below = [path for room in OURS for path in (ROOT / room).rglob("*") if path.is_file()]
    hidden = (".venv", "__pycache__", "results")
    named = (ROOT / "Makefile", ROOT / "Dockerfile")
    return [path for path in (*below, *ROOT.glob("*.*"), *named) if not any(word in str(path) for word in hidden)]


def texts() -> dict[Path, str]:
    return {path: path.read_text(encoding="utf-8") for path in our_files() if path.suffix in TEXT and path.is_file()}


def public_functions(path: Path) -> dict[str, ast.FunctionDef]:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return {node.name: node for node in body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")}


def all_commands() -> dict[str, click.Command]:
    """`twotower X` and `twotower X Y` -> the command."""
    found: dict[str, click.Command] = {}
    for name, command in main.commands.items():
        found[name] = command
        if isinstance(command, click.Group):
            found |= {f"{name} {below}": inner for below, inner in command.commands.items()}
    return found


@pytest.mark.parametrize("name", all_commands())
def test_help_of_every_command_ends_with_an_example_of_it(name: str) -> None:
    text = all_commands()[name].help or ""
    before, found, example = text.partition("Example:")
    assert found, f"{name}: no example"
    assert before.strip()
    lines = re.sub(r"\\\n\s*", "", example).strip().splitlines()
    assert all(line.strip().startswith(f"twotower {name}") for line in lines)


@pytest.mark.parametrize("name", all_commands())
def test_every_option_of_every_command_says_what_it_is_for(name: str) -> None:
    options = [parameter for parameter in all_commands()[name].params if isinstance(parameter, click.Option)]
    assert [option.name for option in options if not option.help] == []


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_a_function_and_a_command_of_one_name_and_the_same_inputs(name: str) -> None:
    arguments = public_functions(PACKAGE / "steps.py")[name].args
    of_step = {argument.arg for argument in (*arguments.args, *arguments.kwonlyargs)}
    command = main.commands[name.replace("_", "-")]
    of_command = {parameter.name for parameter in command.params}
    # The first two make the recipe; these are no inputs.
    aside = {"overrides", "data_dir", "watch", "resume", "processes"}
    if name == "summarize":  # The outcome is what the command is told in words.
        of_step = of_step - {"outcome"} | {"recipe", "run", "state", "error"}
    assert of_command - aside == of_step - aside


def test_steps_components_tasks_and_commands_have_the_same_names() -> None:
    from twotower.pipeline.components import COMPONENTS
    from twotower.pipeline.dress import TITLES

    assert tuple(COMPONENTS) == STEPS
    assert set(TITLES) == set(STEPS)
    assert {name.replace("_", "-") for name in STEPS} <= set(main.commands)
    assert [component.name for component in COMPONENTS.values()] == [name.replace("_", "-") for name in STEPS]
    assert set(STEPS) <= set(public_functions(PACKAGE / "steps.py"))


def test_every_row_of_the_page_on_adding_things_names_files_that_exist() -> None:
    text = (ROOT / "docs" / "add.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:src|tests|docs)/[\w./-]+|[\w-]+\.(?:py|toml))`", text)
    assert len(named) > 15
    assert [name for name in named if not (ROOT / name).exists() and name not in ("dev.py", "__init__.py")] == []


@pytest.mark.parametrize("page", sorted(path.name for path in (ROOT / "docs").glob("*.md")))
def test_source_files_that_a_page_names_exist(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    rooms = "data|model|index|evaluation|training|release|serving|pipeline|cluster|cli"
    named = set(re.findall(rf"`((?:{rooms})/\w+\.py)", text))
    assert sorted(name for name in named if not (PACKAGE / name).is_file()) == []


@pytest.mark.parametrize(
    "room", sorted(str(path.parent.relative_to(PACKAGE)) for path in PACKAGE.glob("*/**/__init__.py"))
)
def test_the_docstring_of_a_room_lists_each_of_its_files(room: str) -> None:
    listing = (PACKAGE / room / "__init__.py").read_text(encoding="utf-8")
    files = [path.name for path in (PACKAGE / room).glob("*.py") if path.name != "__init__.py"]
    rooms = [f"{path.parent.name}/" for path in (PACKAGE / room).glob("*/__init__.py")]
    assert [name for name in files if f"`{name}`" not in listing and f"`{name[:-3]}`" not in listing] == []
    assert [name for name in rooms if f"`{name}`" not in listing] == []


def test_every_room_says_what_it_holds() -> None:
    rooms = {path.parent for path in PACKAGE.rglob("*.py")}
    assert [room.name for room in rooms if not (room / "__init__.py").is_file()] == []


def test_no_file_names_a_registry_host() -> None:
    host = re.compile(
        r"https?://[a-z.-]*(" + "py" + r"(pi|thonhosted)|np" + r"mjs|deb" + r"ian)\.(org|com|net)", re.IGNORECASE
    )
    assert [str(path) for path, text in texts().items() if host.search(text)] == []


def test_no_file_pickles() -> None:
    word = re.compile(r"^\s*(import|from)\s+(cloud)?pick" + r"le|allow_pick" + r"le\s*=\s*True", re.MULTILINE)
    assert [str(path) for path, text in texts().items() if path.suffix == ".py" and word.search(text)] == []


def test_test_files_have_names_of_their_own() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names))


def imported_after(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(*(name for name in sys.modules if '.' not in name))"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(finished.stdout.split())


def test_the_command_line_loads_nothing_heavy_before_a_command_is_called() -> None:
    heavy = {"numpy", "pyarrow", "pydantic", "rich", "onnxruntime", "faiss", *EXTRA_OF}
    assert imported_after("import twotower.cli.main") & heavy == set()


def test_serving_loads_nothing_that_trains() -> None:
    loaded = imported_after("import twotower.serving.http")
    assert {"onnxruntime", "fastapi"} <= loaded
    others = {name for name, extra in EXTRA_OF.items() if extra != "serve"}
    assert loaded & {*others, "tensorflow"} == set()


def test_a_task_that_only_looks_something_up_loads_no_engine() -> None:
    loaded = imported_after("import twotower.pipeline.inside, twotower.release.registry, twotower.evaluation.gate")
    assert loaded & {"ibis", "duckdb", "altair", "faiss", "onnxruntime", "scipy", "keras", "jax"} == set()


def project() -> dict[str, list[str]]:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {"core": table["dependencies"], **table["optional-dependencies"]}


def distribution(requirement: str) -> str:
    name = re.match(r"[\w.-]+", requirement)
    assert name is not None
    return name[0].lower().replace("_", "-")


def test_every_module_of_an_extra_names_its_extra_where_it_is_missing() -> None:
    installed = packages_distributions()
    ours = {extra: named for extra, named in project().items() if extra != "tensorflow"}  # Of another environment.
    of_extras = {distribution(requirement): extra for extra, named in ours.items() for requirement in named}
    told = {name: of_extras.get(distribution(installed[name][0])) for name in EXTRA_OF}
    # A package of the client's own that kfp brings along and we import by name.
    assert told | {"kfp_server_api": "pipeline"} == EXTRA_OF
    needed = {distribution(named) for extra in ("train", "serve", "pipeline") for named in project()[extra]}
    # kfp-kubernetes lives in kfp's own folder, `kfp.kubernetes`.
    assert needed - {"kfp-kubernetes"} <= {distribution(installed[name][0]) for name in EXTRA_OF}


@pytest.mark.parametrize("name", ["dev", "tensorflow"])
def test_the_lock_holds_every_dependency_with_hashes_and_no_host(name: str) -> None:
    lock = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    entries = re.split(r"\n(?=\S)", lock.strip())
    locked = {distribution(entry) for entry in entries}
    # TensorFlow wants older libraries than all else, so that it stands in a lock of its own.
    apart = {
        extra: named
        for extra, named in project().items()
        if extra == "core" or (extra == "tensorflow") == (name == "tensorflow")
    }
    assert {distribution(requirement) for named in apart.values() for requirement in named} <= locked
    assert [entry.splitlines()[0] for entry in entries if "--hash=sha256:" not in entry] == []
    assert "://" not in lock


def test_the_page_on_the_recipe_is_what_the_source_says() -> None:
    command = [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
