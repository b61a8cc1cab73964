"""Compiled programs: those that outlive their process, and one that is compiled while another is.

The second run of a recipe compiles nothing and starts at once. JAX keeps programs by what they compute, under which
versions and settings, so that none is ever stale. What is added here is where they lie, for whom, and that they do not
pile up. The folder may be removed at any time.
"""

import ctypes
import hashlib
import os
import platform
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jax.stages import Lowered

VARIABLE = "TWOTOWER_CACHE"
"""Environment variable: the folder in which `compiled` lies, by default `~/.cache/twotower`. Empty: nothing is kept."""
FOLDER = "compiled"
MOST_BYTES = 512 * 2**20
"""What is kept for one processor at most. A run leaves one to twenty megabytes."""


def keep_compiled() -> Path | None:
    """Let JAX find what earlier runs compiled, and leave what this one compiles; to be called before it compiles.

    Returns:
        The folder. None where compiled programs are not kept: told so, or by JAX's own setting kept elsewhere, or where
        there is no folder that this user can write and nobody else. None of these is a fault: it takes longer then.
        Nor are those that reach over CPUs of several processes.
    """
    import jax

    if jax.distributed.is_initialized() and jax.default_backend() == "cpu":
        # A program that XLA reads back no longer holds that what is carried within a loop and what is carried outside
        # of it have one order: processes then wait for each other, each in another place.
        jax.config.update("jax_enable_compilation_cache", False)
        return None
    if jax.config.values["jax_compilation_cache_dir"] or (folder := compiled_folder()) is None:
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # Building the layers alone are some sixty small programs, each of them below JAX's default of a second.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return folder


def compiled_folder() -> Path | None:
    """This processor's folder, made where it is missing and kept small; None where there can be none."""
    told = os.environ.get(VARIABLE)
    if told == "":
        return None
    try:
        home = Path(told) if told else Path.home() / ".cache" / "twotower"
        folder = home / FOLDER / processor()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not is_private(folder):
            return None
        forget_oldest(folder, most=MOST_BYTES)
    except (OSError, RuntimeError):  # A home that nothing can be written into, or none at all.
        return None
    return folder


def is_private(folder: Path) -> bool:
    """Whether this user can write the folder, and nobody else: what lies in it is run as a program."""
    if not os.access(folder, os.W_OK):
        return False
    if os.name == "nt":  # Folders below one's own home are one's own.
        return True
    found = folder.stat()
    return found.st_uid == os.getuid() and not found.st_mode & 0o022


def forget_oldest(folder: Path, *, most: int) -> None:
    """Remove the files that were not read for longest, until the others take so many bytes at most.

    An empty one goes as well: whoever wrote it was stopped.
    """
    found = []
    for path in folder.rglob("*"):
        try:
            status = path.stat()
        except FileNotFoundError:  # Another run does the same.
            continue
        if path.is_file():
            found.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    left = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if left > most or not size:
            path.unlink(missing_ok=True)
            left -= size


def processor() -> str:
    """Names what compiled code depends on besides the program: code for one processor may not run on another.

    A home folder that several machines share has a folder for each kind of them.
    """
    told = [platform.system(), platform.machine(), platform.processor()]
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    told += [
        next((line for line in lines if line.startswith(name)), "") for name in ("model name", "flags", "Features")
    ]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


def compile_beside(lowered: "Lowered") -> "Future[Any]":
    """Compile in a thread of its own; once that is done, JAX has the program for whoever calls the function itself."""

    def compile_it() -> Any:
        compiled = lowered.compile()
        give_back_memory()
        return compiled

    pool = ThreadPoolExecutor(1, thread_name_prefix="twotower-compile")
    coming = pool.submit(compile_it)
    pool.shutdown(wait=False)
    return coming


def give_back_memory() -> None:
    """Let the system have what was freed: glibc keeps it, after compiling some 150 MB, and tables find no place in it.

    Other C libraries decide by themselves.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def optimised(level: int) -> dict[str, int]:
    """Options of `jax.jit`: how far a CPU's compiler goes, from 0 to 3; other devices have XLA's own choice.

    Most of a step is matrix products, and these are not compiled here but taken from a library: at 1 a step runs as
    fast as at 3, and is compiled in three quarters of the time. At 0 it takes half the time, and runs half as fast.
    """
    import jax

    return {"xla_backend_optimization_level": level} if jax.default_backend() == "cpu" else {}


def rounded_products() -> AbstractContextManager[None]:
    """What a step is traced in: on GPUs its matrix products take factors rounded to bfloat16 and sum up float32.

    All that is kept between products, weights and tables first of all, stays float32. JAX's own setting goes first:
    JAX_DEFAULT_MATMUL_PRECISION=float32 leaves factors as they are. So do CPUs and GPUs without such products.
    """
    import jax

    is_told = jax.config.values["jax_default_matmul_precision"] is not None
    if jax.default_backend() != "gpu" or is_told or not all(map(_multiplies_bfloat16, jax.local_devices())):
        return nullcontext()
    told: AbstractContextManager[None] = jax.default_matmul_precision("BF16_BF16_F32")
    return told


def _multiplies_bfloat16(gpu: Any) -> bool:
    """Whether XLA has such products for it: of NVIDIA's from compute capability 8.0 (Ampere) on, else it refuses."""
    major, _, minor = str(getattr(gpu, "compute_capability", "")).partition(".")
    return major.isdecimal() and minor.isdecimal() and int(major) >= 8
