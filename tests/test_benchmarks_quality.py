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
NO_RECIPES = ("rows.toml", "ablations.toml")
UNASKED = {
    "quality-ml1m-time": ("best_baseline_ndcg10", "ndcg10_retrieval"),
    "quality-ablations": ("base_ndcg10", "retrieval_alone_ndcg10", "base_rmse", "rating_alone_rmse"),
}
"""Row -> keys that no target asks for."""


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
        asked |= set(UNASKED.get(row["name"], ()))
        assert set(run.load(row["name"]).KEYS) <= asked


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

    if recipe.name not in NO_RECIPES:
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


def test_each_task_is_set_beside_the_model_that_learned_it_alone() -> None:
    from quality.ml100k_tfrs import _joining

    def report(shift: float) -> dict[str, Any]:
        contenders = {
            name: {"metrics": {f"top_k_categorical_accuracy@{k}": value + shift for k in (10, 100)}}
            for name, value in (("two_stage", 0.5), ("retrieval_trained_alone", 0.25))
        }
        rating = {"metrics": {"rmse": 0.75}, "trained_alone": {"metrics": {"rmse": 1.0}}}
        return {"protocols": {"static": {"contenders": contenders}}, "labels": {"rating": rating}}

    found = _joining(report(0.0), report(0.25))
    assert list(found["joint"].values()) == [0.5, 0.5, 0.75, 0.75, 0.75]
    assert list(found["each task alone"].values()) == [0.25, 0.25, 1.0, 0.5, 0.5]
    assert list(found["joint minus alone"]) == ["top10", "top100", "rmse", "top10_unseen", "top100_unseen"]
    assert list(found["joint minus alone"].values()) == [0.25, 0.25, -0.25, 0.25, 0.25]


def test_every_variant_is_a_recipe_that_can_be_trained_and_differs_from_the_base_by_what_it_sets(
    tiny_split: Path,
) -> None:
    from quality.ablations import BASE, LEAN, read_variants

    from twotower.data.split import load_split
    from twotower.recipe import load_recipe, recipe_tree
    from twotower.training.refusals import refuse_bad_model

    dataset = load_split(tiny_split)
    place = QUALITY / "ablations_base.toml"
    base = recipe_tree(load_recipe(place))
    known = [BASE]
    for variant in read_variants():
        assert variant.name not in known
        assert variant.against in known  # An earlier one, so that it has been measured.
        assert "|" not in variant.title()  # A cell of the page's tables.
        known.append(variant.name)
        recipe = load_recipe(place, {**LEAN, **variant.settings})
        refuse_bad_model(recipe.model, dataset=dataset)
        tree = recipe_tree(recipe)
        idle = [key for key in variant.settings if at(tree, key.split(".")) == at(base, key.split("."))]
        assert variant.settings, variant.name
        assert not idle, f"{variant.name} changes nothing by {idle}"
    assert len(known) == 20


