"""Where a run's examples come from: all of them from memory, or window by window from shards on disk."""

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from numpy.typing import NDArray

from twotower.artifact import hash_json
from twotower.data.batches import TrainingArrays
from twotower.data.examples import PER_PLACE, PLACES, Shared
from twotower.data.pieces import digest
from twotower.data.schema import SequenceFeature
from twotower.data.shards import Shards
from twotower.errors import RecipeError
from twotower.training.plan import Planner, blank
from twotower.training.step import Plan, on_device

SHARDS_AT_ONCE = 4
"""Shards that make a window: those of an epoch's window are other ones than those of the last epoch's."""


class Part(NamedTuple):
    """A part of an epoch: what its steps take, and from which arrays."""

    plan: Plan
    arrays: Mapping[str, Any] | None
    """What `Stepper.arrays` are replaced by; None for the arrays that it began with."""


class Supply(Protocol):
    """An epoch's steps in an order that the seed and the epoch's number decide."""

    examples: int
    """Of an epoch."""
    steps: int
    """Of an epoch; each epoch has as many."""
    batch_size: int

    def sample(self) -> TrainingArrays:
        """What a stepper begins with: the train part, or as much of it as fits, filled up with rows that are none."""
        ...

    def epoch(self, number: int, *, step: int) -> Iterator[Part]:
        """The steps of an epoch from `step` on."""
        ...

    def blank(self, steps: int) -> Plan:
        """As wide as what `epoch` gives from `sample`, and of so many steps or as many as a part has."""
        ...

    def probe(self, number: int) -> Plan:
        """One step of the epoch, of the arrays that its last part came with."""
        ...

    def identity(self) -> str:
        """A hash of the data and its order: a checkpoint must not go on with others."""
        ...


class InMemory:
    """The whole train part as arrays."""

    def __init__(self, arrays: TrainingArrays, *, batch_size: int, sequence: SequenceFeature | None, seed: int) -> None:
        self.examples = len(arrays.item)
        self.batch_size = min(batch_size, self.examples)
        self.planner = Planner(arrays, batch_size=self.batch_size, sequence=sequence, seed=seed)
        self.steps = self.planner.steps
        self._identity = digest(*jax.tree.leaves(on_device(arrays)))
        self._held = [arrays]

    def sample(self) -> TrainingArrays:
        """All of the arrays, once: who takes steps has them on the device, and need not keep them here as well."""
        return self._held.pop()

    def epoch(self, number: int, *, step: int) -> Iterator[Part]:
        """One part: all steps that are left."""
        yield Part(self.planner.epoch(number).part(step, self.steps), None)

    def blank(self, steps: int) -> Plan:
        """See `Supply.blank`."""
        return blank(min(steps, self.steps), batch_size=self.batch_size, windows=self.planner.windows)

    def probe(self, number: int) -> Plan:
        """The epoch's first step."""
        return self.planner.epoch(number).part(0, 1)

    def identity(self) -> str:
        """A hash of the arrays."""
        return self._identity


