"""The four protocols, on logs small enough to split by hand."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twotower.data.prepare import PrepareConfig
from twotower.data.sources.files import FilesConfig
from twotower.data.split import (
    TEST,
    TRAIN,
    VALIDATION,
    Log,
    SplitConfig,
    assign_parts,
    load_split,
    parts_as_given,
    parts_by_chance,
    parts_by_last,
    parts_by_time,
)
from twotower.errors import ArtifactError, DataError, RecipeError

GENERATOR = np.random.default_rng


def test_a_split_by_time_never_tears_a_moment_apart() -> None:
    # Of ten, the ninth begins the last fifth; it shares its moment with the eighth, which goes along.
    timestamp = np.array([1, 2, 3, 4, 5, 6, 7, 8, 8, 9])
    assert parts_by_time(timestamp, test=0.2, validation=0.2).tolist() == [0, 0, 0, 0, 0, 0, 1, 2, 2, 2]


def test_a_split_by_time_without_validation_has_none() -> None:
    assert parts_by_time(np.arange(10), test=0.3, validation=0).tolist() == [0] * 7 + [2] * 3


@settings(deadline=None)
@given(st.lists(st.integers(0, 30), min_size=2, max_size=60), st.floats(0.01, 0.5), st.floats(0, 0.4))
def test_by_time_every_part_is_later_than_the_one_before(times: list[int], test: float, validation: float) -> None:
    timestamp = np.sort(np.array(times))
    part = parts_by_time(timestamp, test=test, validation=validation)
    assert (np.diff(part) >= 0).all()
    for number in (VALIDATION, TEST):
        earlier = timestamp[part < number]
        if len(earlier) and (part == number).any():
            assert earlier.max() < timestamp[part == number].min()
    assert (part == TEST).sum() >= int(len(times) * test)


def test_leave_last_out_takes_the_last_two_positives_of_each_user() -> None:
    # User 0: four positives in turn with user 1, who has only two and so stays in train.
    user = np.array([0, 1, 0, 0, 1, 0], np.int32)
    assert parts_by_last(user, np.ones(6, bool)).tolist() == [0, 0, 0, 1, 0, 2]


def test_leave_last_out_lets_nothing_after_the_test_item_into_train() -> None:
    # One user; dislikes (False) stand before, between and after the three positives.
    positive = np.array([True, False, True, False, True, False])
    assert parts_by_last(np.zeros(6, np.int32), positive).tolist() == [0, 0, 1, 1, 2, 2]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=60))
def test_leave_last_out_tests_one_positive_of_each_user_with_three(log: list[tuple[int, bool]]) -> None:
    user, positive = np.array([row[0] for row in log], np.int32), np.array([row[1] for row in log])
    part = parts_by_last(user, positive)
    for one in range(5):
        mine = part[user == one]
        expected = 1 if positive[user == one].sum() >= 3 else 0
        assert (np.diff(mine) >= 0).all()
        for number in (VALIDATION, TEST):
            assert positive[(user == one) & (part == number)].sum() == expected


def test_a_random_split_draws_the_shares_exactly_and_by_the_seed() -> None:
    part = parts_by_chance(1_000, test=0.2, validation=0.05, generator=GENERATOR(3))
    assert np.bincount(part).tolist() == [750, 50, 200]
    assert (part == parts_by_chance(1_000, test=0.2, validation=0.05, generator=GENERATOR(3))).all()
    assert (part != parts_by_chance(1_000, test=0.2, validation=0.05, generator=GENERATOR(4))).any()


def test_given_parts_stay_and_a_missing_validation_part_is_drawn_from_train() -> None:
    given_parts = np.array([0] * 10 + [2] * 5, np.int8)
    part = parts_as_given(given_parts, validation=0.2, generator=GENERATOR(0))
    assert np.bincount(part).tolist() == [8, 2, 5]
    assert (part[10:] == TEST).all()
    complete = np.array([0, 1, 2], np.int8)
    assert parts_as_given(complete, validation=0.5, generator=GENERATOR(0)).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (SplitConfig(protocol="last_out", test=0.1), "split.test"),
        (SplitConfig(protocol="given", test=0.1), "split.test"),
        (SplitConfig(protocol="last_out", validation=0.1), "split.validation"),
        (SplitConfig(protocol="given"), "prepare.files.test"),
        (SplitConfig(test=0.6, validation=0.5), "nothing for train"),
    ],
)
def test_a_setting_that_the_protocol_cannot_follow_is_refused(config: SplitConfig, said: str) -> None:
    log = Log(
        user=np.arange(4, dtype=np.int32),
        item=np.arange(4, dtype=np.int32),
        timestamp=np.arange(4),
        positive=np.ones(4, bool),
    )
    with pytest.raises(RecipeError, match=said):
        assign_parts(config, log, generator=GENERATOR(0))


def test_one_moment_for_all_cannot_be_split_by_time(
    tmp_path: Path, prepare_into: Callable[..., Path], split_into: Callable[..., Path]
) -> None:
    table = "SELECT range % 3 AS user_id, range AS item_id, 1700000000 AS timestamp FROM range(9)"
    prepared = prepare_into(tmp_path / "p", PrepareConfig(source="files", files=FilesConfig(interactions=table)))
    with pytest.raises(DataError, match="the train part has no positive interaction"):
        split_into(tmp_path / "s", SplitConfig(), prepared=prepared)
    assert not (tmp_path / "s").exists()


def test_loading_gives_the_rows_that_were_prepared(tiny_prepared: Path, tiny_split: Path) -> None:
    dataset, table = load_split(tiny_split), pq.read_table(tiny_prepared / "interactions.parquet")
    assert dataset.user_ids[dataset.user].tolist() == table["user_id"].to_pylist()
    assert dataset.item_ids[dataset.item].tolist() == table["item_id"].to_pylist()
    assert dataset.timestamp.tolist() == table["timestamp"].cast("int64").to_pylist()
    assert dataset.labels["rating"].tolist() == table["rating"].to_pylist()
    assert dataset.positive.tolist() == table["positive"].to_pylist()
    assert (dataset.items["item_id"].to_pylist(), dataset.users["user_id"].to_pylist()) == (
        dataset.item_ids.tolist(),
        dataset.user_ids.tolist(),
    )
    assert dataset.metadata["protocol"] == "time"
    assert dataset.metadata["cut_us"] == dataset.timestamp[dataset.part == TEST].min()
    assert dataset.timestamp[dataset.part != TEST].max() < dataset.metadata["cut_us"]
    assert dataset.metadata["counts"]["train_interactions"] == (dataset.part == TRAIN).sum()


def test_a_prepared_directory_is_not_a_split_one(tiny_prepared: Path) -> None:
    with pytest.raises(ArtifactError, match="not a 'split' one"):
        load_split(tiny_prepared)


@pytest.mark.parametrize("name", ["interactions.parquet", "items.parquet"])
def test_a_damaged_table_is_named_before_it_is_read(name: str, tiny_split: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(tiny_split, tmp_path / "split") / name
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 0xFF
    damaged.write_bytes(content)
    with pytest.raises(ArtifactError, match=f"{name}: damaged"):
        load_split(tmp_path / "split")


def test_given_files_become_the_parts(
    tmp_path: Path, prepare_into: Callable[..., Path], split_into: Callable[..., Path]
) -> None:
    (tmp_path / "train.csv").write_text("user_id,item_id,timestamp\n1,a,100\n1,b,300\n2,a,200\n")
    (tmp_path / "test.csv").write_text("user_id,item_id,timestamp\n2,b,150\n")
    files = FilesConfig(interactions="train.csv", test="test.csv")
    config = PrepareConfig(source="files", data_dir=str(tmp_path), files=files)
    prepared = prepare_into(tmp_path / "p", config)
    dataset = load_split(split_into(tmp_path / "s", SplitConfig(protocol="given", validation=0), prepared=prepared))
    assert dataset.part.tolist() == [TRAIN, TEST, TRAIN, TRAIN]
    assert dataset.metadata["cut_us"] is None
    assert "given_part" not in pq.read_schema(tmp_path / "s" / "interactions.parquet").names
