"""Every command there is, with its reason: what `--dry-run` prints and what is run are these same objects."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Required, TypedDict, Unpack

from twotower.cluster.releases import PIPELINE_VERSION, checked_pipeline_version
from twotower.cluster.tools import Command
from twotower.errors import ClusterError

NAMESPACE = "kubeflow"
"""Where Kubeflow Pipelines lives; its manifests fix the name."""
APPLIED = "twotower.dev/applied"
"""The label of that namespace that holds the release, once every manifest is applied."""
REPOSITORY = "https://github.com/kubeflow/pipelines"
MANIFESTS = "github.com/kubeflow/pipelines/manifests/kustomize"
JSON = ("--output", "json")
THERE = "where the cluster is there already"
WORKLOADS = "deployments,jobs,pods,persistentvolumeclaims"


class _Told(TypedDict, total=False):
    """The fields of a `Command` beside its arguments."""

    why: Required[str]
    mode: Literal["run", "background"]
    read_as: tuple[str, ...]
    timeout: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    """One cluster on this machine.

    Raises:
        ClusterError: a name, release, image or port that cannot be.
    """

    name: str = "twotower"
    pipeline_version: str = PIPELINE_VERSION
    port: int = 8080
    """Where the page of Kubeflow Pipelines is seen on this machine."""
    images: tuple[str, ...] = ()
    """Images that are put into the cluster, each NAME:TAG."""
    timeout: float = 900.0
    """Seconds that Kubeflow Pipelines has to become ready."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.name):
            raise ClusterError(f"--name {self.name!r}: only lower-case letters, digits, '.' and '-' make a cluster.")
        if not 1 <= self.port <= 65535:
            raise ClusterError(f"--port {self.port}: not between 1 and 65535. Take one above 1023, such as 8080.")
        checked_pipeline_version(self.pipeline_version)
        for image in self.images:
            _checked_image(image)

    @property
    def url(self) -> str:
        """The page of Kubeflow Pipelines."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def node(self) -> str:
        """The container that is the cluster's one node."""
        return f"{self.name}-control-plane"


def _checked_image(image: str) -> None:
    name, _, tag = image.rpartition(":")
    if not re.fullmatch(r"[a-z0-9][\w./:-]*", name) or not re.fullmatch(r"\w[\w.-]*", tag):
        raise ClusterError(f"--image {image!r}: not NAME:TAG. Give one such as twotower-pipeline:1a2b3c4d5e6f.")
    if tag == "latest":
        raise ClusterError(f"--image {image}: the cluster would try to pull 'latest'. Give the image a tag of its own.")


def up(settings: ClusterSettings, *, deploy: Path) -> list[Command]:
    """From nothing to a page in the browser; `deploy` is the folder of our own manifests."""
    return [
        docker_info(),
        kind_version(),
        kubectl_client(),
        *(image_here(image) for image in settings.images),
        clusters(),
        replace(start_node(settings), only_if=THERE),
        replace(applied(settings), only_if=THERE),
        find_release(settings),
        create(settings, deploy=deploy),
        *apply(settings, deploy=deploy),
        *(load(settings, image) for image in settings.images),
        workloads(settings),
        forward(settings),
        browse(settings),
    ]


def open_page(settings: ClusterSettings) -> list[Command]:
    """The page again, where the port-forward has ended."""
    return [clusters(), forward(settings), browse(settings)]


def status(settings: ClusterSettings) -> list[Command]:
    """What there is, and how it does."""
    return [clusters(), node_state(settings), applied(settings), nodes(settings), workloads(settings)]


def doctor(settings: ClusterSettings) -> list[Command]:
    """Everything that the usual failures show in."""
    return [
        docker_info(),
        kind_version(),
        kubectl_client(),
        find_release(settings),
        clusters(),
        node_state(settings),
        versions(settings),
        applied(settings),
        nodes(settings),
        all_workloads(settings),
    ]


def down(settings: ClusterSettings) -> list[Command]:
    """Nothing is left."""
    return [stop_forward(settings), clusters(), delete(settings)]


def docker_info() -> Command:
    """Docker's version, the bytes of memory that it has, and its folder."""
    template = "{{.ServerVersion}} {{.MemTotal}} {{.DockerRootDir}}"
    return Command(
        argv=("docker", "info", "--format", template),
        why="Docker answers: its version, its memory in bytes, its folder",
    )


def kind_version() -> Command:
    """The version of kind."""
    return Command(argv=("kind", "version"), why="kind is there")


def kubectl_client() -> Command:
    """The version of kubectl itself."""
    return Command(argv=("kubectl", "version", "--client"), why="kubectl is there")


def image_here(image: str) -> Command:
    """Fails where Docker has no such image."""
    return Command(
        argv=("docker", "image", "inspect", "--format", "{{.Id}}", image),
        why="The image that the cluster is given exists",
    )


def find_release(settings: ClusterSettings) -> Command:
    """Asks GitHub for the release: exit code 2 where there is none, 128 where GitHub is out of reach."""
    tag = f"refs/tags/{settings.pipeline_version}"
    return Command(
        argv=("git", "ls-remote", "--exit-code", REPOSITORY, tag),
        why="GitHub, where the manifests lie, is in reach and has the release",
        timeout=30.0,
    )


def clusters() -> Command:
    """One name a line."""
    return Command(argv=("kind", "get", "clusters"), why="Which clusters are there already")


def create(settings: ClusterSettings, *, deploy: Path) -> Command:
    """The cluster itself; its context is `kind-NAME`."""
    config = (deploy / "kind" / "cluster.yaml").as_posix()
    return Command(
        argv=("kind", "create", "cluster", "--name", settings.name, "--config", config, "--wait", "5m"),
        why="Create the cluster, which takes some minutes the first time",
        timeout=1200.0,
    )


