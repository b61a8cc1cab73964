"""What the recipe says of the judging. Apart from the judging, so that reading a recipe loads no charts."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Len

from twotower.data.schema import STRICT, PositiveInt

Baseline = Literal["popularity", "recent_popularity", "item_knn", "ease", "ials", "markov"]
Counts = Annotated[tuple[PositiveInt, ...], Len(1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig:
    """How a model is judged."""

    __pydantic_config__ = STRICT

    ks: Annotated[tuple[PositiveInt, ...], Len(1)] = (1, 5, 10, 20, 50, 100)
    """Cut-offs of the metrics. NDCG at 10 (or at the first of them, where 10 is none) and recall at the last lead."""
    exclude_seen: bool = True
    """Leave out what the user had met before the moment of asking, as a server does. TFRS leaves nothing out."""
    candidates: PositiveInt = 100
    """Items that retrieval hands to ranking."""
    max_queries: Annotated[int, Ge(0)] = 0
    """Queries per protocol at most, drawn at random where there are more; 0 asks all."""
    bootstrap: Annotated[int, Ge(0)] = 1000
    """Resamples of the users behind the confidence intervals; 0 for none."""
    baselines: tuple[Baseline, ...] = ("popularity", "recent_popularity", "item_knn", "ease", "ials", "markov")
    """What the model is measured against. The validation part chooses the settings of each: of the values below, all
    combinations are tried."""
    tuning_queries: PositiveInt = 2_000
    """Validation queries per protocol, at most, that choose a baseline's settings."""
    recent_windows: Counts = (100, 300, 1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
    """Interactions that recent popularity may look back."""
    history_decay: Annotated[tuple[Annotated[float, Gt(0), Le(1)], ...], Len(1)] = (0.7, 0.85, 1.0)
    """What an item of the history may count for, with each step that it is older than the latest; 1 forgets nothing.
    For all baselines that read a history."""
    knn_neighbours: Counts = (50, 200, 500)
    """Nearest items that may count for item-kNN."""
    knn_shrinkage: Annotated[float, Ge(0)] = 10.0
    """Pulls the similarity of items that few users met towards 0."""
    ease_l2: Annotated[tuple[Annotated[float, Gt(0)], ...], Len(1)] = (100.0, 500.0, 2_500.0)
    """Ridge penalties of EASE."""
    ease_max_items: PositiveInt = 10_000
    """Above this catalogue EASE is left out: it inverts a matrix of items by items."""
    ials_dims: Counts = (16, 32, 64)
    """Factors that iALS may give each user and item."""
    ials_unobserved: Annotated[float, Gt(0)] = 0.5
    """iALS: weight of the pull towards 0 of every (user, item) pair; a pair that was met weighs 1."""
    ials_l2: Annotated[float, Gt(0)] = 0.003
    """iALS: penalty of the factors, scaled by the weight of all pairs that they are in."""
    ials_sweeps: PositiveInt = 5
    """iALS: how often both sides are solved in turn."""
    markov_windows: Counts = (1, 5, 20)
    """Steps within which an item may count as following another; `d` steps count for `1 / d`."""
    markov_rows: PositiveInt = 2_000_000
    """Latest train interactions that Markov chains learn from: bounds the memory."""
    markov_shrinkage: Annotated[float, Ge(0)] = 10.0
    """Pulls the chances that stand on few transitions towards 0."""
    scores_in_memory: PositiveInt = 8_000_000
    """Scores held at a time: bounds the memory, not the result."""
    list_length: PositiveInt = 10
    """Items of the lists whose coverage, novelty and lean are measured."""
    examples: Annotated[int, Ge(0)] = 4
    """Users shown in the report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateConfig:
    """What a candidate has to show before it is deployed."""

    __pydantic_config__ = STRICT

    metric: str = "ndcg@10"
    """One of the metrics that lead the report; both stages together are judged by it."""
    baselines: tuple[Baseline, ...] = ("popularity",)
    """What must be beaten, of those in `evaluate.baselines`."""
    margin: float = 0.0
    """The lower end of each 95% interval of the difference must be above this. Below 0 it also lets a candidate pass
    that is at most so much worse, which is what a retraining on fresh data may ask for."""
    champion: bool = True
    """Whether the bundle that answers now must be beaten as well, where there is one."""
    floors: dict[str, float] = field(default_factory=dict)
    """Segment of the report, such as `cold users`, -> the least that the metric must reach on it."""
    index_recall: Annotated[float, Ge(0), Le(1)] = 0.95
    """The least share of the exact best 100 that an approximate index must find."""
