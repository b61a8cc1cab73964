"""A million items, 64 wide, at 300 requests a second: 300 candidates ranked to 20, HTTP and JSON included.

`p50_ms` and `p99_ms` are medians of three runs. `recall` is the share of the 300 best items, by exact search, that the
bundle's index finds for the embeddings of users drawn alike. `max_rps` is the highest rate that the server follows:
everyone is answered, 99 of 100 within 50 ms.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import results

from serving import driving
from twotower.bundle import Bundle
from twotower.index.build import recall_against
from twotower.index.exact import ExactIndex
from twotower.serving.load.measuring import QUERIES, query_embeddings, request_bodies

KEYS = ("p50_ms", "p99_ms", "recall", "max_rps")
CANDIDATES = 300
WORLD = Path(__file__).with_name("world_1m.py")


def run(arguments: list[str]) -> dict[str, float]:
    """Serve, ask, and give the medians."""
    parser = driving.options("serve-1m", __doc__, seconds=20.0, rate=300.0)
    parser.add_argument("--runs", type=int, default=3, help="each with a server of its own (default 3)")
    parser.add_argument("-k", type=int, default=20, help="items in an answer (default 20)")
    told = parser.parse_args(arguments)
    bundle = told.bundle or _world()
    opened = Bundle.load(bundle)
    if opened.metadata["candidates"] != CANDIDATES:
        raise RuntimeError(f"{bundle}: retrieves {opened.metadata['candidates']} candidates, not {CANDIDATES}")
    recall = _recall(opened)
    runs = driving.measured_runs(bundle, rate=told.rate, seconds=told.seconds, k=told.k, runs=told.runs)
    bodies = request_bodies(opened, k=told.k, count=driving.DRAWN, users="uniform", seed=told.runs)
    with driving.started(bundle, *driving.NO_STORE) as child:
        found = driving.saturation(child, bodies, rate=told.rate)
    shape = {"items": opened.items.num_rows, "dim": opened.index.embeddings.shape[1], "index": opened.index.kind}
    raw: dict[str, Any] = {**shape, "recall": recall, "runs": runs, "saturation": found.steps}
    print(f"raw figures: {results.write('serve-1m', raw)}")
    driving.refuse_failures(runs)
    timed = {key: driving.median(runs, key) for key in ("p50_ms", "p99_ms")}
    return timed | {"recall": recall, "max_rps": found.max_rps}


def _world() -> Path:
    """Made, where it is not there, by a process that is gone before anything is timed."""
    made = subprocess.run([sys.executable, str(WORLD)], check=True, stdout=subprocess.PIPE, text=True)
    return Path(made.stdout.splitlines()[-1])


def _recall(opened: Bundle) -> float:
    queries = query_embeddings(opened, count=QUERIES, users="uniform", seed=0)
    return recall_against(ExactIndex(opened.index.embeddings), opened.index, queries=queries, k=CANDIDATES)
