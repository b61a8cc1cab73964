"""Whether anything of validation or test has reached the model: the leakage audit behind every report.

Each check works out anew, by ways of its own, what the train part alone allows, and holds it against what training and
evaluation were really given. It calls none of the functions that it checks, so that a fault in these shows.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twotower.data.batches import QueryArrays, TrainingArrays
from twotower.data.feature_encoders import DAY, PADDING, SECOND
from twotower.data.fitted_features import FittedFeatures
from twotower.data.split import TEST, TRAIN, VALIDATION, SplitDataset
from twotower.data.trends import Trends
from twotower.evaluation.audit_features import Check, statistics, vocabularies
from twotower.evaluation.queries import Queries, static, successive

SAMPLE = 500
"""Train examples, and queries of each protocol, whose histories are put together anew."""
COUNTS = 3
"""Snapshots of the items' popularity that are counted anew: the latest, which a leak would reach first."""
NAMES = {TRAIN: "train", VALIDATION: "validation", TEST: "test"}
KNOWN = {"successive": (TRAIN, VALIDATION, TEST), "static": (TRAIN, VALIDATION)}
"""Protocol -> the parts that a query may know, as far as they are earlier than its moment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What training and evaluation work with, as their own functions give it."""

    arrays: TrainingArrays
    queries: dict[str, Queries]
    """Protocol -> what is asked."""
    trends: dict[str, Trends]
    """Protocol -> how popular each item was, by what a query of it may know."""


def gather_facts(dataset: SplitDataset, features: FittedFeatures) -> Facts:
    """What training and evaluation get from this data set by these features."""
    by_time = dataset.metadata.get("protocol") == "time"
    arrays = TrainingArrays.build(dataset, features, labels=())
    assert arrays.trends is not None, "everything is built"
    queries = ({"successive": successive(dataset)} if by_time else {}) | {"static": static(dataset)}
    trends = {}
    for name, asked in queries.items():
        log, order = asked.known_positives, np.argsort(asked.known_positives.timestamp, kind="stable")
        second = log.timestamp[order] // SECOND
        trends[name] = Trends.build(log.item[order], second, items=len(dataset.item_ids), block=arrays.trends.block)
    return Facts(arrays=arrays, queries=queries, trends=trends)


def audit(dataset: SplitDataset, features: FittedFeatures, *, facts: Facts, seed: int) -> list[Check]:
    """Look for leaks in the split, the features, the sampling probabilities and the histories.

    Args:
        dataset: The split.
        features: The model's, as they were saved with it.
        facts: From `gather_facts`.
        seed: Decides which examples and queries are looked at.
    """
    generator = np.random.default_rng(seed)
    by_user = _ByUser(dataset)
    return [
        _order_of_time(dataset),
        _rows_in_two_parts(dataset),
        vocabularies(dataset, features),
        statistics(dataset, features),
        _sampling_probability(dataset, facts.arrays),
        _train_histories(dataset, features, arrays=facts.arrays, by_user=by_user, generator=generator),
        *(
            _query_histories(dataset, features, name=name, queries=queries, by_user=by_user, generator=generator)
            for name, queries in facts.queries.items()
        ),
        _popularity(dataset, facts),
    ]


def _order_of_time(dataset: SplitDataset) -> Check:
    """By time no part begins before the one before it has ended; last-out, the same within each user."""
    name, protocol = "split: order of time", dataset.metadata.get("protocol")
    present = [part for part in NAMES if (dataset.part == part).any()]
    if protocol == "time":
        ends = {part: _ends(dataset.timestamp[dataset.part == part]) for part in present}
        torn = [(one, other) for one, other in itertools.combinations(present, 2) if ends[one][1] >= ends[other][0]]
        told = "; ".join(f"{NAMES[part]} {_day(low)} to {_day(high)}" for part, (low, high) in ends.items())
        return Check(name=name, passed=not torn, detail=told)
    if protocol == "last_out":
        late = [_users_out_of_order(dataset, one, other) for one, other in itertools.combinations(present, 2)]
        users = np.unique(np.concatenate([*late, np.empty(0, np.int64)]))
        if len(users):
            first = dataset.user_ids[int(users[0])]
            detail = f"{len(users)} users have something in an earlier part that came later (first: user '{first}')"
            return Check(name=name, passed=False, detail=detail)
        return Check(name=name, passed=True, detail="within every user; what others did later is known, by protocol")
    return Check(name=name, passed=True, detail=f"protocol '{protocol}' keeps none: the model knows of what came later")


