"""What becomes of a fault on the command line."""

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner, Result

from twotower.cli.main import Commands, main
from twotower.errors import DataError


def outcome(fault: BaseException) -> Result:
    """What a command that raises this ends in."""

    def raise_it() -> None:
        raise fault

    return CliRunner().invoke(Commands("twotower", {"fail": click.Command("fail", callback=raise_it)}), ["fail"])


def test_a_fault_of_the_user_is_one_line_on_stderr_and_code_2() -> None:
    result = outcome(DataError("log.csv: no column 'user_id'. Name it in prepare.files.columns."))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "Error: log.csv: no column 'user_id'. Name it in prepare.files.columns.\n"


def test_going_on_where_no_checkpoint_is_kept_is_refused() -> None:
    result = CliRunner().invoke(main, ["train", "simulated", "--split", "split", "--out", "s3://b/model", "--resume"])
    assert result.exit_code == 2
    assert result.stderr.startswith(
        "Error: --resume: a training whose model goes to an address (s3://b/model) keeps no"
    )


def test_a_bug_keeps_its_traceback() -> None:
    result = outcome(ZeroDivisionError("bug"))
    assert isinstance(result.exception, ZeroDivisionError)
    assert result.exit_code == 1


def test_an_interruption_is_one_line_and_code_130() -> None:
    result = outcome(KeyboardInterrupt())
    assert result.exit_code == 130
    assert result.stderr.strip().splitlines() == [
        "Interrupted. Finished steps are kept, nothing is half-written; `run` and `train` go on with --resume."
    ]


@pytest.mark.parametrize("module", ["keras", "ibis.expr.types"])
def test_a_missing_extra_is_told_with_the_command_that_installs_it(module: str) -> None:
    result = outcome(ModuleNotFoundError(f"No module named {module!r}", name=module))
    assert result.exit_code == 2
    assert 'pip install "twotower[train]"' in result.stderr


def test_a_missing_module_of_our_own_is_a_bug() -> None:
    result = outcome(ModuleNotFoundError("No module named 'twotower.nothing'", name="twotower.nothing"))
    assert isinstance(result.exception, ModuleNotFoundError)


def test_a_setting_without_a_value_is_refused() -> None:
    result = CliRunner().invoke(main, ["prepare", "--set", "train.epochs", "--out", "x"])
    assert result.exit_code == 2
    assert "'train.epochs' is not KEY=VALUE" in result.stderr


def test_an_unknown_key_of_the_recipe_is_refused_by_name() -> None:
    result = CliRunner().invoke(main, ["prepare", "--set", "train.epoch=3", "--out", "x"])
    assert result.exit_code == 2
    assert "epoch" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_the_module_is_the_command() -> None:
    finished = subprocess.run([sys.executable, "-m", "twotower", "--help"], capture_output=True, text=True, check=True)
    assert finished.stdout.startswith("Usage: twotower ")
    assert [name for name in main.commands if f"\n  {name} " not in finished.stdout] == []
