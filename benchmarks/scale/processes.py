"""Do several processes learn what one does? The same training by 1, 2 and 4 workers, and with workers killed.

All go by `twotower train` at one global batch, on gloo over loopback. Compared are the losses of every epoch, and the
figures on the test part with the interval that one process's have over its users. Then one of 4 workers is killed
(SIGKILL) at ten random moments, and the training is taken up each time by 4; where it ends before its next kill,
another begins. A checkpoint that the last kill has left is gone on from by one process and by 2 as well.
`max_loss_gap` is the largest difference of any of them from one process in the loss that is trained on, in any epoch.

The gap of each task's own loss is printed beside it. `met` asks which items retrieval brings, yes or no, so that a
difference in the last bit of a logit now and then takes an example in or out: its curve is rougher than the sum's.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import results

KEYS = ("max_loss_gap",)
RECIPE = Path(__file__).with_suffix(".toml")
SOURCES = {"1m": "movielens-1m", "100k": "movielens-100k"}
MOST = 4
"""Workers of the training that is killed."""
METRICS = ("ndcg@10", "recall@100")

History = list[dict[str, Any]]


class Job:
    """Trainings of one recipe on one split."""

    def __init__(self, folder: Path, overrides: Mapping[str, str]) -> None:
        from twotower import steps
        from twotower.recipe import load_recipe, recipe_toml

        self.folder = folder
        self.recipe = load_recipe(RECIPE, dict(overrides))
        (folder / "recipe.toml").write_text(recipe_toml(self.recipe), encoding="utf-8")
        steps.prepare(self.recipe, out=folder / "prepared")
        steps.split(self.recipe, prepared=folder / "prepared", out=folder / "split")

    def command(self, model: Path, *, processes: int) -> list[str]:
        """One training, which goes on from a checkpoint where there is one."""
        where = ["--split", str(self.folder / "split"), "--out", str(model)]
        program = [sys.executable, "-m", "twotower", "train", str(self.folder / "recipe.toml")]
        return [*program, *where, "--processes", str(processes), "--resume"]

    def train(self, name: str, *, processes: int) -> dict[str, Any]:
        """Train to the end."""
        model, began = self.folder / name / "model", time.perf_counter()
        subprocess.run(self.command(model, processes=processes), check=True, stdout=subprocess.DEVNULL)
        return {"processes": processes, "seconds": time.perf_counter() - began, "history": history_of(model)}

    def figures(self, name: str) -> dict[str, Any]:
        """Metric -> its value on the test part, and the interval over users."""
        from twotower import steps

        out = self.folder / name / "report"
        steps.evaluate(self.recipe, split=self.folder / "split", model=self.folder / name / "model", out=out)
        report = json.loads((out / "report.json").read_text(encoding="utf-8"))
        protocol = report["protocols"][report["main_protocol"]]
        values, intervals = protocol["contenders"]["two_stage"]["metrics"], protocol["intervals"]["two_stage"]
        return {metric: {"value": values[metric], "interval": intervals[metric]} for metric in METRICS}


def history_of(model: Path) -> History:
    """What each epoch came to."""
    found: History = json.loads((model / "history.json").read_text(encoding="utf-8"))
    return found


def loss_gaps(one: History, other: History) -> dict[str, float]:
    """The joint loss, and each task's own -> the largest difference in any epoch; both have as many."""
    names = [name for name in one[0] if not name.startswith(("epoch", "validation_", "gradient_norm_", "weight_"))]
    pairs = list(zip(one, other, strict=True))
    return {name: max(abs(float(mine[name]) - float(theirs[name])) for mine, theirs in pairs) for name in names}


