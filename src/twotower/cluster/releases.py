"""Which releases of Kubeflow Pipelines, kind, kubectl and Docker can work together, and why others cannot."""

import re

from twotower.errors import ClusterError

PIPELINE_VERSION = "2.17.0"
"""Kubeflow Pipelines by default: the release of the kfp that the pipeline is compiled with."""

OLDEST_PIPELINE = (2, 15)
"""The first release that keeps its artifacts in SeaweedFS. Before it stood an image of MinIO in a registry that has
lost it (kubeflow/pipelines #12638), so that none of those can start any more."""

OLDEST_TOOLS = {"docker": (20, 10), "kind": (0, 29), "kubectl": (1, 27)}
"""kind 0.29 brought the pinned node image; kubectl 1.27 is the first with kustomize 5; Docker 20.10 knows cgroup v2."""

KUBECTL_SKEW = 1
"""Minor releases that kubectl may be away from the API server, by the rule of Kubernetes."""

_RELEASE = re.compile(r"(\d+)\.(\d+)\.(\d+)(-rc\.?\d+)?")


def checked_pipeline_version(version: str) -> str:
    """The same version, where it is one that can work.

    Raises:
        ClusterError: no release's name, or one that cannot work any more; the line says why.
    """
    match = _RELEASE.fullmatch(version)
    if match is None:
        raise ClusterError(
            f"--pipeline-version {version!r}: not the name of a release. Give one such as {PIPELINE_VERSION}."
        )
    release = (int(match[1]), int(match[2]))
    if release < (2, 0):
        raise ClusterError(
            f"--pipeline-version {version}: cannot work any more: its overlay platform-agnostic-pns was deleted in "
            f"2024, and the registry that held its images has lost them. Use {PIPELINE_VERSION}."
        )
    if release < OLDEST_PIPELINE:
        raise ClusterError(
            f"--pipeline-version {version}: cannot work any more: before 2.15 it needs an image of MinIO that its "
            f"registry has lost, and hangs in ImagePullBackOff. Use {PIPELINE_VERSION}."
        )
    return version


def version_in(text: str) -> tuple[int, int] | None:
    """Major and minor of the first version in what a program prints."""
    match = re.search(r"(\d+)\.(\d+)", text)
    return None if match is None else (int(match[1]), int(match[2]))


def too_old(tool: str, text: str) -> str | None:
    """What is wrong with the version that a program prints, or nothing."""
    found, oldest = version_in(text), OLDEST_TOOLS[tool]
    if found is None or found >= oldest:
        return None
    return f"{tool} is {_dotted(found)}, which is too old: {_dotted(oldest)} or newer is needed"


def skewed(client: tuple[int, int], server: tuple[int, int]) -> str | None:
    """What is wrong with kubectl beside this API server, or nothing."""
    if client[0] == server[0] and abs(client[1] - server[1]) <= KUBECTL_SKEW:
        return None
    apart = f"they may be {KUBECTL_SKEW} minor release apart"
    return f"kubectl is {_dotted(client)} and the cluster {_dotted(server)}: {apart}"


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
