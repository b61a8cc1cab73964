"""One training by several workers on this machine: started together, ended together.

The launcher computes nothing. It gives each worker its place by the environment variables that `distributed` reads,
and waits. The first worker that dies ends the job; a launcher that dies, however, ends it too, for each worker reads
from a pipe that only the launcher holds open.
"""

import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from twotower.artifact import MANIFEST
from twotower.data.schema import ENVIRONMENT
from twotower.errors import TrainingError, TwotowerError

LAST_WORDS = "TWOTOWER_LAST_WORDS"
"""Names the file in which a worker leaves what ended it, and so tells that it is one."""
FAULT = 2
"""Exit code of a worker whose fault the user can mend."""
SHOW_CURSOR = "\x1b[?25h"


def launch_training(
    recipe: str, *, split: str, out: str, processes: int, resume: bool = False, warm_start: str | None = None
) -> None:
    """What `twotower train` does, by several workers.

    Args:
        recipe: As TOML.
        split: As the command takes it, like the others.
        out: Where the first worker writes the model.
        processes: How many workers.
        resume: Go on from the checkpoint, whatever number of workers wrote it.
        warm_start: An earlier model.

    Raises:
        TrainingError: a worker died; which one and how. Or there can be no workers here.
    """
    if os.name == "nt":
        raise TrainingError(
            "train: on Windows a training has one process, as gloo, which joins several, is not built for it. Leave "
            "--processes out, or train in WSL."
        )
    if os.environ.get("JAX_NUM_PROCESSES", "1") != "1":
        raise TrainingError(
            "train: JAX_NUM_PROCESSES is set, so this process is one of several already. Leave --processes out."
        )
    with tempfile.TemporaryDirectory(prefix="twotower-workers-") as folder:
        path = Path(folder) / "recipe.toml"
        path.write_text(recipe, encoding="utf-8")
        command = [sys.executable, "-m", "twotower", "train", str(path), "--split", split, "--out", out]
        command += ["--resume"] if resume else []
        command += [] if warm_start is None else ["--warm-start", warm_start]
        try:
            launch(command, processes, folder=Path(folder))
        except WorkerError as fault:
            is_kept = (Path(f"{out}.checkpoint") / MANIFEST).is_file()
            then = (
                "The checkpoint is kept: go on with --resume." if is_kept else "No checkpoint was written: begin anew."
            )
            raise TrainingError(f"{fault} {then}") from fault


def launch(command: Sequence[str], processes: int, *, folder: Path) -> None:
    """Run a command as so many workers of one job, until all are done.

    Args:
        command: What each worker runs; within it, `as_worker` and `distributed.joined`.
        processes: How many.
        folder: For what workers leave behind, however they end; the caller removes it.

    Raises:
        WorkerError: a worker died; which one and how.
        TrainingError: what a worker told that the user can mend.
    """
    address = f"127.0.0.1:{_free_port()}"
    ended: queue.Queue[int] = queue.Queue()
    workers: list[subprocess.Popen[bytes]] = []
    try:
        for number in range(processes):
            environment = _environment(number, processes, address=address, folder=folder)
            workers.append(_start(command, environment, log=_log(folder, number) if number else None))
        for number, worker in enumerate(workers):
            threading.Thread(target=_tell_end, args=(worker, number, ended), daemon=True).start()
        for _ in workers:
            number = ended.get()
            if workers[number].returncode:
                number = _culprit(number, workers)
                _end(workers)
                raise _fault(number, workers, folder=folder)
    finally:
        _end(workers)


class WorkerError(TrainingError):
    """A worker died of what it could not tell itself."""


@contextmanager
def as_worker() -> Iterator[None]:
    """In a worker: end with the launcher, and leave to it to tell of faults; elsewhere nothing."""
    place = os.environ.get(LAST_WORDS)
    if place is None:
        yield
        return
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    try:
        yield
    except TwotowerError as fault:
        _leave(place, str(fault), code=FAULT)
    except BaseException as fault:  # noqa: BLE001 - whatever it is, the launcher has to know.
        if notes := getattr(fault, "__notes__", None):
            notes.clear()  # JAX's on the frames that it leaves out: the last line tells what was wrong.
        _leave(place, traceback.format_exc(), code=1)


