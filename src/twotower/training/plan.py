"""The order in which an epoch takes its examples, by itself or by the windows that they are asked from."""

import numpy as np

from twotower.data.batches import TrainingArrays
from twotower.data.schema import SequenceFeature
from twotower.data.windows import plan_windows
from twotower.training.step import Plan

SLACK = 1.1
"""Windows a step has room for, over those that its examples come from on average."""


def blank(steps: int, *, batch_size: int, windows: int) -> Plan:
    """As wide as a `Planner`'s plan of so many steps, which take nothing."""
    examples, window = np.full((steps, batch_size), -1, np.int32), np.zeros((steps, windows), np.int32)
    return Plan(examples, np.zeros_like(examples) if windows else window, window, window)


class Planner:
    """Decides by the seed and the epoch's number which examples each step takes; every epoch has as many steps."""

    def __init__(
        self,
        arrays: TrainingArrays,
        *,
        batch_size: int,
        sequence: SequenceFeature | None,
        seed: int | tuple[int, ...],
        examples: int | None = None,
        steps: int = 0,
        windows: int = 0,
    ) -> None:
        """Count the steps of an epoch.

        Args:
            arrays: The train part, or the part of it that is in memory.
            batch_size: Examples a step at most.
            sequence: How histories are read in their order; None where examples stand by themselves.
            seed: Decides the order.
            examples: How many of the arrays' examples there are, where the rest only fills them up.
            steps: Steps of an epoch; 0 for as many as the examples fill.
            windows: Windows a step has room for where there is a sequence; 0 for what these examples need.
        """
        self.batch_size, self.sequence = batch_size, sequence
        self.seed = seed if isinstance(seed, tuple) else (seed,)
        self.examples = len(arrays.item) if examples is None else examples
        read = (arrays.user, arrays.first, arrays.end) if sequence else ()
        self.read = tuple(values[: self.examples] for values in read)
        self.windows = (windows or self._windows()) if sequence else 0
        self.steps = steps or (self.examples // batch_size if sequence is None else self._cover(0).steps)

    def epoch(self, number: int) -> Plan:
        """The steps of one epoch."""
        if self.sequence is None:
            order = self._generator(number).permutation(np.arange(self.examples, dtype=np.int32))
            examples = order[: self.steps * self.batch_size].reshape(self.steps, self.batch_size)
            none = np.zeros((self.steps, 0), np.int32)
            return Plan(examples, none, none, none)
        plan = self._cover(number)
        # Chance makes an epoch a step or two longer or shorter: what is over comes in another epoch's order.
        taken = np.arange(self.steps) % plan.steps
        return Plan(*(values[taken] for values in plan))

    def _cover(self, number: int) -> Plan:
        assert self.sequence is not None
        found = plan_windows(
            *self.read,
            length=self.sequence.length,
            batch_size=self.batch_size,
            windows=self.windows,
            generator=self._generator(number),
        )
        return Plan(found.examples, found.window, found.start, found.size)

    def _windows(self) -> int:
        """Windows a step: enough that examples, not windows, fill most steps."""
        assert self.sequence is not None
        user, first, end = self.read
        known = np.zeros(int(user.max()) + 1, np.int64)
        np.maximum.at(known, user, end - first)
        length = self.sequence.length
        windows = np.where(known <= length, 1.0, known / length + 0.5).sum()
        return max(1, round(SLACK * self.batch_size * float(windows) / self.examples))

    def _generator(self, number: int) -> np.random.Generator:
        return np.random.default_rng([*self.seed, number])
