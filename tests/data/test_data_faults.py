"""Bad data is refused in one line that says where, what was found and what to do."""

import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from twotower.data.prepare import PrepareConfig
from twotower.data.profile import profile
from twotower.data.sources.files import FilesConfig
from twotower.errors import DataError, RecipeError

GOOD = "user_id,item_id,timestamp,rating\nann,a,1700000000,5\nbob,b,1700000001,3\n"
GOODS = "item_id,title\na,First\nb,Second\n"
PARQUET = io.BytesIO()
pq.write_table(pa.table({"user_id": ["ann", "bob"], "item_id": ["a", "b"], "timestamp": [1, 2]}), PARQUET)

CASES: dict[str, tuple[dict[str, str | bytes], dict[str, Any], str]] = {
    "a missing column, with the columns there are": (
        {"log.csv": GOOD.replace("timestamp", "when")},
        {},
        r"log.csv: no column 'timestamp'; there are user_id, item_id, when, rating. Map it in prepare.files",
    ),
    "a column that is not called what the recipe says, with those that there are": (
        {"log.csv": GOOD.replace("user_id", "who").replace("timestamp", "when")},
        {"columns": {"user_id": "who", "timestamp": "wenn"}},
        r"log.csv: no column 'wenn'; there are who, item_id, when, rating. "
        r"Correct prepare.files.columns.timestamp = 'wenn'",
    ),
    "a missing label": (
        {"log.csv": GOOD.replace("rating", "stars")},
        {},
        r"log.csv: no column 'rating'; .* stars",
    ),
    "an unparsable timestamp, with its row": (
        {"log.csv": GOOD.replace("1700000001", "yesterday")},
        {},
        r"log.csv: timestamp of row 2 is 'yesterday', not a moment .* \(1 such rows\). Mend it",
    ),
    "no timestamp": (
        {"log.csv": GOOD.replace("1700000000", "")},
        {},
        r"log.csv: timestamp of row 1 is '', not a moment",
    ),
    "a label that has a name of ours": ({"log.csv": GOOD}, {"labels": ("positive",)}, r"'positive' is a name of ours"),
    "a moment without end": (
        {"log.csv": "user_id,item_id,timestamp,rating\nann,a,2024-01-01,5\nbob,b,infinity,3\n"},
        {},
        r"log.csv: timestamp of row 2 is 'infinity', not a moment",
    ),
    "one timestamp in milliseconds among seconds": (
        {"log.csv": GOOD + "cid,a,1700000000000,1\n"},
        {},
        r"log.csv: timestamp of row 3 is '1700000000000', not a moment",
    ),
    "a timestamp beyond all years": (
        {"log.csv": GOOD.replace("1700000001", "1700000000001")},
        {"timestamp_format": "s"},
        r"timestamp of row 2 is '1700000000001', not a moment between 1900 and 2200",
    ),
    "a label that is no number": (
        {"log.csv": GOOD.replace(",3\n", ",good\n")},
        {},
        r"log.csv: rating of row 2 is 'good', not a number \(1 such rows\)",
    ),
    "a NaN label": (
        {"log.csv": GOOD.replace(",3\n", ",NaN\n")},
        {},
        r"log.csv: 1 interactions have no rating, or NaN \(first in row 2\). .*prepare.missing_labels = 'keep'",
    ),
    "an empty label": (
        {"log.csv": GOOD.replace(",5\n", ",\n")},
        {},
        r"log.csv: 1 interactions have no rating, or NaN \(first in row 1\)",
    ),
    "an interaction of nobody": (
        {"log.csv": GOOD.replace("bob,", ",")},
        {},
        r"log.csv: 1 interactions have no user_id \(first in row 2\)",
    ),
    "unknown items": (
        {"log.csv": GOOD, "items.csv": GOODS.replace("b,", "x,")},
        {"items": "items.csv"},
        r"log.csv: 1 item ids are not in the items table \(first: b\). .*prepare.unknown_items = 'drop'",
    ),
    "duplicate ids in the items table": (
        {"log.csv": GOOD, "items.csv": GOODS + "a,Again\n"},
        {"items": "items.csv"},
        r"log.csv \(items table\): 1 ids stand in more than one row \(first: a\). Keep one row per item_id",
    ),
    "an items table without ids": (
        {"log.csv": GOOD, "items.csv": "name,title\na,First\n"},
        {"items": "items.csv"},
        r"items.csv: no column 'item_id'; there are name, title",
    ),
    "an items table without the title": (
        {"log.csv": GOOD, "items.csv": GOODS},
        {"items": "items.csv", "title": "name"},
        r"items.csv: no column 'name'; .* Set prepare.files.title",
    ),
    "a row of the items table without an id": (
        {"log.csv": GOOD, "items.csv": GOODS + ",Third\n"},
        {"items": "items.csv"},
        r"\(items table\): 1 rows have no item_id \(first is row 3\)",
    ),
    "one user only": (
        {"log.csv": GOOD.replace("bob", "ann")},
        {},
        r"log.csv: only one user \(ann\)",
    ),
    "an empty file": ({"log.csv": ""}, {}, r"log.csv: the file is empty"),
    "a file of line ends": ({"log.csv": "\n\n"}, {}, r"log.csv: the file is empty"),
    "a file that begins with an empty line": ({"log.csv": "\n" + GOOD}, {}, r"log.csv: the first line is empty"),
    "a header and nothing else": ({"log.csv": GOOD.split("\n")[0] + "\n"}, {}, r"log.csv: no interactions"),
    "a file that is not UTF-8, with its line": (
        {"log.csv": GOOD.replace("bob", "zoë").encode("latin-1")},
        {},
        r"log.csv: line 3 is not UTF-8 \(byte 0xeb\). Save the file as UTF-8",
    ),
    "an items table that is not UTF-8": (
        {"log.csv": GOOD, "items.csv": GOODS.replace("First", "Café").encode("latin-1")},
        {"items": "items.csv"},
        r"items.csv: line 2 is not UTF-8 \(byte 0xe9\)",
    ),
    "a missing file": ({}, {}, r"log.csv: no such file"),
    "no file of a pattern": ({}, {"interactions": "*.csv"}, r"\*.csv: no file has such a name"),
    "a row with too many values": (
        {"log.csv": GOOD + "cid,c,1700000002,1,2,3\n"},
        {},
        r"log.csv: .*Check the file, or write a query in prepare.files.interactions",
    ),
    "a file that is not what its name says": (
        {"log.parquet": GOOD},
        {"interactions": "log.parquet"},
        r"log.parquet: .*Check the file",
    ),
    "Parquet under another name": (
        {"log.csv": PARQUET.getvalue()},
        {},
        r"log.csv: Parquet by its first bytes. Call it by a name that ends in .parquet",
    ),
    "Parquet that breaks off": (
        {"log.csv": GOOD, "events.parquet": PARQUET.getvalue()[:-20]},
        {"new_interactions": "events.parquet"},
        r"events.parquet: a Parquet file that breaks off before its end. Write or copy it again",
    ),
    "a query that is wrong": (
        {},
        {"interactions": "SELECT * FROM nowhere"},
        r"SELECT \* FROM nowhere: .*nowhere.*Check the file, or write a query",
    ),
    "a database that is not there": (
        {"log.csv": GOOD},
        {"attach": {"shop": "shop.duckdb"}},
        r"prepare.files.attach.shop = 'shop.duckdb': .*Give a database",
    ),
    "a kind of file that we cannot read": ({"log.xls": GOOD}, {"interactions": "log.xls"}, r"no .csv, .tsv, .parquet"),
}


