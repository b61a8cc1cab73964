"""The real thing: a Docker daemon, found or started, and both images, built by it from this checkout.

`docker_engine.py` says how, and where its data lie.
"""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def _loaded() -> ModuleType:
    """`docker_engine.py`, which lies beside this file and in no package."""
    specification = importlib.util.spec_from_file_location(
        "docker_engine", Path(__file__).with_name("docker_engine.py")
    )
    assert specification is not None
    assert specification.loader is not None
    module = sys.modules["docker_engine"] = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


ENGINE = _loaded()


@pytest.fixture(scope="session")
def docker() -> Iterator[Any]:
    """A `Docker` whose daemon answers; what runs in this process finds it too. Tests skip where there can be none."""
    try:
        with ENGINE.running_docker() as docker:
            yield docker
    except ENGINE.NoDockerError as fault:
        pytest.skip(str(fault))


@pytest.fixture(scope="session")
def revision() -> str:
    """The tag of both images."""
    try:
        return str(ENGINE.commit())
    except ENGINE.NoDockerError as fault:
        pytest.skip(str(fault))


@pytest.fixture(scope="session")
def version() -> str:
    """The package's version, as its metadata say it."""
    return str(ENGINE.package_version())


@pytest.fixture(scope="session")
def build_secrets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """How this machine reaches package registries; for the build alone."""
    return dict(ENGINE.write_secrets(tmp_path_factory.mktemp("secrets")))


@pytest.fixture(scope="session")
def base_image(docker: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the Dockerfile builds on."""
    try:
        return str(ENGINE.find_base(docker, tmp_path_factory.mktemp("base")))
    except ENGINE.NoDockerError as fault:
        pytest.skip(str(fault))


@pytest.fixture(scope="session")
def serve_image(docker: Any, base_image: str, build_secrets: dict[str, Path], revision: str) -> str:
    """The name of the image that serves."""
    return str(ENGINE.build(docker, "serve", base=base_image, secrets=build_secrets))


@pytest.fixture(scope="session")
def pipeline_image(docker: Any, base_image: str, build_secrets: dict[str, Path], revision: str) -> str:
    """The name of the image of every task of the pipeline."""
    return str(ENGINE.build(docker, "pipeline", base=base_image, secrets=build_secrets))
