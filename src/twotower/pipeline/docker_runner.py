"""The pipeline in containers of one machine, with the exit status that each of them really had.

`kfp.local.DockerRunner` lets Docker remove a container as soon as it ends and asks for its status afterwards; where it
comes too late, it takes the task for a success. One function of kfp's does that, and ours takes its place: start,
stream, wait, and only then remove.
"""

import codecs
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import docker
from docker.errors import APIError, DockerException, ImageNotFound
from docker.models.containers import Container
from kfp.local import DockerRunner, docker_task_handler

from twotower.errors import PipelineError

OURS = frozenset({"auto_remove", "detach", "remove", "stderr", "stdout", "stream"})
"""Arguments of `docker run` that are not the caller's: they are how a status gets lost."""


def truthful_docker_runner(**container_run_args: Any) -> DockerRunner:
    """What `kfp.local.init` takes to run each task in a container that can do no more than it has to.

    The root file system is read-only, no capability is left, and what a task writes belongs to the caller. From the
    first call on, every Docker runner of kfp's in this process tells the truth.

    Args:
        container_run_args: What the `docker` package's `containers.run` takes besides, such as `mem_limit`, `network`
            or `environment`; they win over the ones set here.

    Raises:
        PipelineError: Docker does not answer.
    """
    _assert_docker_answers()
    docker_task_handler.run_docker_container = run_docker_container
    return DockerRunner(**(_hardened() | container_run_args))


def run_docker_container(
    client: docker.DockerClient, image: str, command: list[str], volumes: Mapping[str, Any], **container_run_args: Any
) -> int:
    """The exit status of one container, whose output goes to stdout while it runs; nothing is left of it afterwards.

    Its signature is the one of kfp's function of the same name.

    Raises:
        PipelineError: the image cannot be had, or Docker cannot start the container.
    """
    _provide(client, image)
    wanted = {name: value for name, value in container_run_args.items() if name not in OURS}
    try:
        container = client.containers.create(image, command, volumes=dict(volumes), **wanted)
    except APIError as fault:
        raise PipelineError(f"Docker cannot make a container of {image}: {_reason(fault)}") from fault
    try:
        container.start()
        _show(container.logs(stream=True, follow=True))
        status = int(container.wait()["StatusCode"])
        _tell_why(container, status)
    except APIError as fault:
        raise PipelineError(f"Docker cannot run a container of {image}: {_reason(fault)}") from fault
    finally:
        # Also where the caller was interrupted: nobody would stop it otherwise.
        container.remove(force=True)
    return status


def _assert_docker_answers() -> None:
    try:
        client = docker.from_env()
    except DockerException as fault:
        raise PipelineError(_silent(fault)) from fault
    try:
        client.ping()
    except (DockerException, OSError) as fault:
        raise PipelineError(_silent(fault)) from fault
    finally:
        client.close()


def _silent(fault: Exception) -> str:
    where = os.environ.get("DOCKER_HOST", "its usual place")
    reason = str(fault).splitlines()[0]
    return f"Docker does not answer at {where} ({reason}). Start it, name it in DOCKER_HOST, or run without containers."


def _hardened() -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "read_only": True,
        "tmpfs": {"/tmp": ""},
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
    }
    # Windows has no such numbers, and Docker needs none there.
    if sys.platform != "win32":
        arguments["user"] = f"{os.getuid()}:{os.getgid()}"
    return arguments


def _provide(client: docker.DockerClient, image: str) -> None:
    """Pull the image where Docker does not have it."""
    try:
        client.images.get(image)
    except ImageNotFound:
        try:
            client.images.pull(image)
        except APIError as fault:
            raise PipelineError(
                f"Docker has no image {image} and cannot pull it ({_reason(fault)}). Build it from the repository: "
                f"docker build --target pipeline -t {image} ."
            ) from fault


def _show(chunks: Iterable[bytes]) -> None:
    """Copy to stdout what comes; a letter may be cut in two between chunks, and not all that is printed is text."""
    decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
    for chunk in chunks:
        sys.stdout.write(decode(chunk))
    sys.stdout.write(decode(b"", final=True))


def _tell_why(container: Container, status: int) -> None:
    """A container that the kernel stopped says nothing itself."""
    container.reload()
    if container.attrs["State"]["OOMKilled"]:
        sys.stdout.write(f"The container was stopped for lack of memory (status {status}). Give it more: mem_limit.\n")


def _reason(fault: APIError) -> str:
    return " ".join(str(fault.explanation or fault).split())
