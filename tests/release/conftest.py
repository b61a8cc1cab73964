"""A cluster to deploy to: the played Kubernetes API, and a kubeconfig that leads to it."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def _load() -> ModuleType:
    specification = importlib.util.spec_from_file_location("kube_api", Path(__file__).with_name("kube_api.py"))
    assert specification is not None
    assert specification.loader is not None
    module = sys.modules["kube_api"] = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def kube(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A `KubeApi` that KUBECONFIG points at."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with _load().KubeApi() as api:
        monkeypatch.setenv("KUBECONFIG", str(api.write_kubeconfig(tmp_path / "kubeconfig")))
        yield api
