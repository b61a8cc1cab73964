"""Task weights against values worked by hand, and what balancing promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twotower.model.task_weights import (
    Balance,
    gradient_balanced,
    gradient_norms,
    static_total,
    uncertainty_total,
    uncertainty_weights,
)

KINDS = {"rating": "regression", "retrieval": "listwise"}

OF_LOGS = jax.jit(jax.grad(lambda losses, logs: uncertainty_total(losses, logs, kinds=KINDS), argnums=1))
"""Compiled once for all the examples of a law."""


def numbers(**values: float) -> dict[str, jax.Array]:
    return {task: jnp.float32(value) for task, value in values.items()}


def test_static_weights_multiply_each_loss() -> None:
    assert static_total(numbers(rating=2.0, retrieval=3.0), {"rating": 0.5, "retrieval": 2.0}) == 7.0


def test_uncertainty_halves_a_regression_and_adds_half_of_each_log_variance() -> None:
    # 2 / (2 * 4) + 3 / 0.25 + (log 4 + log 0.25) / 2; the logarithms cancel.
    logs = numbers(rating=np.log(4.0), retrieval=np.log(0.25))
    assert uncertainty_total(numbers(rating=2.0, retrieval=3.0), logs, kinds=KINDS) == pytest.approx(0.25 + 12)
    assert uncertainty_weights(logs, kinds=KINDS) == pytest.approx({"rating": 0.125, "retrieval": 4.0})


@given(st.floats(0.01, 100), st.floats(0.01, 100))
def test_uncertainty_rests_where_every_weighted_loss_is_a_half(rating: float, retrieval: float) -> None:
    losses = numbers(rating=rating, retrieval=retrieval)
    rest = numbers(rating=np.log(rating), retrieval=np.log(2 * retrieval))
    gradient = OF_LOGS(losses, rest)
    assert max(abs(value) for value in gradient.values()) < 1e-5
    weights = uncertainty_weights(rest, kinds=KINDS)
    assert {task: weights[task] * losses[task] for task in losses} == pytest.approx(
        {"rating": 0.5, "retrieval": 0.5}, rel=1e-5
    )


def test_gradients_of_uncertainty_are_finite_for_losses_of_zero() -> None:
    losses, logs = numbers(rating=0.0, retrieval=0.0), numbers(rating=-20.0, retrieval=20.0)
    of_both = jax.grad(lambda *both: uncertainty_total(both[0], both[1], kinds=KINDS), argnums=(0, 1))(losses, logs)
    assert np.isfinite(jax.tree.leaves(of_both)).all()


def test_balanced_weights_are_inverse_to_the_norms_and_keep_the_static_sum() -> None:
    # 1/1 and 1/4, scaled to the sum of 3: 2.4 and 0.6, and both pull with 2.4.
    weights, after = gradient_balanced(
        Balance.start(("a", "b")),
        numbers(a=1.0, b=4.0),
        losses=numbers(a=5.0, b=7.0),
        weights={"a": 1.5, "b": 1.5},
    )
    assert weights == pytest.approx({"a": 2.4, "b": 0.6}, rel=1e-4)
    assert after.first_losses == {"a": 5.0, "b": 7.0}
    assert after.steps == 1


def test_a_task_that_learns_slowly_is_favoured() -> None:
    balance = Balance(norms=numbers(a=0.0, b=0.0), first_losses=numbers(a=4.0, b=4.0), steps=jnp.int32(1))
    # Left of the first losses: 1/4 and 3/4, over their mean 0.5 and 1.5; norms alike.
    weights, after = gradient_balanced(
        balance,
        numbers(a=1.0, b=1.0),
        losses=numbers(a=1.0, b=3.0),
        weights={"a": 1.0, "b": 1.0},
        alpha=1.0,
        decay=0.0,
    )
    assert weights == pytest.approx({"a": 0.5, "b": 1.5}, rel=1e-5)
    assert after.first_losses == {"a": 4.0, "b": 4.0}


def test_norms_are_averaged_over_steps_without_the_zero_they_began_at() -> None:
    balance, losses, static = Balance.start(("a", "b")), numbers(a=1.0, b=1.0), {"a": 1.0, "b": 1.0}
    for norm in (1.0, 4.0):
        weights, balance = gradient_balanced(balance, numbers(a=norm, b=2.0), losses=losses, weights=static, decay=0.5)
    # (0.5 * 1 * 0.5 + 0.5 * 4) / (1 - 0.25) = 3 against 2: weights 2/3 : 1, sum 2.
    assert weights == pytest.approx({"a": 0.8, "b": 1.2}, rel=1e-5)


def test_a_task_without_gradient_or_loss_is_not_blown_up() -> None:
    weights, _ = gradient_balanced(
        Balance.start(("a", "b", "off")),
        numbers(a=1.0, b=0.0, off=0.0),
        losses=numbers(a=0.0, b=0.0, off=0.0),
        weights={"a": 1.0, "b": 1.0, "off": 0.0},
    )
    assert weights == pytest.approx({"a": 1.0, "b": 1.0, "off": 0.0}, rel=1e-4), "it keeps its place"


@given(
    st.lists(st.floats(0, 1e6), min_size=3, max_size=3),
    st.lists(st.floats(0, 1e6), min_size=3, max_size=3),
    st.lists(st.floats(0, 10), min_size=3, max_size=3).filter(lambda values: sum(values) > 0.1),
    st.floats(0, 2),
)
def test_balanced_weights_are_finite_and_never_sum_to_more(
    norms: list[float], losses: list[float], static: list[float], alpha: float
) -> None:
    tasks = ("a", "b", "c")
    balance = Balance(norms=numbers(a=1, b=1, c=1), first_losses=numbers(a=1, b=1, c=1), steps=jnp.int32(5))
    weights, after = gradient_balanced(
        balance,
        numbers(**dict(zip(tasks, norms, strict=True))),
        losses=numbers(**dict(zip(tasks, losses, strict=True))),
        weights=dict(zip(tasks, static, strict=True)),
        alpha=alpha,
    )
    values = np.array(list(weights.values()))
    assert np.isfinite(jax.tree.leaves(after)).all()
    assert (values >= 0).all()
    assert values.sum() <= sum(static) * (1 + 1e-4)


def test_balancing_runs_inside_a_compiled_scan_and_passes_no_gradient() -> None:
    static = {"b": 1.0, "a": 1.0}

    def total(scale: jax.Array) -> jax.Array:
        def step(balance: Balance, loss: jax.Array) -> tuple[Balance, jax.Array]:
            losses = {"a": loss * scale, "b": 2 * loss}
            weights, balance = gradient_balanced(balance, losses, losses=losses, weights=static, alpha=0.5)
            return balance, static_total({"a": loss, "b": loss}, weights)

        return jax.lax.scan(step, Balance.start(tuple(static)), jnp.array([3.0, 2.0, 1.0]))[1].sum()

    value, gradient = jax.jit(jax.value_and_grad(total))(jnp.float32(1.0))
    assert value == pytest.approx(2 * (3 + 2 + 1), rel=1e-5), "losses alike: the sum of weights times the loss"
    assert gradient == 0.0


def test_a_norm_is_the_length_of_all_gradients_of_a_task_as_one_vector() -> None:
    gradients = {"a": {"x": jnp.array([3.0]), "y": [jnp.array([[0.0, 4.0]])]}, "b": jnp.zeros(2), "none": {}}
    assert gradient_norms(gradients) == {"a": 5.0, "b": 0.0, "none": 0.0}
