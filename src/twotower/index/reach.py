"""How far a search of lists goes: what tuning decides, and what is kept beside the lists."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from twotower.errors import ArtifactError

REACH = "reach.json"

Codes = Literal["bytes", "nibbles", "scann"]
"""What the lists hold. A byte for each number of an embedding; or half a byte for each two, read in a third of the
time, and so coarse that many more of the best have to be scored again; or the latter learned and read by ScaNN."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How far a search goes."""

    depth: int
    """The `k` for which the other two are meant; for a larger one, both grow with it."""
    lists: int
    """Lists read."""
    rescored: int
    """Items scored by their embeddings: the best by code."""

    def of(self, k: int, *, share: float = 1.0) -> "Reach":
        """The reach for the best `k` of a share of the items: they lie as far away as the best `k / share` of all."""
        return Reach(
            depth=k,
            lists=int(np.ceil(self.lists * max(1.0, k / share / self.depth))),
            rescored=int(np.ceil(self.rescored * max(1.0, k / self.depth))),
        )

    def save(self, directory: Path) -> None:
        """Write `reach.json`."""
        (directory / REACH).write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> "Reach":
        """Read it back.

        Raises:
            ArtifactError: the file is missing or no such numbers.
        """
        path = directory / REACH
        try:
            reach = cls(**json.loads(path.read_text(encoding="utf-8")))
            if not all(type(value) is int and value > 0 for value in asdict(reach).values()):
                raise ValueError("a number that is not above 0")
        except (OSError, ValueError, TypeError) as fault:
            raise ArtifactError(f"{path}: not readable ({fault}). Build the index again.") from fault
        return reach
