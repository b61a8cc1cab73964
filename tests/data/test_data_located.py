"""Data by address: where a recipe's source is read from, and when its version changes."""

import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from twotower.data.config import FilesConfig, PrepareConfig, SimulatedConfig
from twotower.data.located import at_address, source_version
from twotower.data.prepare import prepare
from twotower.errors import DataError, RecipeError, StorageError, TwotowerError

LOG = "user_id,item_id,timestamp\nann,a,1700000000\nbob,b,1700000001\n"
ITEMS = "item_id,title\na,First\nb,Second\n"
FILES = PrepareConfig(source="files", files=FilesConfig(interactions="log.csv", items="items.csv"))
MOVIELENS = PrepareConfig(source="movielens-100k")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder named `shop` with the two tables, and `shop.zip` beside it."""
    shop = tmp_path / "shop"
    shop.mkdir()
    (shop / "log.csv").write_text(LOG, encoding="utf-8")
    (shop / "items.csv").write_text(ITEMS, encoding="utf-8")
    with zipfile.ZipFile(tmp_path / "shop.zip", "w") as archive:
        for name in ("log.csv", "items.csv"):
            archive.write(shop / name, name)
    return shop


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """The address of a web server over the test's folder."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def counts(config: PrepareConfig, out: Path) -> dict[str, int]:
    out.mkdir(parents=True)
    found = prepare(config, seed=1, out=out)["counts"]
    return {name: found[name] for name in ("interactions", "users", "items")}


EXPECTED = {"interactions": 2, "users": 2, "items": 2}


@pytest.mark.parametrize("place", ["shop", "shop.zip", "file", "web/shop/", "web/shop.zip"])
def test_a_folder_an_archive_and_a_web_folder_give_the_same_tables(
    folder: Path, web: str, tmp_path: Path, place: str
) -> None:
    addresses = {"file": folder.as_uri(), "shop": str(folder), "shop.zip": str(folder) + ".zip"}
    address = addresses.get(place) or place.replace("web", web)
    with at_address(FILES, address) as config:
        assert counts(config, tmp_path / "out") == EXPECTED


def test_one_file_is_the_interactions_and_leaves_the_other_tables_where_they_are(
    folder: Path, web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (tmp_path / "other.csv").write_text(LOG + "cid,a,1700000002\n", encoding="utf-8")
    for number, address in enumerate(("../other.csv", f"{web}/other.csv")):
        with at_address(FILES, address) as config:
            assert counts(config, tmp_path / str(number)) == EXPECTED | {"interactions": 3, "users": 3}


def test_what_was_copied_from_afar_is_gone_afterwards(folder: Path, web: str) -> None:
    with at_address(FILES, f"{web}/shop.zip") as config:
        assert config.data_dir is not None
        copied = Path(config.data_dir)
        assert (copied / "log.csv").is_file()
    assert not copied.exists()
    with at_address(FILES, str(folder)) as config:
        assert config.data_dir == str(folder)
    assert (folder / "log.csv").is_file()


def test_no_address_leaves_the_recipe_as_it_is() -> None:
    with at_address(MOVIELENS, "") as config:
        assert config is MOVIELENS


@pytest.mark.parametrize("inside", [False, True])
def test_movielens_is_found_by_its_folder_or_in_the_folder_that_holds_it(tmp_path: Path, inside: bool) -> None:
    (tmp_path / "ml-100k").mkdir()
    with at_address(MOVIELENS, str(tmp_path / "ml-100k" if inside else tmp_path)) as config:
        assert config.data_dir == str(tmp_path)


def test_another_folder_beside_movielens_is_not_taken_for_it(tmp_path: Path) -> None:
    (tmp_path / "ml-100k").mkdir()
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="holds no folder ml-100k"), at_address(MOVIELENS, str(tmp_path / "other")):
        pass


