"""Our step on whatever device JAX finds, and what that device can do at most.

Run by `gpu.py` in a process of its own. The clock begins after the first call, which compiles.
"""

import json
import time
from typing import Any

import numpy as np

from scale import throughput_ours
from scale.given import training_parser
from scale.stepping import Steps
from scale.throughput_ours import DIM

FLOAT, TIMES = 4, 10
SIDES = {"cpu": (2_048, 1 << 26), "gpu": (8_192, 1 << 29)}
"""Rows of the square matrices that are multiplied, and numbers that are copied."""


def measured_most() -> dict[str, float]:
    """Floating-point operations a second of a bfloat16 matrix product, and bytes a second of a copy."""
    import jax
    import jax.numpy as jnp

    rows, numbers = SIDES["cpu" if jax.default_backend() == "cpu" else "gpu"]
    matrix = jnp.ones((rows, rows), jnp.bfloat16)
    product = jax.jit(lambda left: jax.lax.dot(left, left, preferred_element_type=jnp.float32).astype(jnp.bfloat16))
    copied = jax.jit(lambda values: values + 1)
    return {
        "flops_s": 2 * rows**3 / _seconds(product, matrix),
        "bytes_s": 2 * FLOAT * numbers / _seconds(copied, jnp.zeros(numbers, jnp.float32)),
    }


def _seconds(call: Any, argument: Any) -> float:
    """Of one call, the least of some."""
    import jax

    jax.block_until_ready(call(argument))
    seconds = []
    for _ in range(TIMES):
        began = time.perf_counter()
        jax.block_until_ready(call(argument))
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def least_work(weights: Any, *, batch_size: int, negatives: int) -> dict[str, float]:
    """What an example takes at the least: operations, and bytes that go through memory.

    A matrix product is done three times, forward and for both gradients. Of the tables, the rows of a user, of an item
    and of the batch's part of the uniform negatives are read for the step and read and written for the update, with
    their sums of squares. Activations are not counted: they could stay in cache.
    """
    kernels = sum(kernel.size for part in weights.values() for kernel in part if kernel.ndim == 2)
    rows = 2 + negatives / batch_size
    return {"flops": 6.0 * (kernels + negatives * DIM), "bytes": rows * (3 * DIM + 2) * FLOAT}


def main() -> None:
    """Train for so many seconds and say how many examples a second it was, and how many there could be."""
    options = training_parser(__doc__).parse_args()
    model_config, data = throughput_ours.config(), throughput_ours.dataset(options.folder)
    from twotower.training.train import build_model

    model, arrays = build_model(model_config, dataset=data, seed=0)
    import jax

    steps = Steps(model, arrays, batch_size=options.batch_size, accumulator="row", seed=0)
    retrieval = model_config.retrieval
    work = least_work(
        steps.state.weights,
        batch_size=options.batch_size,
        negatives=retrieval.in_batch_negatives + retrieval.uniform_negatives,
    )
    examples_s, loss = steps.train(options.seconds)
    if not np.isfinite(loss):
        raise RuntimeError("the loss is no number")
    del steps, arrays
    told = {"examples_s": examples_s, "loss": loss, "device": jax.devices()[0].device_kind}
    print(json.dumps(told | work | measured_most()))


if __name__ == "__main__":
    main()
