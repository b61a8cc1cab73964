"""The API over HTTP, route by route, on a bundle that was really trained."""

import gzip
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest

from twotower.serving.load.child import Child, serving
from twotower.serving.recommender import Recommender

YEAR = "year"


@pytest.fixture(scope="module")
def bundle(tiny_run: Path) -> Path:
    return tiny_run / "bundle"


@pytest.fixture(scope="module")
def tiny(bundle: Path) -> Recommender:
    return Recommender.load(bundle)


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    store = tmp_path_factory.mktemp("store") / "serving.db"
    with serving(bundle, "--store", str(store), "--admin-port", "0") as started:
        yield started


@pytest.fixture(scope="module")
def api(server: Child) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def post(api: httpx.Client, path: str, **asked: Any) -> Any:
    answer = api.post(path, json=asked)
    assert answer.status_code == 200, answer.text
    return answer.json()


def ids(answer: Any) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def told(api: httpx.Client, user_id: str, item_id: str, **more: Any) -> Any:
    event = {"event_id": f"{user_id} {item_id}", "user_id": user_id, "item_id": item_id, **more}
    return post(api, "/v1/events", events=[event])


def popular(tiny: Recommender, count: int) -> list[str]:
    return [item.item_id for item in tiny.recommend(k=count).items]


def test_the_last_click_changes_the_next_answer_and_does_not_come_again(api: httpx.Client) -> None:
    before = post(api, "/v1/recommend", user_id="17", k=20)
    clicked = ids(before)[0]
    assert told(api, "17", clicked, labels={"rating": 5})["accepted"] == 1
    after = post(api, "/v1/recommend", user_id="17", k=20)
    scores = [{item["item_id"]: item["score"] for item in answer["items"]} for answer in (before, after)]
    both = scores[0].keys() & scores[1].keys()
    assert clicked not in ids(after)
    assert both
    assert any(scores[0][item] != scores[1][item] for item in both)


def test_a_new_user_is_known_by_what_came_in_as_by_a_history_that_is_told(api: httpx.Client, tiny: Recommender) -> None:
    first, second, *_ = popular(tiny, 2)
    assert post(api, "/v1/recommend", user_id="nobody yet")["fallback"] == "popular"
    for place, item_id in enumerate((first, second)):
        told(api, "nobody yet", item_id, labels={"rating": 5}, timestamp=tiny.bundle.metadata["last_us"] + place + 1)
    answer = post(api, "/v1/recommend", user_id="nobody yet")
    assert answer["fallback"] is None
    assert answer["notes"] == []
    assert {first, second}.isdisjoint(ids(answer))
    history = post(api, "/v1/history", user_id="nobody yet")
    assert [item["item_id"] for item in history["items"]] == [second, first]


def test_what_does_not_count_as_positive_is_seen_but_says_nothing(api: httpx.Client, tiny: Recommender) -> None:
    # The recipe has positives = "rating >= 2".
    first = popular(tiny, 1)[0]
    told(api, "who disliked", first, labels={"rating": 1})
    answer = post(api, "/v1/recommend", user_id="who disliked")
    assert answer["fallback"] == "popular"
    assert first not in ids(answer)


def test_an_event_sent_twice_counts_once_and_an_impression_is_no_history(api: httpx.Client, tiny: Recommender) -> None:
    first = popular(tiny, 1)[0]
    told(api, "who looks", first, kind="impression", rank=1)
    again = told(api, "who looks", first, kind="impression", rank=1)
    assert (again["accepted"], again["duplicates"]) == (0, 1)
    answer = post(api, "/v1/recommend", user_id="who looks")
    assert first in ids(answer)
    assert post(api, "/v1/history", user_id="who looks")["items"] == []


def test_a_filter_gives_as_many_as_pass_and_nothing_else(api: httpx.Client, bundle: Path) -> None:
    items = pq.read_table(bundle / "items.parquet").to_pylist()
    newest = max(item[YEAR] for item in items)
    passing = {item["item_id"] for item in items if item[YEAR] == newest}
    for asked in ({"user_id": "3"}, {"history": [items[0]["item_id"]]}, {}):
        answer = post(api, "/v1/recommend", k=1000, exclude_seen=False, filter=f"year == {newest}", **asked)
        assert set(ids(answer)) == passing
    few = post(api, "/v1/recommend", user_id="3", k=1, exclude_seen=False, filter=f"year == {newest}")
    assert set(ids(few)) <= passing
    assert len(ids(few)) == 1


