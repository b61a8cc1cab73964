"""The environment of its own that TFRS 0.7.7 needs: Keras 2 on TensorFlow 2.21, made on first use.

The lock `tfrs/requirements.txt` names every package with its hashes and is installed without asking for dependencies:
TFRS and tf-keras name `tensorflow`, of which `tensorflow-cpu` is a smaller build.
Nothing here may be named beside ScaNN 1.4.2: importing TFRS fails where both are installed.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
DIRECTORY = HERE / ".venv-tfrs"
SCRIPTS = HERE / "tfrs"
LOCK = SCRIPTS / "requirements.txt"
STAMP = DIRECTORY / "lock.sha256"


def command(script: str, *arguments: str) -> list[str]:
    """The command line that runs a script of `tfrs/` in the TFRS environment, which is made where it is missing."""
    _make()
    return [str(_python()), str(SCRIPTS / script), *arguments]


def variables() -> dict[str, str]:
    """What the scripts need in their environment: the Keras 2 that TFRS is written for, and less chatter."""
    return {**os.environ, "TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}


def _python() -> Path:
    return DIRECTORY / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _make() -> None:
    """Install the lock, unless the environment was made from this very lock."""
    wanted = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    if STAMP.is_file() and STAMP.read_text(encoding="utf-8") == wanted:
        return
    print(f"making {DIRECTORY} (1.6 GB, about a minute)", file=sys.stderr)
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    venv.create(DIRECTORY, with_pip=True)
    install = ["-m", "pip", "install", "-qq", "--disable-pip-version-check", "--require-hashes", "--no-deps"]
    subprocess.run([str(_python()), *install, "-r", str(LOCK)], check=True, stdout=sys.stderr)
    STAMP.write_text(wanted, encoding="utf-8")
