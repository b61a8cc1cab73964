"""What the rows of the quality table do alike: options, one run a seed through the package's own steps, raw results.

Nothing here chooses anything by the test part: recipes are files, and what stops a training is a slice of its train
part.
"""

import argparse
import json
import shlex
import shutil
import statistics
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import results

if TYPE_CHECKING:
    from twotower.recipe import Recipe

FOLDER = Path(__file__).resolve().parent
KEPT = FOLDER / "results"
"""The raw results that docs/quality.md is written from, one a row; they are in git."""
OURS = {
    "retrieval": "retrieval alone",
    "two_stage": "both stages",
    "ceiling": "ceiling of the candidates",
    "retrieval_trained_alone": "retrieval, trained alone",
}

Table = dict[str, dict[str, float]]
"""Contender -> metric -> value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How often a row is measured, and with what besides its recipe."""

    seeds: int
    overrides: dict[str, str]
    keep: bool
    only: tuple[str, ...] = ()
    """Variants asked for; empty for all that a row has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A trained model, with what made it."""

    recipe: "Recipe"
    split: Path
    model: Path
    seconds: dict[str, float]
    """`prepare` (with the split) and `train`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one seed gave."""

    fitted: Mapping[str, Fitted]
    """Name of the model, "" where there is one -> what was trained."""
    figures: dict[str, float]
    """The row's keys, and others worth keeping."""
    intervals: dict[str, list[float]] = field(default_factory=dict)
    """Key -> 95% interval over this seed's users, where the report has one."""
    tables: dict[str, Table] = field(default_factory=dict)
    """What was asked -> every contender's figures, for the page."""
    notes: list[str] = field(default_factory=list)
    """What the report says of its baselines."""


def read_options(
    name: str, arguments: list[str], *, about: str | None, seeds: int = 5, variants: Sequence[str] = ()
) -> Options:
    """The arguments that every row takes, and `--only` for a row that has variants."""
    parser = argparse.ArgumentParser(prog=f"run.py {name}", description=about)
    parser.add_argument("--seeds", type=int, default=seeds, help=f"splits or worlds, from seed 0 on (default {seeds})")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="another setting of the recipe",
    )
    parser.add_argument(
        "--keep", action="store_true", help="keep the raw result in benchmarks/quality/results, for docs/quality.md"
    )
    if variants:
        parser.add_argument(
            "--only",
            action="append",
            default=[],
            choices=variants,
            metavar="NAME",
            help=f"this variant beside the base; may be repeated. There are: {', '.join(variants)}",
        )
    found = parser.parse_args(arguments)
    only = tuple(found.only) if variants else ()
    if only and found.keep:
        parser.error("--keep keeps a whole row: leave --only out")
    if found.seeds < 1:
        parser.error("--seeds must be 1 or more")
    if wrong := [text for text in found.overrides if "=" not in text]:
        parser.error(f"--set {wrong[0]}: write KEY=VALUE, as in train.epochs=1")
    overrides = dict(text.split("=", 1) for text in found.overrides)
    return Options(seeds=found.seeds, overrides=overrides, keep=found.keep, only=only)


def each_seed(options: Options, one: Callable[[Options, int, Path], Measured]) -> list[dict[str, Any]]:
    """Measure every seed in a folder of its own that is gone afterwards; gives what is kept of each."""
    found = []
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            begin = time.perf_counter()
            measured = one(options, seed, Path(folder))
            found.append(_kept(measured, seed=seed, seconds=time.perf_counter() - begin))
        shown = "  ".join(f"{key} {value:.4f}" for key, value in measured.figures.items())
        print(f"seed {seed}: {shown}", file=sys.stderr, flush=True)
    return found


def fit(
    recipe_file: str,
    *,
    options: Options,
    seed: int,
    out: Path,
    data_dir: Path | None = None,
    variant: Mapping[str, Any] | None = None,
) -> Fitted:
    """Prepare, split and train by a recipe.

    Args:
        recipe_file: A recipe of this folder, or the name of one that comes with the package.
        data_dir: Where its files or MovieLens lie.
        variant: `section.key` -> value, on top of the recipe and below the options.
    """
    from twotower import steps
    from twotower.cli.progress import watching
    from twotower.recipe import load_recipe

    place = FOLDER / recipe_file
    there = {} if data_dir is None else {"prepare.data_dir": str(data_dir)}
    settings = {"seed": seed, **there, **(variant or {}), **options.overrides}
    recipe = load_recipe(place if place.is_file() else recipe_file, settings)
    begin = time.perf_counter()
    steps.prepare(recipe, out=out / "prepared")
    steps.split(recipe, prepared=out / "prepared", out=out / "split")
    prepared = time.perf_counter()
    with watching() as watch:
        steps.train(recipe, split=out / "split", out=out / "model", watch=watch)
    seconds = {"prepare": prepared - begin, "train": time.perf_counter() - prepared}
    return Fitted(recipe=recipe, split=out / "split", model=out / "model", seconds=seconds)


def judge(fitted: Fitted, *, exclude_seen: bool | None = None) -> dict[str, Any]:
    """The report of a model; the same model can be asked again with what was seen excluded or not."""
    from twotower import steps

    recipe = fitted.recipe
    if exclude_seen is not None:
        recipe = replace(recipe, evaluate=replace(recipe.evaluate, exclude_seen=exclude_seen))
    out = fitted.model.with_name(f"report-{'unseen' if recipe.evaluate.exclude_seen else 'all'}")
    steps.evaluate(recipe, split=fitted.split, model=fitted.model, out=out)
    report: dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return report


