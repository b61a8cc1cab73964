"""What a study remembers: which trials end early, what was cut off, and whose trials they are."""

import re
from pathlib import Path
from typing import Any

import pytest

from twotower.errors import ArtifactError, RecipeError
from twotower.recipe import Recipe, load_recipe
from twotower.tuning.results import Results, results_of, trials_table
from twotower.tuning.shared_data import refuse_without_validation
from twotower.tuning.space import space_of
from twotower.tuning.study import (
    FAULT,
    LOCK,
    NAME,
    counted,
    database_told,
    distributions,
    end_trial,
    only_one,
    open_study,
    report_epoch,
)

optuna = pytest.importorskip("optuna")
StaticPool = pytest.importorskip("sqlalchemy.pool").StaticPool

SMALL = Path(__file__).with_name("small.toml")


def small(**settings: str) -> Recipe:
    return load_recipe(SMALL, {key.replace("__", "."): value for key, value in settings.items()})


def opened(recipe: Recipe, out: Path, *, split: str = "a") -> "optuna.Study":
    return open_study(recipe, space_of(recipe), split=split, items=60, out=out, jobs=1)


def seen(recipe: Recipe, study: "optuna.Study") -> Results:
    return results_of(recipe, study, space=space_of(recipe))


def test_the_recipes_own_settings_are_the_first_trial(tmp_path: Path) -> None:
    recipe = small()
    study = opened(recipe, tmp_path)
    first = study.ask(distributions(space_of(recipe)))
    assert first.params == {
        "train.embedding_learning_rate": 0.05,
        "model.retrieval.temperature": 0.25,
        "train.optimizer": "adam",
    }
    end_trial(first, 0.5, noted={})
    (own,) = seen(recipe, study).trials
    assert seen(recipe, study).own() == own


def test_a_trial_below_the_median_of_four_is_pruned(tmp_path: Path) -> None:
    recipe = small()
    study = opened(recipe, tmp_path)
    drawn_from = distributions(space_of(recipe))
    for value in (0.2, 0.3, 0.4, 0.5):  # Their median after the first epoch is .35.
        trial = study.ask(drawn_from)
        assert report_epoch(trial, value, epoch=1)
        end_trial(trial, value, noted={})
    below, above, broken = (study.ask(drawn_from) for _ in range(3))
    assert not report_epoch(below, 0.34, epoch=1)
    assert report_epoch(above, 0.36, epoch=1)
    assert not report_epoch(broken, float("nan"), epoch=1)
    end_trial(below, None, noted={})
    end_trial(above, 0.6, noted={})
    end_trial(broken, None, noted={FAULT: "no number"})
    results = seen(recipe, study)
    assert [row.state for row in results.trials[4:]] == ["pruned", "complete", "failed"]
    assert [row.value for row in results.trials[4:]] == [0.34, 0.6, None]
    assert results.best == results.trials[5]
    assert [row.number for row in results.ranked()] == [5, 3, 2, 1, 0, 4, 6]
    assert results.summary() == (
        "validation ndcg@10 0.6000, the recipe's own settings 0.2000: the best of 7 trials "
        "(5 complete, 1 pruned, 1 failed)"
    )
    table = trials_table(results).splitlines()
    assert table[0].startswith("trial,state,ndcg@10,best_epoch,epochs,seconds,train.embedding_learning_rate,")
    assert table[7].startswith("6,failed,")
    assert table[7].endswith(",no number")


def test_of_an_error_the_least_is_the_best_and_more_than_the_median_is_pruned(tmp_path: Path) -> None:
    recipe = small(train__metric="rmse")
    study = opened(recipe, tmp_path)
    drawn_from = distributions(space_of(recipe))
    for value in (1.2, 0.9, 1.0, 1.1):
        trial = study.ask(drawn_from)
        report_epoch(trial, value, epoch=1)
        end_trial(trial, value, noted={})
    assert not report_epoch(study.ask(drawn_from), 1.06, epoch=1)
    best = seen(recipe, study).best
    assert best is not None
    assert best.value == 0.9


def test_without_a_pruner_nothing_ends_early(tmp_path: Path) -> None:
    recipe = small(tune__pruner="none")
    study = opened(recipe, tmp_path)
    drawn_from = distributions(space_of(recipe))
    for value in (0.5, 0.5, 0.5, 0.5, 0.5):
        trial = study.ask(drawn_from)
        report_epoch(trial, value, epoch=1)
        end_trial(trial, value, noted={})
    assert report_epoch(study.ask(drawn_from), 0.1, epoch=1)