def test_a_filter_reads_the_values_within_a_text_as_the_model_does(api: httpx.Client, bundle: Path) -> None:
    items = pq.read_table(bundle / "items.parquet").to_pylist()
    genre = items[0]["genres"].split("|")[0]
    passing = {item["item_id"] for item in items if genre in item["genres"].split("|")}
    answer = post(api, "/v1/recommend", user_id="3", k=1000, exclude_seen=False, filter=f'genres == "{genre}"')
    assert set(ids(answer)) == passing


@pytest.mark.parametrize("condition", ["year >=", "nope == 1", "year == 'x'", "((" * 50, ""])
def test_a_filter_that_is_none_is_refused_in_one_line(api: httpx.Client, condition: str) -> None:
    answer = api.post("/v1/recommend", json={"user_id": "3", "filter": condition})
    assert answer.status_code == 400
    assert "filter" in answer.json()["error"]


def test_a_list_of_the_caller_s_own_is_ranked_as_the_answer_is(api: httpx.Client) -> None:
    answer = post(api, "/v1/recommend", user_id="3", k=10)
    given = [*reversed(ids(answer)), "not there", ids(answer)[0]]
    ranked = post(api, "/v1/rank", user_id="3", items=given)
    assert ids(ranked) == ids(answer)
    assert ranked["notes"] == ["items: not in the catalogue, passed over: 'not there'"]
    for one, other in zip(ranked["items"], answer["items"], strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)


def test_a_batch_answers_each_as_if_it_had_come_alone(api: httpx.Client) -> None:
    asked = [{"user_id": "3", "k": 4}, {"history": ["5"], "k": 2}, {}]
    together = post(api, "/v1/recommend:batch", requests=asked)["responses"]
    alone = [post(api, "/v1/recommend", **each) for each in asked]
    assert [each["items"] for each in together] == [each["items"] for each in alone]
    wrong = api.post("/v1/recommend:batch", json={"requests": [{}, {"filter": "nope"}]})
    assert (wrong.status_code, wrong.json()["error"][:12]) == (400, "requests.1: ")


def test_a_batch_holds_only_so_many_items_in_all(api: httpx.Client) -> None:
    many = [{"history": ["1"] * 4_000, "exclude": ["2"] * 4_000}] * 3
    answer = api.post("/v1/recommend:batch", json={"requests": many})
    assert (answer.status_code, answer.json()["error"][:27]) == (400, "requests: more than 20,000 ")
    assert len(post(api, "/v1/recommend:batch", requests=many[:2])["responses"]) == 2


def test_a_body_of_many_faults_is_refused_by_the_first_or_by_their_number(api: httpx.Client) -> None:
    answer = api.post("/v1/recommend:batch", json={"requests": [{"history": [{}] * 3_000}] * 80})
    assert (answer.status_code, answer.json()["error"][:22]) == (422, "requests.0.history.0: ")
    answer = api.post("/v1/recommend", json={f"field {number}": 0 for number in range(5_000)})
    assert (answer.status_code, answer.json()["error"][:20]) == (422, "body: 5,000 faults. ")


def test_a_number_that_no_table_holds_is_refused_wherever_it_stands(api: httpx.Client) -> None:
    event = {"event_id": "poison", "user_id": "1", "item_id": "1"}
    for value in (int("9" * 400), [1 << 63]):
        answer = api.post("/v1/events", json={"events": [event | {"context": {"x": value}}]})
        assert (answer.status_code, answer.json()["error"][:45]) == (
            400,
            "context.x: a whole number of more than 64 bit",
        )
        for name in (YEAR, "title"):
            item = {"item_id": "poison", "features": {name: value}}
            assert api.put("/v1/items", json={"items": [item]}).status_code == 400
    assert api.post("/v1/events", json={"events": [event | {"labels": {"x": int("9" * 400)}}]}).status_code == 422


def test_similar_items_leave_out_what_is_excluded_and_filtered(api: httpx.Client, tiny: Recommender) -> None:
    item_id = popular(tiny, 1)[0]
    nearest = ids(post(api, "/v1/similar", item_id=item_id, k=5))
    assert nearest == [item.item_id for item in tiny.similar(item_id, k=5).items]
    assert ids(post(api, "/v1/similar", item_id=item_id, k=4, exclude=nearest[:1])) == nearest[1:]
    assert api.post("/v1/similar", json={"item_id": "not there"}).status_code == 400


