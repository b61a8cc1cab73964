"""Trials with real trainings in real processes: killed, gone on with, pruned, and refused."""

import multiprocessing
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
from click.testing import CliRunner

from twotower import steps
from twotower.artifact import fingerprint, read_manifest
from twotower.cli.main import main
from twotower.errors import ArtifactError, RecipeError
from twotower.recipe import Recipe, load_recipe, recipe_toml
from twotower.tune_config import TuneConfig
from twotower.tuning.results import Results
from twotower.tuning.space import space_of
from twotower.tuning.study import FAULT, distributions, end_trial, open_study
from twotower.tuning.tune import SCRATCH, tune
from twotower.tuning.worker import Epoch, Stopped, work

pytest.importorskip("optuna")

SMALL = Path(__file__).with_name("small.toml")


def small(**settings: str) -> Recipe:
    return load_recipe(SMALL, {key.replace("__", "."): value for key, value in settings.items()})


def quiet(recipe: Recipe, out: Path, *, trials: int, jobs: int = 1) -> tuple[Results, list[str]]:
    told: list[str] = []
    return tune(recipe, trials=trials, jobs=jobs, out=out, tell=told.append), told


def contents(out: Path) -> dict[str, str]:
    """What lies in a study's folder: the data by its hash."""
    parts = {name: fingerprint(out / name) for name in ("prepared", "split")}
    return parts | {path.name: "" for path in out.iterdir() if path.name not in parts}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study of one trial, to which the first test adds another."""
    out = tmp_path_factory.mktemp("tuned") / "study"
    quiet(small(), out, trials=1)
    return out


def test_a_study_goes_on_with_its_trials_and_its_data(study: Path) -> None:
    before = (study / "trials.csv").read_text(encoding="utf-8").splitlines()
    results, told = quiet(small(), study, trials=2)
    assert told[0] == "trials that are there already: 1; to go: 1", "the data is not made again"
    assert all(line.startswith("trial 1") for line in told[1:])
    assert (study / "trials.csv").read_text(encoding="utf-8").splitlines()[:2] == before
    assert [row.number for row in results.trials] == [0, 1]
    assert results.trials[0].is_own
    assert results.best is not None
    assert results.best.value == max(row.value or 0 for row in results.trials)

    best = load_recipe(study / "best.toml")
    assert best.train.embedding_learning_rate == results.best.values["train.embedding_learning_rate"]
    assert (best.name, best.tune, best.prepare) == ("small", TuneConfig(), small().prepare)
    page = (study / "study.html").read_text(encoding="utf-8")
    assert results.summary().replace("'", "&#39;") in page
    assert "src=" not in (body := page[: page.index('<script type="application/json"')])
    assert "href=" not in body

    again, told = quiet(small(), study, trials=2)
    assert again == results
    assert told == ["trials that are there already: 2; to go: 0"]


def test_a_pruned_trial_leaves_nothing_and_its_worker_takes_the_next(study: Path, tmp_path: Path) -> None:
    context = get_context("spawn")
    pipe, other = context.Pipe()
    named = {"split": study / "split", "scratch": tmp_path, "shares": False}
    process = context.Process(target=work, args=(other, recipe_toml(small())), kwargs=named, daemon=True)
    process.start()
    other.close()
    pipe.send({"train.optimizer": "sgd"})
    first = pipe.recv()
    assert isinstance(first, Epoch)
    assert (first.epoch, first.epochs) == (1, 2)
    pipe.send(False)
    ended = pipe.recv()
    assert isinstance(ended, Stopped)
    assert ended.fault == ""
    assert list(tmp_path.iterdir()) == []
    pipe.send({"train.metric": "rmse"})  # Of a label that the model does not have.
    refused = pipe.recv()
    assert isinstance(refused, Stopped)
    assert "'rmse' cannot be watched" in refused.fault
    pipe.send(None)
    process.join()
    assert process.exitcode == 0


def test_where_all_trials_failed_the_first_reason_is_told_in_one_line(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    for name in ("prepared", "split"):
        shutil.copytree(study / name, out / name)
    recipe = small()
    space = space_of(recipe)
    failing = open_study(recipe, space, split=fingerprint(out / "split"), items=60, out=out, jobs=1)
    end_trial(failing.ask(distributions(space)), None, noted={FAULT: "train: the loss is no number."})
    answer = CliRunner().invoke(main, ["tune", str(SMALL), "--trials", "1", "--out", str(out)])
    assert answer.exit_code == 2
    told = "none of 1 trials came to an end. Trial 0: train: the loss is no number."
    assert answer.stderr.splitlines()[-1] == f"Error: {out}: {told}"
    assert not (out / "best.toml").exists()


def test_a_split_without_validation_and_a_bad_key_are_refused_before_any_trial(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no validation part"):
        quiet(small(split__validation="0"), tmp_path / "study", trials=1)
    assert not (tmp_path / "study" / "study.db").exists()
    with pytest.raises(RecipeError, match=r"nearest is 'train\.epochs'"):
        quiet(small(tune__space__train__epoch="{low = 1, high = 2}"), tmp_path / "other", trials=1)
    assert not (tmp_path / "other").exists()


def test_what_trials_have_read_stays_where_they_are_gone_on_with_by_another_recipe(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    shutil.copytree(study, out)
    before = contents(out)
    told: list[str] = []
    for changed, reason in (
        (small(seed="4"), "seed changed"),
        (small(train__epochs="3", split__validation="0.2"), r"\[train\] changed"),
        (small(split__validation="0.2"), "data changed"),
    ):
        with pytest.raises(ArtifactError, match=rf"these trials were of another recipe \({reason}\)"):
            tune(changed, trials=1, jobs=1, out=out, tell=told.append)
        assert contents(out) == before
    assert told[0].startswith("the data is not up to date: it is made beside"), "the first two are told before"
    shutil.rmtree(out / "split")
    _, told = quiet(small(), out, trials=1)
    assert told[-1].startswith("trials that are there already")
    assert contents(out) == before, "made again, it is the same"


def test_a_validation_part_that_asks_for_nothing_new_is_refused_before_any_trial(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    rows = [f"{'uv'[number % 2]},{'ab'[number // 2 % 2]},{1_600_000_000 + number}" for number in range(80)]
    log.write_text("\n".join(["user_id,item_id,timestamp", *rows]), encoding="utf-8")
    out = tmp_path / "study"
    arguments = ["tune", str(SMALL), "--trials", "1", "--out", str(out), "--set", "prepare.source=files"]
    answer = CliRunner().invoke(main, [*arguments, "--set", f"prepare.files.interactions={log}"])
    assert answer.exit_code == 2, answer.output
    told = answer.stderr.splitlines()[-1]
    assert told.startswith("Error: split: the validation part holds nothing that its users had not met before")
    assert not (out / "study.db").exists()


@pytest.mark.slow
def test_the_figure_of_a_trial_is_that_of_the_train_step(study: Path, tmp_path: Path) -> None:
    results, _ = quiet(small(), study, trials=1)
    steps.train(small(), split=study / "split", out=tmp_path / "model")
    metadata = read_manifest(tmp_path / "model", kind="model")["metadata"]
    own = results.own()
    assert own is not None
    assert own.value == pytest.approx(metadata["validation"], rel=1e-6)
    assert own.best_epoch == metadata["best_epoch"]


@pytest.mark.slow
def test_a_trial_whose_process_dies_is_a_failed_one_and_the_next_goes_on(tmp_path: Path) -> None:
    def tell(line: str) -> None:
        if line.startswith("trial 0  epoch 1"):
            for child in multiprocessing.active_children():
                child.kill()

    results = tune(small(), trials=2, jobs=1, out=tmp_path / "study", tell=tell)
    assert [row.state for row in results.trials] == ["failed", "complete"]
    assert results.trials[0].fault == "its process ended with code -9, as when memory runs out"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks at processes in /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_study_leaves_no_process_and_goes_on_with_all_but_the_running_trial(
    how: signal.Signals, tmp_path: Path
) -> None:
    out = tmp_path / "study"
    command = [sys.executable, "-m", "twotower", "tune", str(SMALL), "--trials", "4", "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    next(line for line in process.stderr if line.startswith("trial 1  epoch 1"))
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8").split()
    process.send_signal(how)
    _, said = process.communicate()
    assert process.returncode == (-9 if how == signal.SIGKILL else 130)
    assert ("the same command goes on" in said) == (how == signal.SIGINT)
    assert children
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline, "a worker outlives its study"
        time.sleep(0.05)
    results, told = quiet(small(), out, trials=4, jobs=2)
    assert "trials that are there already: 1; to go: 3" in told
    assert not [line for line in told if line.startswith("trial 0 ")], "what was done is not done again"
    assert [row.number for row in results.trials] == [0, 2, 3, 4], "trial 1 was cut off"
    assert not (out / SCRATCH).exists()
