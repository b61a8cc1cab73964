"""Runs of a small recipe under kfp's local runner, and what the tests read off them."""

import json
from pathlib import Path
from typing import Any

from twotower.pipeline.local import LocalRun, local_profile, run_local
from twotower.recipe import load_recipe, recipe_toml

SMALL = load_recipe(Path(__file__).with_name("small.toml"))


def run(out: Path, **arguments: Any) -> LocalRun:
    """The pipeline below `out`, with a registry and a deployed bundle of its own there."""
    found: dict[str, Any] = {"recipe": recipe_toml(SMALL), **arguments}
    profile = local_profile(registry=out / "registry", deploy_to=out / "bundle")
    return run_local(found, profile=profile, out=out, ended=lambda _: None, line=lambda _: None)


def states(run: LocalRun) -> dict[str, str]:
    return {end.task.replace("-", "_"): end.state for end in run.ends}


def logged(run: LocalRun, task: str, output: str) -> dict[str, Any]:
    """What the UI is told of an artifact."""
    folder = Path(run.outputs[task][output]).parent
    artifacts = json.loads((folder / "executor_output.json").read_text(encoding="utf-8"))["artifacts"]
    (found,) = artifacts[output]["artifacts"]
    return dict(found["metadata"])
