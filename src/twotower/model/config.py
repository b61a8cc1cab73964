"""What the recipe says of the model. Apart from the layers, so that reading a recipe loads no Keras."""

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Len, Lt

from twotower.data.schema import STRICT, CandidateFeature, HistoryFeature, IdFeature, PositiveInt, QueryFeature


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerConfig:
    """What stands between a tower's features and its embedding."""

    __pydantic_config__ = STRICT

    network: str = "mlp"
    """What comes before the hidden layers: nothing (`mlp`), two cross layers (`cross`, DCN version 2), or a Keras layer
    of your own (`module:Class`, made without arguments, `[n, features]` -> `[n, anything]`)."""
    layers: tuple[PositiveInt, ...] = ()
    """Widths of the network's hidden layers. With `mlp` and none, the embedding is the sum of one linear map a feature;
    a feature that has the embedding's width already goes in as it is."""


SMALL, SMALL_TEMPERATURE = 10_000, 0.25
"""Items up to which MovieLens' validation parts speak for a temperature, and that one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalConfig:
    """Retrieval learns to tell what a user met next from everything that it was not."""

    __pydantic_config__ = STRICT

    weight: Annotated[float, Ge(0)] = 1.0
    """Weight of this task in the joint loss; 0 leaves ranking alone, and this loss is then not computed."""
    loss: Literal["softmax", "gbce", "cosine_contrastive"] = "softmax"
    """`softmax`: cross-entropy of what was met against the negatives. `gbce` (gSASRec): each by itself, the positive
    weighed down as negatives are few. `cosine_contrastive` (SimpleX): a margin between cosines; wants unit vectors."""
    negatives: Literal["auto", "all", "sampled"] = "auto"
    """`all`: every item of the train part at every step, which needs no correction. `sampled`: the two kinds below.
    `auto` takes all up to 10,000 items."""
    in_batch_negatives: Annotated[int, Ge(0)] = 512
    """Sampled negatives from the batch's own items, shared by all its queries; they come as often as they are
    popular."""
    uniform_negatives: Annotated[int, Ge(0)] = 512
    """Sampled negatives drawn uniformly from all items of the train part, shared by all queries of a batch."""
    correction: Literal["none", "batch", "sampled"] = "sampled"
    """How sampled logits answer for the chance of being drawn: `sampled` (an unbiased sum over all items; the positive
    stands apart), `batch` (log-probability on positive and negatives, as in TFRS), `none` (bare in-batch softmax)."""
    mask_positives: bool = False
    """Leave out of the negatives what the same user met, as a server leaves out what was seen: earlier, or, where a
    history reads `others`, at any time."""
    mask_absent: bool = False
    """Leave out of the negatives what nobody had met by then: items that came later could not have been chosen, and
    new ones would else count as little liked. For logs to whose catalogue items are added. Known is the train part
    alone: rare items are seldom a negative then, and the first days of a window of data have few of them."""
    temperature: Literal["auto"] | Annotated[float, Gt(0)] = "auto"
    """Divides the logits; smaller sharpens. `auto` is 0.25 up to 10,000 items and one over their natural logarithm
    beyond: unit vectors can then lift one item above all others together."""
    learn_temperature: bool = False
    """Let training move the temperature from there."""
    unit_vectors: bool = True
    """Scale embeddings to length 1, so that their products lie within +-1/temperature."""
    item_bias: bool = True
    """Learn one number for each item, beside its embedding, that is added for every query: how often it is met by
    anybody. Embeddings are then free to say by whom."""
    gbce_t: Annotated[float, Ge(0), Le(1)] = 0.75
    """For `gbce`: how far the positive's weight answers for sampling; 0 is plain binary cross-entropy."""
    margin: Annotated[float, Ge(0), Lt(1)] = 0.4
    """For `cosine_contrastive`: negatives below this cosine count nothing."""
    negative_weight: Annotated[float, Gt(0)] = 150.0
    """For `cosine_contrastive`: weight of the mean over the negatives."""

    def first_temperature(self, *, items: int) -> float:
        """What training divides the logits by at first, over so many items of the train part.

        A unit vector's logits lie within 1/T of 0. Against `I` items at 0, one at 1/T has a share of
        `e^(1/T) / (e^(1/T) + I)` of the softmax, which is half at T = 1/ln(I).
        """
        if self.temperature != "auto":
            return self.temperature
        return SMALL_TEMPERATURE if items <= SMALL else 1 / math.log(items)