def at(tree: Any, path: list[str]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def test_a_variant_is_told_by_its_distance_from_what_it_is_set_beside() -> None:
    from quality.ablations import Variant, comparisons

    def variant(name: str, *, against: str = "base") -> Variant:
        return Variant(name=name, group="all", about="of a kind", settings={}, against=against)

    metrics = {
        "base": {"ndcg@10": 0.5, "recall@100": 0.75, "rmse": 1.0},
        "first": {"ndcg@10": 0.25, "recall@100": 0.75},
        "second": {"ndcg@10": 0.75, "recall@100": 0.5, "rmse": 0.5},
        "alone": {"rmse": 1.25},
    }
    found = comparisons([variant("first"), variant("second", against="first"), variant("alone")], metrics)
    assert found == {
        "all": {
            "`first`: of a kind": {
                "ndcg@10": 0.25, "recall@100": 0.75, "ndcg@10, change": -0.25, "recall@100, change": 0.0,
            },
            "`second`: of a kind (change against `first`)": {
                "ndcg@10": 0.75, "recall@100": 0.5, "rmse": 0.5, "ndcg@10, change": 0.5, "recall@100, change": -0.25,
            },
            "`alone`: of a kind": {"rmse": 1.25, "rmse, change": 0.25},
        }
    }  # fmt: skip


def test_the_keys_of_the_ablations_are_those_of_what_was_measured() -> None:
    from quality.ablations import KEYS, _keys

    both = {"ndcg@10": 0.5, "rmse": 1.0}
    alone = {"retrieval-alone": {"ndcg@10": 0.25}, "rating-alone": {"rmse": 0.75}}
    assert _keys({"base": both, **alone}) == dict(zip(KEYS, (0.5, 0.25, 1.0, 0.75), strict=True))
    assert _keys({"base": both, "gbce": both}) == {"base_ndcg10": 0.5, "base_rmse": 1.0}


def test_only_brings_what_a_variant_is_set_beside_and_is_part_of_the_command_but_never_kept(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from quality.ablations import chosen, read_variants
    from quality.measure import _command, read_options

    variants = read_variants()
    names = [variant.name for variant in variants]

    def options(*arguments: str) -> Any:
        return read_options("quality-ablations", list(arguments), about=None, variants=names)

    found = options("--seeds", "2", "--only", "experts", "--only", "gbce")
    assert [variant.name for variant in chosen(variants, found.only)] == ["gbce", "met", "experts"]
    assert chosen(variants, options().only) == variants
    told = "python dev.py bench quality-ablations --seeds 2 --only experts --only gbce"
    assert _command("quality-ablations", found) == told
    for refused, told in ((["--only", "gbce", "--keep"], "leave --only out"), (["--only", "hinge"], "gbce")):
        with pytest.raises(SystemExit) as stopped:
            options(*refused)
        assert stopped.value.code == 2
        assert told in capsys.readouterr().err


def test_a_row_without_targets_has_no_verdict_and_a_link() -> None:
    from quality.page import render

    row = next(row for row in rows() if row["name"] == "quality-ablations")
    page = render([row], {})
    assert "Without a target, to be read: [`quality-ablations`](#quality-ablations)." in page
    assert "- **Command**: `make bench NAME=quality-ablations`; not measured yet." in page
    summary, _, _ = page.partition("## quality-ablations")
    assert "| [" not in summary


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


def test_an_observer_infers_tastes_from_what_was_watched_and_comes_near_the_oracle(tiny_split: Path) -> None:
    from quality.observer import ndcg10, observe

    from twotower.data.sources.simulated import SimulatedConfig, World
    from twotower.data.split import load_split
    from twotower.evaluation.baselines import Popularity, train_popularity
    from twotower.evaluation.contenders import Oracle
    from twotower.recipe import load_recipe

    recipe = load_recipe(ROOT / "tests" / "tiny.toml", {})
    assert recipe.prepare.simulated == SimulatedConfig(users=300, items=200, interactions=9_000, clusters=8)
    dataset = load_split(tiny_split)
    world, observer = World.load(tiny_split), observe(recipe, dataset)
    assert world is not None
    # Thirty films a viewer tell a good part of eight tastes; softmax leaves their level open, so it is taken out.
    centred = [tastes - tastes.mean(axis=1, keepdims=True) for tastes in (world.taste, observer.worlds[-1].taste)]
    assert np.corrcoef(centred[0].ravel(), centred[1].ravel())[0, 1] > 0.6
    oracle = Oracle.of(dataset)
    assert oracle is not None
    found = [ndcg10(one, recipe, dataset) for one in (Popularity(counts=train_popularity(dataset)), observer, oracle)]
    assert found == sorted(found)


def test_what_a_viewer_has_seen_is_taken_off_what_a_cluster_has_left() -> None:
    from quality.observer import LEAST_LEFT, share_left

    from twotower.data.sources.simulated import World

    world = World(
        start_us=np.array(0), span_us=np.array(100), taste=np.zeros((2, 2), np.float32),
        drift=np.zeros((2, 2), np.float32), leniency=np.zeros(2, np.float32), cluster=np.array([0, 0, 1, 1]),
        weight=np.array([3.0, 1.0, 1.0, 1.0]), quality=np.zeros(4, np.float32),
        release_us=np.array([-1_000_000, -1_000_000, -1_000_000, 50_000_000]),
    )  # fmt: skip
    # The second film of cluster 1 comes out before the last row; the second viewer begins afresh.
    found = share_left(
        world, np.array([0, 0, 0, 1]), np.array([0, 2, 1, 2]), np.array([0, 10_000_000, 20_000_000, 60_000_000])
    )
    np.testing.assert_allclose(found, [[1, 1], [0.25, 1], [0.25, LEAST_LEFT], [1, 1]], rtol=1e-6)
