"""What can be evaluated: anything that scores all items, and a model that also ranks what it retrieved."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from twotower.data.sources.simulated import World
from twotower.data.split import SplitDataset
from twotower.evaluation.queries import Queries


class Contender(Protocol):
    """Something that orders the catalogue."""

    @property
    def name(self) -> str:
        """The key of its results in the report."""
        ...

    def score(self, queries: Queries) -> NDArray[np.float32]:
        """`[q, I]` a score per item of the catalogue, higher is better; the caller bounds `q` and may overwrite it."""
        ...


class TwoStageContender(Contender, Protocol):
    """A model with both stages: `score` retrieves, `rank` orders what was retrieved."""

    @property
    def label_kinds(self) -> dict[str, str]:
        """Label -> "regression" or "binary"."""
        ...

    def rank(self, queries: Queries, candidates: NDArray[np.int32]) -> NDArray[np.float32]:
        """`[q, C]` final scores of the candidates `[q, C]` (item rows)."""
        ...

    def predict(self, queries: Queries, item: NDArray[np.int32]) -> dict[str, NDArray[np.float32]]:
        """Label -> `[q]` predicted value, or probability, of one item per query."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Oracle:
    """The best ranking that anybody could give in a simulated world: by the true chance of being next."""

    world: World
    user_ids: NDArray[np.object_]
    films: NDArray[np.int64]
    """`[I]` row in the world of each item of the catalogue."""
    name: str = "oracle"

    @classmethod
    def of(cls, dataset: SplitDataset) -> "Oracle | None":
        """The oracle of the data set's world; None for data that was not simulated."""
        world = World.load(dataset.directory) if dataset.directory is not None else None
        if world is None:
            return None
        return cls(world=world, user_ids=dataset.user_ids, films=world.film_rows(dataset.item_ids.tolist()))

    def score(self, queries: Queries) -> NDArray[np.float32]:
        return self.world.best_scores(self.user_ids[queries.user].tolist(), queries.timestamp, self.films)
