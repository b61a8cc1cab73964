"""What the machine must have before a cluster is made on it."""

import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from twotower.cluster import plan
from twotower.cluster.releases import too_old
from twotower.cluster.tools import INSTALL, Finished, System, is_installed, run, sentence

GIB = 2**30
ENOUGH_MEMORY, LEAST_MEMORY = 6 * GIB, 4 * GIB
"""Kubeflow Pipelines asks for 2.6 GiB in all, Kubernetes itself for about 1, and a training step comes on top."""
ENOUGH_DISK, LEAST_DISK = 20 * GIB, 8 * GIB
"""An estimate: the images of Kubernetes, of Kubeflow Pipelines and, twice, our own."""
INOTIFY = {"max_user_instances": 512, "max_user_watches": 524288}
"""What kind advises; below, pods end with `too many open files`."""

NO_DAEMON = "Docker's daemon does not answer"
INOTIFY_FOLDER = Path("/proc/sys/fs/inotify")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that is not as it has to be, and what mends it."""

    what: str
    mend: str
    is_blocking: bool = True
    """Whether `up` cannot go on; otherwise it says it and goes on."""

    def __str__(self) -> str:
        return f"{sentence(self.what)} {self.mend}"


def missing_tools(system: System) -> list[Finding]:
    """The programs that are not there, each with the command that installs it."""
    return [
        Finding(what=f"{tool} is not on the PATH", mend=f"Install it: {how[system]}.")
        for tool, how in INSTALL.items()
        if not is_installed(tool)
    ]


def check_versions(system: System) -> Iterator[Finding]:
    """A kind or kubectl that is too old, where it is there."""
    for tool, command in (("kind", plan.kind_version()), ("kubectl", plan.kubectl_client())):
        if is_installed(tool):
            finished = run(command)
            if not finished.is_ok:
                yield Finding(
                    what=f"{tool} does not run: {finished.complaint}", mend=f"Install it: {INSTALL[tool][system]}."
                )
            elif old := too_old(tool, finished.stdout):
                yield Finding(what=old, mend=f"Install it anew: {INSTALL[tool][system]}.")


def check_docker(system: System) -> Iterator[Finding]:
    """A daemon that does not answer, is too old, or has too little memory or disk."""
    finished = run(plan.docker_info())
    if not finished.is_ok:
        yield _no_daemon(finished, system)
        return
    version, memory, folder = finished.stdout.split(maxsplit=2)
    if old := too_old("docker", version):
        yield Finding(what=old, mend=f"Install it anew: {INSTALL['docker'][system]}.")
    yield from check_memory(int(memory), system)
    yield from check_disk(Path(folder.strip()))


def _no_daemon(finished: Finished, system: System) -> Finding:
    what = f"{NO_DAEMON}: {finished.complaint}"
    if "permission denied" in finished.stderr.lower():
        return Finding(what=what, mend='Let yourself use it: sudo usermod -aG docker "$USER", then log in anew.')
    start = {"linux": "sudo systemctl start docker", "macos": "open -a Docker", "windows": "start Docker Desktop"}
    return Finding(what=what, mend=f"Start it: {start[system]}.")


def check_memory(memory: int, system: System) -> Iterator[Finding]:
    """Less memory for Docker than Kubeflow Pipelines can do with."""
    if memory >= ENOUGH_MEMORY:
        return
    more = {
        "linux": "Use a machine with more memory.",
        "macos": "Give it more: Docker Desktop, Settings, Resources.",
        "windows": "Give it more: memory=8GB under [wsl2] in .wslconfig in your home folder, then wsl --shutdown.",
    }
    yield Finding(
        what=f"Docker has {memory / GIB:.1f} GiB of memory; {ENOUGH_MEMORY // GIB} GiB are needed",
        mend=more[system],
        is_blocking=memory < LEAST_MEMORY,
    )


def check_disk(folder: Path) -> Iterator[Finding]:
    """Less free disk than the images take; with Docker Desktop the folder is inside of a machine that we cannot see."""
    if not folder.is_dir():
        return
    free = shutil.disk_usage(folder).free
    if free < ENOUGH_DISK:
        yield Finding(
            what=f"{folder}: {free / GIB:.1f} GiB of disk are free; {ENOUGH_DISK // GIB} GiB are needed",
            mend="Make room: docker system prune removes what no container uses.",
            is_blocking=free < LEAST_DISK,
        )


def check_inotify(folder: Path = INOTIFY_FOLDER) -> Iterator[Finding]:
    """Limits of Linux below which pods end with `too many open files`; elsewhere Docker's own machine has them."""
    for name, enough in INOTIFY.items():
        path = folder / name
        if path.is_file() and (limit := int(path.read_text(encoding="ascii"))) < enough:
            yield Finding(
                what=f"fs.inotify.{name} is {limit}; {enough} is needed",
                mend=f"Raise it: sudo sysctl fs.inotify.{name}={enough} (and in /etc/sysctl.conf, to keep it).",
                is_blocking=False,
            )


def check_port(port: int) -> Iterator[Finding]:
    """A port that another program listens on."""
    with socket.socket() as probe:
        if os.name == "posix":
            # A connection that has just been closed does not count; on Windows the option would mean to share.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other = port + 1 if port < 65535 else 8080
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as fault:
            yield Finding(
                what=f"port {port} of this machine cannot be had: {fault.strerror}",
                mend=f"Stop the program that listens there, or choose another: --port {other}.",
            )
