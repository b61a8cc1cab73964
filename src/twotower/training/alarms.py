"""What should stop a reader from trusting a trained model: it has learned nothing, or less than a plain count knows.

An alarm is one line: what was found, what it means, which settings to look at. It fails nothing, as a run may be short
on purpose; it stands in the log, in the model's history and on top of the report.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from twotower.data.batches import TrainingArrays
from twotower.model.config import RetrievalConfig

LEAST_GAIN = 0.02
"""Share of `ln(candidates)` that the loss has to fall below it. At 1,000 candidates these are 0.14 nats: what was met
is 1.15 times as likely as any other item. Where items are held against all others, a plain count is worth more (0.70
nats on MovieLens-100K), so a model that stays within it has learned nothing of use."""


def loss_alarms(
    history: Sequence[Mapping[str, Any]], *, best_epoch: int, candidates: float, loss: str = "retrieval"
) -> list[str]:
    """Tell of a retrieval that cannot tell what was met from what it was held against.

    Args:
        history: One entry an epoch, with the loss in nats; of a softmax, sampled or full. Other losses have no such
            line to fall below.
        best_epoch: The epoch, counted from 1, whose weights are kept.
        candidates: How many items each positive is held against, itself included, in effect: a model that scores all
            alike has the loss `ln(candidates)`. Without a correction it is what the softmax holds; with one that makes
            the sum stand for all items, it is their number.
        loss: The loss's name in `history`.
    """
    if not history or candidates <= 1:
        return []
    start, reached = math.log(candidates), float(history[best_epoch - 1][loss])
    facts = (
        f"{loss} loss {reached:.3f} after epoch {best_epoch}; ln({candidates:,.0f}) = {start:.3f} is had by guessing"
    )
    if not reached < start * (1 + LEAST_GAIN):  # A loss that is no number is caught as well.
        return [
            f"{facts}: the model does worse than that. Its steps are too large: lower train.embedding_learning_rate "
            "and train.learning_rate, or raise model.retrieval.temperature."
        ]
    if reached <= start * (1 - LEAST_GAIN):
        return []
    return [
        f"{facts}: the model has learned next to nothing. Raise train.embedding_learning_rate or train.epochs, lower "
        "model.retrieval.temperature (unit vectors need one below 1), and check that prepare.positives keeps what is "
        "worth learning."
    ]


def popularity_alarms(metric: str, *, model: float, popularity: float) -> list[str]:
    """Tell of a model that orders no better than a count of the train part does.

    Both answered the same queries, so that what chance there is in these is shared; that a personal order has to win
    by a margin is asked later, by the gate and with an interval. No tolerance here: a false alarm costs one look.

    Args:
        metric: A metric of which more is better, such as `ndcg@10`.
        model: What the best epoch reaches on the validation queries.
        popularity: What an order by the number of positives in the train part reaches on the same queries.
    """
    if model > popularity or popularity <= 0:
        return []
    return [
        f"validation {metric} {model:.4f} is not above plain popularity's {popularity:.4f} on the same queries: nobody "
        "gains by this model. Look at model.retrieval (correction, temperature, item_bias), raise train.epochs or "
        "train.patience, and give model.query a history."
    ]


WEIGHED = 1_000
"""Examples at most that `allowed_items` looks at, evenly from all."""


def allowed_items(arrays: TrainingArrays, config: RetrievalConfig, *, reads_others: bool) -> float:
    """Among how many items, itself included, a positive stands on average, in the sense of its loss: exp(mean ln).

    Args:
        arrays: The train part, or a fair sample of it.
        config: Says what is left out of the negatives.
        reads_others: Whether what a user met later is left out with what came earlier.
    """
    stop = arrays.last if reads_others else arrays.end
    examples = np.flatnonzero(arrays.positive)
    logarithms = []
    for example in examples[:: -(-len(examples) // WEIGHED)].tolist():
        by_then = (
            arrays.appeared <= arrays.second[example] if config.mask_absent else np.ones(len(arrays.appeared), bool)
        )
        if config.mask_positives:
            by_then[arrays.met[arrays.first[example] : stop[example]]] = False
        by_then[arrays.item[example]] = True
        logarithms.append(np.log(by_then.sum()))
    return float(np.exp(np.mean(logarithms)))
