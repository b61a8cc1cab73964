"""Names and genres of the simulated world's films: hints of their hidden clusters, neither sure nor empty."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from twotower.data.tables import INPUT_ROW

GENRES: dict[str, Sequence[str]] = {
    "Adventure": ("Voyage", "Island", "Map", "Summit", "Caravan", "Compass", "Jungle", "Treasure"),
    "Comedy": ("Wedding", "Neighbour", "Holiday", "Mistake", "Uncle", "Picnic", "Landlord", "Parrot"),
    "Crime": ("Alibi", "Heist", "Witness", "Verdict", "Safe", "Detective", "Ransom", "Ledger"),
    "Drama": ("Silence", "Daughter", "Letter", "Winter", "Promise", "House", "Harvest", "Farewell"),
    "Fantasy": ("Dragon", "Crown", "Spell", "Raven", "Oracle", "Tower", "Giant", "Amulet"),
    "Horror": ("Cellar", "Whisper", "Grave", "Fog", "Doll", "Mirror", "Hunger", "Attic"),
    "Music": ("Melody", "Drummer", "Stage", "Chorus", "Record", "Tour", "Violin", "Encore"),
    "Mystery": ("Riddle", "Stranger", "Key", "Portrait", "Midnight", "Cipher", "Train", "Lantern"),
    "Romance": ("Kiss", "Summer", "Heart", "Dance", "Garden", "Rendezvous", "Roses", "Balcony"),
    "Sci-Fi": ("Orbit", "Android", "Signal", "Colony", "Quantum", "Comet", "Clone", "Horizon"),
    "War": ("Trench", "Soldier", "Siege", "Bridge", "Armistice", "Convoy", "Medal", "Frontier"),
    "Western": ("Saddle", "Canyon", "Outlaw", "Sheriff", "Prairie", "Mustang", "Saloon", "Dust"),
}
_SHARED = (
    "Last",
    "First",
    "Lost",
    "Golden",
    "Broken",
    "Hidden",
    "Long",
    "Silent",
    "Second",
    "Burning",
    "Distant",
    "Blue",
)
_SYLLABLES = (
    "ba",
    "cor",
    "del",
    "en",
    "fa",
    "gor",
    "hal",
    "is",
    "ka",
    "lum",
    "mor",
    "na",
    "or",
    "pel",
    "ru",
    "sa",
    "tor",
    "vi",
)
_CLEAR_GENRE = 0.85
_NAMES_PER_CLUSTER = 6


def film_table(
    cluster: NDArray[np.int64], release_us: NDArray[np.int64], *, generator: np.random.Generator
) -> pa.Table:
    """The items table: `item_id, title, year, genres, release_date, input_row`.

    Args:
        cluster: `[I]` hidden cluster, which words and genres hint at.
        release_us: `[I]` microseconds since 1970.
    """
    count = len(cluster)
    years = 1970 + (release_us / 31_556_952_000_000).astype(np.int64)
    genre_names = np.array(list(GENRES))
    genre = np.where(generator.random(count) < _CLEAR_GENRE, cluster, generator.integers(len(GENRES), size=count))
    second = generator.integers(2 * len(GENRES), size=count)
    return pa.table(
        {
            "item_id": pa.array(np.arange(1, count + 1)).cast(pa.string()),
            "title": pa.array(_titles(cluster, years, generator=generator), pa.string()),
            "year": pa.array(years),
            "genres": pa.array(_genres(genre_names, genre % len(GENRES), second), pa.string()),
            "release_date": pa.array(release_us).cast(pa.timestamp("us")),
            INPUT_ROW: pa.array(np.arange(1, count + 1)),
        }
    )


def _genres(names: NDArray[np.str_], first: NDArray[np.int64], second: NDArray[np.int64]) -> list[str]:
    """The cluster's genre, and for half of the films another one by chance."""
    return [
        str(names[one]) if other >= len(names) or other == one else "|".join(sorted((names[one], names[other])))
        for one, other in zip(first.tolist(), second.tolist(), strict=True)
    ]


def _titles(cluster: NDArray[np.int64], years: NDArray[np.int64], *, generator: np.random.Generator) -> list[str]:
    """Three words and the year: one that many clusters share, one of the genre's, one of the cluster's own names."""
    words = list(GENRES.values())
    names = _cluster_names(int(cluster.max()) + 1, generator=generator)
    draws = generator.integers(2**31, size=(len(cluster), 4)).tolist()
    titles = []
    for kind, year, (form, shared, word, name) in zip(cluster.tolist(), years.tolist(), draws, strict=True):
        adjective, noun = _SHARED[shared % len(_SHARED)], words[kind % len(words)][word % 8]
        place = names[kind][name % _NAMES_PER_CLUSTER]
        title = (f"The {adjective} {noun} of {place}", f"{place}'s {adjective} {noun}", f"{adjective} {noun}")[form % 3]
        titles.append(f"{title} ({year})")
    return titles


def _cluster_names(clusters: int, *, generator: np.random.Generator) -> list[list[str]]:
    draws = generator.integers(len(_SYLLABLES), size=(clusters, _NAMES_PER_CLUSTER, 3)).tolist()
    return [["".join(_SYLLABLES[i] for i in name).capitalize() for name in names] for names in draws]
