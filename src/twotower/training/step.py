"""One training step: gather a batch, differentiate, update weights and the rows that the batch read."""

from collections.abc import Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from twotower.data.batches import TrainingArrays, gather_history
from twotower.data.examples import Reads
from twotower.data.feature_encoders import DAY, PADDING
from twotower.data.fitted_features import FittedFeatures
from twotower.data.schema import HistoryFeature, IdFeature, SequenceFeature
from twotower.data.trends import lookup
from twotower.model.backend import keras
from twotower.model.config import MET, ModelConfig
from twotower.model.encoders import ITEM_TABLE, lookups, sequence_of
from twotower.model.joint import SHARED, JointModel, Tables, Weights
from twotower.model.retrieval import takes_all
from twotower.model.sampling import draw_uniform
from twotower.model.task_weights import Balance, gradient_norms
from twotower.training.compiled import compile_beside, optimised, rounded_products
from twotower.training.distributed import by_rows, deal_examples, deal_rows, dealt_shape, everywhere, replicate
from twotower.training.embeddings import adagrad, localise_all, new_accumulator, new_owner

GATHERED = (
    *("users", "context", "items", "user", "item", "second", "first", "end", "last", "history_rows", "history_seconds"),
    *("met", "snapshot", "labels", "positive", "appeared", "probability", "catalogue_row"),
)
"""Fields of `TrainingArrays` that a step reads."""
LEAST = 0.01
"""Where a falling step size ends, as a share of where it began."""
SEEN = 512
"""Items of a history that are kept from being negatives; the newest ones."""


class Plan(NamedTuple):
    """What `s` steps take: `examples` `[s, B]`, -1 filling up; the others as in `WindowPlan`, empty without windows."""

    examples: Any
    window: Any
    start: Any
    size: Any

    def part(self, start: int, stop: int) -> "Plan":
        """The steps from `start` up to but without `stop`."""
        return Plan(*(values[start:stop] for values in self))

    @property
    def steps(self) -> int:
        """`s`."""
        return len(self.examples)


class TrainState(NamedTuple):
    """Everything that training changes; a checkpoint holds exactly this."""

    weights: Weights
    tables: Tables
    states: Weights
    accumulators: Tables
    optimizer: list[Array]
    step: Array
    """`[]` steps taken."""
    task_weights: Array
    """What each task's mean loss is multiplied by, in the order of `JointModel.tasks`."""
    balance: Balance
    """What balanced weights remember."""


BY_ROWS = frozenset({"tables", "accumulators"})
"""Fields of `TrainState` that are dealt out by rows; the others are whole on every device."""


