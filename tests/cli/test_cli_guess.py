"""Which column is what, guessed from small files."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from twotower.cli.guess import (
    Column,
    LogShape,
    find_event,
    find_rating,
    find_role,
    guess_feature,
    guess_history,
    read_columns,
    read_shape,
    table_query,
)
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
    assert kinds["genres"] == 'kind = "multi_category", column = "genres", separator = "|", combiner = "sum"'
    assert kinds["price"] == 'kind = "number", column = "price", bins = 8'
    assert kinds["shelf"] == 'kind = "category", column = "shelf"'
    assert kinds["released"] == 'kind = "timestamp", column = "released"'
    assert kinds["new"] == 'kind = "category", column = "new"'
    assert kinds["same"] is None  # The same in every row tells nothing.
    assert kinds["code"] is None  # A code a row is an id of its own.


def test_lists_of_fractions_of_one_length_are_embeddings(tmp_path: Path) -> None:
    vectors = [[0.1 * row, 0.5, -0.25 * row] for row in range(3)]
    table = pa.table(
        {
            "vector": [vectors[0], None, vectors[2]],
            "fixed": pa.array(vectors, pa.list_(pa.float32(), 3)),
            "ragged": [[0.5], [0.25, 0.75], [0.1]],
            "codes": [[1, 2, 3], [2, 3, 4], [3, 4, 5]],
        }
    )
    pq.write_table(table, tmp_path / "items.parquet")
    file = str(tmp_path / "items.parquet")
    with open_database() as database:
        columns = {column.name: column for column in read_columns(database, table_query(file), where=file)}
    guesses = {name: guess_feature(column, called=name) for name, column in columns.items()}
    assert guesses["vector"].toml == 'kind = "embedding", column = "vector", width = 3'
    assert guesses["vector"].reason == "lists of 3 numbers each"
    assert guesses["fixed"].toml == 'kind = "embedding", column = "fixed", width = 3'
    assert guesses["ragged"].toml == 'kind = "multi_category", column = "ragged", combiner = "sum"'
    assert guesses["codes"].toml == 'kind = "multi_category", column = "codes", combiner = "sum"'


def test_a_vector_written_as_text_is_told_and_not_taken_for_words(tmp_path: Path) -> None:
    rows = "\n".join(f'{row},"[0.{row}, -1.5e-{row}, 0.25]"' for row in range(1, 9))
    guess = guess_feature(columns_of(tmp_path, f"id,vector\n{rows}")["vector"], called="vector")
    assert guess.toml is None
    assert "lists in Parquet" in guess.reason


def test_the_shape_of_a_log_is_counted_by_user(tmp_path: Path) -> None:
    # Users with 1, 2 and 4 interactions; of the four two share a moment: 6 moments of their own among 7.
    file = tmp_path / "log.csv"
    file.write_text("who,when\na,1\nb,1\nb,2\nc,1\nc,1\nc,2\nc,3\n,9\n", encoding="utf-8")
    with open_database() as database:
        shape = read_shape(database, table_query(str(file)), user="who", timestamp="when", where="log.csv")
    assert shape == LogShape(interactions=7, users=3, median=2.0, moments=6 / 7)


LARGE = LogShape(interactions=1_000_000, users=6_000, median=96.0, moments=0.5)


@pytest.mark.parametrize(
    ("shape", "kind", "told"),
    [
        (LARGE, "sequence", "1,000,000 interactions of 6,000 users, 96 at the median, enough"),
        (replace(LARGE, interactions=100_000, median=20.0, users=200_000), "sequence", "enough"),
        (replace(LARGE, median=8.0), "history", "about 20 at the median"),
        (replace(LARGE, interactions=50_000), "history", "some 100,000 interactions"),
        (replace(LARGE, users=900_000), "history", "beyond 200,000 users"),
        (replace(LARGE, moments=0.1), "history", "share a moment"),
    ],
)
def test_the_history_is_read_in_its_order_where_there_is_enough_to_learn_it(
    shape: LogShape, kind: str, told: str
) -> None:
    guess = guess_history(shape)
    assert guess.toml is not None
    assert f'kind = "{kind}"' in guess.toml
    assert told in guess.reason


def test_a_query_is_taken_as_one() -> None:
    assert table_query("SELECT 1 AS a") == "SELECT 1 AS a"
    assert table_query("it's.csv") == "SELECT * FROM 'it''s.csv'"


def test_a_file_that_is_not_there_is_refused_in_one_line(tmp_path: Path) -> None:
    with open_database() as database, pytest.raises(DataError, match=r"none\.csv") as fault:
        read_columns(database, table_query(str(tmp_path / "none.csv")), where="none.csv")
    assert "\n" not in str(fault.value)