def _users_out_of_order(dataset: SplitDataset, earlier: int, later: int) -> NDArray[np.int64]:
    last = np.full(len(dataset.user_ids), np.iinfo(np.int64).min)
    first = np.full(len(dataset.user_ids), np.iinfo(np.int64).max)
    before, after = dataset.part == earlier, dataset.part == later
    np.maximum.at(last, dataset.user[before], dataset.timestamp[before])
    np.minimum.at(first, dataset.user[after], dataset.timestamp[after])
    return np.flatnonzero(last > first)


def _rows_in_two_parts(dataset: SplitDataset) -> Check:
    """The same user, item and moment on both sides of a cut is one event that was torn."""
    order = np.lexsort((dataset.part, dataset.timestamp, dataset.item, dataset.user))
    columns = [column[order] for column in (dataset.user, dataset.item, dataset.timestamp)]
    same = np.logical_and.reduce([column[1:] == column[:-1] for column in columns])
    torn = np.flatnonzero(same & (np.diff(dataset.part[order]) != 0))
    name, protocol = "split: no row in two parts", dataset.metadata.get("protocol")
    if not len(torn):
        return Check(name=name, passed=True, detail=f"{len(order):,} rows, each user, item and moment in one part")
    row = int(order[torn[0]])
    found = (
        f"{len(torn):,} rows of one user, item and moment stand in two parts (first: user "
        f"'{dataset.user_ids[dataset.user[row]]}', item '{dataset.item_ids[dataset.item[row]]}')"
    )
    if protocol in ("random", "given"):
        return Check(name=name, passed=True, detail=f"{found}, as protocol '{protocol}' lets it be")
    return Check(name=name, passed=False, detail=f"{found}; prepare.duplicates = 'keep_last' takes one of them out")


def _sampling_probability(dataset: SplitDataset, arrays: TrainingArrays) -> Check:
    """The chance that an item is drawn as a negative is its share of the train part's interactions."""
    name = "sampling probabilities"
    item, count = np.unique(dataset.item[dataset.part == TRAIN], return_counts=True)
    if not np.array_equal(np.sort(arrays.catalogue_row), item):
        strange = np.setxor1d(arrays.catalogue_row, item)
        detail = f"{len(strange):,} items differ from those of the train part (first: '{dataset.item_ids[strange[0]]}')"
        return Check(name=name, passed=False, detail=detail)
    expected = np.zeros(len(dataset.item_ids))
    expected[item] = count / count.sum()
    apart = np.abs(arrays.probability - expected[arrays.catalogue_row])
    worst = int(np.argmax(apart))
    if apart[worst] > 1e-5 * expected[arrays.catalogue_row[worst]]:
        row = int(arrays.catalogue_row[worst])
        detail = f"item '{dataset.item_ids[row]}': {arrays.probability[worst]:.3g}, but {expected[row]:.3g} in train"
        return Check(name=name, passed=False, detail=detail)
    return Check(name=name, passed=True, detail=f"{len(item):,} items, each with its share of the train part")


