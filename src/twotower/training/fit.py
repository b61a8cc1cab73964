"""A split -> a model's directory: fitted, exported, ordered, calibrated, and with weights to begin another one with."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from twotower.data.asked import asked_of
from twotower.data.split import VALIDATION, SplitDataset
from twotower.model.config import MET, ModelConfig
from twotower.model.export import export_model
from twotower.training.calibration import calibrate
from twotower.training.config import TrainConfig
from twotower.training.distributed import is_first
from twotower.training.order import choose_order
from twotower.training.progress import TrainProgress
from twotower.training.train import sample_inputs, train
from twotower.training.warm_start import learned_until, save_weights


def fit(
    config: TrainConfig,
    *,
    model_config: ModelConfig,
    dataset: SplitDataset,
    seed: int,
    out: Path,
    checkpoint: Path,
    resume: bool,
    report: Callable[[TrainProgress], None],
    warm_start: Path | None,
) -> dict[str, Any]:
    """Fit and export one model into an open directory; gives what its manifest says of the training.

    Of several processes the first one has the tables and writes for all; the others give nothing. Arguments and errors
    are those of `train`.
    """
    trained = train(
        config,
        model_config=model_config,
        dataset=dataset,
        seed=seed,
        checkpoint=checkpoint,
        resume=resume,
        report=report,
        warm_start=warm_start,
    )
    if not is_first():
        return {}
    query, candidate = sample_inputs(trained.model.features, dataset)
    export_model(trained.model, out, query_inputs=query, candidate_inputs=candidate, trend_block=trained.trend_block)
    metadata: dict[str, Any] = {}
    asked = asked_of(dataset, VALIDATION, most=config.memory_rows, seed=seed)
    if not model_config.ranking.order and MET in trained.model.tasks:
        metadata["order"] = choose_order(out, asked, candidates=model_config.ranking.candidates, seed=seed)
    metadata["calibrated"] = sorted(calibrate(out, asked, seed=seed))
    save_weights(trained.model, out)
    (out / "history.json").write_text(json.dumps(trained.history, indent=1), encoding="utf-8")
    metadata |= {"best_epoch": trained.best_epoch, "metric": config.metric}
    metadata |= {"learned_until_us": learned_until(dataset), "alarms": trained.alarms}
    metadata["validation"] = trained.history[trained.best_epoch - 1].get(f"validation_{config.metric}")
    if trained.carried_over is not None:
        metadata["carried_over"] = asdict(trained.carried_over)
    return metadata
