"""The same step in PyTorch, compiled whole: gathering rows, loss, gradients, row-wise Adagrad and Adam.

Runs in whichever interpreter has PyTorch, never in ours, on a GPU where there is one. Reads the world that
`scale/throughput.py` writes and prints one JSON line.
"""

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scale.given import training_parser
from torch._dynamo.utils import counters

DIM, IN_BATCH, UNIFORM = 64, 512, 512
TABLE_RATE, DENSE_RATE = 0.05, 0.001
FIRST_DECAY, SECOND_DECAY = 0.9, 0.999
STEPS, WARM_UP = 20, 3
"""Steps of a call, as ours takes them; calls before the clock begins, in which everything is compiled and recorded."""
SHAPES = {
    "hidden_1": (3 * (DIM + 1) + 1, 256),
    "hidden_2": (256, 128),
    "output": (128, 1),
    "bias": (DIM, 1),
    "hidden_1_bias": (256,),
    "hidden_2_bias": (128,),
    "output_bias": (1,),
    "bias_bias": (1,),
    "logit": (1,),
}
"""Dense weights in the one vector that holds them; matrices first, where each begins at a round address."""


def holding(device: Any, **tensors: Any) -> Any:
    """A module that owns tensors: a compiled step, and a CUDA graph, updates these where they lie."""
    module = torch.nn.Module()
    for name, tensor in tensors.items():
        module.register_buffer(name, tensor.to(device))
    return module


def begin(folder: Path, device: Any) -> Any:
    """The log and all that a step changes, on the device."""
    user, item, rating = (np.load(folder / f"{name}.npy") for name in ("user", "item", "rating"))
    users, _ = json.loads((folder / "sizes.json").read_text(encoding="utf-8"))
    catalogue, place = np.unique(item, return_inverse=True)  # Only what was met is drawn as a negative, as ours has it.
    share = np.bincount(place) / len(item)
    state = torch.nn.Module()
    state.log = holding(
        device,
        user=torch.from_numpy(user),
        item=torch.from_numpy(place.astype(np.int32)),
        rating=torch.from_numpy(rating),
        share=torch.from_numpy(share.astype(np.float32)),
    )
    for name, rows in (("query", users), ("candidate", len(catalogue))):
        table, owner = torch.randn(rows, DIM) * 0.05, torch.zeros(rows, dtype=torch.int32)
        setattr(state, name, holding(device, table=table, squares=torch.zeros(rows), owner=owner))
    dense = first_weights(float(rating.mean()))
    state.dense = holding(
        device,
        values=dense,
        first=torch.zeros_like(dense),
        second=torch.zeros_like(dense),
        steps=torch.zeros(()),
    )
    return state


def first_weights(mean_rating: float) -> Any:
    """One vector of all dense weights; predictions begin at the mean."""
    weights = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    for name in ("hidden_1", "hidden_2"):
        torch.nn.init.xavier_uniform_(weights[name])
    weights["output"].normal_(std=0.01)
    weights["output_bias"].fill_(mean_rating)
    return torch.cat([weight.flatten() for weight in weights.values()])


def loss_of(
    user: Any,
    item: Any,
    dense: Any,
    *,
    ids: tuple[Any, Any],
    expected_count: Any,
    rating: Any,
    temperature: float,
) -> Any:
    """Sampled softmax with the correction for how often each negative is expected, and the rating's squared error.

    Args:
        user: `[B, DIM]` rows.
        item: `[B + UNIFORM, DIM]` rows: each user's item, and then what was drawn uniformly.
        dense: The vector of dense weights.
        ids: `[B]` each user's item; `[C]` the negatives.
        expected_count: `[C]` how often each negative is expected.
        rating: `[B]`.
        temperature: Divides the logits.
    """
    parts = dense.split([math.prod(shape) for shape in SHAPES.values()])
    weights = {name: part.view(shape) for part, (name, shape) in zip(parts, SHAPES.items(), strict=True)}
    size, in_batch = len(user), min(IN_BATCH, len(user))
    query, candidate = (rows * torch.rsqrt(rows.square().sum(1, keepdim=True) + 1e-12) for rows in (user, item))
    bias = (item @ weights["bias"])[:, 0] + weights["bias_bias"]
    own, own_bias = candidate[:size], bias[:size]
    negative, negative_bias = (torch.cat([each[:in_batch], each[size:]]) for each in (candidate, bias))
    positive = ((query * own).sum(1) + own_bias) / temperature
    logits = query @ negative.T / temperature + (negative_bias / temperature - torch.log(expected_count))
    logits = logits.masked_fill(ids[0][:, None] == ids[1][None, :], -1e9)
    softmax = torch.logaddexp(positive, torch.logsumexp(logits, 1)) - positive
    one, own_bias = torch.ones_like(query[:, :1]), own_bias[:, None]
    hidden = torch.cat([query, one, own, own_bias, query * own, own_bias, positive[:, None]], 1)
    for name in ("hidden_1", "hidden_2"):
        hidden = torch.relu(hidden @ weights[name] + weights[f"{name}_bias"])
    predicted = (hidden @ weights["output"])[:, 0] + weights["output_bias"] + weights["logit"] * positive
    return softmax.mean() + (predicted - rating).square().mean()