class _ByUser:
    """Every user's rows of the data set in the order of time, found without the logs that are checked."""

    def __init__(self, dataset: SplitDataset) -> None:
        self.dataset = dataset
        self.order = np.argsort(dataset.user, kind="stable")
        self.sorted = dataset.user[self.order]

    def earlier(self, user: int, moment: int, *, parts: tuple[int, ...]) -> NDArray[np.int64]:
        """The positives of these parts that the user met strictly before the moment."""
        rows = self.order[np.searchsorted(self.sorted, user) : np.searchsorted(self.sorted, user, side="right")]
        data = self.dataset
        return rows[(data.timestamp[rows] < moment) & data.positive[rows] & np.isin(data.part[rows], parts)]

    def whole(self, user: int) -> NDArray[np.int64]:
        """All positives of the user in the train part."""
        return self.earlier(user, np.iinfo(np.int64).max, parts=(TRAIN,))

    def before(self, row: int) -> NDArray[np.int64]:
        """The train part's positives that a train row may know.

        These are the strictly earlier ones. Where the last ones are taken out, order alone counts, and a positive
        knows of one at its own moment that stands before it in the file.
        """
        data = self.dataset
        user, moment = int(data.user[row]), int(data.timestamp[row])
        if data.metadata.get("protocol") == "last_out" and data.positive[row]:
            past = self.earlier(user, moment + 1, parts=(TRAIN,))
            return past[past < row]
        return self.earlier(user, moment, parts=(TRAIN,))


