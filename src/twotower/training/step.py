"""One training step: gather a batch, differentiate, update weights and the rows that the batch read."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax import Array
from numpy.typing import NDArray

from twotower.data.batches import TrainingArrays, gather_history
from twotower.model.encoders import lookups
from twotower.model.joint import JointModel, Tables, Weights
from twotower.model.sampling import draw_uniform
from twotower.training.embeddings import LocalRows, adagrad, localise, new_accumulator

GATHERED = (
    *("users", "context", "items", "user", "item", "second", "first", "end"),
    *("history_rows", "history_seconds", "labels", "positive", "probability"),
)
"""Fields of `TrainingArrays` that a step reads."""


class TrainState(NamedTuple):
    """Everything that training changes; a checkpoint holds exactly this."""

    weights: Weights
    tables: Tables
    states: Weights
    accumulators: Tables
    optimizer: list[Array]
    step: Array
    """`[]` steps taken."""


class Stepper:
    """Compiled training steps for one model on one set of arrays."""

    def __init__(
        self,
        model: JointModel,
        arrays: TrainingArrays,
        *,
        optimizer: keras.optimizers.Optimizer,
        embedding_learning_rate: float,
        accumulator: Any,
        seed: int,
    ) -> None:
        """Move the arrays to the device.

        Args:
            model: The built model.
            arrays: The train part.
            optimizer: Updates the dense weights.
            embedding_learning_rate: Adagrad's step size on the tables.
            accumulator: "row" or "element", as in `new_accumulator`.
            seed: Decides which negatives each step draws.
        """
        self.model, self.optimizer, self.accumulator = model, optimizer, accumulator
        self.embedding_learning_rate = embedding_learning_rate
        self.lookups = lookups(model.features)
        history = model.features.history
        self.history_length = history.config.length if history else 0
        self.items = len(arrays.catalogue_row)
        self.seed = seed
        self.arrays = jax.device_put({name: getattr(arrays, name) for name in GATHERED})
        self._run = jax.jit(self._scan, donate_argnums=0)

    def start(self) -> TrainState:
        """The state before the first step."""
        weights = self.model.weights()
        self.optimizer.build([weight for part in sorted(weights) for weight in self._variables(part)])
        accumulators = {name: new_accumulator(table, self.accumulator) for name, table in self.model.tables.items()}
        state = TrainState(
            weights=weights,
            tables=dict(self.model.tables),
            states=self.model.states(),
            accumulators=accumulators,
            optimizer=[variable.value for variable in self.optimizer.variables],
            step=jnp.zeros((), jnp.int32),
        )
        # Copies: the arrays of a state are given up to the next call.
        copied: TrainState = jax.tree.map(jnp.array, state)
        return copied

    def run(self, state: TrainState, examples: NDArray[np.int32]) -> tuple[TrainState, dict[str, Array]]:
        """Take `s` steps in one compiled call; `state` is used up.

        Args:
            state: The state so far.
            examples: `[s, B]` which examples each step takes.

        Returns:
            The state afterwards, and each loss as `[s]`.
        """
        after: tuple[TrainState, dict[str, Array]] = self._run(state, jnp.asarray(examples), self.arrays)
        return after

    def _variables(self, part: str) -> list[Any]:
        return list(self.model.layers[part].trainable_variables)

    def _scan(
        self, state: TrainState, examples: Array, arrays: Mapping[str, Any]
    ) -> tuple[TrainState, dict[str, Array]]:
        return jax.lax.scan(partial(self._step, arrays=arrays), state, examples)

    def _step(
        self, state: TrainState, examples: Array, *, arrays: Mapping[str, Any]
    ) -> tuple[TrainState, dict[str, Array]]:
        batch = self._gather(examples, arrays, key=jax.random.fold_in(jax.random.key(self.seed), state.step))
        locals_ = self._localise(state.tables, batch)
        values = {name: local.values for name, local in locals_.items()}
        (_, (losses, states)), (weight_gradients, row_gradients) = jax.value_and_grad(
            self.model.loss, argnums=(0, 1), has_aux=True
        )(state.weights, values, state.states, batch)
        weights, optimizer = self._update_weights(state, weight_gradients)
        tables, accumulators = dict(state.tables), dict(state.accumulators)
        for name, local in locals_.items():
            tables[name], accumulators[name] = adagrad(
                tables[name],
                accumulators[name],
                local=local,
                gradient=row_gradients[name],
                learning_rate=self.embedding_learning_rate,
            )
        return TrainState(weights, tables, states, accumulators, optimizer, state.step + 1), losses

    def _gather(self, examples: Array, arrays: Mapping[str, Any], *, key: Array) -> dict[str, Any]:
        """The batch that `JointModel.loss` takes; row numbers still point into the whole tables."""
        user, item = arrays["user"][examples], arrays["item"][examples]
        query = {name: values[user] for name, values in arrays["users"].items()}
        query |= {name: values[examples] for name, values in arrays["context"].items()}
        if self.history_length:
            query |= gather_history(
                jnp,
                arrays["history_rows"],
                arrays["history_seconds"],
                first=arrays["first"][examples],
                end=arrays["end"][examples],
                now=arrays["second"][examples],
                length=self.history_length,
            )
        draw_key, batch_key = jax.random.split(key)
        drawn = draw_uniform(draw_key, self.model.config.retrieval.uniform_negatives, items=self.items)
        item = jnp.concatenate([item, drawn])
        return {
            "query": query,
            "candidate": {name: values[item] for name, values in arrays["items"].items()},
            "item": item,
            "labels": arrays["labels"][examples],
            "positive": arrays["positive"][examples],
            "probability": arrays["probability"],
            "key": batch_key,
        }

    def _localise(self, tables: Tables, batch: dict[str, Any]) -> dict[str, LocalRows]:
        """Gather every table's rows, and let the batch's inputs point into these instead."""
        found = {}
        for name, table in tables.items():
            uses = [(tower, key) for tower, keys in self.lookups.items() for key, used in keys.items() if used == name]
            local = localise(table, {f"{tower}/{key}": batch[tower][key] for tower, key in uses})
            for tower, key in uses:
                batch[tower][key] = local.inputs[f"{tower}/{key}"]
            found[name] = local
        return found

    def _update_weights(self, state: TrainState, gradients: Weights) -> tuple[Weights, list[Array]]:
        parts = sorted(state.weights)
        flat = [weight for part in parts for weight in state.weights[part]]
        flat_gradients = [gradient for part in parts for gradient in gradients[part]]
        if not flat:
            return state.weights, state.optimizer
        updated, optimizer = self.optimizer.stateless_apply(state.optimizer, flat_gradients, flat)
        remaining = iter(updated)
        return {part: [next(remaining) for _ in state.weights[part]] for part in parts}, optimizer
