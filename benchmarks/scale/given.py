"""What a process that trains for so many seconds is told; plain Python, as PyTorch's side reads it in its own place."""

import argparse
from pathlib import Path


def training_parser(description: str | None, *, batch_size: int | None = None) -> argparse.ArgumentParser:
    """Where the world lies, how long to train and by which batches; without a `batch_size` it has to be told."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--batch-size", type=int, default=batch_size, required=batch_size is None)
    return parser
