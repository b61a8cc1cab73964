"""The whole pipeline in containers of the real image."""

from pathlib import Path

import pytest

import twotower
from twotower.errors import PipelineError
from twotower.pipeline.local import LocalRun, local_profile, run_local
from twotower.recipe import load_recipe, recipe_toml
from twotower.steps import STEPS

pytestmark = pytest.mark.docker

RECIPE = Path(__file__).parents[1] / "pipeline" / "small.toml"


def run(out: Path, image: str, **arguments: str) -> LocalRun:
    profile = local_profile(registry=out / "registry", deploy_to=out / "bundle", image=image)
    found = {"recipe": recipe_toml(load_recipe(RECIPE)), **arguments}
    return run_local(found, profile=profile, out=out, in_docker=True, ended=lambda _: None, line=lambda _: None)


def test_every_step_runs_in_a_container_and_what_was_promoted_answers(
    docker, pipeline_image: str, tmp_path: Path
) -> None:
    first = run(tmp_path, pipeline_image)
    assert {end.task.replace("-", "_"): end.state for end in first.ends} == dict.fromkeys(STEPS, "done")
    assert len(twotower.load(tmp_path / "bundle").recommend("11", k=3).items) == 3
    assert run(tmp_path, pipeline_image).all_cached


def test_a_step_that_must_fail_fails_and_the_exit_handler_runs(docker, pipeline_image: str, tmp_path: Path) -> None:
    recipe = recipe_toml(load_recipe(RECIPE, {"prepare.source": "files"}))
    with pytest.raises(PipelineError, match=r"^fetch: prepare\.files\.interactions names no table"):
        run(tmp_path, pipeline_image, recipe=recipe)
    card = next((tmp_path / "pipeline").glob("twotower-*/summarize/card"))
    assert "FAILED" in card.read_text(encoding="utf-8")
