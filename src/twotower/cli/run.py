"""`twotower run`: the whole path, the result as a table, and what to type next."""

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from twotower.cli.options import processes_option, recipe_options
from twotower.cli.progress import tell, watching

if TYPE_CHECKING:
    from twotower.recipe import Recipe

SHOWN = 10
"""Items in the sample answer."""


@click.command()
@recipe_options
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Where the run goes; by default runs/NAME.")
@click.option("--resume", is_flag=True, help="Let an interrupted training go on from its last checkpoint.")
@processes_option
def run(recipe: "Recipe", out: Path | None, resume: bool, processes: int) -> None:
    """Go the whole path: prepare, split, train, evaluate, index, bundle.

    RECIPE is a TOML file or the name of one that comes with twotower; without it, an invented world of films is the
    data. A step whose settings and inputs are as they were is left out.

    \b
    Example:
      twotower run
      twotower run movielens-1m --data-dir ../data --set train.epochs=3 --out runs/first
    """
    from twotower import steps

    out = out or Path("runs") / recipe.name
    with watching(processes == 1) as watch:  # Several tell of themselves.
        started = time.monotonic()
        for ran in steps.run(recipe, out=out, resume=resume, processes=processes, watch=watch):
            ended = time.monotonic()
            watch("")
            tell(f"{ran.step:<9} {f'{ended - started:.1f} s' if ran.is_fresh else 'up to date':<11} {ran.directory}")
            started = ended
    _show(out)


def _show(out: Path) -> None:
    """The measured table, one user's answer, and the next commands."""
    from twotower.cli.tables import print_report

    bundle = out / "bundle"
    report = json.loads((bundle / "report" / "report.json").read_text(encoding="utf-8"))
    print_report(report)
    show_answer(bundle, report, count=SHOWN)
    click.echo(f"Report:  {bundle / 'report' / 'report.html'}")


def show_answer(bundle: Path, report: Mapping[str, Any], *, count: int) -> None:
    """What a bundle answers to one of the report's users, and the commands that ask it."""
    import twotower
    from twotower.cli.tables import print_recommendation

    user = report["examples"][0]["user_id"] if report["examples"] else None
    answer = twotower.load(bundle).recommend(user, k=count)
    print_recommendation(answer, title=f"Recommendations for {'anybody' if user is None else f'user {user}'}")
    met = [item.item_id for item in answer.items[:3]]
    program = _program()
    click.echo(f"Ask it:  {program} recommend {bundle} --user {user or 'ID'} -k {count}")
    click.echo(f"         {program} recommend {bundle} --history {','.join(met)}")
    click.echo(f"         {program} similar {bundle} --item {met[0] if met else 'ID'}")
    click.echo(f"Serve:   {program} serve {bundle}")


def _program() -> str:
    """What to type for `twotower`: where its folder is not on the PATH, such as after `make run`, with that folder."""
    beside = Path(sys.executable).with_name("twotower.exe" if os.name == "nt" else "twotower")
    if shutil.which("twotower") or not beside.is_file():
        return "twotower"
    return os.path.relpath(beside)