@pytest.mark.parametrize(
    ("config", "address", "kind", "told"),
    [
        (PrepareConfig(), "folder", RecipeError, "the recipe's data is simulated, so no data is read. Set prepare"),
        (FILES, "none", DataError, "no such file or folder. Check the address of the data."),
        (FILES, "http/none/", StorageError, "none/log.csv: the server answers 404"),
        (FILES, "http/none.zip", StorageError, "none.zip: the server answers 404"),
        (MOVIELENS, "http/shop/", DataError, "cannot be listed. Name a .zip of movielens-100k."),
        (MOVIELENS, "shop", DataError, "holds no folder ml-100k"),
        (MOVIELENS, "shop.zip", DataError, "holds no folder ml-100k"),
        (FILES, "bad.zip", DataError, "bad.zip: no zip archive, or a damaged one"),
    ],
)
def test_data_that_is_not_there_is_told_in_one_line(
    folder: Path,
    web: str,
    tmp_path: Path,
    config: PrepareConfig,
    address: str,
    kind: type[TwotowerError],
    told: str,
) -> None:
    (tmp_path / "bad.zip").write_text("no archive", encoding="utf-8")
    place = address.replace("http", web) if address.startswith("http") else str(tmp_path / address)
    with pytest.raises(kind) as fault, at_address(config, place):
        pass
    assert told in str(fault.value)
    assert "\n" not in str(fault.value)


def version(config: PrepareConfig, address: str = "", *, seed: int = 1) -> str:
    return source_version(config, address, seed=seed)


def test_the_version_of_files_follows_their_content_and_not_their_date(folder: Path) -> None:
    before = version(FILES, str(folder))
    (folder / "log.csv").write_text(LOG, encoding="utf-8")
    assert version(FILES, str(folder)) == before
    (folder / "items.csv").write_text(ITEMS.replace("First", "Furst"), encoding="utf-8")
    assert version(FILES, str(folder)) != before


def test_an_archive_has_one_version_however_often_it_is_unpacked(folder: Path) -> None:
    archive = f"{folder}.zip"
    before = version(FILES, archive)
    assert version(FILES, archive) == before
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr("log.csv", LOG + "cid,a,1700000002\n")
        content.writestr("items.csv", ITEMS)
    assert version(FILES, archive) != before


def test_the_version_of_a_web_folder_follows_what_its_server_tells(folder: Path, web: str) -> None:
    address = f"{web}/shop/"
    before = version(FILES, address)
    assert version(FILES, address) == before
    (folder / "items.csv").write_text(ITEMS + "c,Third\n", encoding="utf-8")
    assert version(FILES, address) != before


def test_the_version_of_a_world_follows_its_settings_and_seed() -> None:
    world = PrepareConfig()
    assert version(world) == version(world)
    assert version(world, seed=2) != version(world)
    assert version(replace(world, simulated=SimulatedConfig(items=7))) != version(world)
    assert version(replace(world, until="2026-01-01")) != version(world)


def test_a_table_that_the_recipe_names_by_address_counts_as_its_server_tells(folder: Path, web: str) -> None:
    config = replace(FILES, data_dir=str(folder), files=replace(FILES.files, items=f"{web}/shop/items.csv"))
    before = version(config)
    assert version(config) == before
    (folder / "items.csv").write_text(ITEMS + "c,Third\n", encoding="utf-8")
    assert version(config) != before


def test_beside_one_file_of_interactions_the_other_tables_count_too(folder: Path, web: str) -> None:
    config = replace(FILES, data_dir=str(folder))
    for address in (str(folder / "log.csv"), f"{web}/shop/log.csv"):
        (folder / "items.csv").write_text(ITEMS, encoding="utf-8")
        before = version(config, address)
        assert version(config, address) == before
        (folder / "items.csv").write_text(ITEMS + "c,Third\n", encoding="utf-8")
        assert version(config, address) != before


@pytest.mark.parametrize("place", ["../items.csv", "/etc/items.csv", "https://host/items.csv", "SELECT 1 AS item_id"])
def test_a_folder_of_data_lets_no_table_lead_out_of_it(folder: Path, web: str, place: str) -> None:
    config = replace(FILES, files=replace(FILES.files, items=place))
    for address in (str(folder), f"{web}/shop/", f"{folder}.zip"):
        with pytest.raises(RecipeError, match=r"prepare\.files\.items = .* is no file within one") as fault:
            version(config, address)
        assert "\n" not in str(fault.value)


def test_a_table_that_the_folder_lacks_is_told_before_anything_is_fetched(folder: Path) -> None:
    (folder / "items.csv").unlink()
    with pytest.raises(DataError, match=r"items\.csv: no such file"):
        version(FILES, str(folder))


def test_the_version_of_data_that_is_not_there_is_refused(web: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="404"):
        version(FILES, f"{web}/none.zip")
    with pytest.raises(DataError, match="no such file or folder"):
        version(FILES, str(tmp_path / "none"))
