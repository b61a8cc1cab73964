"""Everything a developer types, with nothing installed but Python: `python dev.py TASK`.

The first call makes `.venv` from the hashed lock in `requirements/`; a later one finds it and starts at once. Nothing
outside the standard library is imported here, and nothing newer than Python 3.6 is written above the version check.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - reached before anything is installed
    sys.exit(
        "twotower needs Python 3.11 or newer, this is {}.{}: name another one, as in "
        "`make test PYTHON=python3.12`.".format(*sys.version_info[:2])
    )

import hashlib
import os
import re
import shutil
import subprocess
import time
import venv
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")
LOCK = ROOT / "requirements" / "dev.txt"
PIP = (str(PYTHON), "-m", "pip", "install", "-qq", "--disable-pip-version-check")


def main() -> int:
    """Run one task; its exit status is ours. What follows the task's name is handed on to the tool behind it."""
    tasks: dict[str, Callable[[list[str]], int]] = {
        "run": run,
        "test": test,
        "test-slow": test_slow,
        "test-docker": test_docker,
        "test-browser": test_browser,
        "test-tensorflow": test_tensorflow,
        "check": check,
        "bench": bench,
        "docs": docs,
        "lock": lock,
        "clean": clean,
    }
    name, *rest = sys.argv[1:] or ["--help"]
    if name not in tasks:
        width = max(map(len, tasks))
        lines = (f"  {task:{width}}  {function.__doc__}".splitlines()[0] for task, function in tasks.items())
        print("python dev.py TASK [ARGUMENTS]", "", *lines, sep="\n")
        return 0 if name in ("-h", "--help") else 2
    os.chdir(ROOT)
    if name not in ("lock", "clean"):
        set_up()
    return tasks[name](rest)


def run(rest: list[str]) -> int:
    """The pipeline on the embedded data: `twotower pipeline run --local`, with its arguments."""
    return execute(PYTHON, "-m", "twotower", "pipeline", "run", "--local", *rest)


def test(rest: list[str]) -> int:
    """Every test, on all processors; with arguments, what they tell pytest."""
    return execute(PYTHON, "-m", "pytest", *(rest or ["-n", "auto", "--dist", "loadfile", "--no-loadscope-reorder"]))


def test_slow(rest: list[str]) -> int:
    """The tests that take minutes, which `test` leaves out."""
    return execute(PYTHON, "-m", "pytest", "-m", "slow", *rest)


def test_docker(rest: list[str]) -> int:
    """The tests that build and run the images; they skip, with the reason, where no Docker engine can be had."""
    return execute(PYTHON, "-m", "pytest", "-m", "docker", "-rs", *rest)


def test_browser(rest: list[str]) -> int:
    """The tests of the page in a real Chromium; they skip, with the reason, where there is none."""
    return execute(PYTHON, "-m", "pytest", "-m", "browser", "-rs", *(rest or ["tests/browser"]))


def test_tensorflow(rest: list[str]) -> int:
    """The tests of the SavedModel, in an environment with TensorFlow, which the first of them makes (1.7 GB)."""
    return execute(PYTHON, "-m", "pytest", "-m", "tensorflow", "-rs", *rest)


def docs(rest: list[str]) -> int:
    """Write the generated pages; with --check, only say whether they are up to date."""
    return execute(PYTHON, "docs/generate.py", *rest) or execute(PYTHON, "benchmarks/quality/page.py", *rest)


def set_up() -> None:
    """Make `.venv` hold exactly what the lock says and this package; at once where it does already."""
    stamp = VENV / "set-up.sha256"
    wanted = _fingerprint()
    if PYTHON.exists() and stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return
    start = time.monotonic()
    _say("Setting up .venv from requirements/dev.txt; this happens once and takes a minute or two.")
    stamp.unlink(missing_ok=True)
    if not PYTHON.exists():
        _make_venv()
    # Compiling every module ahead would take longer than the few that a run imports take to compile themselves.
    _install("--no-compile", "--require-hashes", "-r", str(LOCK))
    _install("--no-index", "--no-deps", "--no-build-isolation", "-e", str(ROOT))
    stamp.write_text(wanted, encoding="utf-8")
    _say(f"Set up in {time.monotonic() - start:.0f} s.")


