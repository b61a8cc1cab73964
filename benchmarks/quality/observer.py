"""How much of the oracle a log lets anybody have: an observer who is told everything of a world but its tastes.

The oracle knows tastes that nobody can read off a log without doubt. The observer knows as much as the oracle of films
(cluster, weight, release) and the law by which the next one is drawn, but infers each viewer's tastes and their drift
from what the viewer watched before: the most probable ones, if every taste were drawn by itself. A strong reference and
no bound: it is not told that tastes go with regions and ages, it takes the most probable tastes for true, and it infers
them anew only a few times while a model's histories are always up to date.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from twotower.data.sources.simulated import World
from twotower.data.split import TEST, SplitDataset
from twotower.evaluation import contest
from twotower.evaluation.contenders import Contender
from twotower.evaluation.metrics import query_metrics
from twotower.evaluation.queries import Queries, successive

if TYPE_CHECKING:
    from twotower.recipe import Recipe

SLICES = 4
"""Of the test part: before each, tastes are inferred anew, so that the observer hardly lags behind histories."""
ITERATIONS = 200
"""Of the search for the most probable tastes; the last ones move NDCG@10 by less than .0001."""
LEAST_LEFT = 1e-4
"""A cluster of which everything was seen still has this share of its weight, against the logarithm of 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observer:
    """Ranks by the chance of being next under the inferred tastes."""

    worlds: list[World]
    """One a slice of the test part, with the tastes inferred from everything before it."""
    starts: NDArray[np.int64]
    """`[SLICES]` first moment of each slice, in microseconds."""
    user_ids: NDArray[np.object_]
    item_ids: NDArray[np.object_]
    name: str = "observer"

    def score(self, queries: Queries) -> NDArray[np.float32]:
        """`[q, I]` log-probability of each film."""
        found = np.empty((len(queries), len(self.item_ids)), np.float32)
        slice_of = np.maximum(np.searchsorted(self.starts, queries.timestamp, side="right") - 1, 0)
        for number in np.unique(slice_of):
            chosen = slice_of == number
            users = self.user_ids[queries.user[chosen]].tolist()
            world = self.worlds[number]
            films = world.film_rows(self.item_ids.tolist())
            found[chosen] = world.best_scores(users, queries.timestamp[chosen], films)
        return found


def ndcg10(contender: Contender, recipe: "Recipe", dataset: SplitDataset) -> float:
    """NDCG@10 on the queries that the report asks."""
    config = recipe.evaluate
    arena = contest.Arena.of(config, items=len(dataset.item_ids))
    queries, _ = contest.answerable(successive(dataset), arena=arena)
    queries = contest.sampled(queries, config.max_queries, seed=recipe.seed)
    outcome = contest.run(contender, queries, arena=arena)
    return float(query_metrics(outcome.ranks, queries.relevant_start, ks=(10,))["ndcg@10"].mean())


def observe(recipe: "Recipe", dataset: SplitDataset) -> Observer:
    """Infer the tastes of a simulated split's viewers before each slice of its test part.

    Raises:
        RuntimeError: the data was not simulated.
    """
    world = World.load(dataset.directory) if dataset.directory is not None else None
    if world is None:
        raise RuntimeError("the observer knows simulated worlds only")
    tested = dataset.timestamp[dataset.part == TEST]
    starts = np.linspace(tested.min(), tested.max() + 1, SLICES, endpoint=False).astype(np.int64)
    order = np.lexsort((dataset.timestamp, dataset.user))
    user, item, moment = dataset.user[order], dataset.item[order], dataset.timestamp[order]
    viewer, film = world.viewer_rows(dataset.user_ids.tolist())[user], world.film_rows(dataset.item_ids.tolist())[item]
    left = share_left(world, viewer, film, moment)
    simulated = recipe.prepare.simulated
    worlds = []
    for start in starts:
        known = moment < start
        taste, drift = infer_tastes(
            world,
            viewer[known],
            film[known],
            moment[known],
            left=left[known],
            deviations=(simulated.taste, simulated.drift),
        )
        worlds.append(replace(world, taste=taste, drift=drift))
    return Observer(worlds=worlds, starts=starts, user_ids=dataset.user_ids, item_ids=dataset.item_ids)


def share_left(
    world: World, viewer: NDArray[np.int64], film: NDArray[np.int64], moment: NDArray[np.int64]
) -> NDArray[np.float32]:
    """`[n, C]` of each cluster's weight that is out, the share that the viewer has not seen just before.

    A film that was seen is drawn again, so a cluster that is used up is watched less than it is liked.

    Args:
        world: The world.
        viewer: `[n]` rows, each viewer's side by side.
        film: `[n]` rows.
        moment: `[n]` microseconds, not descending within a viewer.
    """
    seen = np.zeros((len(viewer), world.taste.shape[1]))
    cluster, weight = world.cluster[film], world.weight[film]
    seen[np.arange(len(viewer)), cluster] = weight
    total = np.cumsum(seen, axis=0) - seen
    first = np.flatnonzero(np.r_[True, viewer[1:] != viewer[:-1]])
    before = total[first][np.cumsum(np.r_[True, viewer[1:] != viewer[:-1]]) - 1]
    left = 1 - (total - before) / world.released_weight(moment)
    return np.asarray(np.clip(left, LEAST_LEFT, 1), np.float32)


def infer_tastes(
    world: World,
    viewer: NDArray[np.int64],
    film: NDArray[np.int64],
    moment: NDArray[np.int64],
    *,
    left: NDArray[np.float32],
    deviations: tuple[float, float],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """`[U, C]` the most probable tastes and drifts, given what was watched and their spread over all viewers.

    Args:
        world: Its films and its clock; its tastes are not looked at.
        viewer: `[n]` rows.
        film: `[n]` rows.
        moment: `[n]` microseconds.
        left: `[n, C]` as `share_left` gives it.
        deviations: Of tastes and of drifts; the means are 0.
    """
    cluster, log_left = jnp.asarray(world.cluster[film]), jnp.log(left)
    age = jnp.asarray((moment - world.start_us) / world.span_us - 0.5, jnp.float32)
    shape = (2, *world.taste.shape)
    scale = jnp.maximum(jnp.asarray(deviations, jnp.float32), 1e-3)[:, None, None]

    @jax.jit
    def value_and_gradient(flat: jax.Array) -> tuple[jax.Array, jax.Array]:
        def improbability(flat: jax.Array) -> jax.Array:
            standard = flat.reshape(shape)
            taste, drift = standard * scale
            liked = taste[viewer] + drift[viewer] * age[:, None]
            chosen = jnp.take_along_axis(liked, cluster[:, None], axis=1)[:, 0]
            return jnp.sum(jax.nn.logsumexp(liked + log_left, axis=1) - chosen) + 0.5 * jnp.sum(standard**2)

        return jax.value_and_grad(improbability)(flat)

    def at(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        value, gradient = value_and_gradient(jnp.asarray(flat, jnp.float32))
        return float(value), np.asarray(gradient, np.float64)

    found = minimize(at, np.zeros(int(np.prod(shape))), jac=True, method="L-BFGS-B", options={"maxiter": ITERATIONS})
    taste, drift = np.asarray(found.x, np.float32).reshape(shape) * np.asarray(scale)
    return taste, drift