class Stepper:
    """Compiled training steps for one model on one set of arrays."""

    _norms_coming: "Future[Any] | None" = None
    """The program of `gradient_norms`, where it was asked for before it is needed."""

    def __init__(
        self,
        model: JointModel,
        arrays: TrainingArrays,
        *,
        optimizer: keras.optimizers.Optimizer,
        embedding_learning_rate: float,
        accumulator: Any,
        decay_steps: int,
        seed: int,
    ) -> None:
        """Move the arrays to the device.

        Args:
            model: The built model.
            arrays: The train part.
            optimizer: Updates the dense weights.
            embedding_learning_rate: Adagrad's step size on the tables.
            accumulator: "row" or "element", as in `new_accumulator`.
            decay_steps: Steps over which the tables' step size falls, as `decayed` has it; 0 for never.
            seed: Decides which negatives each step draws.
        """
        self.model, self.optimizer = model, optimizer
        self.embedding_learning_rate, self.decay_steps = embedding_learning_rate, decay_steps
        self.lookups = lookups(model.features)
        history = model.features.history
        self.sequence = sequence_of(model.features)
        self.history_length = history.config.length if history else 0
        self.reads_others = history is not None and history.reads_others
        if self.sequence is not None:
            # Windows tell the query tower what was met: the query's own inputs are for the memory and the idle time.
            self.lookups["windows"] = {"items": ITEM_TABLE}
        self.items = len(arrays.catalogue_row)
        self.is_all = model.has_negatives and takes_all(model.config.retrieval, items=self.items)
        self.uniform = model.config.retrieval.uniform_negatives if model.has_negatives else 0
        self.met_length = max(SEEN * _asks_met(model.config), self.history_length * self.reads_others)
        """Of what the user met, how much a step has to know; nothing where no loss asks."""
        self.hidden_ids = _hidden_ids(model.features)
        self.seed = seed
        self.reads = reads_of(model.config)
        self.arrays = replicate(on_device(arrays))
        self._zeros = jax.jit(partial(new_accumulator, kind=accumulator), out_shardings=by_rows())
        placed = _placed(), everywhere()
        self._run = jax.jit(self._scan, donate_argnums=0, out_shardings=placed, compiler_options=optimised(1))
        self._norms = jax.jit(self._gradient_norms, out_shardings=everywhere(), compiler_options=optimised(0))

    def compile(self, plan: Plan) -> "Future[Any]":
        """Compile beside what `run` does with plans of this shape; it takes much memory, so wait before `start`."""
        tables: dict[str, Any] = {name: dealt_shape(table) for name, table in self.model.table_structs().items()}
        sums: dict[str, Any] = {name: dealt_shape(jax.eval_shape(self._zeros, each)) for name, each in tables.items()}
        begun = self._untabled()._replace(tables=tables, accumulators=sums)
        return compile_beside(self._run.lower(begun, _dealt(plan), self.arrays))

    def start(self) -> TrainState:
        """The state before the first step; the model's tables are in it, and no longer in the model."""
        begun = self._untabled()
        # One after the other, out of the model: only one table is there twice at any time.
        tables = {name: deal_rows(self.model.tables.pop(name)) for name in list(self.model.tables)}
        return begun._replace(tables=tables, accumulators={name: self._zeros(table) for name, table in tables.items()})

    def _untabled(self) -> TrainState:
        """The state before the first step, without tables."""
        weights = self.model.weights()
        self.optimizer.build([weight for part in sorted(weights) for weight in self._variables(part)])
        state = TrainState(
            weights=weights,
            tables={},
            states=self.model.states(),
            accumulators={},
            optimizer=[variable.value for variable in self.optimizer.variables],
            step=jnp.zeros((), jnp.int32),
            task_weights=jnp.asarray(static_weights(self.model.config)),
            balance=Balance.start(self.model.tasks),
        )
        # Copies: the arrays of a state are given up to the next call.
        copied: TrainState = replicate(jax.tree.map(np.array, state))
        return copied

    def run(self, state: TrainState, plan: Plan) -> tuple[TrainState, dict[str, Array]]:
        """Take `s` steps in one compiled call; `state` is used up.

        Args:
            state: The state so far.
            plan: What each step takes.

        Returns:
            The state afterwards, and each loss as `[s]`.
        """
        after: tuple[TrainState, dict[str, Array]] = self._run(state, _dealt(plan), self.arrays)
        return after

    def expect_gradient_norms(self, state: TrainState, plan: Plan) -> None:
        """Compile what `gradient_norms` will run on such a state and plan, beside the steps until then."""
        if self._norms_coming is None:
            lowered = self._norms.lower(state, _dealt(plan.part(0, 1)), self.arrays)
            self._norms_coming = compile_beside(lowered)

    def gradient_norms(self, state: TrainState, plan: Plan) -> dict[str, float]:
        """Task -> how hard its unweighted loss pulls at what all tasks share, on a plan's first step.

        Shared are the towers and the embedding tables; what only the ranking head has does not count.
        """
        if self._norms_coming is not None:
            self._norms_coming.result()  # JAX finds the program where the thread left it.
        norms = self._norms(state, _dealt(plan.part(0, 1)), self.arrays)
        return {task: float(norm) for task, norm in norms.items()}

    def _gradient_norms(self, state: TrainState, plan: Plan, arrays: Mapping[str, Any]) -> dict[str, Array]:
        plan = Plan(*(values[0] for values in plan))
        batch = self._gather(plan, arrays, key=jax.random.fold_in(jax.random.key(self.seed), state.step))
        batch["task_weights"] = state.task_weights
        locals_ = localise_all(state.tables, batch, lookups=self.lookups, owners=_new_owners(state), step=0, steps=1)
        values = {name: local.values for name, local in locals_.items()}

        def task_losses(weights: Weights, rows: Tables) -> tuple[dict[str, Array], Weights]:
            losses, states = self.model.loss(weights, rows, state.states, batch)[1]
            return {task: losses[task] for task in self.model.tasks}, states

        nothing = dict.fromkeys(self.model.tasks, jnp.zeros(()))
        gradients = {}
        with rounded_products():
            _, pull, _ = jax.vjp(task_losses, state.weights, values, has_aux=True)
            for task in self.model.tasks:
                weights, rows = pull(nothing | {task: jnp.ones(())})
                gradients[task] = ({part: weights[part] for part in SHARED if part in weights}, rows)
        return gradient_norms(gradients)

    def _variables(self, part: str) -> list[Any]:
        return list(self.model.layers[part].trainable_variables)

    def _scan(self, state: TrainState, plan: Plan, arrays: Mapping[str, Any]) -> tuple[TrainState, dict[str, Array]]:
        numbers = jnp.arange(plan.steps, dtype=jnp.int32)
        begin = state, _new_owners(state)
        step = partial(self._step, arrays=arrays, steps=plan.steps)
        (state, _), losses = jax.lax.scan(step, begin, (numbers, plan))
        return state, losses

    def _step(
        self, carried: tuple[TrainState, Tables], given: tuple[Array, Plan], *, arrays: Mapping[str, Any], steps: int
    ) -> tuple[tuple[TrainState, Tables], dict[str, Array]]:
        (state, owners), (number, plan) = carried, given
        batch = self._gather(plan, arrays, key=jax.random.fold_in(jax.random.key(self.seed), state.step))
        batch["task_weights"] = state.task_weights
        locals_ = localise_all(state.tables, batch, lookups=self.lookups, owners=owners, step=number, steps=steps)
        values = {name: local.values for name, local in locals_.items()}
        differentiated = jax.value_and_grad(self.model.loss, argnums=(0, 1), has_aux=True)
        with rounded_products():
            (_, (losses, states)), gradients = differentiated(state.weights, values, state.states, batch)
        weight_gradients, row_gradients = gradients
        weights, optimizer = self._update_weights(state, weight_gradients)
        learning_rate = self.embedding_learning_rate * decayed(state.step, self.decay_steps)
        tables, accumulators = dict(state.tables), dict(state.accumulators)
        for name, local in locals_.items():
            tables[name], accumulators[name] = adagrad(
                tables[name],
                accumulators[name],
                local=local,
                gradient=row_gradients[name],
                learning_rate=learning_rate,
            )
        after = state._replace(
            weights=weights,
            tables=tables,
            states=states,
            accumulators=accumulators,
            optimizer=optimizer,
            step=state.step + 1,
        )
        return (after, {name: local.owner for name, local in locals_.items()}), losses

    def _gather(self, plan: Plan, arrays: Mapping[str, Any], *, key: Array) -> dict[str, Any]:
        """The batch that `JointModel.loss` takes; row numbers still point into the whole tables."""
        real, examples = plan.examples >= 0, jnp.maximum(plan.examples, 0)
        draw_key, batch_key, hide_key, share_key = jax.random.split(key, 4)
        user, item = arrays["user"][examples], arrays["item"][examples]
        query = {name: values[user] for name, values in arrays["users"].items()}
        query |= {name: values[examples] for name, values in arrays["context"].items()}
        met, end = jnp.zeros((len(examples), 0), jnp.int32), examples
        if self.reads.histories:
            history, met, end = self._gather_histories(arrays, examples, item=item, key=share_key)
            query |= history
        in_order = self.is_all
        drawn = draw_uniform(draw_key, self.uniform, items=self.items)
        candidates = jnp.arange(self.items) if in_order else jnp.concatenate([item, drawn])
        batch = {
            "query": query,
            "candidate": {name: values[candidates] for name, values in arrays["items"].items()},
            "item": item if in_order else candidates,
            "is_all": in_order,
            "met": met,
            "second": arrays["second"][examples] if self.reads.moments else None,
            "appeared": arrays["appeared"],
            "labels": jnp.where(real[:, None], arrays["labels"][examples], jnp.nan),
            "positive": jnp.where(real, arrays["positive"][examples].astype(jnp.float32), 0.0),
            "probability": arrays["probability"],
            "key": batch_key,
        }
        if self.reads.trends:
            row = arrays["catalogue_row"]
            snapshot = arrays["snapshot"][examples]
            batch["trends"] = lookup(jnp, arrays["trends"], snapshot, row[item][:, None])[:, 0]
            batch["trend_of"] = lambda items: lookup(jnp, arrays["trends"], snapshot[: items.shape[0]], row[items])
        if self.sequence is not None:
            log = arrays["history_rows"], arrays["history_seconds"]
            batch["windows"] = _read_windows(plan, *log, length=self.sequence.length)
            # Place 0 stands for nothing known; what the example may see ends one place before `end`.
            batch["window"] = (plan.window, end - plan.start[plan.window])
        for place, (tower, name, share) in enumerate(self.hidden_ids):
            hidden = jax.random.bernoulli(jax.random.fold_in(hide_key, place), share, batch[tower][name].shape)
            batch[tower][name] = jnp.where(hidden, 0, batch[tower][name])
        return batch

    def _gather_histories(
        self, arrays: Mapping[str, Any], examples: Array, *, item: Array, key: Array
    ) -> tuple[dict[str, Array], Array, Array]:
        """Inputs of the query tower; `[B, M]` what the user met, as places of items; `[B]` where that ends."""
        end = arrays["last" if self.reads_others else "end"][examples]
        span = {"first": arrays["first"][examples], "end": end, "now": arrays["second"][examples]}
        rows, seconds = arrays["history_rows"], arrays["history_seconds"]
        met = gather_history(jnp, arrays["met"], seconds, **span, length=self.met_length)["history_items"]
        if not self.history_length:
            return {}, met, end
        length = max(self.model.memory_length, 1) if self.sequence else self.history_length
        query = gather_history(jnp, rows, seconds, **span, length=length)
        if self.reads_others:  # The span is all that the user met, the example itself among it.
            is_other = met != item[:, None]
            met = jnp.where(is_other, met, PADDING)
            shown = draw_shown(key, (len(examples), length)) & is_other[:, :length]
            query["history_items"] = jnp.where(shown, query["history_items"], PADDING)
        if self.sequence is not None:  # Of all that a server sees, not of the few places gathered here.
            query["history_count"] = jnp.minimum(end - span["first"], self.history_length)
        return query, met, end

    def _update_weights(self, state: TrainState, gradients: Weights) -> tuple[Weights, list[Array]]:
        parts = sorted(state.weights)
        flat = [weight for part in parts for weight in state.weights[part]]
        flat_gradients = [gradient for part in parts for gradient in gradients[part]]
        if not flat:
            return state.weights, state.optimizer
        updated, optimizer = self.optimizer.stateless_apply(state.optimizer, flat_gradients, flat)
        remaining = iter(updated)
        return {part: [next(remaining) for _ in state.weights[part]] for part in parts}, optimizer