def take_step(state: Any, chosen: Any, temperature: float) -> Any:
    """One training step on the examples at these places of the log; its loss."""
    log = state.log
    user, item = log.user[chosen].long(), log.item[chosen].long()
    drawn = torch.randint(len(log.share), (UNIFORM,), device=chosen.device)
    in_batch = min(IN_BATCH, len(chosen))
    sampled, negative = torch.cat([item, drawn]), torch.cat([item[:in_batch], drawn])
    with torch.autocast(chosen.device.type, torch.bfloat16, enabled=chosen.is_cuda):
        gradients, loss = torch.func.grad_and_value(loss_of, argnums=(0, 1, 2))(
            state.query.table[user],
            state.candidate.table[sampled],
            state.dense.values,
            ids=(item, negative),
            expected_count=in_batch * log.share[negative] + UNIFORM / len(log.share),
            rating=log.rating[chosen],
            temperature=temperature,
        )
    adagrad(state.query, rows=user, gradient=gradients[0])
    adagrad(state.candidate, rows=sampled, gradient=gradients[1])
    adam(state.dense, gradients[2])
    return loss


def adagrad(side: Any, *, rows: Any, gradient: Any) -> None:
    """Row-wise Adagrad: gradients of a row that is named several times are added up, and it is moved once.

    Such rows find each other without a sort, as ours do: each writes its place into `owner`, and reads whose stands
    there. All but the owner's own place then hold zeros, which move nothing.
    """
    side.owner[rows] = torch.arange(len(rows), dtype=torch.int32, device=rows.device)
    gradient = torch.zeros_like(gradient).index_add_(0, side.owner[rows].long(), gradient)
    side.squares.index_add_(0, rows, gradient.square().mean(1))
    side.table.index_add_(0, rows, gradient * (-TABLE_RATE * torch.rsqrt(side.squares[rows].clamp(min=1e-30)))[:, None])


def adam(dense: Any, gradient: Any) -> None:
    """Adam on all dense weights at once, in the form that Keras has."""
    dense.steps += 1
    dense.first.lerp_(gradient, 1 - FIRST_DECAY)
    dense.second.lerp_(gradient.square(), 1 - SECOND_DECAY)
    rate = DENSE_RATE * torch.sqrt(1 - SECOND_DECAY**dense.steps) / (1 - FIRST_DECAY**dense.steps)
    dense.values -= rate * dense.first / (torch.sqrt(dense.second) + 1e-7)


class Calls:
    """Training by calls of `STEPS` compiled steps, the host waiting for none but the last."""

    def __init__(self, folder: Path, *, batch_size: int, device: Any) -> None:
        self.state, self.batch_size, self.taken = begin(folder, device), batch_size, 0
        self.order = torch.randperm(len(self.state.log.user), device=device)
        items = len(self.state.log.share)
        self.temperature = 0.25 if items <= 10_000 else 1 / math.log(items)  # As twotower's `auto` has it.
        mode = "reduce-overhead" if device.type == "cuda" else None
        self.step = torch.compile(take_step, fullgraph=True, dynamic=False, mode=mode)

    def call(self) -> Any:
        """Begin `STEPS` steps; the last one's loss, once they are taken."""
        stop = self.taken + STEPS * self.batch_size
        places = torch.arange(self.taken, stop, device=self.order.device) % len(self.order)
        self.taken = stop
        for chosen in self.order[places].view(STEPS, self.batch_size):
            torch.compiler.cudagraph_mark_step_begin()
            loss = self.step(self.state, chosen, self.temperature)
        return loss.clone()  # The next step's graph writes where this one is.

    def train(self, seconds: float) -> tuple[float, float]:
        """Train for so long after the calls that compile; examples a second, and the last step's loss.

        A call is begun before the loss of the one before it is read.
        """
        for _ in range(WARM_UP):
            float(self.call())
        torch.compiler.set_stance("fail_on_recompile")
        began, before = time.perf_counter(), self.taken
        loss = self.call()
        while time.perf_counter() - began < seconds:
            last, loss = loss, self.call()
            float(last)
        reached = float(loss)
        return (self.taken - before) / (time.perf_counter() - began), reached


def main() -> None:
    """Train for so many seconds and say how many examples a second it was."""
    options = training_parser(__doc__).parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    examples_s, loss = Calls(options.folder, batch_size=options.batch_size, device=device).train(options.seconds)
    if not math.isfinite(loss):
        raise RuntimeError("the loss is no number")
    told = {
        "examples_s": examples_s,
        "loss": loss,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "graphs_skipped": counters["inductor"]["cudagraph_skips"],
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
