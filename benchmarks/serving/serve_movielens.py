"""MovieLens-1M at 400 requests a second: both stages, HTTP and JSON included; the median of three runs.

The bundle is that of the recipe that comes with the package, trained for one epoch: latency does not depend on how good
the model is. Users are drawn alike from all 6,040, and what they had seen is left out.
"""

from typing import Any

import results

from serving import bundles, driving

KEYS = ("p50_ms", "p99_ms")


def run(arguments: list[str]) -> dict[str, float]:
    """Serve, ask, and give the medians."""
    parser = driving.options("serve-movielens", __doc__, seconds=20.0, rate=400.0)
    parser.add_argument("--runs", type=int, default=3, help="each with a server of its own (default 3)")
    parser.add_argument("-k", type=int, default=20, help="items in an answer (default 20)")
    told = parser.parse_args(arguments)
    bundle = told.bundle or bundles.movielens()
    runs: list[dict[str, Any]] = driving.measured_runs(
        bundle, rate=told.rate, seconds=told.seconds, k=told.k, runs=told.runs
    )
    print(f"raw figures: {results.write('serve-movielens', {'runs': runs})}")
    driving.refuse_failures(runs)
    return {key: driving.median(runs, key) for key in KEYS}
