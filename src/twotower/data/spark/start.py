"""Starting Spark so that it computes what DuckDB does, and telling its faults in one line."""

import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING

from twotower.errors import MissingExtraError, RecipeError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

OURS = {
    "spark.sql.ansi.enabled": "true",
    "spark.sql.caseSensitive": "false",
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.timestampType": "TIMESTAMP_NTZ",
    "spark.sql.execution.arrow.maxRecordsPerBatch": "131072",
}
"""Settings on which the result depends."""

_QUIET = {
    "spark.app.name": "twotower",
    "spark.log.level": "FATAL",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
}
_ON_THIS_MACHINE = {"spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}


@contextmanager
def start_spark(master: str, settings: Mapping[str, str]) -> Iterator["SparkSession"]:
    """A Spark session of its own; where Spark runs in this process already, beside the one that is there.

    Args:
        master: A master URL.
        settings: Spark's own settings, which win over ours where the result does not depend on them.

    Raises:
        MissingExtraError: pyspark or Java is not installed.
        RecipeError: Spark does not start so, or runs otherwise in this process.
    """
    for key, value in OURS.items():
        if settings.get(key, value) != value:
            raise RecipeError(f"prepare.spark_settings: {key} has to be {value!r} for the same rows. Leave it out.")
    _require_pyspark_and_java()
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

    # PySpark prints each fault with the JVM's stack before it raises it.
    for name in ("SQLQueryContextLogger", "DataFrameQueryContextLogger"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    running = SparkContext._active_spark_context  # An active session is one thread's; this is the process's.
    base = _start(master, settings) if running is None else _joined(SparkSession(running), master, settings)
    try:
        session = base.newSession() if running is None else base
        for key, value in OURS.items():
            session.conf.set(key, value)
        yield session
    finally:
        if running is None:
            base.stop()


def _require_pyspark_and_java() -> None:
    for module in ("pyspark", "pandas"):  # Ibis's part for Spark imports pandas.
        if find_spec(module) is None:
            raise MissingExtraError(
                f'{module} is not installed, and prepare.engine = "spark" needs it: pip install "twotower[spark]"'
            )
    home = os.environ.get("JAVA_HOME")
    if shutil.which(str(Path(home) / "bin" / "java") if home else "java") is None:
        place = f"in JAVA_HOME = {home!r}" if home else "on this machine"
        raise MissingExtraError(
            f'There is no Java {place}, and prepare.engine = "spark" needs it. Install Java 17 or 21 (on Debian: '
            "apt-get install openjdk-17-jre-headless), or set JAVA_HOME."
        )


def _start(master: str, settings: Mapping[str, str]) -> "SparkSession":
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master(master)
    here = _ON_THIS_MACHINE if is_this_machine(master) else {}
    for key, value in {**_QUIET, **here, **settings}.items():
        builder = builder.config(key, value)
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        try:
            # Who asks for a log by its level sees all of it.
            with _our_interrupts(), nullcontext() if "spark.log.level" in settings else _errors_into(log):
                return builder.getOrCreate()
        except (PySparkException, Py4JError) as fault:
            log.seek(0)
            raise RecipeError(
                f"prepare.spark_master = {master!r}: {in_one_line(fault, log.read())}. Give a master URL that answers, "
                "as local[*], and settings that it knows."
            ) from fault


def is_this_machine(master: str) -> bool:
    """Whether Spark computes in this process, and so with this user's rights."""
    return re.fullmatch(r"local(\[.*\])?", master) is not None


@contextmanager
def _our_interrupts() -> Iterator[None]:
    """Let Ctrl+C mean after the block what it meant before: pyspark takes it for good, and fails once it has ended."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Nobody takes signals there.
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _errors_into(file: IO[str]) -> Iterator[None]:
    """Let what starts inside the block write its errors into a file, as Java does to its end: ten lines each time."""
    sys.stderr.flush()
    ours = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(ours, 2)
        os.close(ours)


def _joined(running: "SparkSession", master: str, settings: Mapping[str, str]) -> "SparkSession":
    """A session beside the one that runs already, where what the recipe says is true of that or can be set."""
    session, fixed = running.newSession(), running.sparkContext.getConf()
    for key, value in {"spark.master": master, **settings}.items():
        if session.conf.isModifiable(key):
            session.conf.set(key, value)
            continue
        found = fixed.get(key, "")
        if found != value and not (key.endswith("JavaOptions") and value in found):  # Spark adds its own to these.
            raise RecipeError(
                f"prepare: Spark runs in this process with {key} = {found!r}, the recipe says {value!r}. Stop it, or "
                "say the same in the recipe."
            )
    return session


def in_one_line(fault: Exception, log: str = "") -> str:
    """What Spark found, without the JVM's stack, the query and the code of the fault.

    Args:
        fault: What pyspark raised.
        log: What Java wrote, where it ended before it could tell pyspark.
    """
    text = str(fault)
    if "JAVA_GATEWAY_EXITED" in text and re.search(r"(Exception|Error): ", log):
        text = log
    if named := re.search(r"\[[A-Z][A-Z0-9_.]+\] ([^\n]+)", text):
        line = named[1]
    elif caused := re.search(r"(?:Exception|Error): ([^\n]+)", text):
        line = caused[1]
    else:
        line = text.strip().partition("\n")[0]
    line = re.sub(r"\s*SQLSTATE: \w+.*", "", line)
    return line.strip().rstrip(".")[:300]
