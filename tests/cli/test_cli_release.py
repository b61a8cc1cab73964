"""The commands of the pipeline's steps: what they print, and one line and code 2 for what cannot be."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from twotower.artifact import verify, write_artifact
from twotower.cli.main import main

TINY = str(Path(__file__).parents[1] / "tiny.toml")
LOG = "user_id,item_id,timestamp\nann,a,1700000000\nbob,b,1700000001\n"
FILES = ("--set", "prepare.source=files", "--set", "prepare.files.interactions=log.csv")


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


def printed(*arguments: str) -> str:
    """What a command that succeeds prints, without the end of the line."""
    result = call(*arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout.rstrip("\n")


def refused(*arguments: str) -> str:
    """The one line of a command that cannot do what it is asked."""
    result = call(*arguments)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    return line


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a folder of two rows."""
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "log.csv").write_text(LOG, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_data_is_located_fetched_validated_and_prepared(shop: Path) -> None:
    located = printed("locate", *FILES, "--data", "shop")
    assert located == printed("locate", *FILES, "--data", "shop")
    assert len(located) == 16
    assert printed("fetch", *FILES, "--data", "shop", "--out", "raw") == "raw"
    assert verify(shop / "raw", kind="raw")["metadata"]["interactions"] == 2
    assert printed("validate", *FILES, "--raw", "raw", "--out", "profile") == "profile"
    assert (shop / "profile" / "profile.html").is_file()
    assert "faults: none" in printed("validate", *FILES, "--raw", "raw")
    assert printed("prepare", *FILES, "--raw", "raw", "--out", "prepared") == "prepared"
    verify(shop / "prepared", kind="prepared")


def test_a_moment_needs_no_quotes_on_the_command_line(shop: Path) -> None:
    (shop / "shop" / "log.csv").write_text(LOG.replace("1700000001", "1800000000"), encoding="utf-8")
    found = printed("validate", *FILES, "--data-dir", "shop", "--set", "prepare.until=2027-01-01")
    assert re.search(r"^interactions +1$", found, re.MULTILINE), "of two rows one is older"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("locate", "--data", "shop"), "data 'shop': the recipe's data is simulated, so no data is read."),
        (("fetch", "--data", "shop", "--out", "raw"), "data 'shop': the recipe's data is simulated"),
        (("locate", *FILES, "--data", "none"), "none: no such file or folder."),
        (("fetch", *FILES, "--data", "http://127.0.0.1:1/x.zip", "--out", "raw"), "http://127.0.0.1:1/x.zip: not to"),
        (("fetch", *FILES, "--data", "ftp://host/x", "--out", "raw"), "ftp://host/x: no such file or folder."),
        (("locate", "--set", "prepare.fillter=true"), "unknown key 'prepare.fillter'"),
        (("locate", "bad.toml"), "bad.toml: unknown key 'traain'"),
        (("locate", "none.toml"), "none.toml: no such file"),
        (("register", "bad.toml", "--bundle", "shop", "--model", "shop", "--registry", "r"), "unknown key 'traain'"),
        (("register", "--bundle", "shop", "--model", "shop", "--registry", "r"), "not a model directory"),
        (("deploy", "--version", "simulated-0", "--registry", "r"), "simulated-0: no version of a bundle."),
        (("deploy", "--version", "simulated-0", "--registry", "file"), "simulated-0: no version of a bundle."),
        (
            ("deploy", "--version", "simulated-0", "--registry", "r", "--to", "folder"),
            "simulated-0: no version of a bundle.",
        ),
        (("rollback", "--registry", "r"), "no version to go back to (nothing is deployed)"),
        (("choose", "shop", "--out", "best"), "not a model directory"),
        (("smoke-test", "--bundle", "shop", "--out", "smoke"), "shop: not a twotower directory"),
        (("gate", "--report", "shop", "--index", "shop", "--out", "gate"), "not a report directory"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(shop: Path, arguments: tuple[str, ...], told: str) -> None:
    (shop / "bad.toml").write_text("[traain]\nepochs = 1\n", encoding="utf-8")
    (shop / "file").write_text("no registry", encoding="utf-8")
    assert told in refused(*arguments)


def test_a_faulty_log_ends_validation_with_code_2_and_the_page(shop: Path) -> None:
    (shop / "shop" / "log.csv").write_text(LOG.replace("1700000001", "soon"), encoding="utf-8")
    result = call("validate", *FILES, "--data-dir", "shop", "--out", "profile")
    assert (result.exit_code, result.stdout) == (2, "profile\n")
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: log.csv: timestamp of row 2 is 'soon'")
    assert (shop / "profile" / "profile.html").is_file()


def test_a_registry_that_is_a_file_is_refused(tiny_run: Path, shop: Path) -> None:
    (shop / "file").write_text("no registry", encoding="utf-8")
    places = ("--bundle", str(tiny_run / "bundle"), "--model", str(tiny_run / "model"))
    assert "not to be read or written" in refused("register", TINY, *places, "--registry", "file")
    assert (shop / "file").read_text(encoding="utf-8") == "no registry"


def test_a_bundle_goes_from_the_gate_to_the_folder_that_answers_and_back(tiny_run: Path, shop: Path) -> None:
    at = {name: str(tiny_run / name) for name in ("bundle", "model", "report", "index")}
    registry = ("--registry", "registry")
    verdict = call(
        "gate", TINY, "--report", at["report"], "--index", at["index"], "--out", "gate", "--set", "gate.margin=-1.0"
    )
    assert (verdict.exit_code, verdict.stdout) == (0, "Promoted: all 2 checks passed.\n")
    assert printed("champion", TINY, *registry, "--model", at["model"]) == ""
    version = printed("register", TINY, *registry, "--bundle", at["bundle"], "--model", at["model"])
    assert version.startswith("tiny-")
    here = ("deploy", TINY, *registry, "--version", version)
    assert "no server answers from there." in refused(*here, "--to", "s3://bucket/answers")
    assert "no namespace is named." in refused(*here, "--to", "kubernetes:")
    assert printed(*here, "--to", "answers") == version
    verify(shop / "answers", kind="bundle")
    assert f"{version} is the first one" in refused("rollback", TINY, *registry, "--to", "answers")
    with write_artifact(shop / "other", kind="model", metadata={"metric": "ndcg@10", "validation": 0.1}) as out:
        (out / "recipe.toml").write_text("", encoding="utf-8")
    assert printed("champion", TINY, *registry, "--model", "other") == version
    assert printed("choose", "other", "--out", "best") == "best"
    told = ("--run", "nightly-7", "--state", "SUCCEEDED", "--out", "summary")
    assert printed("summarize", TINY, *registry, *told) == "SUCCEEDED"
    summary = json.loads((shop / "summary" / "summary.json").read_text(encoding="utf-8"))
    assert (summary["name"], summary["champion"]) == ("tiny", version)


def test_a_refused_candidate_is_a_result_and_no_fault(tiny_run: Path, shop: Path) -> None:
    places = ("--report", str(tiny_run / "report"), "--index", str(tiny_run / "index"), "--out", "gate")
    result = call("gate", TINY, *places, "--set", "gate.margin=0.9")
    assert result.exit_code == 0
    assert result.stdout.startswith("Refused: NDCG@10 beats Popularity by more than 0.9")


def test_a_state_that_does_not_exist_and_a_webhook_of_another_kind_are_refused(shop: Path) -> None:
    told = ("--registry", "registry", "--run", "r", "--out", "summary")
    result = call("summarize", *told, "--state", "GREEN")
    assert result.exit_code == 2
    assert "'GREEN' is not one of 'SUCCEEDED', 'FAILED', 'CANCELLED'" in result.stderr
    line = refused("summarize", *told, "--state", "FAILED", "--webhook", "mailto:me")
    assert "webhook 'mailto:me'" in line
    assert (shop / "summary" / "summary.md").is_file()
