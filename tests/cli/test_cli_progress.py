"""How far a long step is."""

import io
from dataclasses import replace

import pytest
from rich.console import Console
from rich.progress import Progress, TextColumn

from twotower.cli.progress import _Bar, watching
from twotower.training.progress import TrainProgress


def progress(validation: dict[str, float] | None) -> TrainProgress:
    return TrainProgress(
        epoch=2,
        epochs=8,
        step=30,
        steps=120,
        examples_per_second=12345.6,
        losses={"loss": 1.5, "rating": 0.25},
        validation=validation,
    )


def test_without_a_terminal_there_is_one_line_an_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    with watching() as watch:
        watch(progress(None))
        watch("popularity: 10 of 20 queries")
        watch(progress({"ndcg@10": 0.125}))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "epoch 2/8  12,346 examples/s  loss 1.5000  rating 0.2500  ndcg@10 0.1250\n"


def test_of_several_models_each_line_says_which_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with watching() as watch:
        watch(replace(progress({"ndcg@10": 0.125}), model="retrieval alone"))
    assert capsys.readouterr().err.startswith("retrieval alone  epoch 2/8  12,346 examples/s  loss 1.5000")


def test_on_a_terminal_the_bar_moves_and_an_epoch_stays() -> None:
    screen = io.StringIO()
    with Progress(TextColumn("{task.description}"), console=Console(file=screen, force_terminal=True)) as bar:
        watch = _Bar(bar)
        watch(progress({"ndcg@10": 0.125}))
        task = bar.tasks[0]
        assert (task.completed, task.total, task.visible) == (30, 120, True)
        assert task.description == "epoch 2/8  12,346 examples/s  loss 1.500"
        watch("")
        assert not bar.tasks[0].visible
    assert "ndcg@10 0.1250" in screen.getvalue()
