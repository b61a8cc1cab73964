import dataclasses
import json
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import twotower
from twotower.errors import RequestError
from twotower.serving.answers.results import Recommendation
from twotower.serving.answers.stages import Found, rank
from twotower.serving.recommender import Recommender

USERS, ITEMS, DIM, LENGTH, CANDIDATES = 25, 40, 4, 5, 12
"""As in `conftest.py`."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def expected(
    world: Any, query: NDArray[np.float32], *, left_out: set[str], k: int
) -> list[tuple[str, float, int, float]]:
    """Both stages by brute force: (item_id, score, retrieval rank, retrieval score)."""
    retrieval = world.candidates()[:, :DIM] @ query[:DIM]
    left = [row for row in np.argsort(-retrieval, kind="stable").tolist() if f"i{row}" not in left_out]
    candidates = left[: max(k, CANDIDATES)]
    met = world.logits(query)[:, 0]
    order = sorted(range(len(candidates)), key=lambda place: -met[candidates[place]])[:k]
    return [(f"i{candidates[p]}", met[candidates[p]], p + 1, retrieval[candidates[p]]) for p in order]


def told(answer: Recommendation) -> list[tuple[str, float, int | None, float | None]]:
    return [(item.item_id, item.score, item.retrieval_rank, item.retrieval_score) for item in answer.items]


def assert_same(answer: Recommendation, wanted: list[tuple[str, float, int, float]]) -> None:
    assert [entry[0] for entry in told(answer)] == [entry[0] for entry in wanted]
    assert [entry[2] for entry in told(answer)] == [entry[2] for entry in wanted]
    np.testing.assert_allclose(
        [entry[1] for entry in told(answer)], [entry[1] for entry in wanted], rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose([e[3] or 0.0 for e in told(answer)], [e[3] for e in wanted], rtol=1e-5, atol=1e-5)


def log_of(world: Any, user_id: str, *, before: int | None = None) -> tuple[list[str], set[str]]:
    """The user's history (positives) and all that the user met, from the dataset itself."""
    data = world.dataset
    mine = (data.user == int(user_id[1:])) & (True if before is None else data.timestamp < before)
    return [f"i{row}" for row in data.item[mine & data.positive]], {f"i{row}" for row in data.item[mine]}


def known_query(world: Any, user_id: str, history: list[str]) -> NDArray[np.float32]:
    row = world.dataset.users.slice(int(user_id[1:]), 1).to_pylist()[0]
    return world.query(history=history, gender=row["gender"], age=row["age"])


@pytest.mark.parametrize("user_id", ["u0", "u7", "u22", "u23"])
def test_a_known_user_is_answered_by_the_bundle_s_features_and_history(
    world: Any, recommender: Recommender, user_id: str
) -> None:
    history, seen = log_of(world, user_id)
    answer = recommender.recommend(user_id, k=8)
    assert_same(answer, expected(world, known_query(world, user_id, history), left_out=seen, k=8))
    assert (answer.user_id, answer.fallback, answer.notes) == (user_id, None, ())
    assert [item.rank for item in answer.items] == list(range(1, 9))


def test_what_was_seen_but_not_liked_is_left_out_yet_tells_nothing(world: Any, recommender: Recommender) -> None:
    users = range(USERS - 2)
    user_id = next(f"u{row}" for row in users if len(log_of(world, f"u{row}")[0]) < len(log_of(world, f"u{row}")[1]))
    history, seen = log_of(world, user_id)
    everything = recommender.recommend(user_id, k=ITEMS)
    assert {item.item_id for item in everything.items} == {f"i{row}" for row in range(ITEMS)} - seen
    again = recommender.recommend(user_id, k=8, exclude_seen=False)
    assert_same(again, expected(world, known_query(world, user_id, history), left_out=set(), k=8))


def test_titles_and_every_label_stand_beside_the_scores(world: Any, recommender: Recommender) -> None:
    item = recommender.recommend(history=["i3", "i5"], k=1).items[0]
    met, rating = world.logits(world.query(history=["i3", "i5"]))[int(item.item_id[1:])]
    assert item.title == f"Film {item.item_id[1:]}"
    assert item.labels == pytest.approx({"met": 1 / (1 + np.exp(-met)), "rating": rating}, rel=1e-5)


