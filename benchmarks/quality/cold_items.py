"""MovieLens-1M, films that training never met, placed by title, year and genres alone."""

from pathlib import Path
from typing import TYPE_CHECKING

import movielens_splits
import numpy as np
from numpy.typing import NDArray

from quality import measure

if TYPE_CHECKING:
    from twotower.data.split import SplitDataset
    from twotower.evaluation.queries import Queries

NAME = "quality-cold-items"
KEYS = ("recall100", "random", "popular_by_genre")
COLD_SHARE = 0.5
K = 100
KS = (10, 100)
BLOCK = 1024
"""Queries scored at a time."""
JITTER = 1e-4
"""Breaks the ties of a score that only genres decide; scores are scaled to at most 1."""


def run(arguments: list[str]) -> dict[str, float]:
    """Means over the seeds' held-out films."""
    options = measure.read_options(NAME, arguments, about=__doc__)
    runs = measure.each_seed(options, _one)
    return measure.write(NAME, options, runs=runs, figures=measure.figures(runs))


def draw_cold(rows: list[list[str]], *, seed: int) -> set[str]:
    """The films held out: a share of those with a rating, whatever their popularity."""
    rated = sorted({row[1] for row in rows}, key=int)
    chosen = np.random.default_rng(seed).permutation(len(rated))[: round(len(rated) * COLD_SHARE)]
    return {rated[place] for place in chosen.tolist()}


def genre_scores(
    history: NDArray[np.float64],
    popularity: NDArray[np.float64],
    *,
    genres: NDArray[np.float64],
    warm: NDArray[np.bool_],
) -> dict[str, NDArray[np.float64]]:
    """`[U, I]` the baseline's scores, its two readings of a film with several genres.

    `U` users, `I` films, `G` genres.

    Args:
        history: `[U, I]` 1 where the user rated the film in train.
        popularity: `[I]` train ratings.
        genres: `[I, G]` 1 where the film is of the genre.
        warm: `[I]` whether the film is in train.
    """
    met = history @ genres
    share = met / np.maximum(met.sum(axis=1, keepdims=True), 1)
    usual = (popularity[warm] @ genres[warm]) / np.maximum(genres[warm].sum(axis=0), 1)
    summed = (share * usual) @ genres.T
    return {"sum": summed, "mean": summed / np.maximum(genres.sum(axis=1), 1)}


def _one(options: measure.Options, seed: int, folder: Path) -> measure.Measured:
    from twotower.data.split import load_split
    from twotower.evaluation.model_contender import ModelContender
    from twotower.model.exported import ExportedModel

    rows = movielens_splits.interactions_1m()
    cold = draw_cold(rows, seed=seed)
    movielens_splits.write_parts(folder, rows, test=np.array([row[1] in cold for row in rows]))
    movielens_splits.write_films(folder / "items.csv", movielens_splits.films_1m())
    movielens_splits.write_users_1m(folder / "users.csv")
    fitted = measure.fit("cold_items.toml", options=options, seed=seed, out=folder, data_dir=folder)
    dataset = load_split(fitted.split)
    contender = ModelContender(ExportedModel.load(fitted.model), dataset=dataset)
    queries, columns = cold_queries(dataset, cold)
    ours = [contender.score(block)[:, columns] for block in _blocks(queries)]
    table = {"model, by content": _judge(np.concatenate(ours), queries, columns=columns)}
    for name, scores in _by_genre(dataset, queries, columns=columns, seed=seed).items():
        table[f"popular by genre, {name}"] = _judge(scores, queries, columns=columns)
    table["random"] = {f"recall@{k}": k / len(columns) for k in KS}
    best = max(metrics[f"recall@{K}"] for name, metrics in table.items() if name.startswith("popular"))
    found = {name: table[name][f"recall@{K}"] for name in ("model, by content", "random")}
    return measure.Measured(
        fitted={"": fitted},
        figures={
            "recall100": found["model, by content"],
            "random": found["random"],
            "popular_by_genre": best,
            "above_genre": found["model, by content"] - best,
        },
        tables={"held-out films among themselves": table},
        notes=[f"{len(columns):,} films are held out."],
    )


def cold_queries(dataset: "SplitDataset", cold: set[str]) -> tuple["Queries", NDArray[np.int64]]:
    """One query a test user with train history, and the rows of the held-out films.

    Raises:
        RuntimeError: a held-out film is in train after all, or a test film is not held out.
    """
    from twotower.data.split import TEST, TRAIN
    from twotower.evaluation.queries import static

    is_cold = np.isin(dataset.item_ids.astype(str), sorted(cold))
    if is_cold[dataset.item[dataset.part != TEST]].any() or not is_cold[dataset.item[dataset.part == TEST]].all():
        raise RuntimeError("the parts do not keep the held-out films apart")
    queries = static(dataset)
    known = np.unique(dataset.user[dataset.part == TRAIN])
    return queries.keep_queries(np.isin(queries.user, known)), np.flatnonzero(is_cold)


def _blocks(queries: "Queries") -> list["Queries"]:
    return [queries.take(start, min(start + BLOCK, len(queries))) for start in range(0, len(queries), BLOCK)]


def _judge(scores: NDArray[np.float32], queries: "Queries", *, columns: NDArray[np.int64]) -> dict[str, float]:
    """Recall and NDCG of a ranking of the held-out films, ties counted against it."""
    from twotower.evaluation.metrics import query_metrics
    from twotower.evaluation.ranks import ranks_in_block, silence

    silence(scores, None)
    relevant = np.searchsorted(columns, queries.relevant).astype(np.int32)
    ranks = ranks_in_block(scores, queries.relevant_start, relevant=relevant, candidates=len(columns))
    found = query_metrics(ranks, queries.relevant_start, ks=KS)
    return {metric: float(found[metric].mean()) for metric in ("recall@10", "recall@100", "ndcg@10")}


def _by_genre(
    dataset: "SplitDataset", queries: "Queries", *, columns: NDArray[np.int64], seed: int
) -> dict[str, NDArray[np.float32]]:
    """The baseline's scores of the held-out films for every query, ties broken by chance."""
    from twotower.evaluation.baselines import train_matrix, train_popularity

    popularity = train_popularity(dataset).astype(np.float64)
    of_film = [(text or "").split("|") for text in dataset.items["genres"].to_pylist()]
    names = sorted({name for film in of_film for name in film if name})
    genres = np.array([[name in film for name in names] for film in of_film], np.float64)
    history = train_matrix(dataset)[queries.user].toarray().astype(np.float64)
    noise = np.random.default_rng(seed)
    found = {}
    for name, scores in genre_scores(history, popularity, genres=genres, warm=popularity > 0).items():
        cold = scores[:, columns]
        spread = cold / np.maximum(cold.max(axis=1, keepdims=True), 1e-12)
        found[name] = (spread + JITTER * noise.random(spread.shape)).astype(np.float32)
    return found
