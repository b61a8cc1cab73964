"""The same step in PyTorch, compiled: id embeddings, 1,024 shared negatives, a rating head 256-128-1, row-wise Adagrad.

Runs in whichever interpreter has PyTorch, never in ours, on a GPU where there is one. Reads the world that
`scale/throughput.py` writes and prints one JSON line.
"""

import json
import math
import time
from typing import Any

import numpy as np
import torch
from scale.given import training_parser

DIM, IN_BATCH, UNIFORM = 64, 512, 512
TABLE_RATE, DENSE_RATE = 0.05, 0.001
WARM_UP, STEPS_A_CHECK = 5, 10


class Side:
    """One embedding table with a sum of squares for each row."""

    def __init__(self, rows: int, device: Any) -> None:
        self.table = torch.randn(rows, DIM, device=device) * 0.05
        self.squares = torch.zeros(rows, device=device)

    def update(self, rows: Any, gradient: Any) -> None:
        """Row-wise Adagrad; a row that is named twice is moved twice."""
        self.squares.index_add_(0, rows, gradient.square().mean(1))
        step = gradient * (-TABLE_RATE * torch.rsqrt(self.squares[rows] + 1e-12))[:, None]
        self.table.index_add_(0, rows, step)


def loss_of(
    head: Any,
    user: Any,
    item: Any,
    drawn: Any,
    ids: tuple[Any, Any],
    rating: Any,
    count: Any,
    temperature: float,
) -> Any:
    """Sampled softmax with the correction for how often each negative is expected, and the rating's squared error."""
    query, own, others = (torch.nn.functional.normalize(each, dim=1) for each in (user, item, drawn))
    negative = torch.cat([own[:IN_BATCH], others])
    logits = query @ negative.T / temperature - torch.log(count)[None, :]
    logits = logits.masked_fill(ids[0][:, None] == ids[1][None, :], -1e9)
    positive = (query * own).sum(1) / temperature
    softmax = torch.logaddexp(positive, torch.logsumexp(logits, 1)) - positive
    predicted = head(torch.cat([user, item], 1))[:, 0]
    return softmax.mean() + (predicted - rating).square().mean()


def main() -> None:
    """Train for so many seconds and say how many examples a second it was."""
    options = training_parser(__doc__).parse_args()
    torch.set_float32_matmul_precision("high")  # As JAX has it on GPUs: TF32.
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    user, item, rating = (
        torch.from_numpy(np.load(options.folder / f"{name}.npy")).to(device) for name in ("user", "item", "rating")
    )
    users, items = json.loads((options.folder / "sizes.json").read_text(encoding="utf-8"))
    temperature = 0.25 if items <= 10_000 else 1 / math.log(items)  # As twotower's `auto` has it.
    sides = (Side(users, device), Side(items, device))
    share = torch.bincount(item.long(), minlength=items) / len(item)
    head = torch.nn.Sequential(
        torch.nn.Linear(2 * DIM, 256),
        torch.nn.ReLU(),
        torch.nn.Linear(256, 128),
        torch.nn.ReLU(),
        torch.nn.Linear(128, 1),
    ).to(device)
    adam = torch.optim.Adam(head.parameters(), lr=DENSE_RATE)
    compiled = torch.compile(loss_of)

    def step(chosen: Any) -> Any:
        rows = (user[chosen].long(), item[chosen].long())
        drawn = torch.randint(items, (UNIFORM,), device=device)
        negative = torch.cat([rows[1][:IN_BATCH], drawn])
        gathered = [side.table[which].requires_grad_() for side, which in ((sides[0], rows[0]), (sides[1], rows[1]))]
        gathered.append(sides[1].table[drawn].requires_grad_())
        count = IN_BATCH * share[negative] + UNIFORM / items
        loss = compiled(head, *gathered, (rows[1], negative), rating[chosen], count, temperature)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()
        with torch.no_grad():
            sides[0].update(rows[0], gathered[0].grad)
            sides[1].update(torch.cat([rows[1], drawn]), torch.cat([gathered[1].grad, gathered[2].grad]))
        return loss.detach()

    order = torch.randperm(len(user), device=device)
    begins = range(0, len(user) - options.batch_size + 1, options.batch_size)
    began, steps, took, last = 0.0, 0, 0.0, torch.zeros(())
    while took < options.seconds:
        begin = begins[steps % len(begins)]
        last = step(order[begin : begin + options.batch_size])
        steps += 1
        if steps == WARM_UP:
            float(last)
            began = time.perf_counter()
        elif steps > WARM_UP and (steps - WARM_UP) % STEPS_A_CHECK == 0:
            if not math.isfinite(float(last)):
                raise RuntimeError("the loss is no number")
            took = time.perf_counter() - began
    examples = (steps - WARM_UP) * options.batch_size
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    print(json.dumps({"examples_s": examples / took, "device": name, "torch": torch.__version__, "loss": float(last)}))


if __name__ == "__main__":
    main()