class FromDisk:
    """Windows of a few shards, the next one read by a thread of its own while the steps of this one run.

    Examples are shuffled within their window, and windows are made of other shards in each epoch. All windows take as
    many steps, and their arrays are of one length, so that a step is compiled once. What a window has over, which is
    less than a batch and what it holds more than the smallest window, comes in another epoch's order.
    """

    def __init__(
        self, shards: Shards, *, shared: Shared, batch_size: int, sequence: SequenceFeature | None, seed: int
    ) -> None:
        """Count the steps of an epoch.

        Args:
            shards: The train part, a multiple of `SHARDS_AT_ONCE` of them.
            shared: What belongs to users and items.
            batch_size: Examples a step at most.
            sequence: How histories are read in their order; None where examples stand by themselves.
            seed: Decides the order.

        Raises:
            RecipeError: too few users to fill the shards.
        """
        self.shards, self.shared, self.sequence, self.seed = shards, shared, sequence, seed
        self.examples = sum(shards.rows)
        smallest = sum(sorted(shards.rows)[:SHARDS_AT_ONCE])
        if not smallest:
            raise RecipeError(
                "train.memory_rows: the train part has too few users to be read in windows, which hold all that some "
                f"of them did. Raise it to {self.examples:,}, so that all of it is in memory."
            )
        self.batch_size = min(batch_size, smallest)
        self.windows = len(shards.rows) // SHARDS_AT_ONCE
        self._on_device: dict[str, Any] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="twotower-window")
        self._coming: tuple[tuple[int, int], Future[Part]] | None = None
        self._last: Plan | None = None
        self._steps, self._windows_a_step = 0 if sequence else smallest // self.batch_size, 0
        self._first: list[TrainingArrays] = []
        if sequence:
            arrays, first = self._read(0, 0)
            self._first.append(arrays)
            self._steps, self._windows_a_step = first.steps, first.windows
        self.steps = self.windows * self._steps

    def sample(self) -> TrainingArrays:
        """The first window, as it was read before where it was, and given away then."""
        return self._first.pop() if self._first else self._read(0, 0)[0]

    def epoch(self, number: int, *, step: int) -> Iterator[Part]:
        """One part for each window from that of `step` on."""
        first, rest = divmod(step, self._steps)
        for window in range(first, self.windows):
            part = self._wait_for(number, window)
            # The last window of an epoch is followed by the first of the next, while validation runs.
            self._expect(number + (window + 1) // self.windows, (window + 1) % self.windows)
            self._last = part.plan
            yield part._replace(plan=part.plan.part(rest, self._steps))
            rest = 0

    def blank(self, steps: int) -> Plan:
        """See `Supply.blank`."""
        return blank(min(steps, self._steps), batch_size=self.batch_size, windows=self._windows_a_step)

    def probe(self, number: int) -> Plan:  # noqa: ARG002 - the last window read is of that epoch.
        """The first step of the window that was read last."""
        assert self._last is not None
        return self._last.part(0, 1)

    def identity(self) -> str:
        """What the shards say of themselves, and a hash of what belongs to users and items."""
        fields = dict(self.shared.fields())
        del fields["trends"]  # They follow from what the shards hold.
        return hash_json([self.shards.identity, digest(*jax.tree.leaves(fields))])

    def _wait_for(self, number: int, window: int) -> Part:
        if self._coming is None or self._coming[0] != (number, window):
            self._expect(number, window)
        assert self._coming is not None
        return self._coming[1].result()

    def _expect(self, number: int, window: int) -> None:
        self._coming = ((number, window), self._pool.submit(self._load, number, window))

    def _load(self, number: int, window: int) -> Part:
        arrays, planner = self._read(number, window)
        plan, given = planner.epoch(number), on_device(arrays)
        if not self._on_device:
            kept = self.shared.fields().keys()
            self._on_device = jax.device_put({name: each for name, each in given.items() if name in kept})
        own = jax.device_put({name: each for name, each in given.items() if name not in self._on_device})
        return Part(plan, self._on_device | own)

    def _read(self, number: int, window: int) -> tuple[TrainingArrays, Planner]:
        """A window's arrays, filled up to the length of all, and the order of its examples."""
        order = np.random.default_rng([self.seed, number]).permutation(len(self.shards.rows))
        room: dict[str, Any] = {}
        examples = places = 0
        for shard in order[window * SHARDS_AT_ONCE : (window + 1) * SHARDS_AT_ONCE].tolist():
            found = self.shared.examples_of(self.shards.read(shard))
            for name in PLACES:
                found[name] += np.int32(places)
            room = room or {name: self._room(name, values) for name, values in found.items()}
            for name, values in found.items():
                jax.tree.map(partial(_put, at=places if name in PER_PLACE else examples), room[name], values)
            examples, places = examples + len(found["item"]), places + len(found["met"])
        arrays = TrainingArrays.of(self.shared, room)
        planner = Planner(
            arrays,
            batch_size=self.batch_size,
            sequence=self.sequence,
            seed=(self.seed, window),
            examples=examples,
            steps=self._steps,
            windows=self._windows_a_step,
        )
        return arrays, planner

    def _room(self, name: str, values: Any) -> Any:
        """Arrays like these, as long as those of every window; what is not filled is never asked for."""
        sizes = self.shards.positives if name in PER_PLACE else self.shards.rows
        length = sum(sorted(sizes)[-SHARDS_AT_ONCE:]) if self.shared.reads.include(name) else 0
        blank = np.nan if name == "labels" else 0
        return jax.tree.map(lambda like: np.full((length, *like.shape[1:]), blank, like.dtype), values)


def _put(room: NDArray[Any], found: NDArray[Any], *, at: int) -> None:
    room[at : at + len(found)] = found