def test_a_trial_that_was_cut_off_is_tried_again_and_not_counted(tmp_path: Path) -> None:
    recipe = small()
    study = opened(recipe, tmp_path)
    drawn_from = distributions(space_of(recipe))
    own = study.ask(drawn_from)
    end_trial(own, 0.5, noted={})
    cut_off = study.ask(drawn_from)
    report_epoch(cut_off, 0.4, epoch=1)
    again = opened(recipe, tmp_path)  # As a new process opens it.
    assert counted(again) == 1
    assert again.ask(drawn_from).params == cut_off.params
    assert again.ask(drawn_from).params not in (own.params, cut_off.params)
    assert len(seen(recipe, again).trials) == 1


def test_trials_of_another_recipe_or_of_other_data_are_refused(tmp_path: Path) -> None:
    opened(small(), tmp_path)
    opened(small(tune__pruner="none", name="other", evaluate__candidates="7"), tmp_path)  # No trial reads these.
    with pytest.raises(ArtifactError, match=r"another recipe \(\[train\] changed\)"):
        opened(small(train__epochs="4"), tmp_path)
    with pytest.raises(ArtifactError, match=r"\(seed, \[tune.space\] changed\)"):
        opened(small(seed="4", tune__space__train__epochs="{low = 1, high = 2}"), tmp_path)
    with pytest.raises(ArtifactError, match=r"\(data changed\)"):
        opened(small(), tmp_path, split="b")


def test_auto_is_tried_as_such_where_it_is_a_choice_and_no_key_but_the_tuned_is_told_in_numbers(tmp_path: Path) -> None:
    space = '"train.epochs" = {low = 1, high = 5}\n'
    choices = '"model.retrieval.temperature" = {choices = ["auto", 0.1]}\n'
    told = []
    for name, text in (("named", space + choices), ("left", space)):
        (tmp_path / name).mkdir()
        recipe = load_recipe(f"[train]\nepochs = 2\n[tune.space]\n{text}")
        study = open_study(recipe, space_of(recipe), split="a", items=1_000_000, out=tmp_path / name, jobs=1)
        first = study.ask(distributions(space_of(recipe)))
        end_trial(first, 0.5, noted={})
        best = seen(recipe, study).recipe
        assert best == load_recipe("[train]\nepochs = 2\n"), "the recipe itself, its temperature still auto"
        told.append(first.params)
    assert told == [{"train.epochs": 2, "model.retrieval.temperature": "auto"}, {"train.epochs": 2}]


def test_a_file_that_is_no_study_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("not a database, but long enough to be looked at " * 20, encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"no study that can be read \(file is not a database\)") as caught:
        opened(small(), tmp_path)
    assert "Remove it" in str(caught.value)


def test_what_a_database_complains_about_is_told_in_its_words_and_nothing_is_to_be_removed(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    with pytest.raises(ArtifactError, match=r"study\.db: not to be read or written \(unable to open") as caught:
        opened(small(), tmp_path)
    assert "emove" not in str(caught.value)
    one = {"poolclass": StaticPool}  # A limit holds for a connection.
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'full.db'}", engine_kwargs=one)
    study = optuna.create_study(storage=storage)
    with storage.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")
    with pytest.raises(ArtifactError, match=r"\(database or disk is full\)"), database_told(tmp_path):
        study.set_user_attr("large", "x" * 1_000_000)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda out: out.write_text("a file", encoding="utf-8"), "no folder that a study can lie in (File exists)"),
        (lambda out: (out / LOCK).mkdir(parents=True), "not to be read or written (unable to open database file)"),
    ],
)
def test_a_folder_that_cannot_be_written_is_told_as_that(spoil: Any, told: str, tmp_path: Path) -> None:
    out = tmp_path / "study"
    spoil(out)
    with pytest.raises(ArtifactError, match=re.escape(told)), only_one(out):
        raise AssertionError("not reached")


def test_two_cannot_be_at_one_study(tmp_path: Path) -> None:
    with only_one(tmp_path), pytest.raises(ArtifactError, match="another `twotower tune`"), only_one(tmp_path):
        raise AssertionError("not reached")
    with only_one(tmp_path):
        pass


def test_nothing_is_tuned_on_the_test_part() -> None:
    refuse_without_validation({"counts": {"validation_interactions": 1}}, metric="ndcg@10")
    with pytest.raises(RecipeError, match=r"no validation part.*Set split\.validation"):
        refuse_without_validation({"counts": {"validation_interactions": 0}}, metric="ndcg@10")
