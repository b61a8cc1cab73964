"""Commands as text that a person can paste into a shell."""

import re
import shlex
from collections.abc import Sequence

from twotower.cluster.tools import Command, System

PID_FILE = "port-forward.pid"
"""Where the printed commands keep the number of the background process."""


def script(commands: Sequence[Command], system: System) -> str:
    """Every command with its reason above it; what is not always run is commented out, with its condition."""
    return "\n".join(_entry(command, system) for command in commands)


def _entry(command: Command, system: System) -> str:
    line = command_line(command, system)
    if command.only_if:
        return f"# Only {command.only_if}: {command.why}\n# {line}\n"
    return f"# {command.why}\n{line}\n"


def command_line(command: Command, system: System) -> str:
    """The command for this system's shell: PowerShell on Windows, any POSIX shell elsewhere."""
    match command.mode:
        case "run":
            return joined(command.argv, system)
        case "background":
            return _background(command.argv, system)
        case "browse":
            opener = {"linux": "xdg-open", "macos": "open", "windows": "Start-Process"}[system]
            return f"{opener} {_quoted(command.argv[0], system)}"
        case "stop":
            return _stop(system)


def joined(argv: Sequence[str], system: System) -> str:
    """The arguments, each quoted where the shell would not take it as it is."""
    return " ".join(_quoted(argument, system) for argument in argv)


def _quoted(argument: str, system: System) -> str:
    if system != "windows":
        return shlex.quote(argument)
    if re.fullmatch(r"[\w./:=-]+", argument):
        return argument
    return "'" + argument.replace("'", "''") + "'"


def _background(argv: Sequence[str], system: System) -> str:
    if system != "windows":
        return f'nohup {joined(argv, system)} >port-forward.log 2>&1 & echo "$!" >{PID_FILE}'
    arguments = ",".join("'" + argument.replace("'", "''") + "'" for argument in argv[1:])
    started = f"Start-Process -WindowStyle Hidden -PassThru -FilePath {argv[0]} -ArgumentList {arguments}"
    return f"({started}).Id | Set-Content {PID_FILE}"


def _stop(system: System) -> str:
    """By its number, which its start has noted down: a name would meet the port-forwards of other clusters, too."""
    if system != "windows":
        return f'kill "$(cat {PID_FILE})"'
    return f"Stop-Process -Id (Get-Content {PID_FILE})"
