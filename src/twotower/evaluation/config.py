"""What the recipe says of the judging. Apart from the judging, so that reading a recipe loads no charts."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Len

from twotower.data.schema import STRICT, PositiveInt

Baseline = Literal["popularity", "recent_popularity", "item_knn", "ease"]


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
    baselines: tuple[Baseline, ...] = ("popularity", "recent_popularity", "item_knn", "ease")
    """What the model is measured against."""
    recent_windows: Annotated[tuple[PositiveInt, ...], Len(1)] = (1_000, 5_000, 20_000, 50_000, 100_000, 300_000)
    """Interactions that recent popularity may look back; the validation part chooses one."""
    knn_neighbours: PositiveInt = 200
    """Nearest items that count for item-kNN."""
    knn_shrinkage: Annotated[float, Ge(0)] = 10.0
    """Pulls the similarity of items that few users met towards 0."""
    ease_l2: Annotated[float, Gt(0)] = 500.0
    """Ridge penalty of EASE."""
    ease_max_items: PositiveInt = 10_000
    """Above this catalogue EASE is left out: it inverts a matrix of items by items."""
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