def test_somebody_unknown_is_answered_by_a_told_history(world: Any, recommender: Recommender) -> None:
    answer = recommender.recommend(history=["i3", "i5", "i9"], k=6)
    assert_same(answer, expected(world, world.query(history=["i3", "i5", "i9"]), left_out={"i3", "i5", "i9"}, k=6))
    assert (answer.user_id, answer.fallback) == (None, None)


def test_the_newest_of_a_long_history_count(world: Any, recommender: Recommender) -> None:
    history = [f"i{row}" for row in range(LENGTH + 3)]
    wanted = expected(world, world.query(history=history[-LENGTH:]), left_out=set(history), k=6)
    assert_same(recommender.recommend(history=history, k=6), wanted)


def test_moments_put_a_told_history_in_order(world: Any, recommender: Recommender) -> None:
    history = [f"i{row}" for row in range(LENGTH + 3)]
    moments = [EPOCH + timedelta(minutes=10 - place) for place in range(len(history))]
    answer = recommender.recommend(history=list(zip(history, moments, strict=True)), k=6)
    assert_same(answer, expected(world, world.query(history=history[:LENGTH]), left_out=set(history), k=6))


def test_a_told_history_joins_what_the_bundle_knows(world: Any, recommender: Recommender) -> None:
    history, seen = log_of(world, "u4")
    told_items = sorted({f"i{row}" for row in range(ITEMS - 2)} - seen)[:2]
    wanted = expected(world, known_query(world, "u4", history + told_items), left_out=seen | set(told_items), k=6)
    assert_same(recommender.recommend("u4", history=told_items, k=6), wanted)


def test_unknown_items_of_a_history_are_named(world: Any, recommender: Recommender) -> None:
    answer = recommender.recommend(history=["i3", "x1", "x2", "x3", "x4"], k=6)
    assert_same(answer, expected(world, world.query(history=["i3"]), left_out={"i3"}, k=6))
    assert answer.notes == ("history: not in the catalogue, passed over: 'x1', 'x2', 'x3' and 1 more",)


def test_a_history_of_unknown_items_alone_is_refused_unless_the_user_is_known(recommender: Recommender) -> None:
    with pytest.raises(RequestError, match="no item of it is in the catalogue"):
        recommender.recommend(history=["x1"])
    with pytest.raises(RequestError, match="no item of it is in the catalogue"):
        recommender.recommend("nobody", history=["x1"])
    answer = recommender.recommend("u3", history=["x1"])
    assert answer.items == recommender.recommend("u3").items
    assert "passed over: 'x1'" in answer.notes[0]


def test_features_alone_are_enough(world: Any, recommender: Recommender) -> None:
    answer = recommender.recommend(context={"gender": "f", "age": 33}, k=6)
    assert answer.fallback is None
    assert_same(answer, expected(world, world.query(gender="f", age=33.0), left_out=set(), k=6))


def test_context_replaces_what_the_bundle_knows(world: Any, recommender: Recommender) -> None:
    history, seen = log_of(world, "u2")
    wanted = expected(world, world.query(history=history, gender="m", age=20.0), left_out=seen, k=6)
    assert_same(recommender.recommend("u2", context={"gender": "m", "age": 20}, k=6), wanted)


@pytest.mark.parametrize("asked", [{}, {"user_id": "nobody"}, {"user_id": "u24"}, {"context": {"gender": "never met"}}])
def test_of_whom_the_model_can_read_nothing_the_popular_items_come(
    world: Any, recommender: Recommender, asked: dict[str, object]
) -> None:
    answer = recommender.recommend(k=5, **asked)  # type: ignore[arg-type]
    positives = world.dataset.item[world.dataset.positive]
    latest, ever = np.bincount(positives[-60:], minlength=ITEMS), np.bincount(positives, minlength=ITEMS)
    wanted = sorted(range(ITEMS), key=lambda row: (-latest[row], -ever[row], row))[:5]
    assert [item.item_id for item in answer.items] == [f"i{row}" for row in wanted]
    assert answer.fallback == "popular"
    assert "most popular" in answer.notes[-1]
    assert {(item.retrieval_rank, item.retrieval_score) for item in answer.items} == {(None, None)}


