"""Find better settings: trials that share their data, several at a time, in a study that can be gone on with."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twotower import artifact
from twotower.errors import TrainingError
from twotower.recipe import Recipe, recipe_toml
from twotower.tuning.results import Results, results_of, write_results
from twotower.tuning.shared_data import Tell, shared_data
from twotower.tuning.space import Dimension, settled, space_of
from twotower.tuning.study import (
    BEST_EPOCH,
    FAULT,
    NAME,
    SECONDS,
    counted,
    database_told,
    distributions,
    end_trial,
    identity_of,
    known_identity,
    make_folder,
    only_one,
    open_study,
    refuse_other,
    report_epoch,
)
from twotower.tuning.worker import Done, Epoch, Stopped, work

if TYPE_CHECKING:
    import optuna

MOST_DEAD = 3
"""Workers in a row that may die of something that is no fault of a trial's settings."""
SCRATCH = ".scratch"
"""Below the study's folder: checkpoints of running trials, and data that is made again."""


def tune(recipe: Recipe, *, trials: int, jobs: int, out: Path, tell: Tell) -> Results:
    """Try settings until the study holds so many trials; gives the best, which is also written.

    `out` gets study.db (the trials), best.toml (the recipe with the best values), trials.csv and study.html. A run
    that was stopped, by whatever, is gone on with by the same call.

    Args:
        recipe: Has the search space, or else one around its settings is taken.
        trials: In all, those of earlier calls included.
        jobs: Trials at a time, each in a process of its own.
        out: Its folder; the prepared data and the split lie there too, made once.
        tell: Told of every epoch and trial.

    Raises:
        RecipeError: a search space that cannot be, or a split without validation.
        ArtifactError: the folder's study is another one's, or cannot be written, or somebody is at it.
        TrainingError: no trial came to an end.
    """
    import optuna

    del optuna  # Where it is not installed, this is told before any work.
    space_of(recipe)  # What is wrong with it is told before any work.
    with only_one(out), _scratch(out) as scratch, database_told(out / NAME):
        known = known_identity(recipe, out)
        refuse_other(known, identity_of(recipe), out=out)  # Before the data of its trials is touched.
        split, counts = shared_data(recipe, out=out, scratch=scratch, known=known, tell=tell)
        space = space_of(settled(recipe, items=counts["train_items"]))
        fingerprint = artifact.fingerprint(split)
        study = open_study(recipe, space, split=fingerprint, items=counts["train_items"], out=out, jobs=jobs)
        if (there := counted(study)) > 0:
            tell(f"trials that are there already: {there}; to go: {max(0, trials - there)}")
        try:
            _Trying(recipe, study, space=space, trials=trials, split=split, scratch=scratch, tell=tell).go_on(jobs)
        finally:
            results = results_of(recipe, study, space=space)
            if results.best is not None:
                write_results(results, out)
        if results.best is None:
            raise TrainingError(f"{out}: none of {len(results.trials)} trials came to an end. {results.why_none()}")
    return results


@contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    """A folder below the study's that goes when the block ends, with what a run that was killed has left in it."""
    folder = out / SCRATCH
    shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Worker:
    """A process that trains, and the trial that it is at."""

    def __init__(self, recipe: str, *, split: Path, scratch: Path, shares: bool) -> None:
        context = get_context("spawn")  # JAX has threads, which a fork would not take along.
        self.pipe: Connection
        self.pipe, other = context.Pipe()
        named = {"split": split, "scratch": scratch, "shares": shares}
        self.process: BaseProcess = context.Process(target=work, args=(other, recipe), kwargs=named, daemon=True)
        self.process.start()
        other.close()  # Ours alone is left then, so that its end of the pipe closes when it dies.
        self.trial: optuna.Trial | None = None

    def begin(self, trial: "optuna.Trial", space: Sequence[Dimension]) -> None:
        self.trial = trial
        self.send({each.key: each.value(trial.params[each.key]) for each in space})

    def send(self, what: Any) -> None:
        with suppress(OSError):  # It died: that is heard where it should have answered.
            self.pipe.send(what)

    def end(self) -> None:
        self.process.terminate()
        self.process.join()
        self.pipe.close()


