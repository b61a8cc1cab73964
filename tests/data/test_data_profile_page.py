"""The profile as a page: it holds what was found, stands alone, and takes no text of the data for its own."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from twotower.data.config import FilesConfig, PrepareConfig
from twotower.data.profile import Profile, profile
from twotower.data.profile_page import render_profile, write_profile

SCRIPT = "<script>alert(1)</script>"


class Page(HTMLParser):
    """The page as a browser reads it: tags, references, and the cells of its tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [f"{tag} {name}" for name, _ in attrs if name in ("src", "href", "action", "srcset")]

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.text.append(data.strip())

    def after(self, label: str) -> str:
        return self.text[self.text.index(label) + 1]


def found(folder: Path, log: str, **settings: object) -> Profile:
    (folder / "log.csv").write_text(log, encoding="utf-8")
    files = FilesConfig(interactions="log.csv", labels=("rating",), context=("device",), timestamp_format="s")
    return profile(PrepareConfig(source="files", data_dir=str(folder), files=files, **settings))  # type: ignore[arg-type]


LOG = "user_id,item_id,timestamp,rating,device\nann,a,0,5,tv\nbob,a,86400,4,\nann,b,172800,5,tv\nbob,b,345600,,tv\n"


def test_the_page_tells_the_figures_the_counts_and_the_gaps(tmp_path: Path) -> None:
    page = Page(render_profile(found(tmp_path, LOG, missing_labels="keep")))
    assert "Nothing in the way of training" in page.text
    assert page.after("interactions") == "4"
    assert page.after("days") == "4"
    # Two ratings of 5, one of 4, and one row without.
    assert (page.after("5"), page.after("missing")) == ("2", "1")
    assert page.after("interactions.device") == "25.0%"
    # The span of four days in twenty parts of 4.8 hours: a row in the first, the sixth, the eleventh and the last.
    counts = found(tmp_path, LOG, missing_labels="keep").counts["Interactions over time"]
    assert [place for place, (_, count) in enumerate(counts) if count] == [0, 5, 10, 19]
    assert (counts[0], counts[5], counts[19]) == (("1970-01-01", 1), ("1970-01-02", 1), ("1970-01-04", 1))


def test_every_fault_is_on_the_page(tmp_path: Path) -> None:
    bad = LOG.replace("86400", "soon").replace("bob,b", ",b")
    seen = found(tmp_path, bad)
    assert len(seen.faults) == 3
    page = Page(render_profile(seen))
    assert "3 faults to mend" in page.text
    assert page.tags.count("li") == 3
    assert all(fault in page.text for fault in seen.faults)


def test_a_single_fault_is_no_plural() -> None:
    single = Profile(source="log.csv", figures={}, missing={}, faults=("one",), counts={})
    assert "1 fault to mend" in Page(render_profile(single)).text


def test_text_of_the_data_stays_text() -> None:
    nasty = Profile(
        source=SCRIPT,
        figures={SCRIPT: SCRIPT},
        missing={f"items.{SCRIPT}": 0.5},
        faults=(f"log.csv: timestamp of row 1 is '{SCRIPT}'",),
        counts={SCRIPT: [(SCRIPT, 1)]},
    )
    page = Page(render_profile(nasty))
    assert "script" not in page.tags
    assert sum(SCRIPT in text for text in page.text) >= 6


def test_a_value_of_the_users_own_file_stays_text(tmp_path: Path) -> None:
    seen = found(tmp_path, LOG.replace("86400", SCRIPT))
    assert SCRIPT in seen.faults[0]
    assert "script" not in Page(render_profile(seen)).tags


@pytest.mark.parametrize("log", [LOG, LOG.replace("86400", "soon")], ids=["good", "with faults"])
def test_the_page_needs_nothing_from_outside(tmp_path: Path, log: str) -> None:
    text = render_profile(found(tmp_path, log, missing_labels="keep"))
    page = Page(text)
    assert page.references == []
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not re.search(r"https?://|@import|url\(", text)
    assert "default-src 'none'" in text


def test_the_json_beside_it_says_the_same(tmp_path: Path) -> None:
    seen = found(tmp_path, LOG, missing_labels="keep")
    write_profile(seen, tmp_path)
    content = json.loads((tmp_path / "profile.json").read_text(encoding="utf-8"))
    assert content["figures"] == seen.figures
    assert content["counts"]["Interactions by rating"] == [["4", 1], ["5", 2], ["missing", 1]]
    assert (tmp_path / "profile.html").read_text(encoding="utf-8") == render_profile(seen)