def test_an_explanation_tells_by_how_much_the_score_falls_without_an_item_met(
    api: httpx.Client, tiny: Recommender
) -> None:
    met = popular(tiny, 3)
    whole = post(api, "/v1/recommend", history=met, k=5, explain=True)
    for item in whole["items"]:
        assert item["explanation"]["source"] == "index"
        assert item["explanation"]["rules"] == []
        for reason in item["explanation"]["because"]:
            rest = [each for each in met if each != reason["item_id"]]
            without = post(api, "/v1/rank", history=rest, items=[item["item_id"]])["items"][0]["score"]
            assert reason["effect"] == pytest.approx(item["score"] - without, abs=1e-4)
    assert any(item["explanation"]["because"] for item in whole["items"])


def test_a_deadline_that_has_passed_leaves_ranking_out_and_says_so(api: httpx.Client) -> None:
    answer = post(api, "/v1/recommend", user_id="3", k=10, deadline_ms=0.001)
    assert answer["fallback"] == "retrieval"
    assert [item["retrieval_rank"] for item in answer["items"]] == list(range(1, 11))
    assert "ranking" not in answer["timings_ms"]
    assert post(api, "/v1/recommend", user_id="3", deadline_ms=60_000)["fallback"] is None


def test_an_item_that_is_put_can_come_at_once_be_changed_and_removed(api: httpx.Client, bundle: Path) -> None:
    like = pq.read_table(bundle / "items.parquet").to_pylist()[0]
    features = {name: str(value) if name == "release_date" else value for name, value in like.items()}
    del features["item_id"]
    new = {"item_id": "brand new", "features": {**features, "title": "Brand New", YEAR: 2999}}
    put = api.put("/v1/items", json={"items": [new]})
    assert put.status_code == 200
    assert put.json()["written"] == 1
    [found] = post(api, "/v1/recommend", user_id="3", filter="year == 2999", explain=True)["items"]
    assert (found["item_id"], found["title"], found["explanation"]["source"]) == ("brand new", "Brand New", "new")
    assert post(api, "/v1/search", text="brand")["items"] == [
        {"item_id": "brand new", "title": "Brand New", "timestamp": None}
    ]
    api.put("/v1/items", json={"items": [{**new, "features": {**new["features"], YEAR: 3000}}]})
    assert ids(post(api, "/v1/recommend", filter="year == 2999")) == []
    assert ids(post(api, "/v1/recommend", filter="year == 3000")) == ["brand new"]
    removed = api.request("DELETE", "/v1/items", json={"item_ids": ["brand new"]})
    assert removed.status_code == 200
    assert ids(post(api, "/v1/recommend", filter="year == 3000")) == []


def test_an_item_of_the_bundle_that_is_put_anew_stays_seen_and_one_removed_comes_from_nowhere(
    api: httpx.Client, tiny: Recommender
) -> None:
    seen = tiny.history("5", most=1)[0][0]
    api.put("/v1/items", json={"items": [{"item_id": seen, "features": {"title": "Again"}}]})
    assert seen not in ids(post(api, "/v1/recommend", user_id="5", k=1000))
    assert seen in ids(post(api, "/v1/recommend", user_id="5", k=1000, exclude_seen=False))
    api.request("DELETE", "/v1/items", json={"item_ids": [seen]})
    for asked in ({"user_id": "5"}, {}, {"user_id": "5", "filter": "true"}):
        assert seen not in ids(post(api, "/v1/recommend", k=1000, exclude_seen=False, **asked))
    neighbour = tiny.similar(seen, k=1).items[0].item_id
    assert seen not in ids(post(api, "/v1/similar", item_id=neighbour, k=200))


@pytest.mark.parametrize(
    "item",
    [{"item_id": "x", "features": {"nope": 1}}, {"item_id": "x", "features": {YEAR: "soon"}}],
)
def test_an_item_that_the_catalogue_cannot_hold_is_refused_and_nothing_is_kept(
    api: httpx.Client, item: dict[str, Any]
) -> None:
    answer = api.put("/v1/items", json={"items": [{"item_id": "good", "features": {YEAR: 2998}}, item]})
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("item 'x': ")
    assert ids(post(api, "/v1/recommend", filter="year == 2998")) == []


