"""What `kubectl apply -k` would send, for the tests of deploy/."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
Object = dict[str, Any]


@pytest.fixture(scope="session")
def rendered() -> Callable[[str], list[Object]]:
    """`rendered(folder)` gives the objects of a folder of deploy/; none of them may be changed."""
    if (kubectl := shutil.which("kubectl")) is None:
        pytest.skip("kubectl is not installed")

    @cache
    def render(folder: str) -> list[Object]:
        command = [kubectl, "kustomize", str(DEPLOY / folder)]
        finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert finished.returncode == 0, finished.stderr
        return [each for each in yaml.safe_load_all(finished.stdout) if each]

    return render


@pytest.fixture(scope="session")
def everything(rendered: Callable[[str], list[Object]]) -> list[Object]:
    """The objects of all folders."""
    return [each for path in sorted(DEPLOY.rglob("kustomization.yaml")) for each in rendered(str(path.parent))]


@pytest.fixture(scope="session")
def pods_of() -> Callable[[Object], Iterator[Object]]:
    """`pods_of(object)` gives the pod specs in it."""
    return _pods_of


def _pods_of(each: Object) -> Iterator[Object]:
    if each["kind"] == "Deployment":
        yield each["spec"]["template"]["spec"]
    elif each["kind"] == "InferenceService":
        yield each["spec"]["predictor"]
    elif each["kind"] == "TrainJob":
        yield {"containers": [each["spec"]["trainer"]]}
