"""A command with its reason, and the one place where another program is started."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from twotower.errors import ClusterError

System = Literal["linux", "macos", "windows"]
SYSTEMS: tuple[System, ...] = ("linux", "macos", "windows")

NO_ANSWER = 124
"""The exit code that stands for a command that was ended because it did not answer in time."""

INSTALL: dict[str, dict[System, str]] = {
    "docker": {
        "linux": "sudo apt-get install docker.io",
        "macos": "brew install --cask docker, then start Docker",
        "windows": "winget install Docker.DockerDesktop, then start Docker",
    },
    "kind": {
        "linux": "brew install kind, or the binary of its release page put on the PATH",
        "macos": "brew install kind",
        "windows": "winget install Kubernetes.kind, or choco install kind",
    },
    "kubectl": {
        "linux": "sudo snap install kubectl --classic, or brew install kubernetes-cli",
        "macos": "brew install kubernetes-cli",
        "windows": "winget install Kubernetes.kubectl, or choco install kubernetes-cli",
    },
    "git": {
        "linux": "sudo apt-get install git",
        "macos": "brew install git",
        "windows": "winget install Git.Git, or choco install git",
    },
}
"""How each program that we call is installed. kubectl calls git where a manifest lies in a repository."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command of a plan: what is run and what is printed come from here, so they cannot differ."""

    argv: tuple[str, ...]
    """For `browse` the address alone; for `stop` what the process to stop was started with."""
    why: str
    """One line for the reader, without signs that a shell knows: zsh reads a pasted comment as a command."""
    mode: Literal["run", "background", "browse", "stop"] = "run"
    read_as: tuple[str, ...] = ()
    """Appended when we read the output; a person who types the command sees the table instead."""
    timeout: float = 60.0
    """Seconds after which the command is ended."""
    only_if: str = ""
    """Where it is not always run: when it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How a command ended."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str

    @property
    def is_ok(self) -> bool:
        """Whether it did what it was asked."""
        return self.returncode == 0

    @property
    def complaint(self) -> str:
        """The line of its output that tells most of what went wrong."""
        lines = [line.strip() for line in (self.stderr or self.stdout).splitlines() if line.strip(" \t<>:")]
        telling = [line for line in lines if "fatal:" in line or line.lower().startswith("error")]
        return (telling or lines or [f"exit code {self.returncode}"])[-1].rstrip(".")


def sentence(text: str) -> str:
    """The text with a full stop, where it has no end of its own."""
    return text if text.endswith(("?", "!", ".")) else f"{text}."


def this_system() -> System:
    """The kind of machine that we are on."""
    others: dict[str, System] = {"win32": "windows", "darwin": "macos"}
    return others.get(sys.platform, "linux")


def is_installed(tool: str) -> bool:
    """Whether the program is on the PATH."""
    return shutil.which(tool) is not None


def run(command: Command) -> Finished:
    """Run to the end and keep what it says; a command that does not answer in time ends with `NO_ANSWER`.

    Raises:
        ClusterError: the program is not on the PATH.
    """
    argv = _executable(command, extra=command.read_as)
    # git, which kubectl starts for a remote manifest, must not wait for a password that nobody types.
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            check=False,
            encoding="utf-8",
            errors="replace",
            env=environment,
            stdin=subprocess.DEVNULL,
            timeout=command.timeout,
        )
    except subprocess.TimeoutExpired:
        said = f"no answer within {command.timeout:.0f} s"
        return Finished(argv=command.argv, returncode=NO_ANSWER, stdout="", stderr=said)
    return Finished(argv=command.argv, returncode=done.returncode, stdout=done.stdout, stderr=done.stderr)


def must(command: Command, *, mend: str) -> str:
    """What it prints to stdout.

    Raises:
        ClusterError: the program is missing or failed; the line ends with `mend`.
    """
    finished = run(command)
    if not finished.is_ok:
        raise ClusterError(f"{' '.join(command.argv[:4])}: {sentence(finished.complaint)} {mend}")
    return finished.stdout


def start(command: Command, *, log: Path) -> subprocess.Popen[bytes]:
    """Start in the background, to outlive us, with its output in `log`."""
    argv = _executable(command)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        if sys.platform == "win32":
            flags = subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP
            return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, creationflags=flags)
        else:  # noqa: RET505 - mypy on Windows takes what follows an `if` of the platform for unreachable
            # A session of its own: closing the terminal or Ctrl+C there does not end it.
            return subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )


def _executable(command: Command, *, extra: tuple[str, ...] = ()) -> list[str]:
    """The arguments with the program's full path, which Windows needs for anything but an .exe."""
    tool, *rest = command.argv
    found = shutil.which(tool)
    if found is None:
        raise ClusterError(f"{tool} is not on the PATH. Install it: {INSTALL[tool][this_system()]}.")
    return [found, *rest, *extra]