def decayed(step: Array, steps: int) -> Array | float:
    """What a step size is multiplied by: from 1 down to `LEAST` by half a cosine over so many steps; 1 for 0 steps."""
    if not steps:
        return 1.0
    done = jnp.minimum(step / steps, 1.0)
    return LEAST + (1.0 - LEAST) * 0.5 * (1.0 + jnp.cos(jnp.pi * done))


def draw_shown(key: Array, shape: tuple[int, ...]) -> Array:
    """`[B, N]` which of the other items of its user each example is told of.

    Each row shows a share of its items that is itself drawn evenly between none and all, so that a query is learned
    from few items as from many: as if each user's items had come in an order of chance. What is withheld by chance, and
    not by time, is what a denoising autoencoder reads (Liang et al., "Variational autoencoders for collaborative
    filtering", WWW 2018, https://arxiv.org/abs/1802.05814), one output at a time.
    """
    share_key, item_key = jax.random.split(key)
    return jax.random.uniform(item_key, shape) < jax.random.uniform(share_key, (shape[0], 1))


def _new_owners(state: TrainState) -> Tables:
    """As every compiled call begins, and so no part of what a checkpoint holds."""
    owners: Tables = jax.lax.with_sharding_constraint(jax.tree.map(new_owner, state.tables), everywhere())
    return owners


