"""The images' names: the tag follows from the code, so that a cached step was made by this very code."""

import subprocess
from importlib.metadata import version
from pathlib import Path

from twotower.made_from import code_version

PIPELINE, SERVE = "twotower-pipeline", "twotower-serve"
"""Targets of the Dockerfile, and names of what it builds."""

OF_THE_IMAGE = ("src", "deploy", "requirements", "pyproject.toml", "Dockerfile")
"""What the images are built from."""


def tagged(name: str = PIPELINE) -> str:
    """The image of a target for this code: the git hash of a checkout without changes, else a hash of the code."""
    return f"{name}:{_git_hash() or code_tag()}"


def code_tag() -> str:
    """Release and a hash of the package's code."""
    return f"{version('twotower')}-{code_version()[:12]}"


def _git_hash() -> str:
    """The first 12 digits of the commit; "" outside of a checkout, or where the code was changed since."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists() or _git(root, "status", "--porcelain", "--", *OF_THE_IMAGE):
        return ""
    return _git(root, "rev-parse", "--short=12", "HEAD")


def _git(root: Path, *arguments: str) -> str:
    """What git says; a word of its own where it cannot be asked."""
    try:
        found = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown" if arguments[0] == "status" else ""
    return found.stdout.strip()
