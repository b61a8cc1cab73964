"""The environment of its own that the peers live in, made on first use from a lock with hashes.

ScaNN comes without TensorFlow here. hnswlib has no wheels: pip compiles it, which takes a C++ compiler.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
DIRECTORY = HERE.parent / ".venv-ann"
LOCK = HERE / "requirements.txt"
STAMP = DIRECTORY / "lock.sha256"


def python() -> str:
    """The interpreter of that environment, which is made unless it was made from this very lock."""
    wanted = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    if not STAMP.is_file() or STAMP.read_text(encoding="utf-8") != wanted:
        _make()
        STAMP.write_text(wanted, encoding="utf-8")
    return _python()


def _make() -> None:
    print(f"making {DIRECTORY} (0.3 GB, about a minute)", file=sys.stderr)
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    venv.create(DIRECTORY, with_pip=True)
    install = ["-m", "pip", "install", "-qq", "--disable-pip-version-check", "--require-hashes", "--no-deps"]
    subprocess.run([_python(), *install, "-r", str(LOCK)], check=True, stdout=sys.stderr)


def _python() -> str:
    return str(DIRECTORY / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
