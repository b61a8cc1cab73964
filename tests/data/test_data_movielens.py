"""The MovieLens sets, against the counts that their owners and other people published."""

import hashlib
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest

from twotower.data.prepare import PrepareConfig
from twotower.data.sources.movielens_download import download
from twotower.data.split import TEST, SplitConfig, load_split
from twotower.errors import DataError

Into = Callable[..., Path]


def test_movielens_100k_is_read_whole(tmp_path: Path, data_dir: Path, prepare_into: Into, split_into: Into) -> None:
    prepared = prepare_into(tmp_path / "p", PrepareConfig(source="movielens-100k", data_dir=str(data_dir)))
    dataset = load_split(split_into(tmp_path / "s", SplitConfig(test=0.2, validation=0), prepared=prepared))
    assert (len(dataset.user), len(dataset.user_ids), len(dataset.item_ids)) == (100_000, 943, 1_682)
    assert np.bincount(dataset.labels["rating"].astype(int)).tolist() == [0, 6_110, 11_370, 27_145, 34_174, 21_201]
    assert (dataset.timestamp[0], dataset.timestamp[-1]) == (874_724_710 * 10**6, 893_286_638 * 10**6)
    assert dataset.metadata["counts"]["test_users"] == 301
    assert dataset.metadata["counts"]["test_users_met_before"] == 109
    items = {row["item_id"]: row for row in dataset.items.to_pylist()}
    assert items["543"] == {
        "item_id": "543",
        "title": "Misérables, Les (1995)",
        "year": 1995,
        "genres": "Drama|Musical",
    }
    assert items["267"] == {"item_id": "267", "title": "unknown", "year": None, "genres": "unknown"}
    assert dataset.users.slice(0, 1).to_pylist() == [
        {"user_id": "1", "gender": "M", "age": 24, "occupation": "technician", "zip": "85711"}
    ]


def test_movielens_100k_by_title_has_the_1664_candidates_of_the_tutorials(
    tmp_path: Path, data_dir: Path, prepare_into: Into, split_into: Into
) -> None:
    config = PrepareConfig(source="movielens-100k", data_dir=str(data_dir), item_key="title")
    prepared = prepare_into(tmp_path / "p", config)
    dataset = load_split(
        split_into(tmp_path / "s", SplitConfig(protocol="random", test=0.2, validation=0), prepared=prepared)
    )
    assert (len(dataset.user), len(dataset.item_ids), (dataset.part == TEST).sum()) == (100_000, 1_664, 20_000)
    assert dataset.item_ids[0] == dataset.items["title"][0].as_py() == "Toy Story (1995)"


def test_movielens_1m_by_time_is_the_anchor_split(
    tmp_path: Path, data_dir: Path, prepare_into: Into, split_into: Into
) -> None:
    prepared = prepare_into(tmp_path / "p", PrepareConfig(source="movielens-1m", data_dir=str(data_dir)))
    dataset = load_split(split_into(tmp_path / "s", SplitConfig(), prepared=prepared))
    assert (len(dataset.user), len(dataset.user_ids), len(dataset.item_ids)) == (1_000_209, 6_040, 3_883)
    assert np.bincount(dataset.labels["rating"].astype(int)).tolist() == [0, 56_174, 107_557, 261_197, 348_971, 226_310]
    tested = dataset.part == TEST
    known = np.isin(dataset.user[tested], dataset.user[~tested])
    assert (tested.sum(), len(np.unique(dataset.user[tested]))) == (100_021, 1_209)
    assert len(np.unique(dataset.user[tested][known])) == 1_180
    # Among equal timestamps the order of ratings.dat stays: user 1's second to fourth rating share one.
    mine = dataset.item[dataset.user == dataset.user_ids.tolist().index("1")]
    assert dataset.item_ids[mine[:4]].tolist() == ["3186", "1270", "1721", "1022"]


@pytest.fixture
def archives(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A web server on this machine with a tiny ml-latest-small and its checksum: (its address, its folder)."""
    folder = tmp_path / "web"
    content = folder / "ml-latest-small"
    content.mkdir(parents=True)
    ratings = "userId,movieId,rating,timestamp\n1,1,4.0,964982703\n2,3,3.5,964981247\n2,1,5.0,964981247\n"
    movies = 'movieId,title,genres\n1,Toy Story (1995),Adventure|Comedy\n3,"Ghost, The",(no genres listed)\n'
    (content / "ratings.csv").write_text(ratings)
    (content / "movies.csv").write_text(movies)
    with zipfile.ZipFile(folder / "ml-latest-small.zip", "w") as archive:
        for name in ("ratings.csv", "movies.csv"):
            archive.write(content / name, f"ml-latest-small/{name}")
    digest = hashlib.md5((folder / "ml-latest-small.zip").read_bytes(), usedforsecurity=False).hexdigest()
    (folder / "ml-latest-small.zip.md5").write_text(f"MD5 (ml-latest-small.zip) = {digest}\n")
    shutil.rmtree(content)
    server = HTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_set_is_downloaded_checked_and_read(
    tmp_path: Path,
    archives: tuple[str, Path],
    capsys: pytest.CaptureFixture[str],
    prepare_into: Into,
    split_into: Into,
) -> None:
    home = tmp_path / "home"
    download("ml-latest-small", home, base_url=archives[0])
    shown = capsys.readouterr()
    assert "may be used for research" in " ".join(shown.err.split())
    assert shown.out == ""
    assert [path.name for path in home.iterdir()] == ["ml-latest-small"]
    prepared = prepare_into(tmp_path / "p", PrepareConfig(source="movielens-latest-small", data_dir=str(home)))
    dataset = load_split(split_into(tmp_path / "s", SplitConfig(validation=0), prepared=prepared))
    assert dataset.labels["rating"].tolist() == [3.5, 5.0, 4.0]
    assert dataset.items.to_pylist() == [
        {"item_id": "1", "title": "Toy Story (1995)", "year": 1995, "genres": "Adventure|Comedy"},
        {"item_id": "3", "title": "Ghost, The", "year": None, "genres": None},
    ]
    assert dataset.users.column_names == ["user_id"]


def test_a_damaged_archive_is_refused_and_leaves_nothing(tmp_path: Path, archives: tuple[str, Path]) -> None:
    address, folder = archives
    with (folder / "ml-latest-small.zip").open("ab") as file:
        file.write(b"x")
    with pytest.raises(DataError, match="md5"):
        download("ml-latest-small", tmp_path / "home", base_url=address)
    assert list((tmp_path / "home").iterdir()) == []


def test_a_set_that_cannot_be_fetched_says_how_to_do_it_by_hand(tmp_path: Path, archives: tuple[str, Path]) -> None:
    with pytest.raises(
        DataError, match=r"Fetch http.*ml-20m.zip yourself and unpack it in .*; or name .* TWOTOWER_DATA"
    ):
        download("ml-20m", tmp_path / "home", base_url=archives[0])
