"""The trials so far, in one SQLite file: what to try next, what was found, and what became of a run that was killed."""

import math
import sqlite3
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twotower.artifact import hash_json
from twotower.errors import ArtifactError
from twotower.evaluation.names import LABEL_METRICS
from twotower.recipe import Recipe, recipe_tree
from twotower.tuning.space import Dimension, own_values, space_of

if TYPE_CHECKING:
    import optuna

NAME = "study.db"
LOCK = "study.lock"
IDENTITY, OWN, FAULT, SECONDS, BEST_EPOCH = "identity", "own", "fault", "seconds", "best_epoch"
"""What is noted of a study (whose it is) and of its trials: the recipe's own values, what failed, how it went."""
DATA = "data"
"""The part of a study's identity that is known once there is data: the fingerprint of the split."""
STARTUP = 4
"""Trials that the median is taken of at least."""


@contextmanager
def only_one(out: Path) -> Iterator[None]:
    """Make the study's folder and keep everybody else out of it; the system lets go of it however this process ends.

    Raises:
        ArtifactError: another process is at it, or it cannot be written.
    """
    make_folder(out)
    try:
        holder = _held(out / LOCK)
    except sqlite3.Error as fault:
        if fault.sqlite_errorcode != sqlite3.SQLITE_BUSY:
            raise _told(out / LOCK, fault) from fault
        raise ArtifactError(
            f"{out}: another `twotower tune` is at this study. Wait for it, give it more --jobs, or name another --out."
        ) from fault
    try:
        yield
    finally:
        holder.close()


def make_folder(path: Path) -> None:
    """Make a folder and those above it, where they are not there.

    Raises:
        ArtifactError: a file lies there, or it may not be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        reason = f"no folder that a study can lie in ({fault.strerror})"
        raise ArtifactError(f"{path}: {reason}. Name another --out.") from fault


@contextmanager
def database_told(where: Path) -> Iterator[None]:
    """Turn what a study's database complains about into one line.

    Raises:
        ArtifactError: it did so inside the block.
    """
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as fault:
        raise _told(where, fault) from fault


def known_identity(recipe: Recipe, out: Path) -> dict[str, str]:
    """Whose trials lie in the directory; nothing where there are none.

    Raises:
        ArtifactError: the file is no study.
    """
    return _known(_opened(recipe, out)) if (out / NAME).exists() else {}


def identity_of(recipe: Recipe) -> dict[str, str]:
    """What trials of one study share but the data, each part by its hash; the data decides what is left to it."""
    tree = recipe_tree(recipe)
    bounds = [
        [each.key, each.low, each.high, each.log, each.step, list(each.choices or ())] for each in space_of(recipe)
    ]
    parts = {"[model]": tree["model"], "[train]": tree["train"], "seed": recipe.seed, "[tune.space]": bounds}
    return {name: hash_json({"of": part}) for name, part in parts.items()}


def refuse_other(known: Mapping[str, str], identity: Mapping[str, str], *, out: Path) -> None:
    """Tell where the directory's trials are of something else.

    Args:
        known: Whose they are.
        identity: Whose they would have to be, or the part of it that is known by now.
        out: The directory.

    Raises:
        ArtifactError: they are not.
    """
    other = [name for name, part in identity.items() if known.get(name, part) != part]
    if other:
        raise ArtifactError(
            f"{out / NAME}: these trials were of another recipe ({', '.join(other)} changed), so they do not compare. "
            "Name another --out, or remove the file."
        )


def open_study(
    recipe: Recipe, space: Sequence[Dimension], *, split: str, items: int, out: Path, jobs: int
) -> "optuna.Study":
    """The directory's study, new or as it was left, with nothing running.

    Args:
        recipe: What is tuned.
        space: From `space_of`.
        split: Fingerprint of the parts.
        items: Of the train part.
        out: Its folder.
        jobs: How many trials go on at a time.

    Raises:
        ArtifactError: the file is no study, or one of another recipe, another space or other data.
    """
    study = _opened(recipe, out)
    identity = identity_of(recipe) | {DATA: split}
    refuse_other(_known(study), identity, out=out)
    study.set_user_attr(IDENTITY, identity)
    _put_back_interrupted(study)
    study.sampler = _sampler(recipe, trials=len(study.trials), jobs=jobs)
    own = own_values(recipe, space, items=items)
    if not study.trials and own is not None:
        study.enqueue_trial(own, user_attrs={OWN: True})
    return study


def distributions(space: Sequence[Dimension]) -> dict[str, Any]:
    """What the sampler draws from, by key."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, Any] = {}
    for each in space:
        if each.choices is not None:
            found[each.key] = CategoricalDistribution(list(each.choices))
        elif each.whole:
            step = 1 if each.step is None else int(each.step)
            found[each.key] = IntDistribution(int(each.low), int(each.high), log=each.log, step=step)
        else:
            found[each.key] = FloatDistribution(each.low, each.high, log=each.log, step=each.step)
    return found


