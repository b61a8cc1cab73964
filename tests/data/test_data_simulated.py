"""The simulated world: what it says of itself is true."""

import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from twotower.artifact import fingerprint
from twotower.data.prepare import PrepareConfig, prepare
from twotower.data.sources.simulated import SimulatedConfig, World
from twotower.data.sources.simulated_log import write_shards
from twotower.data.split import TEST, TRAIN, load_split
from twotower.errors import DataError, RecipeError

SMALL = SimulatedConfig(users=40, items=30, interactions=400, clusters=3)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    directory = tmp_path_factory.mktemp("world")
    write_shards(SMALL, seed=5, out=directory, world=directory)
    loaded = World.load(directory)
    assert loaded is not None
    return loaded


def test_films_are_drawn_as_often_as_the_best_scores_say(world: World) -> None:
    # 200,000 draws for one viewer at one moment: a film's share is within five standard errors of its probability.
    count = 200_000
    moment = int(world.start_us + world.span_us // 2)
    ids = [str(number) for number in range(1, 31)]
    probability = np.exp(world.best_scores(["7"], np.array([moment]), world.film_rows(ids))[0].astype(np.float64))
    drawn = world.draw(np.random.default_rng(0), np.full(count, 6), np.full(count, moment))
    share = np.bincount(drawn, minlength=30) / count
    assert probability.sum() == pytest.approx(1, abs=1e-5)
    assert (np.abs(share - probability) <= 5 * np.sqrt(probability * (1 - probability) / count)).all()
    assert (probability == 0).sum() == (world.release_us > moment).sum() > 0


def test_the_best_scores_follow_from_the_formula() -> None:
    # Two clusters with logits ln 3 and 0 at the log's middle: 3/4 and 1/4. Film 3 is not out yet; film 2 weighs 1 of 4.
    world = World(
        start_us=np.array(0),
        span_us=np.array(200_000_000),
        taste=np.array([[np.log(3), 0.0]], np.float32),
        drift=np.array([[2.0, 0.0]], np.float32),
        leniency=np.zeros(1, np.float32),
        cluster=np.array([0, 0, 0, 1]),
        weight=np.array([3.0, 1.0, 5.0, 2.0]),
        quality=np.zeros(4, np.float32),
        release_us=np.array([-1_000_000, 0, 150_000_000, 0]),
    )
    at_middle = np.exp(world.best_scores(["1"], np.array([100_000_000]), np.arange(4)))
    assert at_middle[0].tolist() == pytest.approx([9 / 16, 3 / 16, 0, 1 / 4])
    # At the end the drift adds 2 * 1/2 to the first logit: 3e to 1; film 3 is out, so the weights are 3, 1, 5 of 9.
    at_end = np.exp(world.best_scores(["1"], np.array([200_000_000]), np.array([3, 2])))
    assert at_end[0].tolist() == pytest.approx([1 / (3 * np.e + 1), 3 * np.e / (3 * np.e + 1) * 5 / 9])


def test_the_expected_rating_is_the_mean_of_many_ratings(world: World) -> None:
    moment = np.array([int(world.start_us)])
    for film in (0, 11):
        expected = world.expected_rating(["3"], moment, [str(film + 1)])[0]
        many = (np.full(50_000, 2), np.full(50_000, moment[0]), np.full(50_000, film))
        assert world.rate(np.random.default_rng(1), *many).mean() == pytest.approx(expected, abs=0.02)


def test_nobody_watches_a_film_twice_or_before_its_release(tiny_split: Path) -> None:
    dataset, truth = load_split(tiny_split), World.load(tiny_split)
    assert truth is not None
    pairs = dataset.user.astype(np.int64) * len(dataset.item_ids) + dataset.item
    assert len(np.unique(pairs)) == len(pairs) == 9_000
    assert (truth.release_us[truth.film_rows(dataset.item_ids[dataset.item])] <= dataset.timestamp).all()
    assert truth.start_us <= dataset.timestamp.min()
    assert dataset.timestamp.max() <= truth.start_us + truth.span_us
    assert set(dataset.labels["rating"].tolist()) == {1, 2, 3, 4, 5}


def test_watching_without_repeats_has_the_distribution_of_drawing_one_by_one() -> None:
    # Two films of one cluster, weights 3 and 1, each viewer watches both: the heavy one comes first in 3 of 4 cases.
    from twotower.data.sources.simulated_log import _draw_unseen

    viewers = 20_000
    world = World(
        start_us=np.array(0),
        span_us=np.array(10_000_000),
        taste=np.zeros((viewers, 1), np.float32),
        drift=np.zeros((viewers, 1), np.float32),
        leniency=np.zeros(viewers, np.float32),
        cluster=np.array([0, 0]),
        weight=np.array([3.0, 1.0]),
        quality=np.zeros(2, np.float32),
        release_us=np.array([-1_000_000, -1_000_000]),
    )
    viewer, moment = np.repeat(np.arange(viewers), 2), np.tile([1_000_000, 2_000_000], viewers)
    film = _draw_unseen(world, viewer, moment, generator=np.random.default_rng(0)).reshape(-1, 2)
    assert (film.sum(axis=1) == 1).all()
    assert (film[:, 0] == 0).mean() == pytest.approx(0.75, abs=0.015)


def test_knowing_the_tastes_pays_much_more_than_knowing_what_is_popular(tmp_path: Path) -> None:
    directory = tmp_path / "world"
    directory.mkdir()
    prepare(PrepareConfig(), seed=1, out=directory)
    table, truth = pq.read_table(directory / "interactions.parquet"), World.load(directory)
    assert truth is not None
    assert table.num_rows == 150_000
    item = truth.film_rows(table["item_id"].to_pylist())
    asked = np.random.default_rng(0).choice(np.arange(135_000, 150_000), 1_000, replace=False)
    users = table["user_id"].take(asked).to_pylist()
    moments = table["timestamp"].take(asked).cast("int64").to_numpy()
    best = truth.best_scores(users, moments, np.arange(2_000))
    popular = np.bincount(item[:135_000], minlength=2_000)

    def ndcg(scores: np.ndarray) -> float:
        rank = 1 + (scores > np.take_along_axis(scores, item[asked][:, None], axis=1)).sum(axis=1)
        return float(np.where(rank <= 10, 1 / np.log2(rank + 1), 0).mean())

    assert ndcg(best) > 3 * ndcg(np.broadcast_to(popular, best.shape))


def test_the_same_seed_gives_the_same_world_and_another_seed_another(tiny_prepared: Path, tmp_path: Path) -> None:
    for seed, name in ((5, "a"), (5, "b"), (6, "c")):
        (tmp_path / name).mkdir()
        write_shards(SMALL, seed=seed, out=tmp_path / name, world=tmp_path / name)
    one, same, other = (pq.read_table(tmp_path / name / "00000.parquet") for name in "abc")
    assert one.equals(same)
    assert not one.equals(other)
    assert fingerprint(tiny_prepared)


def test_the_world_goes_along_with_the_split_and_real_data_has_none(tiny_split: Path, tmp_path: Path) -> None:
    assert World.load(tiny_split) is not None
    assert World.load(tmp_path) is None


def test_the_tiny_world_has_what_tests_need(tiny_split: Path) -> None:
    dataset = load_split(tiny_split)
    assert (len(dataset.user_ids), len(dataset.item_ids), len(dataset.user)) == (300, 200, 9_000)
    assert 0 < dataset.positive.mean() < 1
    new = ~np.isin(dataset.user[dataset.part == TEST], dataset.user[dataset.part == TRAIN])
    assert new.any()
    assert not new.all()


def test_a_longer_log_needs_no_more_memory(tmp_path: Path) -> None:
    peaks = []
    for interactions in (300_000, 900_000):
        config = SimulatedConfig(users=9_000, items=20_000, interactions=interactions, clusters=8)
        (tmp_path / str(interactions)).mkdir()
        tracemalloc.start()
        write_shards(config, seed=0, out=tmp_path / str(interactions), world=tmp_path / str(interactions))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        shards = sorted((tmp_path / str(interactions)).glob("*.parquet"))
        assert sum(pq.read_metadata(shard).num_rows for shard in shards) == interactions
    assert peaks[1] < 1.5 * peaks[0]


def test_a_world_that_cannot_be_is_refused() -> None:
    with pytest.raises(RecipeError, match="9 items in 10 clusters leave some empty"):
        write_shards(SimulatedConfig(items=9, clusters=10), seed=0, out=Path(), world=Path())


def test_more_interactions_than_films_are_refused(tmp_path: Path) -> None:
    config = SimulatedConfig(users=10, items=20, clusters=2, interactions=1_000)
    with pytest.raises(RecipeError, match="1000 interactions are more than 10 users"):
        write_shards(config, seed=0, out=tmp_path, world=tmp_path)


def test_an_id_from_elsewhere_is_refused(world: World) -> None:
    with pytest.raises(DataError, match="user ids 1 to 40"):
        world.best_scores(["41"], np.array([0]), np.arange(1))
