"""The order in which an epoch takes its examples, by itself or by the windows that they are asked from."""

import numpy as np

from twotower.data.batches import TrainingArrays
from twotower.data.schema import SequenceFeature
from twotower.data.windows import plan_windows
from twotower.training.step import Plan

SLACK = 1.1
"""Windows a step has room for, over those that its examples come from on average."""


class Planner:
    """Decides by the seed and the epoch's number which examples each step takes; every epoch has as many steps."""

    def __init__(self, arrays: TrainingArrays, *, batch_size: int, sequence: SequenceFeature | None, seed: int) -> None:
        """Count the steps of an epoch.

        Args:
            arrays: The train part.
            batch_size: Examples a step at most.
            sequence: How histories are read in their order; None where examples stand by themselves.
            seed: Decides the order.
        """
        self.arrays, self.batch_size, self.sequence, self.seed = arrays, batch_size, sequence, seed
        self.examples = len(arrays.item)
        self.windows = self._windows() if sequence else 0
        self.steps = self.examples // batch_size if sequence is None else self._cover(0).steps

    def epoch(self, number: int) -> Plan:
        """The steps of one epoch."""
        if self.sequence is None:
            order = self._generator(number).permutation(self.examples)[: self.steps * self.batch_size]
            examples = order.reshape(self.steps, self.batch_size).astype(np.int32)
            none = np.zeros((self.steps, 0), np.int32)
            return Plan(examples, none, none, none)
        plan = self._cover(number)
        # Chance makes an epoch a step or two longer or shorter: what is over comes in another epoch's order.
        taken = np.arange(self.steps) % plan.steps
        return Plan(*(values[taken] for values in plan))

    def _cover(self, number: int) -> Plan:
        assert self.sequence is not None
        arrays = self.arrays
        found = plan_windows(
            arrays.user,
            arrays.first,
            arrays.end,
            length=self.sequence.length,
            batch_size=self.batch_size,
            windows=self.windows,
            generator=self._generator(number),
        )
        return Plan(found.examples, found.window, found.start, found.size)

    def _windows(self) -> int:
        """Windows a step: enough that examples, not windows, fill most steps."""
        assert self.sequence is not None
        known = np.zeros(int(self.arrays.user.max()) + 1, np.int64)
        np.maximum.at(known, self.arrays.user, self.arrays.end - self.arrays.first)
        length = self.sequence.length
        windows = np.where(known <= length, 1.0, known / length + 0.5).sum()
        return max(1, round(SLACK * self.batch_size * float(windows) / self.examples))

    def _generator(self, number: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, number])
