"""What the recipe says of the index. Apart from the index, so that reading a recipe loads none."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Gt, Le

from twotower.data.schema import STRICT


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexConfig:
    """How retrieval finds the best candidates among all items."""

    __pydantic_config__ = STRICT

    kind: Literal["auto", "exact", "ivf", "scann", "hnsw"] = "auto"
    """`exact` scores every item; `ivf` reads some of many lists of neighbours; so does `scann`, by a library for Linux
    that `pip install "twotower[scann]"` brings, in less than half the time, with the embeddings in memory; `hnsw`
    follows a graph of neighbours. `auto` takes `exact` below `exact_below`; above, it builds `scann` where that is
    installed and else `ivf`, measures it beside `exact` on test queries and takes the faster, which is `exact` where
    the other cannot find as much as `recall` asks. Who serves a `scann` index needs the library too."""
    exact_below: Annotated[int, Gt(0)] = 20_000
    """Catalogues with fewer items are searched exactly by `auto`, and nothing is built to compare with. Measured on one
    core, 64 wide, for the best 300 of a trained model: both take .13 ms at 20,000 items; `exact` takes 1.2 ms at
    100,000 and 15 ms at 1,000,000, `ivf` .13 and .2 ms."""
    recall: Annotated[float, Gt(0), Le(1)] = 0.985
    """ivf, scann: the least share of the exact best `evaluate.candidates` that is to be found. Of what
    reaches it on test queries, the cheapest by what its parts take is built; `auto` times the cheapest few."""
    links: Annotated[int, Gt(1)] = 32
    """hnsw: neighbours per item; more find more and take more memory."""
    build_depth: Annotated[int, Gt(0)] = 100
    """hnsw: candidates weighed when an item is linked; more take longer to build and find more."""
    search_depth: Annotated[int, Gt(0)] = 256
    """hnsw: candidates weighed per search, at least; more take longer and find more."""