def is_error(metric: str) -> bool:
    """Whether less is better."""
    return metric in LABEL_METRICS.values()


def counted(study: "optuna.Study") -> int:
    """Trials that have ended by themselves; those that were cut off are tried again."""
    return sum(trial.state.is_finished() and not was_cut_off(trial) for trial in study.get_trials(deepcopy=False))


def was_cut_off(trial: "optuna.trial.FrozenTrial") -> bool:
    """Whether the run was killed while this trial went on: it failed, and nobody could note why."""
    return trial.state.name == "FAIL" and FAULT not in trial.user_attrs


def end_trial(trial: "optuna.Trial", value: float | None, *, noted: Mapping[str, Any]) -> None:
    """Write down how a trial ended: by a value, pruned (no value), or by the fault that is noted."""
    from optuna.trial import TrialState

    for name, what in noted.items():
        trial.set_user_attr(name, what)
    if FAULT in noted:
        trial.study.tell(trial, state=TrialState.FAIL)
    elif value is None:
        trial.study.tell(trial, state=TrialState.PRUNED)
    else:
        trial.study.tell(trial, value)


def report_epoch(trial: "optuna.Trial", value: float, *, epoch: int) -> bool:
    """Note the metric after an epoch; gives whether the trial is worth going on."""
    if not math.isfinite(value):
        return False
    trial.report(value, epoch)
    return not trial.should_prune()


def _held(lock: Path) -> sqlite3.Connection:
    """A connection that nobody else can have: the lock."""
    holder = sqlite3.connect(lock, timeout=0, isolation_level=None)
    try:
        holder.execute("BEGIN EXCLUSIVE")
    except sqlite3.Error:
        holder.close()
        raise
    return holder


def _opened(recipe: Recipe, out: Path) -> "optuna.Study":
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    where = out / NAME
    try:
        with database_told(where):
            return optuna.create_study(
                storage=optuna.storages.RDBStorage(f"sqlite:///{where}"),
                study_name="twotower",
                direction="minimize" if is_error(recipe.train.metric) else "maximize",
                load_if_exists=True,
                pruner=_pruner(recipe),
            )
    except RuntimeError as fault:  # Written by another release of optuna: it says which command helps.
        raise ArtifactError(f"{where}: {fault}") from fault


def _told(where: Path, fault: BaseException) -> ArtifactError:
    """What a database complains about, in SQLite's own words, which lie below those of others."""
    while fault.__cause__ is not None:
        fault = fault.__cause__
    if getattr(fault, "sqlite_errorcode", None) == sqlite3.SQLITE_NOTADB:
        return ArtifactError(f"{where}: no study that can be read ({fault}). Remove it, or name another --out.")
    return ArtifactError(f"{where}: not to be read or written ({fault}). Mend that, or name another --out.")


def _known(study: "optuna.Study") -> dict[str, str]:
    known: dict[str, str] = study.user_attrs.get(IDENTITY, {}) if study.get_trials(deepcopy=False) else {}
    return known


def _put_back_interrupted(study: "optuna.Study") -> None:
    """Trials that a killed run left running: their values are tried again."""
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.enqueue_trial(trial.params, user_attrs={OWN: True} if OWN in trial.user_attrs else None)
        study.tell(trial.number, state=TrialState.FAIL)


def _sampler(recipe: Recipe, *, trials: int, jobs: int) -> Any:
    import optuna

    with warnings.catch_warnings():  # Trials side by side are told apart by a part of TPE that optuna may yet change.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            n_startup_trials=recipe.tune.random_trials,
            constant_liar=jobs > 1,
            seed=(recipe.seed + trials) % 2**32,  # A study that goes on must not draw again what it began with.
        )


def _pruner(recipe: Recipe) -> Any:
    from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner

    if recipe.tune.pruner == "hyperband":
        return HyperbandPruner(min_resource=1, max_resource=recipe.train.epochs)
    return MedianPruner(n_startup_trials=STARTUP) if recipe.tune.pruner == "median" else NopPruner()
