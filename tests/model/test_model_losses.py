"""Losses against values worked by hand, and the laws that they keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twotower.model.losses import (
    LEFT_OUT,
    batch_softmax,
    binary_cross_entropy,
    cosine_contrastive,
    full_softmax,
    gbce,
    sampled_cross_entropy,
    sampled_softmax,
    squared_error,
    weighted_mean,
)
from twotower.model.sampling import accidental_hits, draw_uniform, expected_count

NO_HIT = jnp.zeros((1, 2), bool)


def weighted_softmax(
    positive: jax.Array, negative: jax.Array, *, expected_count: jax.Array, hit: jax.Array
) -> jax.Array:
    """The loss of `sampled_softmax` as its source writes it: the positive has left the denominator, and its query
    weighs `1 - P(positive)`, through which no gradient flows."""
    against = jax.nn.logsumexp(jnp.where(hit, LEFT_OUT, negative - jnp.log(expected_count)[None, :]), axis=1)
    return jax.lax.stop_gradient(jax.nn.sigmoid(against - positive)) * (against - positive)


# Compiled once for all the examples of a law.
SAMPLED_AND_WEIGHTED = jax.jit(
    lambda logits, named: [
        jax.grad(lambda x, loss=loss: loss(x[:1], x[None, 1:], **named)[0])(logits)
        for loss in (sampled_softmax, weighted_softmax)
    ]
)
FULL = jax.jit(jax.value_and_grad(lambda logits, item, hit: full_softmax(logits[None], item, hit=hit)[0]))
GBCE = jax.jit(
    jax.value_and_grad(
        lambda x, rate, t: gbce(x[:1], x[None, 1:], hit=jnp.array([[False]]), sampling_rate=rate, t=t)[0]
    )
)


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


@given(st.lists(st.floats(-30, 30), min_size=3, max_size=3), st.floats(0.01, 100), st.booleans())
def test_the_sampled_softmax_has_the_gradient_of_the_weighted_one(logits: list[float], count: float, hit: bool) -> None:
    named = {"expected_count": jnp.array([count, 1.0]), "hit": jnp.array([[hit, False]])}
    of_sampled, of_weighted = SAMPLED_AND_WEIGHTED(jnp.array(logits), named)
    assert np.isfinite(of_weighted).all()
    assert np.abs(of_weighted - of_sampled).max() < 1e-5


def test_full_softmax_is_cross_entropy_over_all_items_but_the_marked() -> None:
    logits = jnp.array([[1.0, 0.0, 5.0, 0.0]])
    whole = full_softmax(logits, jnp.array([0]))
    assert whole[0] == pytest.approx(np.log(np.e + 1 + np.exp(5) + 1) - 1, rel=1e-6)
    # The user met items 0 and 2: 2 is left out, 0 is the positive and stays.
    kept = full_softmax(logits, jnp.array([0]), hit=jnp.array([[True, False, True, False]]))
    assert kept[0] == pytest.approx(np.log(np.e + 2) - 1, rel=1e-6)


@given(
    st.lists(st.floats(-1e4, 1e4), min_size=4, max_size=4),
    st.integers(0, 3),
    st.lists(st.booleans(), min_size=4, max_size=4),
)
def test_full_softmax_is_at_least_zero_with_gradients_that_sum_to_zero(
    values: list[float], positive: int, hit: list[bool]
) -> None:
    value, gradient = FULL(jnp.array(values, jnp.float32), jnp.array([positive]), jnp.array([hit]))
    assert value >= 0
    assert np.isfinite(gradient).all()
    assert abs(gradient.sum()) < 1e-5


def test_full_softmax_is_the_sampled_one_when_the_sample_is_all_others() -> None:
    logits = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    positive, items = jnp.array([0, 3, 4]), jnp.arange(5)
    sampled = sampled_softmax(
        jnp.asarray(logits[np.arange(3), np.asarray(positive)]),
        jnp.asarray(logits),
        expected_count=jnp.ones(5),
        hit=accidental_hits(positive, items),
    )
    assert np.asarray(full_softmax(jnp.asarray(logits), positive)) == pytest.approx(np.asarray(sampled), rel=1e-5)


def test_gbce_weakens_the_positive_by_the_sampling_rate() -> None:
    # t = 1: beta is the rate, 0.5; one positive and two negatives, each log 2, divided by three.
    loss = gbce(jnp.array([0.0]), jnp.zeros((1, 2)), hit=NO_HIT, sampling_rate=0.5, t=1.0)
    assert loss[0] == pytest.approx((0.5 + 2) * np.log(2) / 3, rel=1e-6)
    # t = 3/4: beta = 0.5 (0.75 (1 - 2) + 2) = 0.625; with one hit, two terms are left.
    hit = jnp.array([[True, False]])
    loss = gbce(jnp.array([0.0]), jnp.array([[90.0, 0.0]]), hit=hit, sampling_rate=0.5, t=0.75)
    assert loss[0] == pytest.approx(1.625 * np.log(2) / 2, rel=1e-6)


@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4), st.floats(0.001, 1), st.floats(0, 1))
def test_gbce_is_finite_for_any_logits_and_so_is_its_gradient(
    positive: float, negative: float, rate: float, t: float
) -> None:
    value, gradient = GBCE(jnp.array([positive, negative], jnp.float32), rate, t)
    assert 0 <= value < np.inf
    assert gradient[0] <= 0 <= gradient[1]
    assert np.isfinite(gradient).all()


@given(st.floats(-20, 20), st.floats(-20, 20), st.booleans())
def test_gbce_without_calibration_is_binary_cross_entropy(positive: float, negative: float, hit: bool) -> None:
    logits, marked = (jnp.array([positive]), jnp.array([[negative, 0.5]])), jnp.array([[hit, False]])
    plain = sampled_cross_entropy(*logits, expected_count=jnp.ones(2), hit=marked)
    assert gbce(*logits, hit=marked, sampling_rate=0.1, t=0.0)[0] == pytest.approx(float(plain[0]), rel=1e-5)


@given(st.floats(0.01, 0.99), st.floats(0.01, 1))
def test_under_full_calibration_the_best_logit_is_that_of_the_probability(probability: float, rate: float) -> None:
    # An item is the positive with the probability; otherwise it is drawn as a negative at the rate.
    logit = np.log(probability / (1 - probability))
    _, (as_positive, as_negative) = GBCE(jnp.array([logit, logit], jnp.float32), rate, 1.0)
    assert abs(probability * as_positive + (1 - probability) * rate * as_negative) < 1e-5


def test_cosine_contrast_counts_only_negatives_beyond_the_margin() -> None:
    # 1 - 0.5, and the mean of 0.3 and 0 over two kept, twice; the third is a hit.
    loss = cosine_contrastive(
        jnp.array([0.5]),
        jnp.array([[0.8, 0.4, 0.9]]),
        hit=jnp.array([[False, False, True]]),
        margin=0.5,
        negative_weight=2.0,
    )
    assert loss[0] == pytest.approx(0.5 + 2 * 0.3 / 2, rel=1e-6)


def test_cosine_contrast_with_nothing_but_hits_is_that_of_the_positive() -> None:
    def loss(cosine: jax.Array) -> jax.Array:
        hit = jnp.array([[True, True]])
        return cosine_contrastive(cosine[:1], cosine[None, 1:], hit=hit, margin=0.0, negative_weight=1.0)[0]

    value, gradient = jax.value_and_grad(loss)(jnp.array([0.25, 0.9, 0.9]))
    assert value == 0.75
    assert gradient.tolist() == [-1.0, 0.0, 0.0]


@given(st.floats(-1, 1), st.floats(-1, 1), st.floats(-1, 1), st.floats(0, 10))
def test_cosine_contrast_lies_within_its_bounds(positive: float, negative: float, margin: float, weight: float) -> None:
    loss = cosine_contrastive(
        jnp.array([positive]), jnp.full((1, 2), negative), hit=NO_HIT, margin=margin, negative_weight=weight
    )
    assert -1e-6 <= loss[0] <= 2 + weight * max(1 - margin, 0) + 1e-5


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


def test_an_item_is_expected_from_the_batch_and_from_the_uniform_draws() -> None:
    # 6 draws by popularity (1/2), 4 uniform over 8 items: 6 * 0.5 + 4 / 8.
    assert expected_count(jnp.array([0.5]), in_batch=6, uniform=4, items=8)[0] == pytest.approx(3.5)


@given(st.lists(st.integers(1, 100), min_size=4, max_size=4), st.integers(0, 50), st.integers(1, 50))
def test_expected_counts_sum_to_the_number_of_draws(counts: list[int], in_batch: int, uniform: int) -> None:
    probability = jnp.array(counts) / sum(counts)
    expected = expected_count(probability, in_batch=in_batch, uniform=uniform, items=len(counts))
    assert expected.sum() == pytest.approx(in_batch + uniform, rel=1e-5)
