"""The retrieval task by hand: which negatives count, how often, and what each loss makes of them."""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from twotower.model.config import RetrievalConfig
from twotower.model.joint import _absent, _columns, _reach, _seen
from twotower.model.network import Temperature
from twotower.model.retrieval import AUTO_ALL_AT_MOST, Sample, retrieval_loss, takes_all

ITEMS = 4
ALL = Sample(
    positive_item=jnp.array([0, 3]),
    negative_item=jnp.arange(ITEMS),
    seen=None,
    is_all=True,
    in_batch=0,
    items=ITEMS,
    probability=jnp.full(ITEMS, 0.25),
)
LOGITS = np.array([[1.0, 0.0, 5.0, 0.0], [0.0, 1.0, 2.0, 3.0]], np.float32)
OWN = np.array([1.0, 3.0], np.float32)
# Two negatives of the batch, the items 0 and 2, and two drawn uniformly, the items 1 and 3.
DRAWN = replace(ALL, negative_item=jnp.array([0, 2, 1, 3]), is_all=False, in_batch=2)


def loss(sample: Sample, *, logits: np.ndarray = LOGITS, **config: Any) -> np.ndarray:
    positive, negative = jnp.asarray(OWN), jnp.asarray(logits)
    return np.asarray(retrieval_loss(RetrievalConfig(**config), positive=positive, negative=negative, sample=sample))


def test_with_all_items_as_negatives_the_loss_is_cross_entropy() -> None:
    expected = [np.log(np.e + 1 + np.exp(5) + 1) - 1, np.log(1 + np.e + np.exp(2) + np.exp(3)) - 3]
    assert loss(ALL) == pytest.approx(expected, rel=1e-6)
    assert loss(ALL, correction="none") == pytest.approx(expected, rel=1e-6), "there is nothing to correct"


def test_what_the_user_met_is_no_negative_but_its_own_item_stays() -> None:
    # User 0 met the items 0 (its own here) and 2, user 1 met item 3 (its own) and item 1.
    seen = jnp.array([[True, False, True, False], [False, True, False, True]])
    expected = [np.log(np.e + 1 + 1) - 1, np.log(1 + np.exp(2) + np.exp(3)) - 3]
    assert loss(replace(ALL, seen=seen)) == pytest.approx(expected, rel=1e-6)
    # Among drawn negatives the own item is left out, as it stands apart: it must not count twice.
    hit = replace(DRAWN, seen=seen[:, jnp.array([0, 2, 1, 3])]).hit()
    assert hit.tolist() == [[True, True, False, False], [False, False, True, True]]
    assert DRAWN.hit().tolist() == [[True, False, False, False], [False, False, False, True]]


def test_drawn_negatives_answer_for_their_chance_to_be_drawn() -> None:
    # Every item is expected 2 * 1/4 + 2 / 4 = 1 time among the four, so that all corrections agree here.
    logits = LOGITS[:, [0, 2, 1, 3]]
    expected = [np.log(np.e + np.exp(5) + 1 + 1) - 1, np.log(np.exp(3) + 1 + np.exp(2) + np.e) - 3]
    for correction in ("sampled", "batch", "none"):
        assert loss(DRAWN, logits=logits, correction=correction, negatives="sampled") == pytest.approx(expected)
    # Item 0 twice as popular: 2 * 1/2 + 2/4 = 1.5 times; the others 2 * 1/6 + 1/2 = 5/6 times.
    popular = replace(DRAWN, probability=jnp.array([1 / 2, 1 / 6, 1 / 6, 1 / 6]))
    found = loss(popular, logits=logits, correction="sampled")
    assert found[1] == pytest.approx(np.log(np.exp(3) + 1 / 1.5 + (np.exp(2) + np.e) / (5 / 6)) - 3, rel=1e-5)
    found = loss(popular, logits=logits, correction="batch")
    own = np.exp(3) / (5 / 6)
    assert found[1] == pytest.approx(np.log(own + 1 / 1.5 + (np.exp(2) + np.e) / (5 / 6)) - np.log(own), rel=1e-5)


