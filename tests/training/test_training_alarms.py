"""Alarms from figures written by hand."""

import math

import pytest

from twotower.training.alarms import loss_alarms, popularity_alarms


def losses(*values: float) -> list[dict[str, float]]:
    return [{"epoch": epoch, "retrieval": value, "loss": 2 * value} for epoch, value in enumerate(values, start=1)]


def test_a_loss_that_stays_at_the_logarithm_of_the_candidates_is_told() -> None:
    # As a vendor's example did: ln(8192) = 9.0109, and 9.0107 after training.
    (told,) = loss_alarms(losses(9.0109, 9.0107), best_epoch=2, candidates=8192)
    assert "retrieval loss 9.011 after epoch 2; ln(8,192) = 9.011" in told
    assert "learned next to nothing" in told
    assert "train.embedding_learning_rate" in told
    assert "\n" not in told


@pytest.mark.parametrize(("share", "alarms"), [(0.979, 0), (0.981, 1), (1.0, 1), (1.019, 1)])
def test_two_in_a_hundred_of_the_way_are_asked_for(share: float, alarms: int) -> None:
    assert len(loss_alarms(losses(share * math.log(1000)), best_epoch=1, candidates=1000)) == alarms


@pytest.mark.parametrize("value", [2 * math.log(1000), math.inf, math.nan])
def test_a_loss_above_guessing_asks_for_smaller_steps(value: float) -> None:
    (told,) = loss_alarms(losses(value), best_epoch=1, candidates=1000)
    assert "worse than that" in told
    assert "lower train.embedding_learning_rate" in told


def test_the_epoch_whose_weights_are_kept_is_the_one_that_counts() -> None:
    run = losses(3.0, math.log(1000))
    assert loss_alarms(run, best_epoch=1, candidates=1000) == []
    assert len(loss_alarms(run, best_epoch=2, candidates=1000)) == 1


def test_another_loss_can_be_named() -> None:
    assert loss_alarms(losses(3.5), best_epoch=1, candidates=1000) == []
    assert len(loss_alarms(losses(3.5), best_epoch=1, candidates=1000, loss="loss")) == 1


def test_nothing_is_told_of_a_run_without_epochs_or_with_nothing_to_choose_from() -> None:
    assert loss_alarms([], best_epoch=0, candidates=1000) == []
    assert loss_alarms(losses(0.0), best_epoch=1, candidates=1) == []


@pytest.mark.parametrize(
    ("model", "popularity", "alarms"), [(0.05, 0.06, 1), (0.06, 0.06, 1), (0.061, 0.06, 0), (0.0, 0.0, 0)]
)
def test_a_model_has_to_order_better_than_a_count(model: float, popularity: float, alarms: int) -> None:
    assert len(popularity_alarms("ndcg@10", model=model, popularity=popularity)) == alarms


def test_falling_behind_popularity_is_told_with_both_figures() -> None:
    (told,) = popularity_alarms("ndcg@10", model=0.0512, popularity=0.06)
    assert told.startswith("validation ndcg@10 0.0512 is not above plain popularity's 0.0600 on the same queries")
