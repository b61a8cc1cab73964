"""Where a benchmark's raw figures go, and what every one of them notes about the machine."""

import json
import math
import os
import platform
import shutil
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

DIRECTORY = Path(__file__).resolve().parent / "results"
PACKAGES = ("numpy", "jax", "keras", "onnxruntime", "twotower")
MEASURED = (":/src", ":/benchmarks", ":(top,exclude)benchmarks/quality/results")
"""What a figure depends on, as git names it; figures kept before this one are no change."""

# Two-sided 95 % points of Student's t for 1 to 9 degrees of freedom.
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def write(name: str, raw: Mapping[str, Any]) -> Path:
    """Keep a run's raw figures as `results/NAME-TIME.json`, beside what is known of the machine."""
    DIRECTORY.mkdir(exist_ok=True)
    moment = datetime.now(UTC)
    path = DIRECTORY / f"{name}-{moment:%Y%m%dT%H%M%SZ}.json"
    content = {"name": name, "at": moment.isoformat(timespec="seconds"), "commit": commit(), "machine": machine()}
    path.write_text(json.dumps(content | dict(raw), indent=1) + "\n", encoding="utf-8")
    return path


def machine() -> dict[str, Any]:
    """Processor, cores, load and the versions that a figure depends on. A load near the cores spoils timings."""
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def commit() -> str | None:
    """The commit that a figure was measured at, with `+` where the code differs from it; None outside of git."""
    git = shutil.which("git")
    if git is None:
        return None
    answers = [
        subprocess.run([git, *words], cwd=DIRECTORY.parent, capture_output=True, text=True, check=False)
        for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no", "--", *MEASURED))
    ]
    if any(answer.returncode for answer in answers):
        return None
    head, changes = (answer.stdout.strip() for answer in answers)
    return f"{head}+" if changes else head


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean and 95 % confidence interval over seeds, by Student's t (none for a single value or more than ten)."""
    mean = statistics.fmean(values)
    if not 1 < len(values) <= len(T_95) + 1:
        return {"mean": mean, "low": None, "high": None, "values": list(values)}
    half = T_95[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": mean, "low": mean - half, "high": mean + half, "values": list(values)}


def peak_memory() -> int:
    """The most memory, in bytes, that this process has held at once.

    `getrusage` would also count what the parent held when it started us, so Linux's own figure is preferred.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
