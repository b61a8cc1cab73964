"""Where the pipeline runs and what its tasks may use: one TOML file, applied when the pipeline is compiled.

The pipeline's own code knows nothing of GPUs, node selectors, tolerations, volumes, secrets and service accounts.
"""

import json
import tomllib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt
from pydantic import StringConstraints, TypeAdapter, ValidationError

from twotower.data.schema import STRICT
from twotower.errors import PipelineError
from twotower.pipeline.image import SERVE, tagged

Cores = Annotated[str, StringConstraints(pattern=r"^\d+(\.\d+)?$|^\d+m$")]
"""`2`, `0.5` or `500m`."""
Memory = Annotated[str, StringConstraints(pattern=r"^\d+(\.\d+)?[KMGT]i?$")]
"""`512Mi` or `8G`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSettings:
    """What one step's task may use; what is not set here comes from `[tasks.default]`, then from our own defaults."""

    __pydantic_config__ = STRICT

    cpu_request: Cores | None = None
    """Cores that are kept free for it, as in `500m`."""
    cpu_limit: Cores | None = None
    """Cores that it may use at most."""
    memory_request: Memory | None = None
    """Memory that is kept free for it, as in `1Gi`."""
    memory_limit: Memory | None = None
    """Memory above which it is killed."""
    gpus: Annotated[int, Ge(0)] | None = None
    """How many it gets for itself."""
    gpu_kind: str | None = None
    """The resource's name, `nvidia.com/gpu` by default."""
    timeout_minutes: Annotated[int, Gt(0)] | None = None
    """After which its pod is ended."""
    retries: Annotated[int, Ge(0)] | None = None
    """How often it is tried again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Toleration:
    """A taint that the tasks' pods tolerate."""

    __pydantic_config__ = STRICT

    key: str
    """The taint's key."""
    operator: Literal["Exists", "Equal"] = "Exists"
    """`Exists`, or `Equal` to compare the value."""
    value: str = ""
    """The taint's value, for `Equal`."""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""
    """Empty for all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """A Kubernetes secret whose keys become environment variables of every task."""

    __pydantic_config__ = STRICT

    name: str
    """Of the secret, in the namespace of the run."""
    env: dict[str, str]
    """Key in the secret -> environment variable."""
    optional: bool = False
    """Whether a task may start without it."""


STORE = "s3://mlpipeline/"
STORE_ENV = {"AWS_ENDPOINT_URL": "http://seaweedfs.kubeflow:9000", "AWS_REGION": "us-east-1"}
STORE_SECRET = Secret(
    name="mlpipeline-minio-artifact",
    env={"accesskey": "AWS_ACCESS_KEY_ID", "secretkey": "AWS_SECRET_ACCESS_KEY"},
    optional=True,
)
"""The object store of a standalone Kubeflow Pipelines since 2.15; the secret has kept the name of the one before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """A volume that every task sees, such as for a registry that is a folder."""

    __pydantic_config__ = STRICT

    claim: str
    """Name of the PersistentVolumeClaim; it must allow several pods to write."""
    mount: str = "/workspace"
    """Where the tasks see it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJobSettings:
    """A Kubeflow TrainJob that trains in place of the train task's own pod."""

    __pydantic_config__ = STRICT

    namespace: str
    """Where the job runs."""
    nodes: Annotated[int, Gt(0)] = 1
    """How many train together."""
    runtime: str = "jax-distributed"
    """Name of the ClusterTrainingRuntime."""
    cpu: Cores = "2"
    """Cores of each node."""
    memory: Memory = "4Gi"
    """Memory of each node."""
    gpus: Annotated[int, Ge(0)] = 0
    """Of each node."""
    gpu_kind: str = "nvidia.com/gpu"
    """The resource's name."""
    service_account: str | None = None
    """As whom the nodes act; by default the runtime's."""
    timeout_minutes: Annotated[int, Gt(0)] = 1440
    """After which the job is given up and deleted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Everything that differs between a laptop, a kind cluster and a large one."""

    __pydantic_config__ = STRICT

    image: str = field(default_factory=tagged)
    """The image of every task; by default `twotower-pipeline` with the tag of this code."""
    serve_image: str = field(default_factory=lambda: tagged(SERVE))
    """The image that a promoted version is served by."""
    registry: str = "s3://mlpipeline/twotower"
    """Where versions are kept: `s3://...`, `gs://...`, or a folder that every task sees. By default the object store
    that a standalone Kubeflow Pipelines brings along; a registry in its bucket gets its address and key by itself."""
    deploy_to: str = ""
    """Where a promoted version answers from: `kubernetes:NAMESPACE`, a folder, or nothing."""
    service_account: str | None = None
    """Runs the tasks; given to the server with each run."""
    namespace: str | None = None
    """Of the run, on a Kubeflow with several users."""
    retry_backoff_seconds: Annotated[int, Ge(0)] = 30
    """Wait before the first retry; each further one waits twice as long, an hour at most."""
    image_pull_secrets: tuple[str, ...] = ()
    """Names of the secrets with which the images are pulled."""
    env: dict[str, str] = field(default_factory=dict)
    """Environment of every task."""
    secrets: tuple[Secret, ...] = ()
    """Secrets in the environment of every task."""
    node_selector: dict[str, str] = field(default_factory=dict)
    """Labels of the nodes on which the tasks may run."""
    tolerations: tuple[Toleration, ...] = ()
    """Taints that the tasks' pods tolerate."""
    workspace: Workspace | None = None
    """A volume for every task."""
    train_job: TrainJobSettings | None = None
    """Who trains in place of the train task's own pod."""
    tasks: dict[str, TaskSettings] = field(default_factory=dict)
    """Step, or `default`, -> its settings."""

    @property
    def environment(self) -> dict[str, str]:
        """`env`, over what leads to Kubeflow's own object store where the registry lies there."""
        return (STORE_ENV if self.registry.startswith(STORE) else {}) | self.env

    @property
    def all_secrets(self) -> tuple[Secret, ...]:
        """`secrets`, and the key of Kubeflow's own object store where the registry lies there."""
        return (*((STORE_SECRET,) if self.registry.startswith(STORE) else ()), *self.secrets)

    def tree(self) -> dict[str, Any]:
        """The profile as plain values, which `parse_profile` takes."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain


def load_profile(path: Path | None) -> Profile:
    """Read a profile; None gives the defaults.

    Raises:
        PipelineError: no such file, not TOML, an unknown key, a value that does not fit, or a step that does not exist.
    """
    if path is None:
        return Profile()
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as fault:
        raise PipelineError(f"{path}: the profile cannot be read ({fault.strerror}). Check its name.") from fault
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as fault:
        raise PipelineError(f"{path}: not TOML: {fault}.") from fault
    return parse_profile(tree, where=str(path))


def parse_profile(tree: dict[str, Any], *, where: str) -> Profile:
    """A checked profile from nested settings; see `load_profile`."""
    from twotower.steps import STEPS

    try:
        profile = TypeAdapter(Profile).validate_python(tree)
    except ValidationError as fault:
        first = fault.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        unknown = first["type"] in ("unexpected_keyword_argument", "extra_forbidden")
        what = f"unknown key '{key}'" if unknown else f"{key}: {first['msg']} (found {first['input']!r})"
        raise PipelineError(f"{where}: {what}. docs/profile.md lists every key.") from fault
    if strange := [step for step in profile.tasks if step not in ("default", *STEPS)]:
        raise PipelineError(f"{where}: tasks.{strange[0]}: no such step; there are default, {', '.join(STEPS)}.")
    return profile