def test_a_user_whom_the_bundle_does_not_know_is_told_so(recommender: Recommender) -> None:
    assert recommender.recommend("nobody").notes[0] == "user 'nobody' is not in the bundle"
    assert recommender.recommend("u24").notes == (
        "the model can read nothing of who asks: these are the most popular items",
    )


def test_an_item_that_training_did_not_meet_tells_nothing_and_is_left_out(recommender: Recommender) -> None:
    answer = recommender.recommend(history=["i39"], k=ITEMS)
    assert answer.fallback == "popular"
    assert len(answer.items) == ITEMS - 1
    assert "i39" not in {item.item_id for item in answer.items}


def test_whole_numbers_stand_for_their_digits(recommender: Recommender) -> None:
    assert recommender.recommend(42).user_id == "42"


def test_excluded_items_do_not_come_and_others_take_their_place(world: Any, recommender: Recommender) -> None:
    first = [item.item_id for item in recommender.recommend("u5", k=10).items]
    history, seen = log_of(world, "u5")
    answer = recommender.recommend("u5", k=10, exclude=[*first, "x9"])
    assert_same(answer, expected(world, known_query(world, "u5", history), left_out=seen | set(first), k=10))
    assert answer.notes == ("exclude: not in the catalogue, passed over: 'x9'",)


def test_more_than_is_left_gives_what_is_left_and_says_so(world: Any, recommender: Recommender) -> None:
    seen = log_of(world, "u6")[1]
    answer = recommender.recommend("u6", k=1_000)
    assert len(answer.items) == ITEMS - len(seen)
    assert answer.notes == (f"{ITEMS - len(seen)} items are left of the 1000 asked for",)


@pytest.mark.parametrize("user_id", ["u6", None])
def test_nothing_left_gives_nothing(recommender: Recommender, user_id: str | None) -> None:
    assert recommender.recommend(user_id, exclude=[f"i{row}" for row in range(ITEMS)]).items == ()


@settings(max_examples=60, deadline=None)
@given(
    user_id=st.sampled_from([None, "nobody", *(f"u{row}" for row in range(USERS))]),
    history=st.lists(st.sampled_from([f"i{row}" for row in range(ITEMS)]), max_size=8),
    exclude=st.sets(st.sampled_from([f"i{row}" for row in range(ITEMS)])),
    k=st.integers(1, ITEMS + 5),
)
def test_as_many_as_exist_come_each_once_none_left_out_best_first(
    world: Any, recommender: Recommender, user_id: str | None, history: list[str], exclude: set[str], k: int
) -> None:
    answer = recommender.recommend(user_id, history=history, exclude=exclude, k=k)
    seen = log_of(world, user_id)[1] if user_id in world.dataset.user_ids and user_id is not None else set()
    allowed = {f"i{row}" for row in range(ITEMS)} - seen - set(history) - exclude
    ids = [item.item_id for item in answer.items]
    assert len(ids) == len(set(ids)) == min(k, len(allowed))
    assert set(ids) <= allowed
    scores = [item.score for item in answer.items]
    assert scores == sorted(scores, reverse=True)


def test_an_item_s_score_does_not_depend_on_the_other_candidates(recommender: Recommender) -> None:
    everything = {item.item_id: item.score for item in recommender.recommend("u9", k=ITEMS).items}
    few = recommender.recommend("u9", k=3, exclude=["i0", "i1", "i2"]).items
    assert [item.score for item in few] == pytest.approx([everything[item.item_id] for item in few], rel=1e-6)


