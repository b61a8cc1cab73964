"""What the recipe says of training. Apart from the training, so that reading a recipe loads no Keras."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Gt

from twotower.data.schema import STRICT, PositiveInt


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """One training run: same recipe, same data, same machine give the same model."""

    __pydantic_config__ = STRICT

    epochs: PositiveInt = 20
    """Passes over the train part at most; early stopping may end the run before."""
    batch_size: PositiveInt = 1024
    """Queries per step."""
    optimizer: Literal["adam", "adamw", "adagrad", "sgd", "lion"] = "adam"
    """Updates the dense weights; the embedding tables always learn by sparse Adagrad."""
    learning_rate: Annotated[float, Gt(0)] = 0.001
    """Step size of the dense weights."""
    embedding_learning_rate: Annotated[float, Gt(0)] = 0.05
    """Step size of Adagrad on the embedding tables."""
    schedule: Literal["constant", "cosine"] = "constant"
    """How step sizes, both of them, go on: as they are, or down to a hundredth by half a cosine over all epochs."""
    accumulator: Literal["row", "element"] = "element"
    """Adagrad's memory: one number an element, or one a row, which takes half the memory of a table."""
    metric: str = "ndcg@10"
    """What early stopping watches on the validation part: `recall@K`, `ndcg@K`, `rmse` (first regression label), or
    `log_loss` (first binary label)."""
    patience: PositiveInt = 3
    """Epochs in a row without a better metric after which the run stops; the best epoch's weights are kept."""
    validation_queries: PositiveInt = 5_000
    """Validation queries asked after each epoch, drawn at random where there are more."""
    steps_per_call: PositiveInt = 50
    """Steps in one compiled call."""
    checkpoint_steps: PositiveInt = 2_000
    """Steps between checkpoints; the end of each epoch has one as well."""
    memory_rows: PositiveInt = 20_000_000
    """Interactions of the train part in memory at a time, each about 100 bytes. A longer one is written to disk beside
    the checkpoint and read in windows of half as many, in which examples are shuffled."""
    single_tasks: bool = False
    """Also train a model of retrieval alone and one of each label alone, so that the report tells what joining gains or
    costs. The time of a training for each of them; nothing serves them."""