def _fingerprint() -> str:
    """What the environment depends on: the lock, the package's own metadata, and where the checkout lies."""
    digest = hashlib.sha256(str(ROOT).encode())
    for path in (LOCK, ROOT / "pyproject.toml"):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _make_venv() -> None:
    try:
        venv.create(VENV, with_pip=True, clear=True)
    except (subprocess.CalledProcessError, OSError) as fault:
        shutil.rmtree(VENV, ignore_errors=True)
        sys.exit(f"{sys.executable} cannot make a virtual environment ({fault}). On Debian: apt install python3-venv.")


def _install(*arguments: str) -> None:
    if status := execute(*PIP, *arguments):
        sys.exit(status)


def check(_: list[str]) -> int:
    """Every check that is not a test: ruff, mypy, import-linter, generated pages. One call shows all faults."""
    steps = {
        "ruff check": (PYTHON, "-m", "ruff", "check", "--quiet"),
        "ruff format": (PYTHON, "-m", "ruff", "format", "--check", "--quiet"),
        "mypy": (PYTHON, "-m", "mypy", "--no-error-summary"),
        "import-linter": (BIN / "lint-imports", "--no-logo"),
        "generated pages": (PYTHON, "docs/generate.py", "--check"),
        "quality page": (PYTHON, "benchmarks/quality/page.py", "--check"),
    }
    failed = []
    for name, command in steps.items():
        start = time.monotonic()
        if execute(*command):
            failed.append(name)
        _say(f"{name}: {'FAILED' if name in failed else 'passed'} in {time.monotonic() - start:.1f} s")
    return 1 if failed else 0


def bench(rest: list[str]) -> int:
    """One measurement, `bench NAME`, whose last line is the result; without a name, what there is."""
    return execute(PYTHON, "benchmarks/run.py", *rest)


def lock(_: list[str]) -> int:
    """Resolve anew: the newest versions that pyproject.toml allows, one for every Python, with hashes."""
    tools = ROOT / "build" / "lock-venv"
    uv = tools / BIN.name / ("uv.exe" if os.name == "nt" else "uv")
    if not uv.exists():
        venv.create(tools, with_pip=True, clear=True)
        if status := execute(tools / BIN.name / PYTHON.name, *PIP[1:], "uv"):
            return status
    for_all = ("--universal", "--python-version", "3.11", "--fork-strategy", "fewest", "--upgrade", "--quiet")
    bare = ("--generate-hashes", "--no-annotate", "--no-header", "--no-emit-index-url")
    # The images take what the tests ran with: their locks follow from the first.
    same = ("--constraint", LOCK)
    build = ROOT / "build" / "build.in"
    build.write_text("hatchling>=1.27\n", encoding="utf-8")
    layers = ROOT / "build" / "layers.in"
    tested = ("train", "serve", "client", "postgres", "telemetry", "pipeline", "tune", "spark", "scann", "dev")
    for name, what in (
        (LOCK.name, _extras(*tested)),
        ("serve.txt", (*_extras("serve"), *same)),
        ("pipeline.txt", (*_extras("train", "serve", "pipeline"), *same)),
        ("build.txt", (build, *same)),
        ("tensorflow.txt", (*_extras("tensorflow"), "--constraint", layers)),
    ):
        if name == "tensorflow.txt":  # TensorFlow holds other libraries back; what computes our layers is the same.
            pinned = re.findall(r"^(?:keras|keras-rs|numpy)==\S+", LOCK.read_text(encoding="utf-8"), re.MULTILINE)
            layers.write_text("\n".join(pinned) + "\n", encoding="utf-8")
        if status := execute(uv, "pip", "compile", *what, "--output-file", LOCK.with_name(name), *for_all, *bare):
            return status
    return 0


def _extras(*names: str) -> tuple[str, ...]:
    """The package with some of its extras, as uv takes it."""
    return ("pyproject.toml", *(part for name in names for part in ("--extra", name)))


def clean(_: list[str]) -> int:
    """Remove .venv and every cache; runs/ is yours and stays."""
    for name in (".venv", "build", "dist", *(f".{tool}_cache" for tool in ("mypy", "ruff", "pytest", "import_linter"))):
        shutil.rmtree(ROOT / name, ignore_errors=True)
    for room in ("src", "tests", "docs"):
        for cache in list((ROOT / room).rglob("__pycache__")):
            shutil.rmtree(cache)
    return 0


def execute(*command: object) -> int:
    """Run a command in the foreground; Ctrl-C is the command's to answer."""
    try:
        return subprocess.run([str(part) for part in command], cwd=ROOT, check=False).returncode
    except KeyboardInterrupt:
        return 130


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