RETRIEVAL = "retrieval"
"""The name of stage 1 where losses and orders are told; no label can have it."""
MET = "met"
"""The label that every interaction has: 1 for what a user met, 0 for a negative drawn beside it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelConfig:
    """One label that ranking predicts."""

    __pydantic_config__ = STRICT

    name: str
    """A label column of the interactions; or `met`, which needs no column: what the user met against negatives that
    retrieval found hard to tell from it."""
    kind: Literal["regression", "binary", "listwise"]
    """`regression` predicts the label itself, `binary` the probability that it is 1. `listwise`, for `met` alone,
    learns the order: a softmax over what was met and its negatives."""
    weight: Annotated[float, Ge(0)] = 1.0
    """Weight in the joint loss; every label's loss is a mean, so that weights compare."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingConfig:
    """Ranking looks closer at the hundreds that retrieval brought."""

    __pydantic_config__ = STRICT

    labels: tuple[LabelConfig, ...] = (LabelConfig(name=MET, kind="listwise", weight=0.2),)
    """What is predicted; none leaves retrieval alone."""
    order: dict[str, float] = field(default_factory=dict)
    """Label, or `retrieval` -> weight: candidates are ordered by the weighted sum of these labels' logits or
    predictions and of retrieval's logit. Left empty: `met` and `retrieval` in the shares that serve the validation part
    best among the `candidates` below (a quarter of `met` where there is none), or retrieval alone where `met` is no
    label."""
    layers: tuple[PositiveInt, ...] = (128, 64)
    """Widths of the head's hidden layers."""
    cross_layers: Annotated[int, Ge(0)] = 1
    """Cross layers over the head's inputs (DCN version 2), beside the hidden layers' own reading of them."""
    experts: Annotated[int, Ge(0)] = 0
    """Networks that the labels share, each label mixing them by a gate of its own (MMoE); 0 is one network for all."""
    dim: Annotated[int, Ge(0)] = 32
    """Numbers that each tower hands to ranking beside its embedding."""
    memory: Annotated[int, Ge(0)] = 10
    """Items of the history that ranking compares with each candidate one by one; the newest ones. 0 for none."""
    memory_heads: PositiveInt = 2
    """Ways in which an item of the history and a candidate are compared."""
    trends: bool = True
    """Tell ranking how popular and how old each candidate is at the query's moment."""
    hard_negatives: PositiveInt = 16
    """For the label `met`: negatives a query, drawn from what retrieval brings."""
    candidates: PositiveInt = 100
    """For the label `met`: how many items retrieval brings in training, of all items; where negatives are sampled, the
    same share of the sample."""
    met_queries: Annotated[float, Gt(0), Le(1)] = 0.125
    """For the label `met`: share of a batch's queries that it learns from."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Share of the head's inputs left out at random while training."""

    def ordered_by(self) -> dict[str, float]:
        """Label or `retrieval` -> weight in the final score, before validation has chosen any."""
        if self.order or MET not in (label.name for label in self.labels):
            return self.order or {RETRIEVAL: 1.0}
        return {MET: 0.25, RETRIEVAL: 0.75}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The joint two-tower model: what each tower reads, and how the two tasks learn from it."""

    __pydantic_config__ = STRICT

    query: Annotated[tuple[QueryFeature, ...], Len(1)] = (HistoryFeature(kind="history"),)
    """Features of the query tower."""
    candidate: Annotated[tuple[CandidateFeature, ...], Len(1)] = (IdFeature(kind="id", column="item_id", dim=64),)
    """Features of the candidate tower."""
    embedding_dim: PositiveInt = 64
    """Width of both towers' embeddings."""
    query_tower: TowerConfig = field(default_factory=lambda: TowerConfig(layers=(128,)))
    """The network of the query tower."""
    candidate_tower: TowerConfig = field(default_factory=TowerConfig)
    """The network of the candidate tower."""
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    """Stage 1."""
    ranking: RankingConfig = field(default_factory=RankingConfig)
    """Stage 2."""
    task_weights: Literal["static", "uncertainty", "balanced"] = "static"
    """How the tasks' mean losses become one: by the `weight` of each, by how noisy each is found to be (learned; no
    `weight` counts then, and none may be 0), or so
    that their gradients on the shared weights are as long as the `weight` of each asks for (set after each epoch)."""

    def tasks(self) -> dict[str, float]:
        """Task -> its weight, in the order of the losses: retrieval unless its weight is 0, then every label."""
        retrieval = {RETRIEVAL: self.retrieval.weight} if self.retrieval.weight else {}
        return retrieval | {label.name: label.weight for label in self.ranking.labels}
