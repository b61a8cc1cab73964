"""From each task's mean loss to the one number that training lowers: fixed, learned or balanced weights."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

LARGEST_RATIO = 100.0
"""A task's gradient norm counts as at least the largest one over this, so that no still task is blown up."""


def static_total(losses: Mapping[str, Array], weights: Mapping[str, float | Array]) -> Array:
    """The weighted sum of the tasks' losses.

    Args:
        losses: Task -> `[]` its mean loss.
        weights: Task -> its weight; one for every task.
    """
    return jnp.sum(jnp.stack([weights[task] * loss for task, loss in losses.items()]))


def uncertainty_weights(log_variances: Mapping[str, Array], *, kinds: Mapping[str, str]) -> dict[str, Array]:
    """What each task's loss is multiplied by in `uncertainty_total`; for the report as well.

    Arguments as there.
    """
    return {task: _precision_factor(kinds[task]) * jnp.exp(-log) for task, log in log_variances.items()}


def uncertainty_total(
    losses: Mapping[str, Array], log_variances: Mapping[str, Array], *, kinds: Mapping[str, str]
) -> Array:
    """The tasks' losses weighted by how noisy each task is found to be, which is learned beside the model.

    A regression counts `L / (2 s^2) + log s`, every other kind `L / s^2 + log s`. The log-variance `log s^2` is what is
    learned: any number is allowed, nothing is divided by, and 0 is where to start. At rest a regression's is `log L`
    and another's `log 2L`, so that every task ends with the same weighted loss of 1/2. The total may be negative: tell
    the tasks' own losses.

    Args:
        losses: Task -> `[]` its mean loss.
        log_variances: Task -> `[]` its log-variance, a trainable weight.
        kinds: Task -> "regression", or the name of a cross-entropy ("binary", "listwise").

    Source:
        Kendall, Gal and Cipolla, "Multi-task learning using uncertainty to weigh losses for scene geometry and
        semantics", CVPR 2018, https://arxiv.org/abs/1705.07115
    """
    weights = uncertainty_weights({task: log_variances[task] for task in losses}, kinds=kinds)
    spread = jnp.sum(jnp.stack([0.5 * log_variances[task] for task in losses]))
    return static_total(losses, weights) + spread


class Balance(NamedTuple):
    """What gradient balancing remembers from step to step; part of a checkpoint."""

    norms: dict[str, Array]
    """Task -> `[]` decayed sum of its gradient norms."""
    first_losses: dict[str, Array]
    """Task -> `[]` its loss at the first step."""
    steps: Array
    """`[]` steps seen."""

    @classmethod
    def start(cls, tasks: tuple[str, ...]) -> "Balance":
        """Before the first step."""
        zeros = {task: jnp.zeros(()) for task in tasks}
        return cls(norms=zeros, first_losses=dict(zeros), steps=jnp.zeros((), jnp.int32))


def gradient_balanced(
    balance: Balance,
    norms: Mapping[str, Array],
    *,
    losses: Mapping[str, Array],
    weights: Mapping[str, float],
    alpha: float = 0.0,
    decay: float = 0.99,
) -> tuple[dict[str, Array], Balance]:
    """Weights under which tasks pull at the shared parameters as hard as their static weights ask for.

    With gradient norms `n` and static weights `w`, task i gets a weight in proportion to `w_i r_i^alpha / n_i`, scaled
    so that the sum is that of the static ones. `r_i` is how slowly the task learns: the share of its first loss that is
    left, over the mean share. With `alpha = 0` only the norms count.

    Args:
        balance: What was remembered; `Balance.start` before the first step.
        norms: Task -> `[]` norm of its unweighted loss's gradient on the shared parameters (`gradient_norms`).
        losses: Task -> `[]` its mean loss, not negative.
        weights: Task -> its static weight, not negative: its share of the pull.
        alpha: How much slow tasks are favoured, not negative.
        decay: Of the moving average of norms, in [0, 1); the average is corrected for its start at 0.

    Returns:
        Task -> `[]` weight, through which no gradient flows, and what to remember.

    Source:
        Chen et al., "GradNorm: gradient normalization for adaptive loss balancing in deep multitask networks",
        ICML 2018, https://arxiv.org/abs/1711.02257. There the weights are learned towards the point where
        `weight_i n_i` is in proportion to `r_i^alpha`; here they are put there, on averaged norms.
    """
    tasks = list(weights)
    steps = balance.steps + 1
    norm, loss, first, kept = (
        jax.lax.stop_gradient(jnp.stack([values[task] for task in tasks]))
        for values in (norms, losses, balance.first_losses, balance.norms)
    )
    static = jnp.array([weights[task] for task in tasks])
    kept = decay * kept + (1.0 - decay) * norm
    average = kept / (1.0 - decay ** steps.astype(jnp.float32))
    average = jnp.maximum(average, jnp.maximum(average.max() / LARGEST_RATIO, 1e-12))
    first = jnp.where(balance.steps == 0, loss, first)
    left = loss / jnp.maximum(first, 1e-12)
    slowness = left / jnp.maximum(left.mean(), 1e-12)
    wanted = static * slowness**alpha / average
    wanted = jnp.where(norm > 0, wanted, static / average.max())  # A task that did not pull keeps its place.
    scaled = wanted * static.sum() / jnp.maximum(wanted.sum(), 1e-12)
    after = Balance(norms=_by_task(tasks, kept), first_losses=_by_task(tasks, first), steps=steps)
    return _by_task(tasks, scaled), after


def gradient_norms(gradients_by_task: Mapping[str, Any]) -> dict[str, Array]:
    """How hard each task pulls: task -> `[]` Euclidean length of its gradient, all arrays taken as one vector.

    Args:
        gradients_by_task: Task -> its gradient on the shared parameters, arrays in any nesting.
    """
    return {
        task: jnp.sqrt(sum((jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradient)), jnp.zeros(())))
        for task, gradient in gradients_by_task.items()
    }


def _precision_factor(kind: str) -> float:
    return 0.5 if kind == "regression" else 1.0


def _by_task(tasks: list[str], values: Array) -> dict[str, Array]:
    return dict(zip(tasks, values, strict=True))
