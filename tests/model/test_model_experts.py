"""Experts and gates against values worked by hand, and as an exported graph."""

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest

from twotower.model.experts import MixtureOfExperts
from twotower.model.export import _trace


@pytest.fixture
def layer() -> MixtureOfExperts:
    """Three experts of width 2 over 5 features for two tasks, with gates that differ."""
    layer = MixtureOfExperts(3, 2, tasks=2)
    layer(np.zeros((1, 5), np.float32))
    generator = np.random.default_rng(0)
    for variable in layer.trainable_variables:
        variable.assign(generator.normal(size=variable.shape))
    return layer


def test_each_task_takes_of_each_expert_what_its_gate_says() -> None:
    layer = MixtureOfExperts(2, 1, tasks=2)
    layer(np.zeros((1, 1), np.float32))
    # Experts 2x and relu(-x); gates of task 0 even, of task 1 three to one.
    for variable, value in zip(
        layer.trainable_variables, ([[2.0, -1.0]], [0.0, 0.0], [[0.0] * 4], [0.0, 0.0, np.log(3), 0.0]), strict=True
    ):
        variable.assign(value)
    output = np.asarray(layer(np.array([[1.0], [-4.0]], np.float32)))
    assert output[:, :, 0] == pytest.approx(np.array([[1.0, 1.5], [2.0, 1.0]]))


def test_at_first_every_task_sees_the_mean_of_the_experts() -> None:
    layer = MixtureOfExperts(4, 3, tasks=2)
    features = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    output = np.asarray(layer(features))
    hidden = np.asarray(layer.hidden(features)).reshape(6, 4, 3)
    assert output == pytest.approx(np.repeat(hidden.mean(axis=1)[:, None], 2, axis=1), abs=1e-6)


def test_a_mixture_lies_between_its_experts(layer: MixtureOfExperts) -> None:
    features = np.random.default_rng(1).normal(size=(50, 5)).astype(np.float32)
    output, hidden = np.asarray(layer(features)), np.asarray(layer.hidden(features)).reshape(50, 1, 3, 2)
    assert (output <= hidden.max(axis=2) + 1e-5).all()
    assert (output >= hidden.min(axis=2) - 1e-5).all()


def test_a_list_of_candidates_is_mixed_as_each_alone(layer: MixtureOfExperts) -> None:
    features = np.random.default_rng(2).normal(size=(4, 7, 5)).astype(np.float32)
    assert np.asarray(layer(features)) == pytest.approx(
        np.asarray(layer(features.reshape(28, 5))).reshape(4, 7, 2, 2), abs=1e-6
    )


def test_gates_and_experts_learn_from_the_first_step() -> None:
    layer = MixtureOfExperts(3, 2, tasks=2)
    features = np.random.default_rng(3).normal(size=(20, 5)).astype(np.float32)
    layer(features)

    def loss(weights: list[jax.Array]) -> jax.Array:
        output, _ = layer.stateless_call(weights, [], features)
        return jnp.square(output[:, 0] - 1.0).mean() + jnp.square(output[:, 1] + 1.0).mean()

    gradients = jax.grad(loss)([variable.value for variable in layer.trainable_variables])
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert all(np.abs(gradient).max() > 0 for gradient in gradients)


@pytest.mark.parametrize("lead", [("n",), ("n", 7)], ids=["pairs", "lists"])
def test_the_exported_graph_says_the_same_for_any_number_of_rows(
    layer: MixtureOfExperts, lead: tuple[str | int, ...]
) -> None:
    def run(features: jax.Array) -> jax.Array:
        return layer(features)

    graph = _trace(run, [((*lead, 5), np.dtype(np.float32))], ["features"])
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    for rows in (1, 33):
        features = np.random.default_rng(rows).normal(size=(rows, *lead[1:], 5)).astype(np.float32)
        [served] = session.run(None, {"features": features})
        assert np.abs(served - np.asarray(layer(features))).max() < 1e-6