def test_gbce_takes_the_share_that_is_drawn_of_all_other_items() -> None:
    # Three others in all and four drawn: a share of one at most, so beta is 1 and it is plain binary cross-entropy.
    binary = [np.log1p(np.exp(-1)) + np.log1p(np.exp(5)) + 2 * np.log(2), 0]
    assert loss(ALL, loss="gbce", gbce_t=1.0)[0] == pytest.approx(binary[0] / 4, rel=1e-5)
    # 8 others: half of them drawn; at t = 1 the positive counts a half.
    many = replace(ALL, items=9)
    half = 0.5 * np.log1p(np.exp(-1)) + np.log1p(np.exp(5)) + 2 * np.log(2)
    assert loss(many, loss="gbce", gbce_t=1.0)[0] == pytest.approx(half / 4, rel=1e-5)


def test_cosine_contrast_takes_cosines_without_the_own_item() -> None:
    cosines = np.array([[1.0, 0.5, 0.9, 0.1], [0.0, 0.2, 0.3, 1.0]], np.float32)
    found = loss(ALL, logits=cosines, loss="cosine_contrastive", margin=0.4, negative_weight=3.0)
    assert found[0] == pytest.approx((1 - 1) + 3 * (0.1 + 0.5) / 3, rel=1e-5)
    assert found[1] == pytest.approx(1 - 3, rel=1e-5), "all negatives lie below the margin"


def test_what_a_user_met_marks_the_items_of_a_sample() -> None:
    met, drawn = jnp.array([[3, 1, -1], [-1, -1, -1]]), jnp.array([1, 2, 3, 1, 0])
    columns = _columns({"probability": jnp.zeros(ITEMS)}, drawn)
    assert _seen(met, drawn, columns=columns).tolist() == [[True, False, True, True, False], [False] * 5]


def test_what_nobody_had_met_by_then_is_marked() -> None:
    batch = {"second": jnp.array([5, 9]), "appeared": jnp.array([0, 5, 6, 10])}
    assert _absent(batch, jnp.array([3, 1, 2])).tolist() == [[True, False, True], [True, False, False]]


def test_a_sample_plays_the_share_of_all_items_that_retrieval_brings() -> None:
    assert _reach(100, drawn=3_000, items=3_000, least=16) == 100
    assert _reach(100, drawn=500, items=3_000, least=16) == 17
    assert _reach(100, drawn=500, items=100_000, least=16) == 16
    assert _reach(100, drawn=10, items=10, least=16) == 10


def test_every_item_is_a_negative_where_these_are_few() -> None:
    auto = RetrievalConfig()
    assert takes_all(auto, items=AUTO_ALL_AT_MOST)
    assert not takes_all(auto, items=AUTO_ALL_AT_MOST + 1)
    assert takes_all(RetrievalConfig(negatives="all"), items=AUTO_ALL_AT_MOST + 1)
    assert not takes_all(RetrievalConfig(negatives="sampled"), items=2)


def test_the_temperature_of_a_large_catalogue_lifts_one_item_to_half_of_the_softmax() -> None:
    auto = RetrievalConfig()
    assert auto.first_temperature(items=100) == auto.first_temperature(items=10_000) == 0.25
    for items in (10_001, 1_000_000):
        lifted = np.exp(1 / auto.first_temperature(items=items))
        assert lifted / (lifted + items) == pytest.approx(0.5)
    assert RetrievalConfig(temperature=0.4).first_temperature(items=1_000_000) == 0.4


def test_the_temperature_divides_and_is_a_weight_only_where_it_is_learned() -> None:
    for learned in (True, False):
        layer = Temperature(learned=learned)
        layer.begin_at(0.25)
        assert np.asarray(layer(jnp.array([0.5, -1.0]))) == pytest.approx([2.0, -4.0], rel=1e-6)
        assert len(layer.trainable_variables) == learned
