"""A played Kubeflow Pipelines server, and a small pipeline to send to it."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

IMAGE = "twotower-pipeline:test"


def _load(name: str, path: Path) -> ModuleType:
    """Test files are imported by path, and so is what they share."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


kfp_api = _load("kfp_api", Path(__file__).with_name("kfp_api.py"))
"""The test files import it by its name, as they do the others."""
_load("local_runs", Path(__file__).with_name("local_runs.py"))
_load("kube_api", Path(__file__).parents[1] / "release" / "kube_api.py")


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The server, out of reach of the settings that kfp keeps in a home folder, and of a developer's own cluster."""
    import kfp

    monkeypatch.setattr(kfp.Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    for name in ("KF_PIPELINES_ENDPOINT", "KF_PIPELINES_UI_ENDPOINT", "TWOTOWER_KFP_TOKEN", "TWOTOWER_KFP_COOKIE"):
        monkeypatch.delenv(name, raising=False)
    with kfp_api.KfpApi() as served:
        yield served


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compiled pipeline with each kind of nesting: an exit handler, and a loop in it."""
    import kfp

    path = tmp_path_factory.mktemp("package") / "pipeline.yaml"
    kfp.compiler.Compiler().compile(_two_steps(), str(path))
    return path


def _two_steps() -> Callable[..., Any]:
    from kfp import dsl

    component = dsl.component(base_image=IMAGE, install_kfp_package=False)

    @component
    def prepare(days: int) -> str:
        return str(days)

    @component
    def train(data: str, variant: str) -> str:
        return data + variant

    @component
    def summarize(status: dsl.PipelineTaskFinalStatus) -> str:
        return status.state

    @dsl.pipeline(name="two-steps")
    def two_steps(recipe: str, until: str = "", window_days: int = 0, warm_start: bool = False, variants: list = ["a"]):  # type: ignore[no-untyped-def, type-arg]  # noqa: B006
        with dsl.ExitHandler(summarize().set_display_name("Summary")):
            prepared = prepare(days=window_days).set_display_name("Prepare data")
            with dsl.ParallelFor(variants) as variant:
                train(data=prepared.output, variant=variant)

    return two_steps
