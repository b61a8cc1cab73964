"""Losses against values worked by hand, and the laws that they keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twotower.model.losses import batch_softmax, binary_cross_entropy, sampled_softmax, squared_error, weighted_mean
from twotower.model.sampling import accidental_hits, draw_uniform, expected_count

NO_HIT = jnp.zeros((1, 2), bool)


def test_sampled_softmax_is_cross_entropy_over_positive_and_sample() -> None:
    # e^1 against e^1 + e^0 + e^0, nothing corrected.
    loss = sampled_softmax(jnp.array([1.0]), jnp.zeros((1, 2)), expected_count=jnp.ones(2), hit=NO_HIT)
    assert loss[0] == pytest.approx(-1 + np.log(np.e + 2))


def test_a_negative_expected_twice_counts_half() -> None:
    loss = sampled_softmax(jnp.array([0.0]), jnp.zeros((1, 2)), expected_count=jnp.array([2.0, 1.0]), hit=NO_HIT)
    assert loss[0] == pytest.approx(np.log(1 + 0.5 + 1))


def test_an_accidental_hit_is_left_out() -> None:
    hit = jnp.array([[True, False]])
    loss = sampled_softmax(jnp.array([0.0]), jnp.array([[50.0, 0.0]]), expected_count=jnp.ones(2), hit=hit)
    assert loss[0] == pytest.approx(np.log(2), rel=1e-6)


def test_batch_softmax_corrects_the_positive_as_well() -> None:
    # Positive expected twice: its logit loses log 2, so e^0/2 against 1/2 + 1 + 1.
    loss = batch_softmax(
        jnp.array([0.0]), jnp.zeros((1, 2)), positive_count=jnp.array([2.0]), expected_count=jnp.ones(2), hit=NO_HIT
    )
    assert loss[0] == pytest.approx(np.log(5), rel=1e-6)


def test_the_sampled_sum_estimates_the_whole_sum_without_bias() -> None:
    # 40 items, 200,000 draws of 10 uniform and 6 popular negatives: the weighted sums average to the sum over all.
    items, in_batch, uniform, rounds = 40, 6, 10, 20_000
    generator = np.random.default_rng(0)
    probability = generator.dirichlet(np.ones(items))
    logits = generator.normal(size=items)
    drawn = np.concatenate(
        [generator.choice(items, (rounds, in_batch), p=probability), generator.integers(0, items, (rounds, uniform))],
        axis=1,
    )
    count = np.asarray(expected_count(jnp.asarray(probability), in_batch=in_batch, uniform=uniform, items=items))
    estimate = (np.exp(logits)[drawn] / count[drawn]).sum(axis=1).mean()
    assert estimate == pytest.approx(np.exp(logits).sum(), rel=0.01)


@given(st.floats(-30, 30), st.floats(-30, 30))
def test_the_loss_falls_as_the_positive_rises_and_its_gradient_is_finite(positive: float, negative: float) -> None:
    def loss(logit: jax.Array) -> jax.Array:
        return sampled_softmax(logit[None], jnp.full((1, 2), negative), expected_count=jnp.ones(2), hit=NO_HIT)[0]

    gradient = jax.grad(loss)(jnp.float32(positive))
    assert np.isfinite(gradient)
    assert -1 <= gradient <= 0


def test_squared_error_and_cross_entropy_pass_over_missing_labels() -> None:
    label = jnp.array([1.0, jnp.nan])
    assert squared_error(jnp.array([3.0, 9.0]), label).tolist() == [4.0, 0.0]
    assert binary_cross_entropy(jnp.array([0.0, 9.0]), label).tolist() == pytest.approx([np.log(2), 0.0])
    assert np.isfinite(jax.grad(lambda x: squared_error(x, label).sum())(jnp.array([3.0, 9.0]))).all()


def test_a_mean_under_no_weight_is_zero() -> None:
    assert weighted_mean(jnp.array([3.0]), jnp.zeros(1)) == 0.0
    assert weighted_mean(jnp.array([1.0, 4.0]), jnp.array([1.0, 2.0])) == 3.0


def test_hits_are_where_the_sampled_item_is_the_positive() -> None:
    assert accidental_hits(jnp.array([1, 2]), jnp.array([2, 1, 1])).tolist() == [
        [False, True, True],
        [True, False, False],
    ]


def test_uniform_draws_reach_every_item_about_alike() -> None:
    drawn = np.asarray(draw_uniform(jax.random.key(0), 20_000, items=10))
    counts = np.bincount(drawn, minlength=10)
    assert counts.min() > 1_800
    assert counts.max() < 2_200
