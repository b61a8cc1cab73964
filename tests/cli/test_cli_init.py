"""A recipe from the user's own files."""

import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from twotower.cli.main import main
from twotower.data.prepare import prepare
from twotower.data.schema import SequenceFeature
from twotower.recipe import load_recipe

RATINGS = "customerId,filmId,stars,when\n" + "\n".join(
    f"u{user},f{item},{(user * item) % 5 + 1},{1_700_000_000 + 60 * (10 * user + item)}"
    for user in range(1, 7)
    for item in range(1, 9)
)
FILMS = "id,name,genres\n" + "\n".join(f"f{item},The tale of {item},Drama|War" for item in range(1, 9))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with two tables whose names are the user's own."""
    (tmp_path / "ratings.csv").write_text(RATINGS, encoding="utf-8")
    (tmp_path / "films.csv").write_text(FILMS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["init", "--interactions", "ratings.csv", *arguments], catch_exceptions=False)


def test_the_recipe_reads_the_files_that_it_was_made_from(folder: Path) -> None:
    result = call("--items", "films.csv", "--column", "item_id=filmId", "--column", "timestamp=when", "-o", "own.toml")
    assert (result.exit_code, result.stdout) == (0, "own.toml\n")
    recipe = load_recipe("own.toml", {})
    (folder / "out").mkdir()
    metadata = prepare(recipe.prepare, seed=1, out=folder / "out")
    assert metadata["counts"]["interactions"] == 48
    assert (metadata["label_columns"], metadata["title_column"]) == (["stars"], "name")


def test_a_column_that_cannot_be_guessed_is_asked_for_in_one_line(folder: Path) -> None:
    result = call()
    assert result.exit_code == 2
    assert not (folder / "recipe.toml").exists()
    assert result.stderr.strip() == (
        "Error: ratings.csv: which column is the item_id? There are customerId, filmId, stars, when. "
        "Say it: --column item_id=NAME."
    )


def test_a_column_that_no_table_has_is_refused_with_those_that_there_are(folder: Path) -> None:
    result = call("--items", "films.csv", "--column", "item_id=nope")
    assert (result.exit_code, result.stderr.strip()) == (
        2,
        "Error: --column item_id=nope: no column 'nope'; ratings.csv has customerId, filmId, stars, when; "
        "films.csv has id, name, genres. Name one of them.",
    )
    assert not (folder / "recipe.toml").exists()


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_is_called_empty(content: str, folder: Path) -> None:
    (folder / "ratings.csv").write_text(content)
    result = call()
    assert (result.exit_code, result.stderr.strip()) == (
        2, "Error: ratings.csv: the file is empty. Name a file that holds a header and rows."
    )  # fmt: skip


def test_a_guess_is_told_with_its_reason(folder: Path) -> None:
    call("--column", "item_id=filmId", "--column", "timestamp=when")
    text = (folder / "recipe.toml").read_text(encoding="utf-8")
    assert 'user_id = "customerId"  # by its name' in text
    assert 'item_id = "filmId"  # as you said' in text
    assert tomllib.loads(text)["prepare"]["files"]["labels"] == ["stars"]


def test_the_way_to_read_the_history_is_told_with_its_reason(folder: Path) -> None:
    # Six users with eight films each: far too few for a transformer.
    named = ("--column", "item_id=filmId", "--column", "timestamp=when")
    call(*named)
    text = (folder / "recipe.toml").read_text(encoding="utf-8")
    assert '{ kind = "history" },  # pooled, without its order: 48 interactions of 6 users, 8 at the median; ' in text
    rows = [
        f"u{user},f{(user * place) % 97},{place % 5 + 1},{1_700_000_000 + place}"
        for user in range(1_000)
        for place in range(100)
    ]
    (folder / "ratings.csv").write_text("customerId,filmId,stars,when\n" + "\n".join(rows), encoding="utf-8")
    call(*named, "--force")
    text = (folder / "recipe.toml").read_text(encoding="utf-8")
    assert '{ kind = "sequence", length = 100 },  # read in its order: 100,000 interactions of 1,000 users' in text
    assert load_recipe("recipe.toml", {}).model.query[0] == SequenceFeature(kind="sequence", length=100)


def test_a_recipe_that_is_there_is_kept(folder: Path) -> None:
    (folder / "recipe.toml").write_text("mine", encoding="utf-8")
    assert call("--column", "item_id=filmId", "--column", "timestamp=when").exit_code == 2
    assert (folder / "recipe.toml").read_text(encoding="utf-8") == "mine"
    assert call("--force", "--column", "item_id=filmId", "--column", "timestamp=when").exit_code == 0
    assert (folder / "recipe.toml").read_text(encoding="utf-8") != "mine"


def test_a_key_that_does_not_exist_cannot_be_named(folder: Path) -> None:
    result = call("--column", "who=customerId")
    assert result.exit_code == 2
    assert "who=customerId" in result.stderr
    assert list(folder.glob("*.toml")) == []
