"""What the recipe says of the index. Apart from the index, so that reading a recipe loads none."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Gt

from twotower.data.schema import STRICT


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexConfig:
    """How retrieval finds the best candidates among all items."""

    __pydantic_config__ = STRICT

    kind: Literal["auto", "exact", "hnsw"] = "auto"
    """`exact` scores every item, `hnsw` follows a graph of neighbours, `auto` decides by `exact_below`."""
    exact_below: Annotated[int, Gt(0)] = 100_000
    """Catalogues with fewer items are searched exactly by `auto`. Measured on 2 cores, 64 wide, one query: exact takes
    .3 to .6 ms at 50,000 items, .5 to 1.2 ms at 100,000 and 13 ms at 1,000,000; hnsw .3 to .5 ms at a recall@100 of
    .92 to 1. Below the default, an approximate answer would cost recall to save less than a millisecond."""
    links: Annotated[int, Gt(1)] = 32
    """hnsw: neighbours per item; more find more and take more memory."""
    build_depth: Annotated[int, Gt(0)] = 100
    """hnsw: candidates weighed when an item is linked; more take longer to build and find more."""
    search_depth: Annotated[int, Gt(0)] = 256
    """hnsw: candidates weighed per search, at least; more take longer and find more."""
