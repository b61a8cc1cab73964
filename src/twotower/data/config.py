"""What the recipe says of the data. Apart from what reads it, so that reading a recipe loads no engine."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from twotower.data.schema import STRICT, PositiveInt

TimestampFormat = Literal["auto", "s", "ms", "us", "iso"]

Source = Literal[
    "simulated",
    "files",
    "movielens-100k",
    "movielens-1m",
    "movielens-latest-small",
    "movielens-20m",
    "movielens-32m",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesConfig:
    """Your own tables, and what their columns are called."""

    __pydantic_config__ = STRICT

    interactions: str = ""
    """File, URI or SQL query of the interactions; with `test`, of those to train on."""
    new_interactions: str = ""
    """What `twotower events export` wrote: the interactions that a server recorded, read below `interactions`."""
    validation: str = ""
    """Interactions that stop the training, for split.protocol = "given"."""
    test: str = ""
    """Interactions that judge, for split.protocol = "given"."""
    users: str = ""
    """File, URI or SQL query of the users table; may be left out."""
    items: str = ""
    """File, URI or SQL query of the items table; where it is left out, the items met are the catalogue."""
    new_items: str = ""
    """What `twotower events export --items` wrote: each takes the place of the one with the same id in `items`."""
    attach: dict[str, str] = field(default_factory=dict)
    """Databases for the queries: name -> file or DuckDB connection string, opened for reading only."""
    columns: dict[str, str] = field(default_factory=dict)
    """Our name -> yours, in whichever table has it: `user_id`, `item_id`, `timestamp`, and any other to be renamed."""
    labels: tuple[str, ...] = ()
    """Columns of the interactions that hold a number to learn, such as a rating."""
    context: tuple[str, ...] = ()
    """Columns of the interactions that are known when one asks, such as the device."""
    title: str = ""
    """Column of the items table that a reader knows an item by; by default `title`, where there is one."""
    timestamp_format: TimestampFormat = "auto"
    """Unix time in seconds, milliseconds or microseconds, or ISO 8601 (UTC where it names no zone)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedConfig:
    """How large the world is, and how hard to read."""

    __pydantic_config__ = STRICT

    users: Annotated[int, Ge(2)] = 3_000
    """Viewers."""
    items: Annotated[int, Ge(2)] = 2_000
    """Films."""
    interactions: PositiveInt = 150_000
    """Films watched, in all: 10^3 to 10^8."""
    clusters: Annotated[int, Gt(0), Le(4096)] = 24
    """Hidden kinds of film."""
    taste: Annotated[float, Ge(0)] = 2.2
    """Spread of the taste logits: 0 makes everybody alike, 3 makes most viewers keep to one or two clusters."""
    drift: Annotated[float, Ge(0)] = 1.5
    """Spread of the change of the taste logits from the log's first day to its last."""
    popularity: Annotated[float, Ge(0)] = 1.2
    """Exponent of Zipf's law within a cluster: 0 makes all its films alike."""
    released_before: Annotated[float, Gt(0), Le(1)] = 0.7
    """Share of the films that are out when the log begins; the others come out during it."""
    days: PositiveInt = 730
    """Span of the log."""
    seed: int | None = None
    """The world's own; by default the recipe's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareConfig:
    """Which interactions to learn from, and what each of them means."""

    __pydantic_config__ = STRICT

    engine: Literal["duckdb", "spark"] = "duckdb"
    """What computes: DuckDB in this process, or Spark, for a log that outgrows one machine."""
    spark_master: str = "local[*]"
    """Master URL, with engine = "spark"; `local[*]` is this machine."""
    spark_settings: dict[str, str] = field(default_factory=dict)
    """Spark's own settings, with engine = "spark", as in `{"spark.driver.memory" = "8g"}`."""
    source: Source = "simulated"
    """Where the tables come from; `files` and `simulated` have a section of their own below."""
    data_dir: str | None = None
    """Folder of your files, or of the MovieLens sets: by default `TWOTOWER_DATA`, else a cache in the home folder."""
    item_key: str = "item_id"
    """Column of the items table that names an item; with `title`, films of one title are one item."""
    filter: str = "true"
    """SQL condition over the interactions' columns; the others are dropped."""
    until: str = ""
    """Moment, ISO 8601 in UTC: interactions from then on are left out, as in `2026-11-01`."""
    window_days: Annotated[float, Ge(0)] = 0
    """Only so many days up to `until`, or up to the end of the log, are kept; 0 keeps all."""
    unknown_items: Literal["error", "drop", "keep"] = "error"
    """What to do with interactions whose item is not in the items table."""
    missing_labels: Literal["error", "keep"] = "error"
    """`keep`: an interaction without a label stays, and teaches only what it has."""
    duplicates: Literal["keep", "keep_first", "keep_last", "error"] = "keep"
    """What to do where a user meets an item again."""
    min_user_interactions: Annotated[int, Ge(0)] = 0
    """Users with fewer are dropped, together with the next setting until nothing changes."""
    min_item_interactions: Annotated[int, Ge(0)] = 0
    """Items with fewer are dropped; from 1 on, those that nobody met leave the catalogue too."""
    labels: dict[str, str] = field(default_factory=dict)
    """Further labels: name -> SQL expression over the columns, e.g. `liked = "rating >= 4"`."""
    positives: str = "true"
    """SQL condition: the interactions that retrieval should bring, e.g. `rating >= 4`."""
    files: FilesConfig = field(default_factory=FilesConfig)
    """Used with source = "files"."""
    simulated: SimulatedConfig = field(default_factory=SimulatedConfig)
    """Used with source = "simulated"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitConfig:
    """What training may learn from, what stops it, and what judges it."""

    __pydantic_config__ = STRICT

    protocol: Literal["time", "last_out", "random", "given"] = "time"
    """Cut the log at an instant, take each user's last positive, draw by chance, or as the files say."""
    test: Annotated[float, Gt(0), Lt(1)] | None = None
    """Share of all interactions, 0.1 by default; for `time` (the latest ones) and `random` only."""
    validation: Annotated[float, Ge(0), Lt(1)] | None = None
    """Share of all interactions, 0.05 by default; not for `last_out`, which takes each user's last but one."""
