"""The environment with TensorFlow that a SavedModel is built and asked in: made from its lock once, kept in build/."""

import hashlib
import os
import shutil
import subprocess
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / "build" / "tensorflow-venv"
LOCK = ROOT / "requirements" / "tensorflow.txt"


@pytest.fixture(scope="session")
def tensorflow_python() -> Path:
    """The Python of that environment; a test that needs it skips, with the reason, where it cannot be made."""
    python = ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp, wanted = ENVIRONMENT / "lock.sha256", hashlib.sha256(LOCK.read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    install = [
        "-m",
        "pip",
        "install",
        "-qq",
        "--disable-pip-version-check",
        "--no-compile",
        "--require-hashes",
        "--no-deps",
    ]
    try:
        venv.create(ENVIRONMENT, with_pip=True)
        subprocess.run([python, *install, "-r", LOCK], check=True, capture_output=True, text=True)
    except (subprocess.CalledProcessError, OSError) as fault:
        pytest.skip(f"no environment with TensorFlow: {getattr(fault, 'stderr', None) or fault}")
    stamp.write_text(wanted, encoding="utf-8")
    return python
