"""What many tests read: the real MovieLens sets where they are, and a tiny simulated split made by the real steps."""

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import settings

from twotower import steps
from twotower.artifact import write_artifact
from twotower.data.prepare import PrepareConfig, prepare
from twotower.data.sources.simulated import SimulatedConfig
from twotower.data.split import SplitConfig, split
from twotower.recipe import Recipe, load_recipe

# Machines are shared and the first call of a compiled function is slow: no test is judged by its time.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

REPOSITORY = Path(__file__).parents[1]

LONGEST_FIRST = (
    "pipeline/test_pipeline_local.py",
    "serving/test_serving_equality.py",
    "test_steps.py",
    "pipeline/test_pipeline_local_ends.py",
    "training/test_training_single_tasks.py",
    "training/test_training_processes.py",
    "training/test_training_variants.py",
    "data/test_data_spark.py",
    "training/test_training_warm_start.py",
    "training/test_training_stream.py",
    "tuning/test_tuning_tune.py",
    "model/test_model_sequence.py",
    "cli/test_cli_path.py",
    "training/test_training_train.py",
    "serving/test_serving_put.py",
    "serving/test_serving_path.py",
    "serving/test_serving_schemathesis.py",
    "pipeline/test_pipeline_compile.py",
    "serving/test_serving_kill.py",
)
"""Files that take ten seconds to minutes. The many short ones come last and fill up whichever worker is free."""


def pytest_configure(config: pytest.Config) -> None:
    """Many tests train the same small model: what one of them compiled, the others and the next session read."""
    cache = getattr(config, "cache", None)  # Gone under `-p no:cacheprovider`.
    compiled = cache.mkdir("compiled") if cache else None
    if compiled is not None:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(compiled))
        # Building the layers alone are some sixty small programs, the same in many processes.
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Workers take files in this order, so that none is left with a long one at the end."""
    place = {REPOSITORY / "tests" / name: place for place, name in enumerate(LONGEST_FIRST)}
    assert all(path.is_file() for path in place), "LONGEST_FIRST names a file that is gone"
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """A directory that one worker makes and all of them read: `made_once(name, make)` calls `make(directory)`."""
    own = tmp_path_factory.getbasetemp()
    common = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def directory_of(name: str, make: Callable[[Path], object]) -> Path:
        directory, done = common / name, common / f"{name}.done"
        with FileLock(common / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(directory, ignore_errors=True)
                make(directory)
                done.touch()
        return directory

    return directory_of


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A bucket behind an HTTP API on loopback; see `s3_api.py`."""
    specification = importlib.util.spec_from_file_location("s3_api", Path(__file__).with_name("s3_api.py"))
    assert specification is not None
    assert specification.loader is not None
    module = sys.modules["s3_api"] = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    yield from module.served(monkeypatch)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of the MovieLens sets, which are never in the repository; a test that needs them skips without."""
    folder = Path(os.environ.get("TWOTOWER_DATA") or REPOSITORY / ".." / "shared" / "data").resolve()
    if not (folder / "ml-100k" / "u.data").is_file():
        pytest.skip(f"no MovieLens in {folder}; set TWOTOWER_DATA to a folder that holds ml-100k and ml-1m")
    return folder


@pytest.fixture(scope="session")
def prepare_into() -> Callable[..., Path]:
    """Runs the real preparation: `prepare_into(directory, config)` gives the prepared directory."""
    return _prepare


@pytest.fixture(scope="session")
def split_into() -> Callable[..., Path]:
    """Runs the real split: `split_into(directory, config, prepared=...)` gives the split directory."""
    return _split


@pytest.fixture(scope="session")
def tiny_prepared(made_once: Callable[..., Path]) -> Path:
    """The prepared directory of a simulated world: 300 users, 200 items, 9,000 interactions."""
    world = SimulatedConfig(users=300, items=200, interactions=9_000, clusters=8)
    config = PrepareConfig(simulated=world, positives="rating >= 3")
    return made_once("tiny-prepared", lambda directory: _prepare(directory, config))


@pytest.fixture(scope="session")
def tiny_split(made_once: Callable[..., Path], tiny_prepared: Path) -> Path:
    """The split directory, by time, of the same world; read it with `load_split`."""
    config = SplitConfig(validation=0.1)
    return made_once("tiny-split", lambda directory: _split(directory, config, prepared=tiny_prepared))


def _prepare(directory: Path, config: PrepareConfig) -> Path:
    metadata: dict[str, Any] = {}
    with write_artifact(directory, kind="prepared", metadata=metadata) as out:
        metadata.update(prepare(config, seed=1, out=out))
    return directory


def _split(directory: Path, config: SplitConfig, *, prepared: Path) -> Path:
    metadata: dict[str, Any] = {}
    with write_artifact(directory, kind="split", metadata=metadata) as out:
        metadata.update(split(config, seed=1, prepared=prepared, out=out))
    return directory


@pytest.fixture(scope="session")
def tiny_recipe() -> Recipe:
    """A recipe with every kind of feature on the tiny world, small enough to train in seconds."""
    return load_recipe(Path(__file__).parent / "tiny.toml")


@pytest.fixture(scope="session")
def tiny_run(made_once: Callable[..., Path], tiny_recipe: Recipe) -> Path:
    """The directory of a whole run of the tiny recipe; tests only read it."""
    return made_once("tiny-run", lambda directory: list(steps.run(tiny_recipe, out=directory)))
