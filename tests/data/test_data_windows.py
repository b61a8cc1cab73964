"""Windows over histories: laws of the cover that a sequence model is trained by, and a case worked by hand."""

from typing import NamedTuple

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from twotower.data.windows import WindowPlan, plan_windows


class Asked(NamedTuple):
    """Examples of some users, whose places of the log stand one user after the other."""

    user: np.ndarray
    first: np.ndarray
    end: np.ndarray


def examples(known: list[list[int]]) -> Asked:
    """Per user, how many places each example may see; a user's places are as many as the longest of these."""
    starts = np.concatenate([[0], np.cumsum([max(each) for each in known])])
    user = np.repeat(np.arange(len(known)), [len(each) for each in known])
    first = starts[user]
    return Asked(*(column.astype(np.int32) for column in (user, first, first + np.concatenate(known))))


def cover(asked: Asked, *, length: int, batch_size: int, windows: int, seed: int = 0) -> WindowPlan:
    generator = np.random.default_rng(seed)
    return plan_windows(*asked, length=length, batch_size=batch_size, windows=windows, generator=generator)


LOGS = st.lists(st.lists(st.integers(0, 25), min_size=1, max_size=12), min_size=1, max_size=5).map(examples)
SIZES = {"length": st.integers(1, 8), "batch_size": st.integers(1, 7), "windows": st.integers(1, 4)}


@given(LOGS, st.fixed_dictionaries(SIZES | {"seed": st.integers(0, 3)}))
def test_a_cover_takes_every_example_once_from_a_place_within_a_window_of_its_user(
    asked: Asked, sizes: dict[str, int]
) -> None:
    plan = cover(asked, **sizes)
    steps = len(plan.examples)
    assert plan.examples.shape == plan.window.shape == (steps, sizes["batch_size"])
    assert plan.start.shape == plan.size.shape == (steps, sizes["windows"])
    step, column = np.nonzero(plan.examples >= 0)
    taken, window = plan.examples[step, column], plan.window[step, column]
    assert sorted(taken.tolist()) == list(range(len(asked.user)))
    assert set(step.tolist()) == set(range(steps)), "no step is empty"

    start, size = plan.start[step, window], plan.size[step, window]
    place = asked.end[taken] - start
    assert (place >= 0).all()
    assert (place <= size).all()
    assert (size <= sizes["length"]).all()
    np.testing.assert_array_equal(place == 0, asked.end[taken] == asked.first[taken], "only nothing stands for nothing")
    assert (start >= asked.first[taken]).all()

    for key in set(zip(step.tolist(), window.tolist(), strict=True)):
        of_window = (step == key[0]) & (window == key[1])
        assert len(set(asked.user[taken[of_window]])) == 1
        last = asked.end[taken[of_window]].max()
        assert plan.start[key] + plan.size[key] == last, "a window reads no further than its examples may see"


@given(LOGS, st.fixed_dictionaries(SIZES))
def test_a_cover_is_decided_by_its_generator(asked: Asked, sizes: dict[str, int]) -> None:
    one, other = (cover(asked, **sizes, seed=5) for _ in range(2))
    for name in ("examples", "window", "start", "size"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_a_history_that_fits_is_one_window_and_a_longer_one_is_cut() -> None:
    # User 0 met three items, user 1 seven: with windows of four, the first is read whole, the second in two or three.
    asked = examples([[0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6, 7]])
    cuts = set()
    for seed in range(40):
        plan = cover(asked, length=4, batch_size=12, windows=4, seed=seed)
        assert len(plan.examples) == 1
        read = sorted((start, size) for start, size in zip(plan.start[0].tolist(), plan.size[0].tolist(), strict=True))
        read = [(start, size) for start, size in read if size]
        assert read[0] == (0, 3)
        begins = [start - 3 for start, _ in read[1:]]
        assert begins[0] == 0
        assert begins[1:] == list(range(begins[1], 7, 4)), "after the first cut, windows are whole"
        cuts.add(begins[1])
    assert cuts == {1, 2, 3, 4}, "over the epochs the cut falls everywhere"


def test_windows_change_from_epoch_to_epoch_but_not_what_an_epoch_holds() -> None:
    asked = examples([list(range(30)), list(range(9))])
    one, other = (cover(asked, length=5, batch_size=8, windows=3, seed=seed) for seed in (1, 2))
    assert not np.array_equal(one.start, other.start)
    assert sorted(one.examples[one.examples >= 0]) == sorted(other.examples[other.examples >= 0])


def test_the_first_examples_of_a_step_are_of_all_users_alike() -> None:
    # Ranking learns from the first of each batch: sorted by user it would never meet the others.
    asked = examples([list(range(20)) for _ in range(200)])
    first = [cover(asked, length=10, batch_size=256, windows=20, seed=seed).examples[:, :32] for seed in range(10)]
    rows = np.concatenate([part[part >= 0] for part in first])
    tenths = np.bincount(asked.user[rows] // 20, minlength=10) / len(rows)
    assert tenths.min() > 0.08
    assert tenths.max() < 0.12
