"""What cannot be trained is refused in one line, before anything is computed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from twotower.data.schema import SequenceFeature
from twotower.data.split import SplitDataset, load_split
from twotower.errors import RecipeError
from twotower.model.config import LabelConfig, ModelConfig, RankingConfig, RetrievalConfig
from twotower.model.retrieval import ALL_NEGATIVES_AT_MOST
from twotower.recipe import Recipe
from twotower.training.refusals import refuse_bad_negatives
from twotower.training.train import build_model

RATING = LabelConfig(name="rating", kind="regression")


@pytest.fixture(scope="module")
def dataset(tiny_split: Path) -> SplitDataset:
    return load_split(tiny_split)


def refused(config: ModelConfig, dataset: SplitDataset, told: str) -> None:
    with pytest.raises(RecipeError, match=told) as fault:
        build_model(config, dataset=dataset, seed=1)
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize(
    ("ranking", "told"),
    [
        ({"labels": (LabelConfig(name="clicked", kind="binary"),)}, r"no label 'clicked' \(there are: rating, met\)"),
        ({"labels": (RATING, RATING)}, "'rating' is declared twice"),
        ({"labels": (replace(RATING, name="retrieval"),)}, "'retrieval' is the name of the first stage"),
        ({"labels": (LabelConfig(name="rating", kind="binary"),)}, "'rating' is binary, but holds values up to 5"),
        ({"labels": (LabelConfig(name="met", kind="regression"),)}, "'met' cannot be regression"),
        ({"labels": (RATING,), "order": {"met": 1.0}}, "'met' is no label of model.ranking.labels"),
        ({"experts": 2, "layers": ()}, r"experts = 2 are as wide as the last of layers, which are none\. Give layers"),
    ],
)
def test_a_ranking_head_that_cannot_be_is_refused(
    tiny_recipe: Recipe, dataset: SplitDataset, ranking: dict[str, Any], told: str
) -> None:
    model = tiny_recipe.model
    refused(replace(model, ranking=replace(model.ranking, **ranking)), dataset, told)


COSINE = {"loss": "cosine_contrastive"}
SAMPLED = {"negatives": "sampled"}


@pytest.mark.parametrize(
    ("retrieval", "told"),
    [
        (COSINE | {"item_bias": True}, "unit_vectors = true and item_bias = true. Set unit_vectors = true and"),
        (COSINE | {"item_bias": False, "unit_vectors": False}, "but unit_vectors = false and item_bias = false"),
        (
            COSINE | {"item_bias": False, "learn_temperature": True},
            "reads no temperature, but learn_temperature = true",
        ),
        (SAMPLED | {"loss": "gbce"}, r"wants its negatives drawn uniformly, but in_batch_negatives = 32\. Set it to 0"),
        (SAMPLED | {"in_batch_negatives": 0, "uniform_negatives": 0}, "no negatives to learn from"),
        (
            SAMPLED | {"uniform_negatives": 15},
            r"uniform_negatives = 15 is less than model\.ranking\.hard_negatives = 16",
        ),
    ],
)
def test_retrieval_that_cannot_learn_is_refused(
    tiny_recipe: Recipe, dataset: SplitDataset, retrieval: dict[str, Any], told: str
) -> None:
    model = tiny_recipe.model
    refused(replace(model, retrieval=replace(model.retrieval, **retrieval)), dataset, told)


def test_heads_of_attention_divide_the_width_of_the_items(tiny_recipe: Recipe, dataset: SplitDataset) -> None:
    query = (SequenceFeature(kind="sequence", heads=3),)
    told = r"heads = 3 cannot share out the 16 numbers of the candidate tower's item_id\. Take heads that divide"
    refused(replace(tiny_recipe.model, query=query), dataset, told)


def test_all_of_many_items_are_too_many_negatives() -> None:
    config = ModelConfig(retrieval=RetrievalConfig(negatives="all"))
    refuse_bad_negatives(config, items=ALL_NEGATIVES_AT_MOST)
    with pytest.raises(RecipeError, match=r"negatives = 'all' of 50,001 items .* \(at most 50,000\)\. Take 'sampled'"):
        refuse_bad_negatives(config, items=ALL_NEGATIVES_AT_MOST + 1)


def test_numbers_of_drawn_negatives_do_not_matter_where_none_is_drawn() -> None:
    none = ModelConfig(retrieval=RetrievalConfig(in_batch_negatives=0, uniform_negatives=0))
    refuse_bad_negatives(none, items=10_000)
    with pytest.raises(RecipeError, match="no negatives to learn from"):
        refuse_bad_negatives(none, items=10_001)
    # Retrieval alone draws no hard negatives.
    alone = ModelConfig(retrieval=RetrievalConfig(uniform_negatives=1), ranking=RankingConfig(labels=()))
    refuse_bad_negatives(alone, items=10_001)


def test_learned_weights_do_not_take_back_a_weight_of_none(tiny_recipe: Recipe, dataset: SplitDataset) -> None:
    model = tiny_recipe.model
    off = replace(model, task_weights="uncertainty", retrieval=replace(model.retrieval, weight=0.0))
    refused(off, dataset, "learns every weight, but that of 'retrieval' is 0")
