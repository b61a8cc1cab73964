"""The quality rows: their splits, their arithmetic, and that the page is what the kept results say."""

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
QUALITY = ROOT / "benchmarks" / "quality"


@pytest.fixture(autouse=True)
def benchmarks_on_the_path() -> Iterator[None]:
    """The modules import each other as the dispatcher runs them: from the folder of the benchmarks."""
    sys.path.insert(0, str(QUALITY.parent))
    yield
    sys.path.remove(str(QUALITY.parent))


def rows() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = tomllib.loads((QUALITY / "rows.toml").read_text(encoding="utf-8"))["row"]
    return found


def test_the_page_on_quality_is_what_the_kept_results_say() -> None:
    command = [sys.executable, str(QUALITY / "page.py"), "--check"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def test_every_row_has_a_benchmark_that_measures_its_keys() -> None:
    import run

    named = [row["name"] for row in rows()]
    assert named == [name for name in run.BENCHMARKS if name.startswith("quality-")]
    for row in rows():
        asked = {target[word] for target in row["targets"] for word in ("key", "over") if word in target}
        assert set(run.load(row["name"]).KEYS) <= asked | {"best_baseline_ndcg10", "ndcg10_retrieval"}


@pytest.mark.parametrize("path", sorted(QUALITY.glob("results/*.json")), ids=lambda path: path.stem)
def test_a_kept_result_holds_what_a_reader_needs_to_run_it_again(path: Path) -> None:
    result = json.loads(path.read_text(encoding="utf-8"))
    assert path.stem == result["name"]
    assert path.stem in result["command"]
    assert len(result["seconds"]["total"]) == len(result["seeds"])
    assert {"commit", "figures", "tables", "settings", "published", "protocol"} <= set(result)
    assert path.stat().st_size < 100_000


@pytest.mark.parametrize("recipe", sorted(QUALITY.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_of_a_row_is_a_recipe(recipe: Path) -> None:
    from twotower.recipe import load_recipe

    if recipe.name != "rows.toml":
        assert load_recipe(recipe).name.startswith("quality-")


def test_a_split_by_user_keeps_each_users_share_for_train_and_rounds_a_half_to_even() -> None:
    import movielens_splits

    # 8 * .75 = 6 and 6 * .75 = 4.5, which Python rounds to 4; interleaved, so that the order of rows does not matter.
    users = ["7", "3"] * 6 + ["7", "7"]
    test = movielens_splits.is_test_by_user(users, seed=0, share=0.25)
    tested = np.array(users)[test].tolist()
    assert (tested.count("7"), tested.count("3")) == (2, 2)
    other = movielens_splits.is_test_by_user(users, seed=1, share=0.25)
    assert test.tolist() != other.tolist()
    assert test.tolist() == movielens_splits.is_test_by_user(users, seed=0, share=0.25).tolist()


def test_parts_are_written_in_the_order_of_the_rows(tmp_path: Path) -> None:
    import movielens_splits

    rows = [["1", "A, the (1990)", "5", "9"], ["2", "B", "1", "8"], ["1", "C", "3", "7"]]
    movielens_splits.write_parts(tmp_path, rows, test=np.array([False, True, False]))
    train = (tmp_path / "train.csv").read_text(encoding="utf-8").splitlines()
    assert train == ["user_id,item_id,rating,timestamp", '1,"A, the (1990)",5,9', "1,C,3,7"]
    assert (tmp_path / "test.csv").read_text(encoding="utf-8").splitlines()[1:] == ["2,B,1,8"]


def test_the_lower_end_of_a_difference_is_the_worse_of_users_and_seeds() -> None:
    from quality.measure import conservative_low

    # Seeds: mean .02, deviation .01, t(2) = 4.303, so .02 - 4.303 * .01 / sqrt(3) = -.00484; users: mean .01.
    assert conservative_low([0.0, 0.01, 0.02], [0.01, 0.02, 0.03]) == pytest.approx(-0.00484, abs=1e-5)
    assert conservative_low([-0.1, -0.1, -0.1], [0.01, 0.02, 0.03]) == pytest.approx(-0.1)
    assert conservative_low([0.004], [0.01]) == 0.004


def test_popularity_by_genre_weighs_a_users_genres_by_how_popular_their_films_are() -> None:
    from quality.cold_items import genre_scores

    # Films: 0 drama (10 ratings), 1 drama (30), 2 comedy (6); 3 drama and comedy, 4 comedy are held out.
    genres = np.array([[1, 0], [1, 0], [0, 1], [1, 1], [0, 1]], float)
    popularity = np.array([10, 30, 6, 0, 0], float)
    history = np.array([[1, 1, 1, 0, 0], [0, 0, 1, 0, 0]], float)
    found = genre_scores(history, popularity, genres=genres, warm=popularity > 0)
    # Usual popularity: drama 20, comedy 6. The first user is two thirds drama: 13.33 + 2 for film 3, 2 for film 4.
    assert found["sum"][0, 3:] == pytest.approx([46 / 3, 2])
    assert found["mean"][0, 3:] == pytest.approx([23 / 3, 2])
    assert found["sum"][1, 3:] == pytest.approx([6, 6])


def test_a_verdict_tells_the_highest_target_reached_and_whether_the_whole_interval_reaches_it() -> None:
    from quality.page import verdict

    def figure(mean: float, low: float | None = None, high: float | None = None) -> dict[str, float | None]:
        return {"mean": mean, "low": low, "high": high}

    target = {"key": "x", "must": 0.3, "aim": 0.4}
    assert verdict(target, {"x": figure(0.5, 0.45, 0.55)}) == "**aim reached**"
    assert verdict(target, {"x": figure(0.42, 0.38, 0.46)}) == "**aim reached**, not by the whole interval"
    assert verdict(target, {"x": figure(0.35)}) == "**must reached**"
    assert verdict(target, {"x": figure(0.25)}) == "missed by 0.0500"
    lower = {"key": "x", "must": 0.9, "lower": True}
    assert verdict(lower, {"x": figure(0.89, 0.87, 0.91)}) == "**must reached**, not by the whole interval"
    assert verdict(lower, {"x": figure(0.93)}) == "missed by 0.0300"
    times = {"key": "x", "over": "y", "must": 3.0}
    assert verdict(times, {"x": figure(0.31, 0.29, 0.33), "y": figure(0.1)}) == "**must reached**"
    assert verdict(times, {"x": figure(0.3), "y": figure(0.11)}) == "missed by 0.0300"
    assert verdict({"key": "x", "must": 0.0}, {"x": figure(0.0)}) == "missed by 0.0000"