def test_events_and_items_outlast_the_server(bundle: Path, tiny: Recommender, tmp_path: Path) -> None:
    store = ("--store", str(tmp_path / "serving.db"))
    first = popular(tiny, 1)[0]
    with serving(bundle, *store) as server, httpx.Client(base_url=server.url, timeout=60) as api:
        told(api, "somebody", first, labels={"rating": 5})
        mixed = [{YEAR: 2999, "title": "Stays"}, {YEAR: 3000, "title": 5}]
        items = [{"item_id": f"stays {place}", "features": each} for place, each in enumerate(mixed)]
        assert api.put("/v1/items", json={"items": items}).status_code == 200
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(60)
    with serving(bundle, *store) as server, httpx.Client(base_url=server.url, timeout=60) as api:
        assert ids(post(api, "/v1/recommend", filter="year == 2999")) == ["stays 0"]
        assert ids(post(api, "/v1/recommend", filter="title == '5'")) == ["stays 1"]
        assert ids(post(api, "/v1/history", user_id="somebody")) == [first]
        assert told(api, "somebody", first)["duplicates"] == 1


def test_without_a_store_nothing_is_taken_and_the_rest_answers(bundle: Path) -> None:
    with serving(bundle, "--store", "none") as server, httpx.Client(base_url=server.url, timeout=60) as api:
        event = {"event_id": "a", "user_id": "1", "item_id": "1"}
        answer = api.post("/v1/events", json={"events": [event]})
        assert (answer.status_code, "--store" in answer.json()["error"]) == (501, True)
        assert post(api, "/v1/recommend", user_id="3")["items"]


def test_the_open_inference_protocol_gives_the_answers_of_the_api(api: httpx.Client) -> None:
    asked = {
        "inputs": [
            {"name": "user_id", "shape": [2], "datatype": "BYTES", "data": ["3", "4"]},
            {"name": "k", "shape": [1], "datatype": "INT32", "data": [4]},
        ]
    }
    answer = post(api, "/v2/models/tiny/infer", **asked)
    items, scores = answer["outputs"]
    alone = [post(api, "/v1/recommend", user_id=user, k=4) for user in ("3", "4")]
    assert (items["shape"], items["data"]) == ([2, 4], [*ids(alone[0]), *ids(alone[1])])
    assert scores["data"] == [item["score"] for each in alone for item in each["items"]]
    assert api.get("/v2/models/tiny/ready").json() == {"name": "tiny", "ready": True}
    empty = {"name": "history", "shape": [2, 0], "datatype": "BYTES", "data": []}
    assert post(api, "/v2/models/tiny/infer", inputs=[*asked["inputs"], empty])["outputs"] == answer["outputs"]


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ([{"name": "user_id", "shape": [3], "datatype": "BYTES", "data": ["3", "4"]}], "2 values, 3 by its shape"),
        ([{"name": "user_id", "shape": [1], "datatype": "BYTES", "data": ["x" * 1025]}], "at most 1,024 characters"),
        ([{"name": "history", "shape": [2, 6000], "datatype": "BYTES", "data": ["1"] * 12000}], "than 10,000 items"),
        (
            [
                {"name": "user_id", "shape": [1], "datatype": "BYTES", "data": ["3"]},
                {"name": "k", "shape": [1], "datatype": "BYTES", "data": [3]},
            ],
            "Send INT32 or INT64",
        ),
    ],
)
def test_a_tensor_that_is_not_what_it_says_is_refused(api: httpx.Client, inputs: list[Any], told: str) -> None:
    answer = api.post("/v2/models/tiny/infer", json={"inputs": inputs})
    assert answer.status_code == 400
    assert told in answer.json()["error"]


def test_a_probe_may_ask_by_head(api: httpx.Client) -> None:
    for path in ("/livez", "/readyz"):
        answer = api.head(path)
        assert (answer.status_code, answer.content) == (200, b"")


def test_a_compressed_body_is_refused_as_such(api: httpx.Client) -> None:
    headers = {"Content-Type": "application/json"}
    zipped = api.post("/v1/recommend", content=gzip.compress(b"{}"), headers=headers | {"Content-Encoding": "gzip"})
    assert (zipped.status_code, "Content-Encoding" in zipped.json()["error"]) == (415, True)
    plain = api.post("/v1/recommend", content=b"{}", headers=headers | {"Content-Encoding": "identity"})
    assert plain.status_code == 200