def test_equal_scores_keep_the_order_of_retrieval(world: Any, recommender: Recommender) -> None:
    # A query of zeros gives every candidate the head's bias, as no item is more popular than another.
    found = Found(
        row=np.array([[7, 3, 5, 1]]), score=np.array([[4, 3, 2, 1]], np.float32), count=np.array([3], np.int64)
    )
    ranked = rank(
        recommender.bundle.model,
        np.zeros((1, world.candidates().shape[1]), np.float32),
        recommender.bundle.candidates[found.row],
        trends=np.zeros_like(recommender.bundle.trends[found.row]),
        found=found,
    )
    assert ranked.found.row[0, :3].tolist() == [7, 3, 5]
    assert ranked.retrieval_rank[0, :3].tolist() == [1, 2, 3]
    assert ranked.found.count.tolist() == [3]


def test_asked_at_an_earlier_moment_later_interactions_are_unknown(world: Any, recommender: Recommender) -> None:
    moment = int(world.dataset.timestamp[len(world.dataset.timestamp) // 2])
    history, seen = log_of(world, "u8", before=moment)
    assert seen != log_of(world, "u8")[1]
    wanted = expected(world, known_query(world, "u8", history), left_out=seen, k=6)
    aware = EPOCH + timedelta(microseconds=moment)
    assert_same(recommender.recommend("u8", k=6, now=aware), wanted)
    assert_same(recommender.recommend("u8", k=6, now=aware.replace(tzinfo=None)), wanted)


def test_a_history_of_the_future_is_refused(recommender: Recommender) -> None:
    with pytest.raises(RequestError, match="'i3' was met at 1970"):
        recommender.recommend(history=[("i3", EPOCH + timedelta(days=2))], now=EPOCH + timedelta(days=1))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"k": 0}, "k is 0"),
        ({"context": {"device": "tv"}}, "does not read 'device'; it reads age, gender"),
        ({"context": {"user_id": "u1"}}, "does not read 'user_id'"),
        ({"context": {"age": "old"}}, "cannot read"),
        ({"context": {"age": 10**400}}, "cannot read"),
    ],
)
def test_what_cannot_be_asked_is_refused(recommender: Recommender, asked: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        recommender.recommend(**asked)  # type: ignore[arg-type]


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_a_batch_answers_as_one_by_one(recommender: Recommender, exclude_seen: bool) -> None:
    users = ["u3", "nobody", "u0", "u24", "u3", *(f"u{row}" for row in range(USERS))]
    table = recommender.recommend_batch(users, k=7, exclude_seen=exclude_seen)
    assert table.column_names == ["user_id", "item_id", "score", "rank"]
    singles = [recommender.recommend(user_id, k=7, exclude_seen=exclude_seen) for user_id in users]
    wanted = [(single.user_id, item.item_id, item.rank) for single in singles for item in single.items]
    assert list(zip(*(table[name].to_pylist() for name in ("user_id", "item_id", "rank")), strict=True)) == wanted
    scores = [item.score for single in singles for item in single.items]
    np.testing.assert_allclose(table["score"].to_numpy(), scores, rtol=1e-5, atol=1e-6)


def test_a_batch_larger_than_a_block_keeps_the_order_of_the_users(
    recommender: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = recommender.recommend_batch(k=4)
    monkeypatch.setattr("twotower.serving.answers.batches.RANKED_AT_ONCE", 3 * CANDIDATES)
    blocks = recommender.recommend_batch(k=4)
    assert blocks.select(["user_id", "item_id", "rank"]) == whole.select(["user_id", "item_id", "rank"])
    assert whole["user_id"].to_pylist() == [f"u{row}" for row in range(USERS) for _ in range(4)]


def test_a_batch_is_written_as_parquet(recommender: Recommender, tmp_path: Path) -> None:
    path = tmp_path / "new" / "answers.parquet"
    assert recommender.write_batch(path, user_ids=["u1", "u2"], k=3) == 6
    assert pq.read_table(path) == recommender.recommend_batch(["u1", "u2"], k=3)
    assert list(path.parent.iterdir()) == [path]


def test_a_batch_of_nobody_is_empty(recommender: Recommender) -> None:
    assert recommender.recommend_batch([], k=3).num_rows == 0
    with pytest.raises(RequestError, match="k is 0"):
        recommender.recommend_batch(k=0)


def test_the_approximate_index_answers_likewise(world: Any, recommender: Recommender, tmp_path: Path) -> None:
    other = Recommender.load(world.write(tmp_path / "bundle", index=world.directory / "hnsw"))
    assert other.bundle.index.kind == "hnsw"
    for user_id in ("u0", "u23", None):
        ours, theirs = recommender.recommend(user_id, k=ITEMS), other.recommend(user_id, k=ITEMS)
        assert [item.item_id for item in theirs.items] == [item.item_id for item in ours.items]


def test_similar_items_are_those_of_the_highest_cosine(world: Any, recommender: Recommender) -> None:
    vectors = world.candidates()[:, :DIM]
    cosine = vectors @ vectors[4] / np.maximum(np.linalg.norm(vectors, axis=1) * np.linalg.norm(vectors[4]), 1e-30)
    wanted = [row for row in np.argsort(-cosine, kind="stable") if row != 4][:5]
    answer = recommender.similar("i4", k=5)
    assert [item.item_id for item in answer.items] == [f"i{row}" for row in wanted]
    assert [item.score for item in answer.items] == pytest.approx(cosine[wanted].tolist(), rel=1e-5)
    assert (answer.title, answer.items[0].title) == ("Film 4", f"Film {wanted[0]}")
    assert [item.rank for item in answer.items] == [1, 2, 3, 4, 5]


def test_similar_never_names_the_item_itself(recommender: Recommender) -> None:
    answer = recommender.similar("i4", k=1_000)
    assert len(answer.items) == ITEMS - 1
    assert "i4" not in {item.item_id for item in answer.items}


def test_similar_to_an_unknown_item_is_refused(recommender: Recommender) -> None:
    with pytest.raises(RequestError, match="'x1' is not in the catalogue"):
        recommender.similar("x1")
    with pytest.raises(RequestError, match="k is 0"):
        recommender.similar("i1", k=0)


def test_threads_get_the_answers_that_one_would(recommender: Recommender) -> None:
    users = [f"u{row}" for row in range(USERS)] * 4
    wanted = {user_id: recommender.recommend(user_id) for user_id in users}
    neighbours = recommender.similar("i1")
    wrong: list[str] = []

    def ask(first: int) -> None:
        wrong.extend(user_id for user_id in users[first::4] if recommender.recommend(user_id) != wanted[user_id])
        wrong.extend(f"similar, {first}" for _ in range(5) if recommender.similar("i1") != neighbours)

    threads = [threading.Thread(target=ask, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_an_answer_turns_into_json(recommender: Recommender) -> None:
    answer = recommender.recommend("u1", k=2)
    as_json = json.loads(json.dumps(answer.to_dict()))
    assert as_json["items"][0] == dataclasses.asdict(answer.items[0])
    assert json.loads(json.dumps(recommender.similar("i1").to_dict()))["item_id"] == "i1"


def test_the_package_s_load_opens_a_recommender(bundle_directory: Path, recommender: Recommender) -> None:
    opened = twotower.load(str(bundle_directory))
    assert opened.recommend("u1") == recommender.recommend("u1")


HEAVY = ("keras", "jax", "tensorflow", "torch", "kfp", "duckdb", "ibis", "onnx", "scipy", "sklearn")


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("twotower", (*HEAVY, "numpy", "pyarrow", "onnxruntime", "pydantic")),
        ("twotower.index.build", (*HEAVY, "onnxruntime")),
        ("twotower.bundle", HEAVY),
        ("twotower.serving.recommender", HEAVY),
    ],
)
def test_nothing_heavy_is_imported(module: str, heavy: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print(*(name for name in {heavy!r} if name in sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == []


def test_answering_imports_nothing_heavy_either(bundle_directory: Path) -> None:
    code = (
        f"import sys, twotower; opened = twotower.load({str(bundle_directory)!r}); opened.recommend('u1');"
        f"opened.recommend(); opened.similar('i1'); opened.recommend_batch();"
        f"print(*(name for name in {HEAVY!r} if name in sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == []


def test_the_package_offers_its_version_and_no_more() -> None:
    assert twotower.__version__.count(".") == 2
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = twotower.lode
