"""The entry point, and what becomes of a fault.

A fault that the user can mend is one line on stderr and exit code 2; a bug keeps its traceback. Every command imports
what it needs when it is called, so that `twotower --help` answers at once.
"""

import sys
from typing import Any

import click

from twotower.cli import (
    answers,
    bench,
    cluster,
    events,
    export,
    init,
    keys,
    pipeline,
    release,
    run,
    serve,
    steps,
    tune,
    validate,
)
from twotower.errors import MissingExtraError, TwotowerError

EXTRA_OF = {
    "altair": "train",
    "docker": "pipeline",
    "duckdb": "train",
    "fastapi": "serve",
    "filelock": "pipeline",
    "httptools": "serve",
    "ibis": "train",
    "jax": "train",
    "jax2onnx": "train",
    "jinja2": "train",
    "keras": "train",
    "keras_rs": "train",
    "kfp": "pipeline",
    "kfp_server_api": "pipeline",
    "kubernetes": "pipeline",
    "onnx": "train",
    "optuna": "tune",
    "prometheus_client": "serve",
    "scipy": "train",
    "threadpoolctl": "train",
    "tomli_w": "train",
    "uvicorn": "serve",
    "uvloop": "serve",
    "vl_convert": "train",
    "yaml": "pipeline",
}
"""Which extra of ours installs a module that the light core does without."""


class Commands(click.Group):
    """The commands in the order of the data's path, with our faults told in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """In the order in which they were added, not the alphabet's."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what it raises on purpose ends here."""
        try:
            return super().invoke(ctx)
        except TwotowerError as fault:
            _say(f"Error: {fault}")
            ctx.exit(2)
        except ModuleNotFoundError as fault:
            if (missing := _missing_extra(fault)) is None:
                raise
            _say(f"Error: {missing}")
            ctx.exit(2)
        except KeyboardInterrupt:
            _say(
                "Interrupted. Finished steps are kept, nothing is half-written; `run` and `train` go on with --resume."
            )
            ctx.exit(130)


def _missing_extra(fault: ModuleNotFoundError) -> MissingExtraError | None:
    """The same fault as an instruction, where the module is one of an extra's."""
    module = (fault.name or "").partition(".")[0]
    if module not in EXTRA_OF:
        return None
    extra = EXTRA_OF[module]
    return MissingExtraError(f'{module} is not installed, and this command needs it: pip install "twotower[{extra}]"')


def _say(line: str) -> None:
    click.echo(line, file=sys.stderr)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="twotower", message="%(prog)s %(version)s")
def main() -> None:
    """From a log of interactions to a two-stage recommender: one joint model that retrieves, then ranks.

    `twotower run` goes the whole path on an invented world of films, offline, in about a minute.

    \b
    Example:
      twotower run
      twotower recommend runs/simulated/bundle --user 42
    """


for command in (
    init.init,
    run.run,
    tune.tune,
    pipeline.pipeline,
    cluster.cluster,
    answers.recommend,
    answers.similar,
    serve.serve,
    bench.bench,
    keys.keys,
    export.export,
    events.events,
    steps.locate,
    steps.fetch,
    validate.validate,
    steps.prepare,
    steps.split,
    steps.train,
    steps.choose,
    steps.champion,
    steps.evaluate,
    steps.index,
    steps.gate,
    steps.bundle,
    steps.smoke_test,
    release.register,
    release.deploy,
    release.rollback,
    release.summarize,
):
    main.add_command(command)