def _leave(place: str, words: str, *, code: int) -> None:
    Path(place).write_text(words, encoding="utf-8")
    os._exit(code)  # An orderly end would wait for the other workers.


def _end_with_launcher() -> None:
    while os.read(0, 1):  # Nothing is ever written: it ends when the launcher does.
        pass
    os._exit(1)


def _start(command: Sequence[str], environment: Mapping[str, str], *, log: Path | None) -> "subprocess.Popen[bytes]":
    """A worker, whose progress is shown, or goes to a log."""
    with ExitStack() as stack:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=None if log is None else stack.enter_context(log.open("wb")),
            start_new_session=True,  # Ctrl+C is the launcher's to act on.
        )


def _environment(number: int, processes: int, *, address: str, folder: Path) -> dict[str, str]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = str(max(1, cores // processes))
    place = {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_COORDINATOR_BIND_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(processes),
        "JAX_PROCESS_ID": str(number),
        "JAX_LOCAL_DEVICE_IDS": str(number),  # Of GPUs; a CPU is one device for each.
        "NPROC": share,  # Threads of XLA.
        "OMP_NUM_THREADS": share,
        "TMPDIR": str(folder),
        LAST_WORDS: str(_last_words(folder, number)),
    }
    # The recipe that workers are given has what the environment overrides, and what the command line did after it.
    return {name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT)} | place


def _tell_end(worker: "subprocess.Popen[bytes]", number: int, ended: "queue.Queue[int]") -> None:
    worker.wait()
    ended.put(number)


def _culprit(number: int, workers: Sequence["subprocess.Popen[Any]"]) -> int:
    """Whom it began with, when this one was the first seen to have ended badly.

    Who fails for want of a worker that was killed may be seen before it. An abort is none of it: so JAX ends a worker
    that has lost another.
    """
    if workers[number].returncode != FAULT:
        for place, worker in enumerate(workers):
            if (code := worker.poll() or 0) < 0 and code != -signal.SIGABRT:
                return place
    return number


def _end(workers: Sequence["subprocess.Popen[Any]"]) -> None:
    """Leave no worker behind. They may be killed at any moment: what they write is whole or not there."""
    for worker in workers:
        if worker.poll() is None:
            worker.kill()
    for worker in workers:
        worker.wait()
        if worker.stdin is not None:
            worker.stdin.close()


def _fault(number: int, workers: Sequence["subprocess.Popen[Any]"], *, folder: Path) -> TrainingError:
    """What a worker died of, in one line; the traceback of a bug goes before it."""
    path = _last_words(folder, number)
    words = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    code = workers[number].returncode
    if sys.stderr.isatty():
        sys.stderr.write(SHOW_CURSOR)  # The bar of a killed worker has hidden it.
    if code == FAULT and words:
        return TrainingError(words)
    if not words and code != -signal.SIGKILL and _log(folder, number).is_file():
        words = _log(folder, number).read_text(encoding="utf-8", errors="replace").strip()
    if words:
        sys.stderr.write(f"{words}\n")
    return WorkerError(f"train: worker {number + 1} of {len(workers)} {_how(code, words)}; the others were stopped.")


def _how(code: int, words: str) -> str:
    if code == -signal.SIGKILL:
        return "was killed (SIGKILL: where nobody sent it, the machine ran out of memory)"
    if code < 0:
        return f"was killed ({signal.Signals(-code).name})"
    return f"failed ({words.splitlines()[-1]})" if words else f"ended with code {code}"


def _last_words(folder: Path, number: int) -> Path:
    return folder / f"worker-{number}.txt"


def _log(folder: Path, number: int) -> Path:
    return folder / f"worker-{number}.log"


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