def config_for(folder: Path, files: dict[str, str | bytes], settings: dict[str, Any]) -> PrepareConfig:
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    tables = FilesConfig(**{"interactions": "log.csv", "labels": ("rating",), **settings})
    return PrepareConfig(source="files", data_dir=str(folder), files=tables)


@pytest.mark.parametrize("case", list(CASES))
def test_bad_data_is_refused_in_one_line(case: str, tmp_path: Path, prepare_into: Callable[..., Path]) -> None:
    files, settings, said = CASES[case]
    config = config_for(tmp_path, files, settings)
    with pytest.raises((DataError, RecipeError)) as fault:
        prepare_into(tmp_path / "p", config)
    message = str(fault.value)
    assert re.search(said, message), message
    assert "\n" not in message
    assert not (tmp_path / "p").exists()
    assert profile(config).faults[0] == message


def test_an_id_of_two_rows_is_refused_where_another_column_names_the_items(
    tmp_path: Path, prepare_into: Callable[..., Path]
) -> None:
    files: dict[str, str | bytes] = {"log.csv": GOOD, "items.csv": GOODS + "a,First again\n"}
    config = replace(config_for(tmp_path, files, {"items": "items.csv"}), item_key="title")
    with pytest.raises(DataError) as fault:
        prepare_into(tmp_path / "p", config)
    assert str(fault.value) == "log.csv (items table): 1 ids stand in more than one row (first: a). " + (
        "Keep one row per item_id."
    )
    assert profile(config).faults == (str(fault.value),)


def test_all_faults_are_told_at_once_by_the_profile(tmp_path: Path) -> None:
    log = "user_id,item_id,timestamp,rating\nann,a,soon,5\nann,,1700000001,x\n"
    faults = profile(config_for(tmp_path, {"log.csv": log}, {})).faults
    told = [re.search(r": (.*?) of|have no (\w+)|only one (\w+)", fault) for fault in faults]
    assert [next(group for group in match.groups() if group) for match in told if match] == [
        "item_id",
        "timestamp",
        "rating",
        "rating",
        "user",
    ]
