"""One command for every figure: `python benchmarks/run.py NAME`, whose last line is `NAME: key=value key=value ...`.

Without a name it lists what there is. The raw figures go to `benchmarks/results/` as JSON.
"""

import importlib
import sys
from collections.abc import Callable
from typing import Protocol, cast

BENCHMARKS = {
    "tfrs-parity": "tfrs_parity",
    "time-split": "time_split",
    "eval-speed": "eval_speed",
    "step-growth": "step_growth",
    "pipeline-overhead": "pipeline_overhead",
    "time-to-quality": "scale.time_to_quality",
    "throughput": "scale.throughput",
    "gpu": "scale.gpu",
    "growth": "scale.growth",
    "ann": "scale.ann",
    "hundred-million": "scale.hundred_million",
    "processes": "scale.processes",
    "serve-1m": "serving.serve_1m",
    "serve-movielens": "serving.serve_movielens",
    "overload": "serving.overload",
    "swap": "serving.swap",
    "soak": "serving.soak",
    "serve-image": "serving.serve_image",
    "quality-ml100k-tfrs": "quality.ml100k_tfrs",
    "quality-ml100k-stratified": "quality.ml100k_stratified",
    "quality-ml1m-last-out": "quality.ml1m_last_out",
    "quality-ml1m-time": "quality.ml1m_time",
    "quality-ml1m-rmse": "quality.ml1m_rmse",
    "quality-cold-items": "quality.cold_items",
    "quality-simulated": "quality.simulated",
    "quality-ablations": "quality.ablations",
}
"""Name -> module below this folder."""


class Benchmark(Protocol):
    """What each module offers."""

    KEYS: tuple[str, ...]
    """The keys of its last line, in their order."""
    run: Callable[[list[str]], dict[str, float]]
    """Arguments after the name -> a value for each key."""


def load(name: str) -> Benchmark:
    """The module behind a name."""
    return cast(Benchmark, importlib.import_module(BENCHMARKS[name]))


def listing() -> str:
    """A line per benchmark: its name and its keys."""
    return "\n".join(f"{name}: {' '.join(load(name).KEYS)}" for name in BENCHMARKS)


def last_line(name: str, figures: dict[str, float], keys: tuple[str, ...]) -> str:
    """The line that others read, with four significant digits."""
    return f"{name}: {' '.join(f'{key}={figures[key]:.4g}' for key in keys)}"


def main(arguments: list[str]) -> int:
    """List, or run the benchmark named first with the arguments that follow."""
    if not arguments:
        print(listing())
        return 0
    name, *rest = arguments
    if name not in BENCHMARKS:
        print(f"no benchmark {name!r}. There are: {', '.join(BENCHMARKS)}.", file=sys.stderr)
        return 2
    benchmark = load(name)
    print(last_line(name, benchmark.run(rest), benchmark.KEYS))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