def workers_of(launcher: int) -> list[int]:
    """Processes that the launcher started and that live."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text(encoding="utf-8").rpartition(")")[2].split()[:2]
        except FileNotFoundError:
            continue
        if int(parent) == launcher and state != "Z":
            found.append(int(stat.parent.name))
    return sorted(found)


def kill_one(job: Job, model: Path, *, after: float, is_early: bool, generator: random.Random) -> dict[str, Any] | None:
    """Go on with a training by `MOST` workers and kill one of them; None where it was done before.

    Args:
        job: What is trained.
        model: Where it goes.
        after: Seconds from the start, or from the first checkpoint of these workers.
        is_early: Whether from the start.
        generator: Draws the worker.
    """
    place = model.with_name("model.checkpoint") / "position.json"
    before = _written(place)
    launcher = subprocess.Popen(job.command(model, processes=MOST), stderr=subprocess.PIPE, text=True)
    while launcher.poll() is None and (
        len(workers_of(launcher.pid)) < MOST or (not is_early and _written(place) in (before, 0))
    ):
        time.sleep(0.02)
    time.sleep(after)
    workers, victim = workers_of(launcher.pid), generator.randrange(MOST)
    if len(workers) == MOST:
        os.kill(workers[victim], signal.SIGKILL)
    fault = launcher.communicate()[1].splitlines()
    if launcher.returncode == 0:
        return None
    if launcher.returncode != 2 or f"worker {victim + 1} of {MOST} was killed (SIGKILL" not in fault[-1]:
        raise RuntimeError(f"a killed worker was told as: {fault[-1:]} (exit code {launcher.returncode})")
    if left := [worker for worker in workers if Path(f"/proc/{worker}").is_dir()]:
        raise RuntimeError(f"workers {left} outlived their job")
    position = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else None
    steps = {"epochs": len(position["history"]), "step": position["step_in_epoch"]} if position else None
    return {"after": after, "is_early": is_early, "worker": victim + 1, "checkpoint": steps}


def _written(place: Path) -> int:
    """When the file was written; 0 where there is none, as for an instant while it is replaced."""
    try:
        return place.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def kills(job: Job, times: int, *, seconds: float) -> tuple[list[dict[str, Any]], dict[str, History]]:
    """Kill and take up again at moments drawn by chance; what became of a training that was done before its next kill.

    Each fourth falls on the start, the others come after a checkpoint. The last checkpoint that a kill left is kept
    beside, for others to go on from.

    Args:
        job: What is trained.
        times: How many kills.
        seconds: What a whole training takes.
    """
    generator, told, done = random.Random(0), list[dict[str, Any]](), dict[str, History]()
    while len(told) < times:
        name = f"killed-{len(done)}"
        model = job.folder / name / "model"
        is_early = len(told) % 4 == 3
        after = generator.uniform(0.0, 0.3 if is_early else 0.1) * seconds
        found = kill_one(job, model, after=after, is_early=is_early, generator=generator)
        if found is None:
            done[name] = history_of(model)
            continue
        told.append(found)
        checkpoint = model.with_name("model.checkpoint")
        if found["checkpoint"] is not None:
            for then in ("by-1", "by-2", "killed"):
                target = job.folder / then / "model.checkpoint"
                shutil.rmtree(target, ignore_errors=True)
                shutil.copytree(checkpoint, target)
    return told, done


def run(arguments: list[str]) -> dict[str, float]:
    """Train by one and by several, kill, go on, compare."""
    parser = argparse.ArgumentParser(prog="run.py processes", description=__doc__)
    parser.add_argument("--dataset", choices=sorted(SOURCES), default="100k")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4], help="beside 1 (default 2 4)")
    parser.add_argument("--kills", type=int, default=10)
    options = parser.parse_args(arguments)
    overrides = {"prepare.source": SOURCES[options.dataset], "train.epochs": str(options.epochs)}
    with tempfile.TemporaryDirectory() as folder:
        job = Job(Path(folder), overrides)
        trained = {str(count): job.train(str(count), processes=count) for count in (1, *options.processes)}
        figures = {name: job.figures(name) for name in trained}
        told, done = kills(job, options.kills, seconds=trained[str(options.processes[-1])]["seconds"])
        if (job.folder / "killed").is_dir():
            for name, processes in (("killed", MOST), ("by-1", 1), ("by-2", 2)):
                trained[name] = job.train(name, processes=processes)
    histories = {name: one["history"] for name, one in trained.items()} | done
    gaps = {name: loss_gaps(histories["1"], each) for name, each in histories.items() if name != "1"}
    raw = {"options": vars(options), "trained": trained, "gaps": gaps, "figures": figures, "kills": told, "done": done}
    for name, gap in gaps.items():
        told_gaps = ", ".join(f"{loss} {most:.2g}" for loss, most in gap.items())
        print(f"{name}: from one process at most {told_gaps}", file=sys.stderr)
    print(f"raw figures: {results.write('processes', raw)}")
    _demand_same(figures)
    return {"max_loss_gap": max(gap["loss"] for gap in gaps.values())}


def _demand_same(figures: Mapping[str, Mapping[str, Any]]) -> None:
    """Every figure within the interval of one process's."""
    for metric, ours in figures["1"].items():
        low, high = ours["interval"]
        outside = [name for name, each in figures.items() if not low <= each[metric]["value"] <= high]
        if outside:
            raise RuntimeError(f"{metric} by {' and '.join(outside)} processes is outside of {low:.4f} to {high:.4f}")