def start_node(settings: ClusterSettings) -> Command:
    """A cluster whose machine was switched off goes on; nothing happens to one that runs."""
    return Command(
        argv=("docker", "start", settings.node),
        why="Start the node, which stays off after the machine was",
    )


def applied(settings: ClusterSettings) -> Command:
    """The namespace, whose label holds the release of Kubeflow Pipelines."""
    return _kubectl(
        settings,
        *("get", "namespace", NAMESPACE, "--ignore-not-found", *JSON),
        why="Which release of Kubeflow Pipelines is applied, by the label of its namespace",
    )


def apply(settings: ClusterSettings, *, deploy: Path) -> list[Command]:
    """Kubeflow Pipelines, our rights in it, and at last the mark that everything is applied."""
    reference = f"ref={settings.pipeline_version}"
    return [
        _kubectl(
            settings,
            *("apply", "-k", f"{MANIFESTS}/cluster-scoped-resources?{reference}"),
            why="Apply what the whole cluster shares: resource definitions, the namespace",
            timeout=300.0,
        ),
        _kubectl(
            settings,
            *("wait", "crd/applications.app.k8s.io", "--for=condition=established", "--timeout=60s"),
            why="Wait until the cluster knows the new kinds of resource",
            timeout=90.0,
        ),
        _kubectl(
            settings,
            *("apply", "-k", f"{MANIFESTS}/env/platform-agnostic?{reference}"),
            why="Apply Kubeflow Pipelines itself",
            timeout=300.0,
        ),
        _kubectl(
            settings,
            *("apply", "-k", (deploy / "rbac").as_posix()),
            why="Let the tasks of the pipeline deploy into the namespace twotower, and do nothing else",
        ),
        _kubectl(
            settings,
            *("apply", "-k", (deploy / "kfp-storage").as_posix()),
            why="Let the served pods read bundles from the object store of Kubeflow Pipelines",
        ),
        _kubectl(
            settings,
            *("label", "namespace", NAMESPACE, "--overwrite", f"{APPLIED}={settings.pipeline_version}"),
            why="Mark that everything is applied, so that the next time goes on from here",
        ),
    ]


def load(settings: ClusterSettings, image: str) -> Command:
    """The image goes from Docker into the node, where the cluster finds it without pulling."""
    return Command(
        argv=("kind", "load", "docker-image", image, "--name", settings.name),
        why="Put the image into the cluster",
        timeout=900.0,
    )


def workloads(settings: ClusterSettings) -> Command:
    """What runs Kubeflow Pipelines; asked again until all of it is ready."""
    return _kubectl(
        settings,
        *("get", WORKLOADS, "--namespace", NAMESPACE),
        why="Repeat until every deployment is ready and every job is complete",
        read_as=JSON,
    )


def all_workloads(settings: ClusterSettings) -> Command:
    """What runs in the whole cluster."""
    return _kubectl(
        settings, "get", WORKLOADS, "--all-namespaces", why="What is not ready, in every namespace", read_as=JSON
    )


def nodes(settings: ClusterSettings) -> Command:
    """The node's conditions and images."""
    return _kubectl(settings, "get", "nodes", why="The node: its conditions and images", read_as=JSON)


def node_state(settings: ClusterSettings) -> Command:
    """`running`, or what else the node's container is."""
    return Command(
        argv=("docker", "inspect", "--format", "{{.State.Status}}", settings.node),
        why="The container that is the node runs",
    )


def versions(settings: ClusterSettings) -> Command:
    """Both versions, of kubectl and of the API server."""
    return _kubectl(settings, "version", why="kubectl and the cluster are close enough in version", read_as=JSON)


def last_lines(settings: ClusterSettings, *, namespace: str, pod: str, container: str) -> Command:
    """What a container said before it ended."""
    return _kubectl(
        settings,
        *("logs", pod, "--container", container, "--namespace", namespace, "--previous", "--tail", "3"),
        why="The last lines before the container ended",
        timeout=15.0,
    )


def forward(settings: ClusterSettings) -> Command:
    """The page of Kubeflow Pipelines at a port of this machine, as long as the process lives."""
    target = ("svc/ml-pipeline-ui", f"{settings.port}:80", "--address", "127.0.0.1")
    return _kubectl(
        settings,
        *("port-forward", "--namespace", NAMESPACE, *target),
        why="Let this machine see the page of Kubeflow Pipelines",
        mode="background",
    )


def browse(settings: ClusterSettings) -> Command:
    """The page in the browser."""
    return Command(argv=(settings.url,), why="Open the page", mode="browse")


def stop_forward(settings: ClusterSettings) -> Command:
    """Ends what `forward` has started, and nothing else."""
    return Command(argv=forward(settings).argv, why="End the port-forward", mode="stop")


def forward_mark(settings: ClusterSettings) -> str:
    """What the command line of this cluster's port-forward contains, and no other's."""
    return f"--context kind-{settings.name} port-forward"


def delete(settings: ClusterSettings) -> Command:
    """The cluster with everything in it."""
    return Command(
        argv=("kind", "delete", "cluster", "--name", settings.name),
        why="Delete the cluster, with the runs and artifacts in it",
        timeout=300.0,
    )


def _kubectl(settings: ClusterSettings, *arguments: str, **told: Unpack[_Told]) -> Command:
    """The arguments behind kubectl, on this cluster, whatever the current context is."""
    return Command(argv=("kubectl", "--context", f"kind-{settings.name}", *arguments), **told)
