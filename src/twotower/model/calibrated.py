"""What a ranking head's prediction is told as, so that it can be taken literally: a rising line through a few knots.

Fitted by `training.calibration`; applied by whoever answers. Candidates are never ordered by it: a level stretch would
make ties.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """A never-falling map from what the head predicted to what is told, straight between its knots, level beyond."""

    predicted: tuple[float, ...]
    """Strictly ascending, at least one."""
    told: tuple[float, ...]
    """What is told at each of them; never falls."""

    def __post_init__(self) -> None:
        if not self.predicted or len(self.predicted) != len(self.told):
            raise ValueError(f"calibration: {len(self.predicted)} knots for {len(self.told)} values")
        # Written so that a number that is none fails too.
        if not ((np.diff(self.predicted) > 0).all() and (np.diff(self.told) >= 0).all()):
            raise ValueError("calibration: its knots do not ascend")

    def apply(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """What is told of predictions of any shape; NaN stays NaN."""
        return np.asarray(np.interp(values, self.predicted, self.told), np.float32)

    def to_json(self) -> dict[str, list[float]]:
        """As `from_json` reads it."""
        return {"predicted": list(self.predicted), "told": list(self.told)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Calibration":
        """The map that `to_json` told.

        Raises:
            LookupError, TypeError, ValueError: this is none.
        """
        predicted, told = (tuple(float(value) for value in content[side]) for side in ("predicted", "told"))
        return cls(predicted=predicted, told=told)