def contenders(protocol: Mapping[str, Any], metrics: Sequence[str] | Mapping[str, str]) -> Table:
    """The chosen metrics of every contender of a report's protocol.

    Args:
        metrics: The report's names, or ours -> the report's.
    """
    names = metrics if isinstance(metrics, Mapping) else {metric: metric for metric in metrics}
    return {
        OURS.get(name, name): {shown: one["metrics"][metric] for shown, metric in names.items()}
        for name, one in protocol["contenders"].items()
    }


def ratings(report: Mapping[str, Any]) -> Table:
    """Error of the predicted stars, ours and the baselines'."""
    found = report["labels"]["rating"]
    return {"model": found["metrics"], **found["baselines"]}


def figures(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Key -> mean, 95% interval over seeds and the seeds' values; over one seed's users where there is one seed."""
    found = {}
    for key in runs[0]["figures"]:
        found[key] = results.interval([run["figures"][key] for run in runs]) | {"over": "seeds"}
        if len(runs) == 1 and (bounds := runs[0]["intervals"].get(key)):
            found[key] |= {"low": bounds[0], "high": bounds[1], "over": "users"}
    return found


def write(
    name: str, options: Options, *, runs: Sequence[Mapping[str, Any]], figures: Mapping[str, Mapping[str, Any]]
) -> dict[str, float]:
    """Keep a row's raw result; gives the value of each key for the last line."""
    row = facts(name)
    raw = {
        **{key: row[key] for key in ("data", "protocol", "targets", "published")},
        "command": _command(name, options),
        "seeds": [run["seed"] for run in runs],
        "figures": figures,
        "tables": _mean_tables(runs),
        "seconds": {part: [run["seconds"][part] for run in runs] for part in runs[0]["seconds"]},
        "settings": runs[0]["settings"],
        "runs": [{key: value for key, value in run.items() if key not in ("settings", "tables")} for run in runs],
    }
    path = results.write(name, raw)
    print(f"raw figures: {path}")
    if options.keep:
        KEPT.mkdir(exist_ok=True)
        shutil.copyfile(path, KEPT / f"{name}.json")
    return {key: figure["mean"] for key, figure in figures.items()}


def facts(name: str) -> dict[str, Any]:
    """What `rows.toml` says of a row."""
    rows = tomllib.loads((FOLDER / "rows.toml").read_text(encoding="utf-8"))["row"]
    found: dict[str, Any] = next(row for row in rows if row["name"] == name)
    return found


def conservative_low(bounds: Sequence[float], differences: Sequence[float]) -> float:
    """The lower end of a difference that several seeds measured, each over its own users.

    Two sources of doubt, users and seeds, and the worse of the two counts: the mean over seeds of each bootstrap
    interval's lower end, or the lower end of Student's interval over the seeds' differences, whichever is less.
    """
    by_users, by_seeds = statistics.fmean(bounds), results.interval(differences)["low"]
    return by_users if by_seeds is None else min(by_users, by_seeds)


def training(fitted: Fitted) -> dict[str, Any]:
    """How many epochs ran, which was the best, and its losses and validation metrics."""
    from twotower.artifact import read_manifest

    history = json.loads((fitted.model / "history.json").read_text(encoding="utf-8"))
    best = int(read_manifest(fitted.model, kind="model")["metadata"]["best_epoch"])
    return {"epochs": len(history), "best": history[best - 1]}


def _command(name: str, options: Options) -> str:
    """What measures the row again; make would read the quotes of a setting its own way."""
    if not options.overrides and not options.only:
        return f'make bench NAME={name} ARGS="--seeds {options.seeds}"'
    words = [word for key, value in options.overrides.items() for word in ("--set", f"{key}={value}")]
    words += [word for variant in options.only for word in ("--only", variant)]
    return shlex.join(["python", "dev.py", "bench", name, "--seeds", str(options.seeds), *words])


def _kept(measured: Measured, *, seed: int, seconds: float) -> dict[str, Any]:
    """What the raw result holds of one seed."""
    parts = {part: sum(one.seconds[part] for one in measured.fitted.values()) for part in ("prepare", "train")}
    return {
        "seed": seed,
        "figures": measured.figures,
        "intervals": measured.intervals,
        "tables": measured.tables,
        "notes": measured.notes,
        "seconds": {part: round(value, 1) for part, value in {"total": seconds, **parts}.items()},
        "training": {name: training(one) for name, one in measured.fitted.items()},
        "settings": {name: _settings(one.recipe) for name, one in measured.fitted.items()},
    }


def _settings(recipe: "Recipe") -> dict[str, Any]:
    """The recipe, whole and by what differs from the defaults, without what is of this machine or of one seed."""
    from twotower.recipe import Recipe, recipe_tree

    whole = recipe_tree(recipe)
    whole["prepare"].pop("data_dir", None)
    del whole["seed"]
    default = dict(_flat(recipe_tree(Recipe())))
    changed = {key: value for key, value in _flat(whole) if default.get(key) != value and key != "name"}
    return {"changed": changed, "recipe": whole}


def _flat(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _mean_tables(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """Table -> contender -> metric -> mean and interval over the seeds that have it."""
    found: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    for title, table in runs[0]["tables"].items():
        found[title] = {}
        for name, metrics in table.items():
            having = [run["tables"][title][name] for run in runs if name in run["tables"][title]]
            found[title][name] = {metric: results.interval([one[metric] for one in having]) for metric in metrics}
    return found
