"""The profile that `twotower validate` prints."""

from pathlib import Path

import numpy as np
import pytest

from twotower.data.prepare import PrepareConfig
from twotower.data.profile import gini, profile
from twotower.data.sources.files import FilesConfig

LOG = "user_id,item_id,timestamp,rating\nann,a,0,5\nann,b,86400,4\nbob,a,172800,3\nann,a,432000,\n"


def test_a_profile_counts_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(LOG)
    (tmp_path / "items.csv").write_text("item_id,title\na,First\nb,\nc,\n")
    files = FilesConfig(interactions="log.csv", items="items.csv", labels=("rating",), timestamp_format="s")
    config = PrepareConfig(
        source="files", data_dir=str(tmp_path), files=files, missing_labels="keep", positives="rating > 3"
    )
    found = profile(config)
    assert found.faults == ()
    assert found.missing == {"interactions.rating": 0.25, "items.title": pytest.approx(2 / 3)}
    expected = {
        "interactions": 4,
        "positive interactions": 2,
        "users": 2,
        "items met": 2,
        "items in the catalogue": 3,
        "density": 3 / 6,
        "repeated pairs of user and item": 1,
        "first": "1970-01-01 00:00:00",
        "last": "1970-01-06 00:00:00",
        "days": 5.0,
        "interactions per user, median": 2.0,
        "interactions per item, most": 3,
        "share of the most met 10 % of items": 0.75,
        "inequality of items (Gini)": 0.25,
        "rating, mean": 4.0,
    }
    assert {name: found.figures[name] for name in expected} == expected
    text = "\n".join(found.lines())
    assert "faults: none" in text
    assert "items.title" in text


def test_gini_is_nought_for_equals_and_near_one_for_a_single_winner() -> None:
    assert gini(np.array([3, 3, 3])) == 0
    assert gini(np.array([0] * 99 + [7])) == pytest.approx(0.99)
