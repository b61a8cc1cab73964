"""A process that holds the index of one library: `python -m ann.worker NAME WORLD`, told what to do line by line.

Each line on stdin is a JSON object with `do`, each answer a line on stdout; what libraries print goes to stderr.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from ann.libraries import APPROXIMATE, EXACT, Library

OURS = "twotower"
MB = 1e6


class Worker:
    """Answers for one library over one world."""

    def __init__(self, name: str, world: Path) -> None:
        """`name` is one of `libraries.py`, `twotower exact`, or `twotower` with a recall behind it."""
        self._world = world
        self._queries = {part: np.load(world / f"{part}.npy") for part in ("tune", "test")}
        self._library = self._named(name)

    def build(self, *, out: str, threads: int) -> dict[str, float]:
        """Build and save: seconds of both, and the most memory that was taken for it."""
        if hasattr(os, "sched_setaffinity"):  # Whoever counts cores by itself, as ours does, finds so many.
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
        embeddings = np.load(self._world / "items.npy", mmap_mode="r")
        if not isinstance(self._library, _ours()):
            embeddings = np.asarray(embeddings[:])  # Ours is given what its step gets, which it maps itself.
        before, done = memory()[0], threading.Event()
        peaks = [before]

        def look() -> None:
            while not done.wait(0.05):
                peaks[0] = max(peaks[0], memory()[0])

        looking = threading.Thread(target=look, daemon=True)
        looking.start()
        began = time.perf_counter()
        self._library.build(embeddings, threads)
        self._library.save(Path(out))
        seconds = time.perf_counter() - began
        done.set()
        looking.join()
        size = sum(file.stat().st_size for file in Path(out).rglob("*") if file.is_file())
        return {"build_s": seconds, "build_peak_mb": peaks[0] - before, "file_mb": size / MB}

    def load(self, *, out: str) -> dict[str, Any]:
        """Open what was saved, and tell what a search may be told."""
        self._before = memory()
        self._library.load(Path(out))
        return {"ladders": self._library.ladders}

    def rows(self, *, part: str, setting: dict[str, int]) -> list[list[int]]:
        """The rows found for each query of a part."""
        search = self._library.search(setting)
        return [search(query).tolist() for query in self._queries[part]]

    def seconds(self, *, part: str, setting: dict[str, int], start: int, count: int) -> list[float]:
        """What each of some queries took."""
        search, queries = self._library.search(setting), self._queries[part]
        taken = []
        for row in range(start, start + count):
            query = queries[row % len(queries)]
            began = time.perf_counter()
            search(query)
            taken.append(time.perf_counter() - began)
        return taken

    def memory(self) -> dict[str, float]:
        """What the index has taken since it was opened: of its own, and pages of mapped files."""
        own, mapped = memory()
        return {"own_mb": own - self._before[0], "mapped_mb": mapped - self._before[1]}

    def _named(self, name: str) -> Library:
        if name in (known := EXACT | APPROXIMATE):
            return known[name]()
        from ann.ours import Auto, Exact

        _, _, recall = name.partition(" ")
        return Exact(1.0, self._queries["tune"]) if recall == "exact" else Auto(float(recall), self._queries["tune"])


def memory() -> tuple[float, float]:
    """Anonymous memory and resident pages of files, in MB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 / MB for line in lines if line.startswith("Rss")}
    return sizes["RssAnon"], sizes["RssFile"]


def _ours() -> tuple[type[Library], ...]:
    """Our classes, where they have been loaded."""
    module = sys.modules.get("ann.ours")
    return () if module is None else (module.Auto,)


def main(arguments: list[str]) -> int:
    """Answer until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker(arguments[0], Path(arguments[1]))
    for line in sys.stdin:
        asked = json.loads(line)
        answer = getattr(worker, asked.pop("do"))(**asked)
        print(json.dumps(answer), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