class _Trying:
    """The trials of one call: hands them out, hears how they stand, and says which go on."""

    def __init__(
        self,
        recipe: Recipe,
        study: "optuna.Study",
        *,
        space: Sequence[Dimension],
        trials: int,
        split: Path,
        scratch: Path,
        tell: Tell,
    ) -> None:
        self.recipe, self.study, self.space, self.trials, self.tell = recipe, study, space, trials, tell
        self.split, self.scratch = split, scratch
        self.drawn_from = distributions(space)
        self.left = trials - counted(study)
        self.dead = 0

    def go_on(self, jobs: int) -> None:
        """Hand out trials until none is left."""
        workers: list[_Worker] = []
        jobs = min(jobs, self.left)
        try:
            while self.left > 0 or any(worker.trial for worker in workers):
                while self.left > 0 and len(workers) < jobs:
                    workers.append(self._hired(shares=jobs > 1))
                for pipe in wait([worker.pipe for worker in workers]):
                    worker = next(each for each in workers if each.pipe is pipe)
                    if not self._hear(worker):
                        workers.remove(worker)
        finally:
            for worker in workers:
                worker.end()

    def _hired(self, *, shares: bool) -> _Worker:
        worker = _Worker(recipe_toml(self.recipe), split=self.split, scratch=self.scratch, shares=shares)
        self._begin(worker)
        return worker

    def _begin(self, worker: _Worker) -> None:
        self.left -= 1
        worker.begin(self.study.ask(self.drawn_from), self.space)

    def _hear(self, worker: _Worker) -> bool:
        """Take in what a worker tells; gives whether it stays."""
        trial = worker.trial
        assert trial is not None
        try:
            heard: Epoch | Done | Stopped = worker.pipe.recv()
        except (EOFError, ConnectionError):
            self._bury(worker, trial)
            return False
        if isinstance(heard, Epoch):
            goes_on = report_epoch(trial, heard.value, epoch=heard.epoch)
            metric = self.recipe.train.metric
            self.tell(f"trial {trial.number}  epoch {heard.epoch}/{heard.epochs}  {metric} {heard.value:.4f}")
            worker.send(goes_on)
            return True
        self.dead = 0
        self._end(trial, heard)
        if self.left > 0:
            self._begin(worker)
            return True
        worker.trial = None
        worker.end()
        return False

    def _end(self, trial: "optuna.Trial", heard: Done | Stopped) -> None:
        noted: dict[str, Any] = {SECONDS: round(heard.seconds, 2)}
        if isinstance(heard, Done):
            end_trial(trial, heard.value, noted=noted | {BEST_EPOCH: heard.best_epoch})
            told = f"{self.recipe.train.metric} {heard.value:.4f} in epoch {heard.best_epoch}"
        else:
            end_trial(trial, None, noted=noted | ({FAULT: heard.fault} if heard.fault else {}))
            told = f"cannot be: {heard.fault}" if heard.fault else "pruned"
        values = "  ".join(f"{key} {_shown(value)}" for key, value in trial.params.items())
        self.tell(f"trial {trial.number} of {self.trials}: {told}  ({values})")

    def _bury(self, worker: _Worker, trial: "optuna.Trial") -> None:
        """A worker died: of its trial's size, perhaps, so that others may do better."""
        worker.process.join()
        self.dead += 1
        fault = f"its process ended with code {worker.process.exitcode}"
        if worker.process.exitcode == -9:
            fault += ", as when memory runs out"
        end_trial(trial, None, noted={FAULT: fault})
        self.tell(f"trial {trial.number}: {fault}")
        worker.end()
        if self.dead >= MOST_DEAD:
            raise TrainingError(f"{self.dead} trials in a row failed: {fault}. What it said stands above.")


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