def test_info_tells_what_can_be_asked(api: httpx.Client, tiny: Recommender) -> None:
    info = api.get("/v1/info").json()
    assert info["bundle"] == tiny.bundle.id
    assert info["query_columns"] == ["age", "region"]
    assert {"name": YEAR, "type": "number", "is_list": False} in info["item_columns"]
    assert len(info["example_users"]) == len(info["example_items"]) == 20
    assert api.get("/v1/report").text.lstrip().lower().startswith("<!doctype html")
    assert api.get("/v1/card").text


def test_the_figures_count_what_was_answered(api: httpx.Client) -> None:
    def count(name: str) -> float:
        lines = [line for line in api.get("/metrics").text.splitlines() if line.startswith(name)]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    before = count("twotower_recommendations_total"), count("twotower_candidates_sum")
    post(api, "/v1/recommend", k=7)  # Of the popular, retrieval brings no more than are asked for.
    assert (count("twotower_recommendations_total"), count("twotower_candidates_sum")) == (before[0] + 1, before[1] + 7)


def admin_of(server: Child) -> httpx.Client:
    """A client of the admin's port, which the server names in its second line."""
    for _ in range(600):
        lines = server.log.read_text(encoding="utf-8").splitlines()
        if named := [line for line in lines if line.startswith("Admin on ")]:
            return httpx.Client(base_url=named[0].removeprefix("Admin on "), timeout=60)
        time.sleep(0.05)
    raise AssertionError(lines)


def test_an_experiment_splits_users_is_told_and_rolled_back(bundle: Path, tiny: Recommender, tmp_path: Path) -> None:
    with (
        serving(bundle, "--store", str(tmp_path / "s.db"), "--admin-port", "0") as server,
        httpx.Client(base_url=server.url, timeout=60) as api,
        admin_of(server) as admin,
    ):
        two = [{"name": name, "bundle": str(bundle), "share": 0.5} for name in ("a", "b")]
        shadow = {"name": "unseen", "bundle": str(bundle)}
        put = admin.put("/v1/deployment", json={"variants": two, "shadows": [shadow], "salt": "s"})
        assert put.status_code == 200, put.text
        users = [str(user) for user in range(1, 41)]
        answers = [post(api, "/v1/recommend", user_id=user, k=1)["variant"] for user in users]
        assert set(answers) == {"a", "b"}
        assert answers == [post(api, "/v1/recommend", user_id=user, k=1)["variant"] for user in users]
        told(api, users[0], "1", kind="impression")
        events = subprocess.run(
            ["sqlite3", "-json", str(tmp_path / "s.db"), "select variant, bundle from events"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(events.stdout) == [{"variant": answers[0], "bundle": tiny.bundle.id}]
        while 'twotower_shadow_overlap_count{variant="unseen"}' not in (figures := api.get("/metrics").text):
            time.sleep(0.05)
        assert 'twotower_shadow_overlap_bucket{le="0.9",variant="unseen"} 0.0' in figures  # It is the same bundle.
        assert admin.post("/v1/promote", json={"variant": "b"}).status_code == 200
        assert {post(api, "/v1/recommend", user_id=user, k=1)["variant"] for user in users} == {"b"}
        assert admin.post("/v1/rollback", json={}).status_code == 200
        assert [post(api, "/v1/recommend", user_id=user, k=1)["variant"] for user in users] == answers
        assert admin.post("/v1/promote", json={"variant": "nobody"}).status_code == 400


def test_a_bundle_that_is_refused_changes_nothing(bundle: Path, tmp_path: Path) -> None:
    with (
        serving(bundle, "--store", "none", "--admin-port", "0") as server,
        httpx.Client(base_url=server.url, timeout=60) as api,
        admin_of(server) as admin,
    ):
        before = admin.get("/v1/deployment").json()
        wrong = admin.put("/v1/deployment", json={"variants": [{"name": "main", "bundle": str(tmp_path)}]})
        assert wrong.status_code == 409
        assert str(tmp_path) in wrong.json()["error"]
        assert admin.post("/v1/check", json={"bundle": str(bundle)}).json() == {"bundle": server.bundle_id}
        assert admin.get("/v1/deployment").json() == before
        assert admin.post("/v1/rollback", json={}).status_code == 400
        assert post(api, "/v1/recommend", user_id="3")["bundle"] == server.bundle_id