def _train_histories(
    dataset: SplitDataset,
    features: FittedFeatures,
    *,
    arrays: TrainingArrays,
    by_user: _ByUser,
    generator: np.random.Generator,
) -> Check:
    """A train example's history holds what the recipe lets it: what its user met in the train part, and nothing else.

    That is what was strictly before it; or, with `training = "others"`, all of it, of which the step hides the example.
    """
    name = "histories in training"
    if features.history is None:
        return Check(name=name, passed=True, detail="the model reads none")
    is_others = features.history.reads_others
    when = "" if is_others else " before it"
    rows = np.flatnonzero(dataset.part == TRAIN)
    places = np.sort(generator.permutation(len(rows))[:SAMPLE])
    number, origin = _numbered(features), int(dataset.timestamp[rows].min()) // SECOND
    for place in places.tolist():
        row = int(rows[place])
        past = by_user.whole(int(dataset.user[row])) if is_others else by_user.before(row)
        span = slice(int(arrays.first[place]), int((arrays.last if is_others else arrays.end)[place]))
        expected = [number.get(dataset.item_ids[item], PADDING) for item in dataset.item[past]]
        seconds = (dataset.timestamp[past] // SECOND - origin).tolist()
        if arrays.history_rows[span].tolist() != expected or arrays.history_seconds[span].tolist() != seconds:
            found = f"{span.stop - span.start} items, but {len(past)} were met{when} in the train part"
            who = _asked(dataset, int(dataset.user[row]), int(dataset.timestamp[row]))
            return Check(name=name, passed=False, detail=f"{who}: {found}")
    told = "all else that was met in train, as the recipe says" if is_others else "only what was met before, in train"
    return Check(name=name, passed=True, detail=f"{len(places)} examples: {told}")


def _query_histories(
    dataset: SplitDataset,
    features: FittedFeatures,
    *,
    name: str,
    queries: Queries,
    by_user: _ByUser,
    generator: np.random.Generator,
) -> Check:
    """The tower is told what its user met strictly before the moment of asking, in the parts that may be known."""
    title = f"histories of {name} queries"
    if features.history is None:
        return Check(name=title, passed=True, detail="the model reads none")
    chosen = np.sort(generator.permutation(len(queries))[:SAMPLE])
    user, moment = queries.user[chosen], queries.timestamp[chosen]
    arrays = QueryArrays.build(dataset, features, log=queries.known_positives)
    inputs = arrays.inputs(user, moment, log_row=queries.log_row[chosen])
    number, length = _numbered(features), features.history.config.length
    for place, query in enumerate(chosen.tolist()):
        now = int(moment[place])
        past = by_user.earlier(int(user[place]), now, parts=KNOWN[name])[-length:][::-1]
        expected = [number.get(dataset.item_ids[item], PADDING) for item in dataset.item[past]]
        days = (now // SECOND - dataset.timestamp[past] // SECOND) / DAY
        given, age = inputs["history_items"][place], inputs["history_days"][place]
        padded = [*expected, *[PADDING] * (length - len(past))]
        if given.tolist() != padded or not np.allclose(age[: len(past)], days, rtol=1e-5, atol=1e-6):
            own = queries.relevant[queries.relevant_start[query] : queries.relevant_start[query + 1]]
            asked_for = [number.get(dataset.item_ids[item], PADDING) for item in own]
            told = _more(given, expected=expected, asked_for=asked_for)
            return Check(name=title, passed=False, detail=f"{_asked(dataset, int(user[place]), now)}: {told}")
    return Check(name=title, passed=True, detail=f"{len(chosen)} queries: only what was known and strictly earlier")


def _more(given: NDArray[np.int32], *, expected: list[int], asked_for: list[int]) -> str:
    """What is wrong with a history, the gravest first."""
    items = given[given != PADDING].tolist()
    if any(row != PADDING and items.count(row) > expected.count(row) for row in asked_for):
        return "the item that is asked for stands in the history"
    known = sum(row != PADDING for row in expected)
    return f"{len(items)} items or their ages are told, which are not the {known} that were strictly earlier"


def _popularity(dataset: SplitDataset, facts: Facts) -> Check:
    """What is known of an item's popularity at a moment counts only what was strictly earlier, of parts to be known."""
    name, train = "popularity at a moment", dataset.timestamp[dataset.part == TRAIN]
    learned = facts.arrays.trends
    assert learned is not None, "everything is built"
    fault = _miscounted(dataset, learned, snapshot=facts.arrays.snapshot, moment=train, parts=(TRAIN,))
    if fault:
        return Check(name=name, passed=False, detail=f"training, {fault}")
    for protocol, queries in facts.queries.items():
        trends, moment = facts.trends[protocol], queries.timestamp
        snapshot = trends.snapshot_at(moment // SECOND)
        fault = _miscounted(dataset, trends, snapshot=snapshot, moment=moment, parts=KNOWN[protocol])
        if fault:
            return Check(name=name, passed=False, detail=f"{protocol} queries, {fault}")
    return Check(name=name, passed=True, detail="of every train example and query: only what was strictly earlier")


def _miscounted(
    dataset: SplitDataset,
    trends: Trends,
    *,
    snapshot: NDArray[np.int32],
    moment: NDArray[np.int64],
    parts: tuple[int, ...],
) -> str:
    """The first moment whose counts hold more than they may, or other items; "" where there is none."""
    known = np.isin(dataset.part, parts) & dataset.positive
    row = np.asarray(trends.arrays.row)[snapshot]
    counted = np.asarray(trends.arrays.counts).sum(axis=1, dtype=np.int64)[row]
    item, second = dataset.item[known], dataset.timestamp[known] // SECOND
    earlier = np.searchsorted(second, moment // SECOND, side="left")
    late = np.flatnonzero(counted > earlier)
    if len(late):
        first = late[0]
        return f"{_day(int(moment[first]))}: {counted[first]:,} counted, but {earlier[first]:,} were strictly earlier"
    for place in np.unique(row)[-COUNTS:].tolist():
        counts = np.asarray(trends.arrays.counts[place])
        if not counts.any():
            continue
        # Of those at the very second at which the count ends, any may be in it.
        end = second[counts.sum() - 1]
        least, most = (np.bincount(item[part], minlength=len(counts)) for part in (second < end, second <= end))
        if (counts < least).any() or (counts > most).any():
            return "a snapshot counts other items than the first of the log"
    return ""


def _numbered(features: FittedFeatures) -> Mapping[str, int]:
    assert features.history is not None
    return {value: row for row, value in enumerate(features.history.items.values.to_pylist(), start=1)}


def _asked(dataset: SplitDataset, user: int, moment: int) -> str:
    return f"user '{dataset.user_ids[user]}' at {_day(moment)}"


def _ends(timestamp: NDArray[np.int64]) -> tuple[int, int]:
    return int(timestamp.min()), int(timestamp.max())


def _day(moment: int) -> str:
    return str(np.datetime64(moment, "us").astype("datetime64[s]")).replace("T", " ")
