"""What the people of the simulated world watch: its log, written as Parquet shards.

Viewers are taken a block at a time, so memory is bounded by the block and by the world's tastes (`U` x `C` numbers),
never by the length of the log; 10^3 to 10^8 interactions are made by the same code.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from twotower.data.config import SimulatedConfig
from twotower.data.database import Database, literal
from twotower.data.interactions import RawData
from twotower.data.sources.simulated import REGIONS, SECOND_US, World, build_world
from twotower.data.sources.simulated_films import film_table
from twotower.data.tables import INPUT_ROW
from twotower.errors import RecipeError

_ROWS_AT_ONCE = 262_144
_FREE_DRAWS = 32
_REGION_NAMES = ("North", "South", "East", "West", "Coast", "Hills", "Plains", "Lakes")


def read_simulated(database: Database, config: SimulatedConfig, *, seed: int, out: Path) -> RawData:
    """Make a world, save it in `out`, let its people watch, and hand over the log.

    Args:
        seed: Used where the world has no seed of its own.
    """
    with tempfile.TemporaryDirectory(prefix="twotower-") as shards:
        users, items = write_shards(
            config, seed=seed if config.seed is None else config.seed, out=Path(shards), world=out
        )
        interactions = database.create(
            "raw_interactions", f"SELECT * FROM read_parquet({literal(shards + '/*.parquet')})"
        )
    return RawData(
        name="simulated",
        interactions=interactions,
        users=database.create("raw_users", users),
        items=database.create("raw_items", items),
        labels=("rating",),
        title_column="title",
    )


def write_shards(config: SimulatedConfig, *, seed: int, out: Path, world: Path) -> tuple[pa.Table, pa.Table]:
    """Write the log as `out/00000.parquet` and on, and the truth behind it into the directory `world`.

    Returns: the users table and the items table.
    """
    generator = np.random.default_rng([seed, 0])
    ages = np.clip(generator.normal(40, 15, config.users), 16, 90).round()
    regions = generator.integers(REGIONS, size=config.users)
    truth = build_world(config, ages=ages, regions=regions, seed=seed)
    truth.save(world)
    counts = _viewings_per_viewer(config, truth, generator=generator)
    starts = np.concatenate(([0], np.cumsum(counts)))
    for number, (first, end) in enumerate(_blocks(starts)):
        rows = _watch(
            truth, np.arange(first, end), counts[first:end], generator=np.random.default_rng([seed, 2, number])
        )
        pq.write_table(_shard(*rows, first_row=int(starts[first]) + 1), out / f"{number:05d}.parquet")
    return _user_table(ages, regions), film_table(truth.cluster, truth.release_us, generator=generator)


def _viewings_per_viewer(config: SimulatedConfig, world: World, *, generator: np.random.Generator) -> NDArray[np.int64]:
    """`[U]` how much each viewer watches: few watch much; nobody more than half of what is out on the first day.

    Raises:
        RecipeError: there are not films enough for so many interactions.
    """
    most = max(1, int((world.release_us <= world.start_us).sum()) // 2)
    if config.interactions > most * config.users:
        raise RecipeError(
            f"prepare.simulated: {config.interactions} interactions are more than {config.users} users with {most} "
            "films each can make. Raise users or items."
        )
    weight = generator.lognormal(0, 0.9, config.users)
    counts = np.zeros(config.users, np.int64)
    while missing := config.interactions - int(counts.sum()):
        open_ = np.where(counts < most, weight, 0)
        counts = np.minimum(counts + generator.multinomial(missing, open_ / open_.sum()), most)
    return counts


def _blocks(starts: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Runs of viewers with about `_ROWS_AT_ONCE` viewings each."""
    first, viewers = 0, len(starts) - 1
    while first < viewers:
        end = int(np.searchsorted(starts, starts[first] + _ROWS_AT_ONCE, side="right")) - 1
        end = min(max(end, first + 1), viewers)
        yield first, end
        first = end


Viewings = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]


