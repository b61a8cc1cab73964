"""The ranking head and what it remembers of a history: worked by hand on the smallest of both."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twotower.model.config import LabelConfig, RankingConfig
from twotower.model.encoders import ITEM_TABLE
from twotower.model.memory import HistoryMemory, Recall
from twotower.model.ranking import MEMORY_WIDTH, RankingHead

NOTHING = -1e9


@pytest.fixture(scope="module")
def recall() -> Recall:
    """One head that compares single numbers as they are."""
    layer = Recall(length=3, heads=1, width=1)
    layer(jnp.zeros((1, 6)), jnp.zeros((1, 1, 1)))
    layer.project.set_weights([np.ones((1, 1), np.float32)])
    return layer


@pytest.fixture(scope="module")
def nearness(recall: Recall) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """The sum of what is recalled and its gradient by the keys; compiled once for all the examples of a law."""

    def total(keys: jax.Array, weights: jax.Array, candidate: jax.Array) -> jax.Array:
        return jnp.sum(recall(jnp.concatenate([keys, weights])[None], candidate))

    return jax.jit(jax.value_and_grad(total))


@pytest.mark.parametrize("training", [True, False])
def test_a_candidate_is_compared_with_what_was_met_by_mean_and_nearest(recall: Recall, training: bool) -> None:
    # Keys 2 and -1 with weights 1 and 1/2, the third place empty; candidates 3 and -1.
    memory = jnp.array([[2.0, -1.0, 9.0, 0.0, np.log(0.5), NOTHING]])
    found = np.asarray(recall(memory, jnp.array([[[3.0], [-1.0]]]), training=training))
    assert found.shape == (1, 2, 2)
    assert found[0, 0] == pytest.approx([(6 + 0.5 * -3) / 1.5, np.log((np.exp(6) + 0.5 * np.exp(-3)) / 1.5)], rel=1e-5)
    assert found[0, 1] == pytest.approx([(-2 + 0.5) / 1.5, np.log((np.exp(-2) + 0.5 * np.exp(1)) / 1.5)], abs=1e-5)


def test_who_met_nothing_has_nothing_near(recall: Recall) -> None:
    empty = jnp.array([[2.0, -1.0, 9.0, NOTHING, NOTHING, NOTHING]])
    assert np.asarray(recall(empty, jnp.array([[[3.0]]]))).tolist() == [[[0.0, 0.0]]]


@given(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3), st.floats(-1e3, 1e3), st.integers(0, 3))
def test_nearness_is_finite_and_so_is_its_gradient(
    nearness: Callable[..., tuple[jax.Array, jax.Array]], keys: list[float], candidate: float, met: int
) -> None:
    weights = [0.0] * met + [NOTHING] * (3 - met)
    value, gradient = nearness(jnp.array(keys), jnp.array(weights), jnp.full((1, 1, 1), candidate))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert (np.asarray(gradient)[met:] == 0).all()


def test_a_memory_holds_the_newest_items_and_weighs_them_by_place_and_age() -> None:
    layer = HistoryMemory(ITEM_TABLE, length=2, heads=2, width=1)
    tables = {ITEM_TABLE: jnp.array([[0.0], [1.0], [2.0], [3.0]])}
    inputs = {
        "history_items": np.array([[3, 1, 2], [2, -1, -1]], np.int32),
        "history_days": np.array([[0, np.e - 1, 50], [0, 0, 0]], np.float32),
    }
    layer(inputs, tables)
    layer.project.set_weights([np.array([[1.0, 10.0]], np.float32)])
    layer.age_rate.assign([[0.0], [5.0]])
    found = np.asarray(layer(inputs, tables))
    assert found.shape == (2, layer.size) == (2, 8)
    # Each item's keys by head, then each head's weights by item; the second head forgets e - 1 days by 5 * log(e).
    assert found[0] == pytest.approx([3, 30, 1, 10, 0, -1.0, 0, -0.02 - 5], rel=1e-5)
    assert found[1, [0, 1, 4, 6]] == pytest.approx([2, 20, 0, 0])
    assert (found[1, [5, 7]] == NOTHING).all(), "an empty place weighs nothing"


LABELS = (LabelConfig(name="rating", kind="regression"), LabelConfig(name="met", kind="listwise"))


@pytest.mark.parametrize("experts", [0, 3])
@pytest.mark.parametrize("memory", [0, 2])
def test_a_head_begins_in_retrievals_order_and_at_the_labels_means(experts: int, memory: int) -> None:
    keras.utils.set_random_seed(0)
    config = RankingConfig(labels=LABELS, layers=(8,), experts=experts, memory=memory, trends=False, memory_heads=2)
    head = RankingHead(config, embedding_dim=3, memory=memory)
    generator = np.random.default_rng(0)
    query, candidate = (jnp.asarray(generator.normal(size=shape)) for shape in ((5, 4), (5, 7, 4)))
    beside = {"logits": jnp.asarray(3 * generator.normal(size=(5, 7)).astype(np.float32))}
    if memory:
        beside["memory"] = jnp.asarray(generator.normal(size=(5, memory * 2 * (MEMORY_WIDTH + 1))))
    head(query, candidate, beside)
    head.begin_at([3.5, 0.0])
    found = np.asarray(head(query, candidate, beside))
    assert found.shape == (5, 7, 2)
    assert found[:, :, 0] == pytest.approx(3.5, abs=0.3)
    assert found[:, :, 1] == pytest.approx(np.asarray(beside["logits"]), abs=0.3)
