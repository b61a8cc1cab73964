"""A world of invented films and viewers whose best possible ranking is known.

Each film belongs to one hidden cluster; each viewer has a taste for every cluster, which drifts with time. The next
film of a viewer is drawn by

    P(film | viewer, moment) = P(cluster | viewer, moment) * weight(film) / (weight of the cluster's released films)

where P(cluster | ...) is the softmax of the drifting tastes, and a film that the viewer had before is drawn again. A
report can therefore say how near to the best a model comes. A model sees none of it: only who watched what and when,
the rating given, and titles, genres, release dates, home regions and ages that hint at clusters and tastes.

This file is what is true in that world; `simulated_films.py` names the films, `simulated_log.py` lets people watch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, ndtr

from twotower.data.config import SimulatedConfig
from twotower.data.tables import WORLD
from twotower.errors import DataError, RecipeError

SECOND_US = 1_000_000
DAY_US = 86_400 * SECOND_US
FIRST_DAY_US = 19_723 * DAY_US  # 1 January 2024
REGIONS = 8

_RATING_NOISE = 0.7
_MEAN_RATING = 2.9


@dataclass(frozen=True, kw_only=True)
class World:
    """What no model is told: tastes, clusters and weights, and the probabilities that follow from them.

    `U` viewers, `I` films, `C` clusters. Raw ids are the rows counted from 1, as strings.
    """

    start_us: NDArray[np.int64]
    """`[]` the log's first moment."""
    span_us: NDArray[np.int64]
    """`[]` its length."""
    taste: NDArray[np.float32]
    """`[U, C]` logits of the clusters at the middle of the log."""
    drift: NDArray[np.float32]
    """`[U, C]` change of the logits from start to end."""
    leniency: NDArray[np.float32]
    """`[U]` stars that the viewer gives above the usual."""
    cluster: NDArray[np.int64]
    """`[I]` the film's cluster."""
    weight: NDArray[np.float64]
    """`[I]` popularity within the cluster, above 0."""
    quality: NDArray[np.float32]
    """`[I]` deviations above the mean film."""
    release_us: NDArray[np.int64]
    """`[I]` first moment at which the film can be watched, in whole seconds."""

    def save(self, directory: Path) -> None:
        """Write the world beside the tables that came of it."""
        np.savez(directory / WORLD, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, directory: Path) -> "World | None":
        """The world that a prepared or split directory came of, or None where it came of real data."""
        path = directory / WORLD
        if not path.is_file():
            return None
        with np.load(path, allow_pickle=False) as stored:
            return cls(**{field.name: stored[field.name] for field in fields(cls)})

    def best_scores(
        self, users: Sequence[str], timestamp: NDArray[np.int64], films: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """The best ranking there can be: log-probability that each film is the viewer's next, in nats.

        What the viewer has seen already is not taken out: leaving it out does not change the order of the rest.

        Args:
            users: `[q]` raw ids.
            timestamp: `[q]` microseconds since 1970.
            films: `[I']` rows, as `film_rows` gives them.

        Returns: `[q, I']`; -inf where a film is not released yet.
        """
        return self.log_probability(self.viewer_rows(users), timestamp)[:, films].astype(np.float32)

    def expected_rating(
        self, users: Sequence[str], timestamp: NDArray[np.int64], item_ids: Sequence[str]
    ) -> NDArray[np.float32]:
        """The best guess of a rating, 1 to 5 stars: its mean over the noise, rounding and limits included.

        Args:
            users: `[q]` raw ids.
            timestamp: `[q]` microseconds since 1970.
            item_ids: `[q]` raw ids, one for each viewer.
        """
        mean = self.mean_opinion(self.viewer_rows(users), timestamp, self.film_rows(item_ids))
        limits = np.arange(1.5, 5.0)  # Above 1.5 is at least 2 stars, and so on.
        return np.asarray(1 + ndtr((mean[:, None] - limits) / _RATING_NOISE).sum(axis=1), np.float32)

    def log_probability(self, viewer: NDArray[np.int64], timestamp: NDArray[np.int64]) -> NDArray[np.float64]:
        """`[q, I]` log-probability of each film, before those seen are left out; `[q]` rows and moments."""
        chosen = log_softmax(self.cluster_logits(viewer, timestamp), axis=1)
        with np.errstate(divide="ignore"):
            chosen = chosen - np.log(self.released_weight(timestamp))
            scores: NDArray[np.float64] = chosen[:, self.cluster] + np.log(self.weight)
        scores[self.release_us[None, :] > timestamp[:, None]] = -np.inf
        return scores

    def cluster_logits(self, viewer: NDArray[np.int64], timestamp: NDArray[np.int64]) -> NDArray[np.float64]:
        """`[q, C]` taste for each cluster at the moment: a straight line in time."""
        age = (timestamp - self.start_us) / self.span_us - 0.5
        return np.asarray(self.taste[viewer] + self.drift[viewer] * age[:, None], np.float64)

    def draw(
        self, generator: np.random.Generator, viewer: NDArray[np.int64], timestamp: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """`[q]` one film for each viewer and moment, whatever was seen before."""
        logits = self.cluster_logits(viewer, timestamp)
        chance = np.exp(logits - logits.max(axis=1, keepdims=True)).cumsum(axis=1)
        cluster = (chance < generator.random(len(viewer))[:, None] * chance[:, -1:]).sum(axis=1)
        first, end = self._first[cluster], self._end(cluster, timestamp)
        low, high = self._cumulative[first], self._cumulative[end]
        place = np.searchsorted(self._cumulative, low + generator.random(len(viewer)) * (high - low), side="right") - 1
        return np.asarray(self._order[np.clip(place, first, end - 1)], np.int64)

    def rate(
        self,
        generator: np.random.Generator,
        viewer: NDArray[np.int64],
        timestamp: NDArray[np.int64],
        film: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """`[q]` ratings given, 1 to 5 whole stars."""
        opinion = self.mean_opinion(viewer, timestamp, film) + generator.normal(0, _RATING_NOISE, len(viewer))
        return np.clip(np.round(opinion), 1, 5)

    def mean_opinion(
        self, viewer: NDArray[np.int64], timestamp: NDArray[np.int64], film: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """`[q]` stars before noise, rounding and limits."""
        age = (timestamp - self.start_us) / self.span_us - 0.5
        cluster = self.cluster[film]
        liking = self.taste[viewer, cluster] + self.drift[viewer, cluster] * age
        return np.asarray(_MEAN_RATING + 0.5 * self.quality[film] + 0.2 * liking + self.leniency[viewer], np.float64)

    def viewer_rows(self, users: Sequence[str]) -> NDArray[np.int64]:
        """Rows of raw user ids."""
        return _rows(users, count=len(self.taste), noun="user")

    def film_rows(self, item_ids: Sequence[str]) -> NDArray[np.int64]:
        """Rows of raw item ids."""
        return _rows(item_ids, count=len(self.cluster), noun="item")

    # Films stand on shelves: side by side by cluster and release, so that what is out at a moment is a run of them.

    @cached_property
    def _order(self) -> NDArray[np.int64]:
        return np.lexsort((self.release_us, self.cluster))

    @cached_property
    def _first(self) -> NDArray[np.int64]:
        """`[C + 1]` each cluster's first place."""
        return np.searchsorted(self.cluster[self._order], np.arange(self.taste.shape[1] + 1))

    @cached_property
    def _cumulative(self) -> NDArray[np.float64]:
        """`[I + 1]` weight of all the places before."""
        return np.concatenate(([0.0], np.cumsum(self.weight[self._order])))

    @cached_property
    def _place_key(self) -> NDArray[np.int64]:
        return self._key(self.cluster[self._order], self.release_us[self._order])

    def _key(self, cluster: NDArray[np.int64], timestamp: NDArray[np.int64]) -> NDArray[np.int64]:
        """Cluster and second in one number that sorts like the pair of them."""
        seconds = (timestamp - self.release_us.min()) // SECOND_US
        return np.asarray((cluster << 40) + np.clip(seconds, -1, 1 << 39) + 1, np.int64)

    def _end(self, cluster: NDArray[np.int64], timestamp: NDArray[np.int64]) -> NDArray[np.int64]:
        """The place after the last film of the cluster that is out at the moment."""
        return np.searchsorted(self._place_key, self._key(cluster, timestamp), side="right")

    def released_weight(self, timestamp: NDArray[np.int64]) -> NDArray[np.float64]:
        """`[q, C]` weight of each cluster's films that are out at the moment."""
        cluster = np.arange(self.taste.shape[1])
        end = self._end(cluster[None, :], timestamp[:, None])
        return self._cumulative[end] - self._cumulative[self._first[:-1]]


def build_world(config: SimulatedConfig, *, ages: NDArray[np.float64], regions: NDArray[np.int64], seed: int) -> World:
    """Draw the tastes and the films of a world.

    Args:
        ages: `[U]` years; a part of the tastes goes with them.
        regions: `[U]` home region, below `REGIONS`; another part goes with it.

    Raises:
        RecipeError: fewer films than clusters.
    """
    if config.items < config.clusters:
        raise RecipeError(
            f"prepare.simulated: {config.items} items in {config.clusters} clusters leave some empty. "
            "Raise items, or lower clusters."
        )
    generator = np.random.default_rng([seed, 1])
    shape = (config.users, config.clusters)
    by_region = generator.normal(size=(REGIONS, config.clusters))[regions]
    by_age = generator.normal(size=config.clusters) * ((ages - 40) / 15)[:, None]
    own = generator.normal(size=shape)
    common = generator.normal(size=config.clusters)
    # The parts' variances add up to 1, so that `taste` is the spread of the whole.
    mixed = np.sqrt(0.05) * common + np.sqrt(0.2) * by_region + np.sqrt(0.1) * by_age + np.sqrt(0.65) * own
    cluster, weight, release_us = _films(config, generator)
    standing = np.log(weight) - np.log(weight).mean()
    return World(
        start_us=np.array(FIRST_DAY_US),
        span_us=np.array(config.days * DAY_US),
        taste=(config.taste * mixed).astype(np.float32),
        drift=(config.drift * generator.normal(size=shape)).astype(np.float32),
        leniency=generator.normal(0, 0.35, config.users).astype(np.float32),
        cluster=cluster,
        weight=weight,
        quality=(0.3 * standing + 0.8 * generator.normal(size=config.items)).astype(np.float32),
        release_us=release_us,
    )


def _films(
    config: SimulatedConfig, generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Cluster, weight and release of each film; every cluster has a film that is out from the first day."""
    cluster: NDArray[np.int64] = generator.permutation(np.arange(config.items) % config.clusters)
    order = np.lexsort((generator.random(config.items), cluster))
    first = np.searchsorted(cluster[order], np.arange(config.clusters))
    rank = np.empty(config.items, np.int64)
    rank[order] = np.arange(config.items) - first[cluster[order]] + 1
    weight = np.float64(1.0) / (rank + 2.0) ** config.popularity  # Shifted, so that no single film rules its cluster.
    days = -generator.exponential(3650, config.items) - 1
    later = generator.random(config.items) >= config.released_before
    days = np.where(later, generator.uniform(0, config.days, config.items), days)
    days[order[first]] = -np.abs(days[order[first]]) - 1
    return cluster, weight, FIRST_DAY_US + np.floor(days * 86_400).astype(np.int64) * SECOND_US


def _rows(ids: Sequence[str], *, count: int, noun: str) -> NDArray[np.int64]:
    rows = np.asarray(ids).astype(np.int64) - 1
    if len(rows) and (rows.min() < 0 or rows.max() >= count):
        raise DataError(f"the simulated world has the {noun} ids 1 to {count}, asked for another. Check the directory.")
    return rows
