"""What a recipe asks of a model that cannot be: told in one line before anything is computed."""

import numpy as np

from twotower.data.pieces import count_rows, pieces
from twotower.data.schema import IdFeature, SequenceFeature
from twotower.data.split import TRAIN, SplitDataset
from twotower.errors import RecipeError
from twotower.model.config import MET, RETRIEVAL, ModelConfig
from twotower.model.retrieval import ALL_NEGATIVES_AT_MOST, takes_all


def refuse_bad_model(config: ModelConfig, *, dataset: SplitDataset) -> None:
    """Tell what of the model cannot be built, or could not learn, from this data.

    Raises:
        RecipeError: settings that do not go together, or that the data does not allow.
    """
    refuse_bad_labels(config, dataset=dataset)
    refuse_bad_loss(config)
    refuse_bad_weights(config)
    refuse_bad_widths(config)
    refuse_bad_negatives(config, items=int(np.count_nonzero(count_rows(dataset, TRAIN, by="item"))))


def refuse_bad_weights(config: ModelConfig) -> None:
    """Tell where no task has a weight, and where learned weights would take back what a weight of 0 says.

    Raises:
        RecipeError: nothing to learn, or a task of weight 0 beside `uncertainty`.
    """
    if not any(config.tasks().values()):
        raise RecipeError("model: no task has a weight above 0. Give one to model.retrieval or to a ranking label.")
    weights = {RETRIEVAL: config.retrieval.weight} | {label.name: label.weight for label in config.ranking.labels}
    off = [task for task, weight in weights.items() if not weight]
    if config.task_weights == "uncertainty" and off:
        raise RecipeError(
            f"model.task_weights = 'uncertainty' learns every weight, but that of '{off[0]}' is 0. "
            "Take 'static', or give it a weight."
        )


def refuse_bad_labels(config: ModelConfig, *, dataset: SplitDataset) -> None:
    """Tell what is wrong with the ranking labels before anything is computed.

    Raises:
        RecipeError: a label twice, one that the data lacks, a kind that does not fit, or an order by no label.
    """
    ranking = config.ranking
    names = [label.name for label in ranking.labels]
    where = "model.ranking.labels"
    if RETRIEVAL in names:
        raise RecipeError(f"{where}: '{RETRIEVAL}' is the name of the first stage. Rename the column.")
    if repeated := [name for name in names if names.count(name) > 1]:
        raise RecipeError(f"{where}: '{repeated[0]}' is declared twice. Take one of the two out.")
    if missing := [name for name in names if name != MET and name not in dataset.labels]:
        there = ", ".join([*dataset.labels, MET])
        raise RecipeError(f"{where}: the data has no label '{missing[0]}' (there are: {there}). Name one of these.")
    if MET in names and MET in dataset.labels:
        raise RecipeError(
            f"{where}: the data has a column '{MET}', which is the name of our own label. Rename the column."
        )
    for label in ranking.labels:
        if label.kind not in (("binary", "listwise") if label.name == MET else ("binary", "regression")):
            raise RecipeError(
                f"{where}: '{label.name}' cannot be {label.kind}. "
                f"Take binary or listwise for '{MET}', binary or regression for a column."
            )
        if label.kind == "binary" and label.name != MET:
            column = dataset.labels[label.name]
            ends = np.array(
                [end(column[piece]) for piece in pieces(len(column)) for end in (np.fmin.reduce, np.fmax.reduce)]
            )
            if ((ends < 0) | (ends > 1)).any():
                raise RecipeError(
                    f"{where}: '{label.name}' is binary, but holds values up to {np.nanmax(ends):g}. "
                    "Take regression, or make a label of 0 and 1 by prepare.labels."
                )
    if unknown := [name for name in ranking.order if name not in (*names, RETRIEVAL)]:
        raise RecipeError(f"model.ranking.order: '{unknown[0]}' is no label of {where}. Name one of these.")


def refuse_bad_loss(config: ModelConfig) -> None:
    """Tell where retrieval's loss does not fit what the towers give.

    Raises:
        RecipeError: cosines of vectors that have no length of 1, with a bias, or with a temperature to be learned.
    """
    retrieval = config.retrieval
    if retrieval.loss == "cosine_contrastive" and (not retrieval.unit_vectors or retrieval.item_bias):
        raise RecipeError(
            f"model.retrieval: loss = '{retrieval.loss}' compares cosines, but unit_vectors = "
            f"{_toml(retrieval.unit_vectors)} and item_bias = {_toml(retrieval.item_bias)}. Set unit_vectors = true "
            "and item_bias = false."
        )
    if retrieval.loss == "cosine_contrastive" and retrieval.learn_temperature:
        raise RecipeError(
            "model.retrieval: loss = 'cosine_contrastive' reads no temperature, but "
            "learn_temperature = true. Leave it out."
        )


def refuse_bad_widths(config: ModelConfig) -> None:
    """Tell which layers cannot be made.

    Raises:
        RecipeError: heads that do not divide a width, or experts without a width.
    """
    dims = [
        feature.dim for feature in config.candidate if isinstance(feature, IdFeature) and feature.column == "item_id"
    ]
    heads = [feature.heads for feature in config.query if isinstance(feature, SequenceFeature)]
    if dims and heads and dims[0] % heads[0]:
        raise RecipeError(
            f"model.query: a sequence with heads = {heads[0]} cannot share out the {dims[0]} numbers of the candidate "
            "tower's item_id. Take heads that divide its dim."
        )
    if config.ranking.experts and not config.ranking.layers:
        raise RecipeError(
            f"model.ranking: experts = {config.ranking.experts} are as wide as the last of layers, which are none. "
            "Give layers, or set experts = 0."
        )


def refuse_bad_negatives(config: ModelConfig, *, items: int) -> None:
    """Tell which negatives cannot be had.

    Args:
        config: Of the model.
        items: Items in the train part.

    Raises:
        RecipeError: all of too many, none at all, drawn otherwise than the loss takes them, or too few to choose from.
    """
    retrieval, hard = config.retrieval, config.ranking.hard_negatives
    in_batch, uniform = retrieval.in_batch_negatives, retrieval.uniform_negatives
    if takes_all(retrieval, items=items):
        if items > ALL_NEGATIVES_AT_MOST:
            raise RecipeError(
                f"model.retrieval: negatives = 'all' of {items:,} items need too much memory (at most "
                f"{ALL_NEGATIVES_AT_MOST:,}). Take 'sampled'."
            )
        return
    if not in_batch + uniform:
        raise RecipeError("model.retrieval: no negatives to learn from. Raise in_batch_negatives or uniform_negatives.")
    if retrieval.loss == "gbce" and in_batch:
        raise RecipeError(
            f"model.retrieval: loss = 'gbce' wants its negatives drawn uniformly, but in_batch_negatives = {in_batch}. "
            "Set it to 0."
        )
    if MET in (label.name for label in config.ranking.labels) and uniform < hard:
        raise RecipeError(
            f"model.retrieval.uniform_negatives = {uniform} is less than model.ranking.hard_negatives = {hard}, which "
            "are drawn from them. Raise it."
        )


def _toml(value: bool) -> str:
    return str(value).lower()