def _watch(
    world: World, viewers: NDArray[np.int64], counts: NDArray[np.int64], *, generator: np.random.Generator
) -> Viewings:
    """Viewer, film, moment and rating of everything that some viewers watch, by viewer and time."""
    begin = np.clip(generator.uniform(-0.2, 0.95, len(viewers)), 0, None)
    end = np.clip(begin + 0.02 + generator.exponential(0.4, len(viewers)), None, 1)
    viewer = np.repeat(viewers, counts)
    share = generator.uniform(np.repeat(begin, counts), np.repeat(end, counts))
    seconds = np.floor(share * float(world.span_us) / SECOND_US).astype(np.int64)
    order = np.lexsort((seconds, viewer))
    timestamp = world.start_us + seconds[order] * SECOND_US
    film = _draw_unseen(world, viewer, timestamp, generator=generator)
    return viewer, film, timestamp, world.rate(generator, viewer, timestamp, film)


def _draw_unseen(
    world: World, viewer: NDArray[np.int64], timestamp: NDArray[np.int64], *, generator: np.random.Generator
) -> NDArray[np.int64]:
    """A film for each row, none twice for one viewer: the world's probabilities, those seen before left out.

    All rows are drawn at once; a row that repeats an *earlier* row of its viewer is drawn again. A film once held is
    from then on held by that row or an earlier one, so no row is drawn again without reason, and the outcome has the
    distribution of drawing one row after the other.
    """
    film = world.draw(generator, viewer, timestamp)
    watching = np.arange(len(film))
    for _ in range(_FREE_DRAWS):
        again = _repeats(viewer[watching], film[watching], films=len(world.cluster))
        if not again.any():
            return film
        rows = watching[again]
        film[rows] = world.draw(generator, viewer[rows], timestamp[rows])
        watching = watching[np.isin(viewer[watching], viewer[rows])]
    unsettled = watching[_repeats(viewer[watching], film[watching], films=len(world.cluster))]
    for one in np.unique(viewer[unsettled]).tolist():
        _draw_one_by_one(world, viewer, timestamp, film, one, generator=generator)
    return film


def _repeats(viewer: NDArray[np.int64], film: NDArray[np.int64], *, films: int) -> NDArray[np.bool_]:
    """`[n]` whether an earlier row has the same viewer and film."""
    repeated = np.ones(len(viewer), bool)
    repeated[np.unique(viewer * films + film, return_index=True)[1]] = False
    return repeated


def _draw_one_by_one(
    world: World,
    viewer: NDArray[np.int64],
    timestamp: NDArray[np.int64],
    film: NDArray[np.int64],
    one: int,
    *,
    generator: np.random.Generator,
) -> None:
    """Settle in place what is left of a viewer who has seen nearly all that is to their taste.

    Going through their rows in order, a film that is taken is drawn again from the exact rest of the films.
    """
    first, end = np.searchsorted(viewer, [one, one + 1]).tolist()
    taken: set[int] = set()
    for row in range(first, end):
        if int(film[row]) in taken:
            here = slice(row, row + 1)
            chance = np.exp(world.log_probability(viewer[here], timestamp[here])[0])
            chance[list(taken)] = 0
            film[row] = generator.choice(len(chance), p=chance / chance.sum())
        taken.add(int(film[row]))


def _shard(
    viewer: NDArray[np.int64],
    film: NDArray[np.int64],
    timestamp: NDArray[np.int64],
    rating: NDArray[np.float64],
    *,
    first_row: int,
) -> pa.Table:
    return pa.table(
        {
            "user_id": pa.array(viewer + 1).cast(pa.string()),
            "item_id": pa.array(film + 1).cast(pa.string()),
            "timestamp": pa.array(timestamp).cast(pa.timestamp("us")),
            "rating": pa.array(rating),
            INPUT_ROW: pa.array(np.arange(first_row, first_row + len(viewer))),
        }
    )


def _user_table(ages: NDArray[np.float64], regions: NDArray[np.int64]) -> pa.Table:
    numbers = np.arange(1, len(ages) + 1)
    return pa.table(
        {
            "user_id": pa.array(numbers).cast(pa.string()),
            "age": pa.array(ages.astype(np.int64)),
            "region": pa.array([_REGION_NAMES[region] for region in regions.tolist()]),
            INPUT_ROW: pa.array(numbers),
        }
    )
