"""Shared experts and a gate for each task: what joint tasks may share, and how much of it."""

from typing import Any

from twotower.model.backend import keras, ops


class MixtureOfExperts(keras.layers.Layer):
    """Gives each task its own mixture of the same experts, so that tasks that disagree can use different ones.

    Every expert is one hidden layer over all features; each task's gate, a softmax over the same features, says how
    much it takes of which. Gates begin even: at first all tasks see the mean of the experts.

    Source:
        MMoE: Ma et al., "Modeling task relationships in multi-task learning with multi-gate mixture-of-experts",
        KDD 2018, https://doi.org/10.1145/3219819.3220007
    """

    def __init__(self, experts: int, width: int, *, tasks: int, name: str = "experts") -> None:
        """Make the layers.

        Args:
            experts: How many experts are shared.
            width: Numbers that an expert, and so a task's mixture, holds.
            tasks: How many mixtures are made.
            name: The layer's name.
        """
        super().__init__(name=name)
        self.experts, self.width, self.tasks = experts, width, tasks
        # One matrix for all experts. He's first weights go by the inputs alone: as wide as each expert's own would be.
        self.hidden = keras.layers.Dense(
            experts * width, activation="relu", kernel_initializer="he_uniform", name="hidden"
        )
        self.gates = keras.layers.Dense(tasks * experts, kernel_initializer="zeros", name="gates")

    def call(self, features: Any) -> Any:
        """`[..., features]` -> `[..., tasks, width]`."""
        before = ops.shape(features)[:-1]
        hidden = ops.reshape(self.hidden(features), (*before, self.experts, self.width))
        gates = ops.reshape(self.gates(features), (*before, self.tasks, self.experts))
        return ops.matmul(ops.softmax(gates, axis=-1), hidden)
