"""Which column is what, guessed from small files."""

from pathlib import Path

import pytest

from twotower.cli.guess import Column, find_event, find_rating, find_role, guess_feature, read_columns, table_query
from twotower.data.database import open_database
from twotower.errors import DataError


def columns_of(path: Path, text: str) -> dict[str, Column]:
    file = path / "table.csv"
    file.write_text(text, encoding="utf-8")
    with open_database() as database:
        return {column.name: column for column in read_columns(database, table_query(str(file)), where=str(file))}


@pytest.mark.parametrize(
    ("header", "role", "expected"),
    [
        ("userId,movieId,rating,timestamp", "user_id", "userId"),
        ("userId,movieId,rating,timestamp", "item_id", "movieId"),
        ("userId,movieId,rating,timestamp", "timestamp", "timestamp"),
        ("customer_id,article_id,t_dat,price", "user_id", "customer_id"),
        ("customer_id,article_id,t_dat,price", "item_id", "article_id"),
        ("customer_id,article_id,t_dat,price", "timestamp", "t_dat"),
        ("visitorid,itemid,event,ts", "user_id", "visitorid"),
        ("reviewerID,asin,overall,unixReviewTime", "user_id", "reviewerID"),
        ("reviewerID,asin,overall,unixReviewTime", "item_id", "asin"),
        ("reviewerID,asin,overall,unixReviewTime", "timestamp", "unixReviewTime"),
        ("the_user_key,x,y,z", "user_id", "the_user_key"),
    ],
)
def test_key_columns_are_known_by_the_names_that_others_give_them(
    tmp_path: Path, header: str, role: str, expected: str
) -> None:
    columns = columns_of(tmp_path, f"{header}\n1,10,5,100\n2,20,4,200\n")
    found = find_role(list(columns.values()), role)
    assert found is not None
    assert found[0].name == expected


def test_the_only_column_of_dates_is_the_timestamp(tmp_path: Path) -> None:
    columns = columns_of(tmp_path, "who,what,seen_on\n1,10,2024-05-01\n2,20,2024-05-02\n")
    found = find_role(list(columns.values()), "timestamp")
    assert found is not None
    assert (found[0].name, found[1]) == ("seen_on", "the only column of dates")


def test_what_cannot_be_guessed_is_not_guessed(tmp_path: Path) -> None:
    columns = list(columns_of(tmp_path, "a,b,c\n1,10,5\n2,20,4\n").values())
    assert [find_role(columns, role) for role in ("user_id", "item_id", "timestamp")] == [None, None, None]


def test_a_rating_is_a_number_and_an_event_a_few_words(tmp_path: Path) -> None:
    columns = list(columns_of(tmp_path, "user,item,rating,event_type\n1,10,4.5,view\n2,20,3,buy\n").values())
    assert (find_rating(columns).name, find_event(columns).name) == ("rating", "event_type")  # type: ignore[union-attr]


def test_feature_kinds_follow_what_a_column_holds(tmp_path: Path) -> None:
    genres = ["Drama|War", "Drama|Comedy", "Comedy|War", "War|Drama"]
    rows = [
        f"{row},A tale of {row} cities,{genres[row % 4]},{row * 1.5},{row % 3},"
        f"2020-01-{row % 28 + 1:02d},{row % 2 == 0},one,x{row}"
        for row in range(1, 101)
    ]
    columns = columns_of(tmp_path, "\n".join(["id,title,genres,price,shelf,released,new,same,code", *rows]))
    kinds = {name: guess_feature(column, called=name).toml for name, column in columns.items()}
    assert kinds["title"] == 'kind = "text", column = "title"'
    assert kinds["genres"] == 'kind = "multi_category", column = "genres", separator = "|"'
    assert kinds["price"] == 'kind = "number", column = "price"'
    assert kinds["shelf"] == 'kind = "category", column = "shelf"'
    assert kinds["released"] == 'kind = "timestamp", column = "released"'
    assert kinds["new"] == 'kind = "category", column = "new"'
    assert kinds["same"] is None  # The same in every row tells nothing.
    assert kinds["code"] is None  # A code a row is an id of its own.


def test_a_query_is_taken_as_one() -> None:
    assert table_query("SELECT 1 AS a") == "SELECT 1 AS a"
    assert table_query("it's.csv") == "SELECT * FROM 'it''s.csv'"


def test_a_file_that_is_not_there_is_refused_in_one_line(tmp_path: Path) -> None:
    with open_database() as database, pytest.raises(DataError, match=r"none\.csv") as fault:
        read_columns(database, table_query(str(tmp_path / "none.csv")), where="none.csv")
    assert "\n" not in str(fault.value)