def reads_of(config: ModelConfig) -> Reads:
    """What the steps of such a model read of the log."""
    tells = any(isinstance(feature, HistoryFeature | SequenceFeature) for feature in config.query)
    histories = tells or _asks_met(config)
    return Reads(
        histories=histories,
        trends=bool(config.ranking.labels) and config.ranking.trends,
        moments=histories or config.retrieval.mask_absent,
    )


def _asks_met(config: ModelConfig) -> bool:
    """Whether a loss asks what the user met, so that it is no negative."""
    return config.retrieval.mask_positives or MET in config.tasks()


def on_device(arrays: TrainingArrays) -> dict[str, Any]:
    """What a step is given of the arrays."""
    trends = None if arrays.trends is None else arrays.trends.arrays
    return {name: getattr(arrays, name) for name in GATHERED} | {"trends": trends}


def _placed() -> TrainState:
    """Where each field of a state lies."""
    places: list[Any] = [by_rows() if field in BY_ROWS else everywhere() for field in TrainState._fields]
    return TrainState(*places)


def _dealt(plan: Plan) -> Plan:
    """The plan with its examples dealt out to the devices."""
    return Plan(*(deal_examples(np.asarray(values)) for values in plan))


def static_weights(config: ModelConfig) -> NDArray[np.float32]:
    """The recipe's weights of the tasks, in their order."""
    return np.array(list(config.tasks().values()), np.float32)


def _read_windows(plan: Plan, rows: Array, seconds: Array, *, length: int) -> dict[str, Array]:
    """`[W, length]` items and days since each window's first, as a sequence encoder takes them."""
    place = plan.start[:, None] + jnp.arange(length)[None, :]
    valid = jnp.arange(length)[None, :] < plan.size[:, None]
    place = jnp.where(valid, place, plan.start[:, None])
    days = (seconds[place] - seconds[plan.start][:, None]) / DAY
    return {"items": jnp.where(valid, rows[place], PADDING), "days": days.astype(jnp.float32)}


def _hidden_ids(features: FittedFeatures) -> list[tuple[str, str, float]]:
    """Tower, input and share of the ids that training hides, as if never met."""
    return [
        (tower, encoder.key, encoder.config.dropout)
        for tower, encoders in (("query", features.query), ("candidate", features.candidate))
        for encoder in encoders
        if isinstance(encoder.config, IdFeature) and encoder.config.dropout
    ]
