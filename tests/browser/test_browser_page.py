"""The page in a real Chromium, over a real server: what it shows is what the API answers, by mouse and by keyboard."""

import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
KEY = "a key that only this test knows"
HOSTILE = "<img src=x onerror=\"document.title='broken'\">"
# What stands before the eye: text and what is painted behind it, as the browser works it out.
CONTRASTS = """() => {
  const parts = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (rgb) => {
    const [r, g, b] = rgb.map((part) => {
      const share = part / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const [r, g, b, a = 1] = parts(getComputedStyle(at).backgroundColor);
      if (a === 1) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const isText = (element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  const shown = [...document.querySelectorAll("body *")].filter((each) => isText(each) && each.checkVisibility());
  return shown.map((element) => {
    const [one, other] = [light(parts(getComputedStyle(element).color).slice(0, 3)), light(behind(element))];
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    return [`${element.tagName}.${element.className} ${element.textContent.trim().slice(0, 30)}`, ratio];
  });
}"""

Visit = Callable[..., Page]


def ask(address: str, path: str, body: dict[str, Any], *, method: str = "POST") -> dict[str, Any]:
    request = urllib.request.Request(
        f"{address}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}, method=method
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def titles(page: Page, stage: str = "ranking") -> list[str]:
    """What a list shows, in its order; the titles below the rule are those that the other list has first."""
    return page.locator(f".{stage} .row:not(.below) .title").all_inner_texts()


def wait_for_answer(page: Page) -> None:
    expect(page.locator("#main")).not_to_have_attribute("inert", "")
    expect(page.locator("#answer")).not_to_have_attribute("aria-busy", "true")
    expect(page.locator(".ranking .row").first).to_be_visible()


def choose_user(page: Page, user: str) -> None:
    wait_for_answer(page)
    page.get_by_label("User").fill(user)
    page.get_by_role("button", name="Ask", exact=True).first.click()
    wait_for_answer(page)


def test_a_user_is_chosen_and_both_orders_are_those_of_the_api(visit: Visit, served: str) -> None:
    page = visit(served)
    choose_user(page, "7")
    items = ask(served, "/v1/recommend", {"user_id": "7", "k": 50})["items"]
    assert titles(page) == [item["title"] for item in items[:10]]
    retrieved = sorted(items, key=lambda item: item["retrieval_rank"])
    assert titles(page, "retrieval") == [item["title"] for item in retrieved[:10]] != titles(page)
    risen = next(item for item in items[:10] if item["rank"] < item["retrieval_rank"])
    moved = page.locator(f".ranking .row[data-item='{risen['item_id']}'] .move")
    assert moved.get_attribute("title").split()[0] == str(risen["retrieval_rank"] - risen["rank"])
    first = page.locator(".ranking .row").first
    assert first.locator(".score").inner_text() == f"{items[0]['score']:.2f}".replace("-", "\N{MINUS SIGN}")
    expect(page.locator(".took")).to_contain_text("ms in the server")
    assert page.locator("#moves path").count() == page.locator(".ranking .row").count()


def bars(page: Page, stage: str) -> list[float]:
    """How long the bars of a list are, as shares of the longest."""
    rows = page.locator(f".{stage} .row").all()
    return [float(row.evaluate("row => row.style.getPropertyValue('--share')")) for row in rows]


def test_every_row_has_a_bar_and_those_of_scores_above_zero_begin_there(visit: Visit, served: str) -> None:
    page = visit(served)
    choose_user(page, "7")
    items = ask(served, "/v1/recommend", {"user_id": "7", "k": 50})["items"]
    for stage, score in (("ranking", "score"), ("retrieval", "retrieval_score")):
        shown = bars(page, stage)
        assert max(shown) == 1
        assert min(shown) > 0.05
        scores = sorted((item[score] for item in items), reverse=True)
        if scores[len(shown) - 1] > 0:
            ids = page.locator(f".{stage} .row").evaluate_all("rows => rows.map((row) => row.dataset.item)")
            by_id = {item["item_id"]: item[score] for item in items}
            highest = max(by_id[item] for item in ids)
            assert shown == pytest.approx([by_id[item] / highest for item in ids], rel=1e-4)


def test_that_both_orders_are_the_same_is_said(visit: Visit, served: str) -> None:
    said = "keeps the order of retrieval: both lists are the same."
    page = visit(served)
    choose_user(page, "7")
    expect(page.locator(".ranking .stage-note")).not_to_contain_text(said)
    one = ask(served, "/v1/recommend", {"user_id": "7", "k": 1})["items"][0]  # Of one item there is one order.
    page.get_by_label("Only items where").fill(f"title == {json.dumps(one['title'])}")
    page.keyboard.press("Enter")
    expect(page.locator(".ranking .stage-note")).to_contain_text(said)
    assert titles(page) == titles(page, "retrieval") == [one["title"]]


def test_nobody_gets_what_is_popular_and_one_click_makes_them_somebody(visit: Visit, served: str) -> None:
    page = visit(served)
    page.get_by_role("button", name="Nobody").click()
    expect(page.get_by_role("heading", name="Popular")).to_be_visible()
    expect(page.locator(".stage.retrieval")).to_be_hidden()
    met = titles(page)[0]
    page.get_by_role("combobox", name="Add an item they met").fill(met[:12].lower())
    page.get_by_role("option", name=met).click()
    expect(page.locator("#met li")).to_have_text([f"{met}\u00d7"])
    expect(page.get_by_role("heading", name="Retrieval")).to_be_visible()
    assert met not in titles(page)


def test_a_click_on_a_title_changes_the_next_answer_and_can_be_taken_back(visit: Visit, served: str) -> None:
    page = visit(served)
    choose_user(page, "7")
    before = titles(page)
    page.locator(".ranking .title").first.click()
    expect(page.locator("#met li")).to_have_count(1)
    wait_for_answer(page)
    after = titles(page)
    assert before[0] not in after
    assert after != before[1:] + after[-1:]  # More than one item less: the model heard of it.
    assert "of the first 10 are new" in page.locator("#said").inner_text()
    page.get_by_role("button", name=f"Take back: {before[0]}").click()
    expect(page.locator("#met li")).to_have_count(0)
    wait_for_answer(page)
    assert titles(page) == before


def test_a_reload_keeps_what_was_asked(visit: Visit, served: str) -> None:
    page = visit(served, "#user=7&met=i%2F1")
    expect(page.locator("#notes")).to_contain_text("i/1")  # Unknown, and told so.
    choose_user(page, "12")
    page.locator(".ranking .title").first.click()
    expect(page.locator("#met li")).to_have_count(2)
    wait_for_answer(page)
    shown = titles(page)
    page.reload()
    wait_for_answer(page)
    assert titles(page) == shown
    assert page.get_by_label("User").input_value() == "12"


def test_a_filter_narrows_and_a_bad_one_shows_the_servers_line(visit: Visit, served: str, bundle: Path) -> None:
    page = visit(served)
    choose_user(page, "7")
    page.get_by_text("Columns to filter by").click()
    page.get_by_role("button", name="year").click()
    expect(page.get_by_label("Only items where")).to_have_value("year")
    page.keyboard.type(" >= 2000")
    page.keyboard.press("Enter")
    wait_for_answer(page)
    expect(page.locator("#filter-fault")).to_be_hidden()
    items = pq.read_table(bundle / "items.parquet").to_pylist()
    year = {item["title"]: item["year"] for item in items}
    assert all(year[title] >= 2000 for title in titles(page))
    page.get_by_label("Only items where").fill("colour == 'red'")
    page.keyboard.press("Enter")
    fault = page.locator("#filter-fault")
    expect(fault).to_contain_text("colour")
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask(served, "/v1/recommend", {"user_id": "7", "filter": "colour == 'red'"})
    assert fault.inner_text() == json.load(refused.value)["error"]
    expect(page.locator("#filter")).to_have_attribute("aria-invalid", "true")


def test_why_shows_both_stages_the_labels_and_what_pulled_the_item_up(visit: Visit, served: str) -> None:
    page = visit(served)
    choose_user(page, "7")
    told = ask(served, "/v1/recommend", {"user_id": "7", "k": 10, "explain": True})["items"][0]
    row = page.locator(".ranking .row").first
    row.get_by_role("button", name="Why").click()
    panel = row.locator(".panel")
    for text in (f"place {told['retrieval_rank']},", *told["labels"], "brought by the index"):
        expect(panel).to_contain_text(text)
    pulled = [met["title"] for met in told["explanation"]["because"]]
    assert row.locator(".effects li span:first-child").all_inner_texts() == pulled
    expect(row.locator(".because")).to_contain_text(f"because of {pulled[0]}")
    panel.get_by_role("button", name="Similar items").click()
    expect(panel.locator(".near li")).to_have_count(5)
    panel.get_by_role("button", name="Leave it out").click()
    expect(page.locator("#left-out li")).to_have_count(1)
    wait_for_answer(page)
    assert told["title"] not in titles(page)


def test_an_item_lights_up_in_both_lists_with_its_line(visit: Visit, served: str) -> None:
    page = visit(served)
    choose_user(page, "7")
    row = page.locator(".ranking .row").nth(3)
    row.locator(".title").hover()
    item = row.get_attribute("data-item")
    assert {lit.get_attribute("data-item") for lit in page.locator(".lit").all()} == {item}
    expect(page.locator("#moves path.lit")).to_have_count(1)
    expect(page.locator(".lit")).to_have_count(3)


def test_the_keyboard_alone_leads_through_all_of_it(visit: Visit, served: str) -> None:
    page = visit(served, "#user=7")
    wait_for_answer(page)
    press = page.keyboard.press
    press("Tab")
    expect(page.get_by_role("link", name="Skip to the answer")).to_be_focused()
    press("Enter")
    expect(page.locator("#answer")).to_be_focused()
    press("Tab")
    first = page.locator(".retrieval .title").first
    expect(first).to_be_focused()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    expect(page.locator(".ranking .row.lit")).to_have_count(1)
    met = first.inner_text()
    press("Enter")
    expect(page.locator("#met li")).to_have_count(1)
    wait_for_answer(page)
    assert met not in titles(page, "retrieval")
    expect(page.locator(".retrieval .title").first).to_be_focused()  # Where they were, not at the top of the page.
    while page.evaluate("document.activeElement.id") != "search":
        press("Shift+Tab")
    press("ArrowDown")
    expect(page.get_by_role("option").first).to_have_attribute("aria-selected", "true")
    press("Escape")
    expect(page.locator("#found")).to_be_hidden()
    page.keyboard.type("a")
    press("Enter")
    expect(page.locator("#met li")).to_have_count(2)
    press("Tab")
    expect(page.locator("#met button").first).to_be_focused()
    press("Enter")
    expect(page.locator("#met li")).to_have_count(1)
    expect(page.locator("#met button").first).to_be_focused()


def test_the_report_opens_without_an_origin_and_the_card_as_text(visit: Visit, served: str, bundle: Path) -> None:
    page = visit(served)
    wait_for_answer(page)
    page.get_by_role("button", name="Report").click()
    report = page.frame_locator("#reader-body iframe")
    expect(report.locator("h1")).to_be_visible()
    assert page.frames[1].evaluate("self.origin") == "null"
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.get_by_role("button", name="Model card").click()
    assert page.locator("#reader-body pre").inner_text() == (bundle / "report" / "card.md").read_text("utf-8")
    page.get_by_role("button", name="Close").click()
    expect(page.get_by_role("button", name="Model card")).to_be_focused()


def test_a_title_that_is_markup_is_shown_as_text(visit: Visit, served: str) -> None:
    item = {"item_id": "hostile", "features": {"title": HOSTILE, "year": 1999}}
    ask(served, "/v1/items", {"items": [item]}, method="PUT")
    page = visit(served, "#user=7&filter=item_id+%3D%3D+'hostile'")
    wait_for_answer(page)
    assert titles(page) == titles(page, "retrieval") == [HOSTILE]
    page.locator(".why").click()
    expect(page.locator(".panel")).to_contain_text("put in since the bundle was made")
    page.get_by_role("combobox", name="Add an item they met").fill("onerror")
    page.get_by_role("option", name=HOSTILE).click()
    expect(page.locator("#met span")).to_have_text([HOSTILE])
    expect(page.locator(".ranking .stage-note")).to_have_text("No item is left.")
    assert page.locator("img").count() == 0
    assert page.title() == "twotower"


def test_the_live_figures_follow_what_is_asked(visit: Visit, served: str) -> None:
    page = visit(served)
    choose_user(page, "7")
    live = page.locator("#live")
    expect(live).to_contain_text("memory")
    for user in ("8", "9", "10"):
        choose_user(page, user)
    for name in ("answers/s", "p50", "p99", "memory"):
        figure = live.locator("div", has_text=name).locator("b")
        expect(figure).to_have_text(re.compile("[1-9]"))


def test_a_quantile_is_read_from_the_buckets(visit: Visit, served: str) -> None:
    page = visit(served)
    # Ten up to 1, ten more up to 3, none above: the middle lies at 1, three quarters half way between 1 and 3.
    given = "new Map([[1, 10], [3, 20], [Infinity, 20]])"
    read = f"import('/page/live.js').then(({{ quantile }}) => [0.5, 0.75].map((share) => quantile({given}, share)))"
    assert page.evaluate(read) == [1, 2]
    text = 'a_total{route="/x",odd="a \\\\"b\\\\""} 3.5\\n# HELP a\\na_bucket{le="+Inf"} 2'
    parsed = page.evaluate(
        f"import('/page/live.js').then(({{ parse }}) => parse('{text}').map((each) => [each.labels, each.value]))"
    )
    assert parsed == [[{"route": "/x", "odd": 'a "b"'}, 3.5], [{"le": "+Inf"}, 2]]


def test_a_phone_needs_no_sideways_scrolling(visit: Visit, served: str) -> None:
    page = visit(served, width=375)
    choose_user(page, "7")
    open_everything(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    answer, retrieval = (page.locator(f".stage.{stage}").bounding_box() for stage in ("ranking", "retrieval"))
    assert answer["y"] < retrieval["y"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_what_is_behind_it(visit: Visit, served: str, scheme: str) -> None:
    page = visit(served, color_scheme=scheme)
    choose_user(page, "7")
    open_everything(page)
    page.locator(".ranking .title").nth(1).hover()
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 100
    assert [found for found in contrasts if found[1] < 4.5] == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(251, 250, 247)") == (scheme == "light")


def open_everything(page: Page) -> None:
    """A chip, a refused filter, an open explanation and every list that can be unfolded."""
    page.locator(".ranking .title").first.click()
    expect(page.locator("#met li")).to_have_count(1)
    wait_for_answer(page)
    page.locator(".why").first.click()
    page.get_by_role("button", name="Similar items").click()
    expect(page.locator(".near li")).to_have_count(5)
    for summary in page.locator("summary:visible").all():
        summary.click()
    expect(page.locator("#live")).to_contain_text("memory")


def test_a_server_with_a_key_asks_for_it_and_keeps_it_for_the_tab(
    visit: Visit, serve: Callable[..., str], bundle: Path
) -> None:
    page = visit(serve(bundle, key=KEY))
    field = page.get_by_label("This server asks for a key")
    expect(field).to_be_focused()
    expect(page.locator("#main")).to_be_hidden()
    page.keyboard.type("another")
    page.keyboard.press("Enter")
    expect(page.locator("#door-fault")).to_contain_text("No valid key")
    field.fill(KEY)
    page.keyboard.press("Enter")
    wait_for_answer(page)
    expect(field).to_be_hidden()
    page.get_by_role("button", name="Report").click()
    expect(page.frame_locator("#reader-body iframe").locator("h1")).to_be_visible()
    page.reload()
    wait_for_answer(page)
    assert page.evaluate("Object.values(localStorage).length") == 0
    assert KEY not in page.url


def test_the_picture_in_the_docs_can_be_taken_again(visit: Visit, served: str, tmp_path: Path) -> None:
    """With TWOTOWER_GOLDEN=write it becomes `docs/page.png`."""
    page = visit(served, "#user=7", device_scale_factor=1.5)
    wait_for_answer(page)
    page.locator(".ranking .title").nth(2).click()
    expect(page.locator("#met li")).to_have_count(1)
    wait_for_answer(page)
    expect(page.locator("#live div", has_text="p99").locator("b")).to_have_text(re.compile("[1-9]"))
    page.locator(".ranking .row", has=page.locator(".move.up")).first.locator(".title").hover()
    is_golden = os.environ.get("TWOTOWER_GOLDEN") == "write"
    picture = page.screenshot(path=ROOT / "docs" / "page.png" if is_golden else tmp_path / "page.png")
    assert picture.startswith(b"\x89PNG")
