"""What the profile says of a task, put onto the task."""

from dataclasses import asdict, replace

from kfp import dsl, kubernetes

from twotower.pipeline.profile import Profile, TaskSettings

OURS = TaskSettings(
    cpu_request="250m",
    cpu_limit="2",
    memory_request="512Mi",
    memory_limit="4Gi",
    gpus=0,
    gpu_kind="nvidia.com/gpu",
    timeout_minutes=60,
    retries=2,
)
"""For every step, unless the next table or the profile says otherwise."""
OF_STEP = {
    "locate": TaskSettings(memory_limit="1Gi", cpu_limit="1", timeout_minutes=15),
    "train": TaskSettings(
        cpu_request="1", cpu_limit="4", memory_request="2Gi", memory_limit="8Gi", timeout_minutes=720
    ),
    "evaluate": TaskSettings(
        cpu_request="1", cpu_limit="4", memory_request="1Gi", memory_limit="8Gi", timeout_minutes=240
    ),
    "champion": TaskSettings(memory_limit="1Gi", cpu_limit="1", timeout_minutes=15),
    "deploy": TaskSettings(memory_limit="1Gi", cpu_limit="1", timeout_minutes=30),
    "summarize": TaskSettings(memory_limit="1Gi", cpu_limit="1", timeout_minutes=15),
}
TITLES = {
    "locate": "Locate the data",
    "fetch": "Fetch the data",
    "validate": "Validate the data",
    "prepare": "Prepare the tables",
    "split": "Split by the protocol",
    "train": "Train the joint model",
    "choose": "Choose the best variant",
    "champion": "Look up the champion",
    "evaluate": "Evaluate both stages",
    "index": "Build the index",
    "gate": "Gate: promote or refuse",
    "bundle": "Seal the bundle",
    "smoke_test": "Smoke test a server",
    "register": "Register the version",
    "deploy": "Deploy the version",
    "summarize": "Summarize the run",
}
"""What a person reads in the UI."""
LONGEST_BACKOFF = "3600s"
UNITS = {"": 1.0, "m": 1e-3} | {
    letter + ending: float(base**power)
    for power, letter in enumerate("KMGT", start=1)
    for ending, base in (("", 1000), ("i", 1024))
}
"""Ending of a Kubernetes quantity -> factor."""


def dress(task: dsl.PipelineTask, step: str, *, profile: Profile) -> dsl.PipelineTask:
    """Give a task its image, resources, retries, timeout, title and place.

    Returns: the same task.
    """
    settings = settings_of(step, profile)
    assert settings.timeout_minutes is not None
    task.set_container_image(profile.image)
    task.set_display_name(TITLES[step])
    task.set_cpu_request(settings.cpu_request).set_cpu_limit(settings.cpu_limit)
    task.set_memory_request(settings.memory_request).set_memory_limit(settings.memory_limit)
    if settings.gpus:
        task.set_accelerator_type(settings.gpu_kind).set_accelerator_limit(settings.gpus)
    task.set_retry(
        settings.retries,
        backoff_duration=f"{profile.retry_backoff_seconds}s",
        backoff_factor=2.0,
        backoff_max_duration=LONGEST_BACKOFF,
    )
    kubernetes.set_timeout(task, 60 * settings.timeout_minutes)
    for name, value in profile.environment.items():
        task.set_env_variable(name, value)
    _place(task, profile)
    return task


def settings_of(step: str, profile: Profile) -> TaskSettings:
    """A step's settings with nothing left open."""
    found = OURS
    for layer in (OF_STEP.get(step), profile.tasks.get("default"), profile.tasks.get(step)):
        if layer is not None:
            found = replace(found, **{key: value for key, value in asdict(layer).items() if value is not None})
    if step == "train" and profile.train_job is not None:
        # The task waits for the job; were it ended first, its retry would begin the job anew.
        found = replace(found, timeout_minutes=max(found.timeout_minutes or 0, profile.train_job.timeout_minutes + 15))
    return _with_limits_above_requests(found)


def _with_limits_above_requests(settings: TaskSettings) -> TaskSettings:
    """The settings with requests lowered to the limits, where a profile sets a limit below our own request."""
    assert settings.cpu_request is not None
    assert settings.cpu_limit is not None
    assert settings.memory_request is not None
    assert settings.memory_limit is not None
    return replace(
        settings,
        cpu_request=min(settings.cpu_request, settings.cpu_limit, key=_amount),
        memory_request=min(settings.memory_request, settings.memory_limit, key=_amount),
    )


def _amount(quantity: str) -> float:
    """Cores or bytes of a Kubernetes quantity."""
    number = quantity.rstrip("mKMGTi")
    return float(number) * UNITS[quantity.removeprefix(number)]


def _place(task: dsl.PipelineTask, profile: Profile) -> None:
    """What only a cluster knows."""
    for secret in profile.all_secrets:
        kubernetes.use_secret_as_env(task, secret.name, secret.env, optional=secret.optional)
    for key, value in profile.node_selector.items():
        kubernetes.add_node_selector(task, key, value)
    for one in profile.tolerations:
        kubernetes.add_toleration(
            task, key=one.key, operator=one.operator, value=one.value or None, effect=one.effect or None
        )
    if profile.image_pull_secrets:
        kubernetes.set_image_pull_secrets(task, list(profile.image_pull_secrets))
    if profile.workspace is not None:
        kubernetes.mount_pvc(task, profile.workspace.claim, profile.workspace.mount)
