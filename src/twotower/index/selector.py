"""Which items faiss may bring, in its own terms."""

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray


def selector(allowed: NDArray[np.bool_] | None) -> Any:
    """A bit for each of `[I]` items, for faiss's parameters of a search; None allows all."""
    if allowed is None:
        return None
    bits = np.packbits(allowed, bitorder="little")
    return faiss.IDSelectorBitmap(bits)  # type: ignore[call-arg, arg-type]  # Given so, faiss keeps hold of the array.
