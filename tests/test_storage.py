"""Files and folders by address: this machine, a web server, and an S3 server, all of them real ones."""

import socket
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from twotower import storage
from twotower.errors import StorageError


class Web(BaseHTTPRequestHandler):
    """Serves `/log.csv`, with names of headers as another kind of server writes them, and half of `/half`."""

    def do_GET(self) -> None:
        if self.path not in ("/log.csv", "/half"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("content-length", "6")
        self.send_header("etag", '"seven"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(b"a,b\n1," if self.path == "/log.csv" else b"a,b")

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def web() -> Iterator[str]:
    """The address of a web server on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Web)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def closed() -> str:
    """An address at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/log.csv"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with a file, and one file deeper."""
    folder = tmp_path / "tree"
    (folder / "deep").mkdir(parents=True)
    (folder / "one.txt").write_bytes(b"1")
    (folder / "deep" / "two.txt").write_bytes(b"22")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


TREE = {"one.txt": b"1", "deep/two.txt": b"22"}


@pytest.fixture(params=["path", "file", "s3"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty folder, of each kind that can be written."""
    if request.param == "s3":
        request.getfixturevalue("s3")
        return "s3://bucket/home"
    folder = tmp_path / "home"
    return str(folder) if request.param == "path" else folder.as_uri()


def test_what_is_written_is_there_and_is_read_again(home: str) -> None:
    address = storage.join(home, "below", "champion.json")
    assert not storage.exists(address)
    storage.write_bytes(address, b"first")
    storage.write_bytes(address, b"second")
    assert storage.read_bytes(address) == b"second"
    assert storage.exists(address)
    assert storage.exists(storage.join(home, "below"))
    assert not storage.exists(storage.join(home, "champion.json"))


def test_a_folder_goes_up_and_comes_down_as_it_was(home: str, tree: Path, tmp_path: Path) -> None:
    address = storage.join(home, "tree")
    storage.upload(tree, address)
    assert storage.read_bytes(storage.join(address, "deep", "two.txt")) == b"22"
    assert contents(storage.download(address, tmp_path / "new" / "back")) == TREE
    (tree / "one.txt").write_bytes(b"changed")
    (tree / "deep" / "two.txt").unlink()
    storage.upload(tree, address)
    assert contents(storage.download(address, tmp_path / "again")) == {"one.txt": b"changed", "deep/two.txt": b"22"}


def test_a_single_file_goes_up_and_comes_down(home: str, tree: Path, tmp_path: Path) -> None:
    address = storage.join(home, "single.txt")
    storage.upload(tree / "one.txt", address)
    assert storage.download(address, tmp_path / "here" / "single.txt").read_bytes() == b"1"


def test_the_fingerprint_changes_with_the_content_and_with_nothing_else(home: str, tree: Path) -> None:
    address = storage.join(home, "tree")
    storage.upload(tree, address)
    before = storage.fingerprint(address)
    assert storage.fingerprint(address) == before
    storage.write_bytes(storage.join(address, "deep", "two.txt"), b"longer")
    assert storage.fingerprint(address) != before


@pytest.mark.parametrize("ask", ["read", "download", "fingerprint"])
def test_where_nothing_lies_is_told_in_one_line(home: str, tmp_path: Path, ask: str) -> None:
    address = storage.join(home, "none")
    asked: dict[str, Callable[[], object]] = {
        "read": lambda: storage.read_bytes(address),
        "download": lambda: storage.download(address, tmp_path / "to"),
        "fingerprint": lambda: storage.fingerprint(address),
    }
    with pytest.raises(StorageError) as fault:
        asked[ask]()
    assert str(fault.value) == f"{address}: there is nothing. Check the address."


def test_a_writer_that_fails_leaves_the_old_content_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "champion.json"
    storage.write_bytes(str(target), b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="No space left on device"):
        storage.write_bytes(str(target), b"new")
    assert contents(tmp_path) == {"champion.json": b"old"}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such permissions")
def test_a_file_that_was_written_can_be_read_by_a_server_under_another_name(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "champion.json"), b"{}")
    assert stat.S_IMODE((tmp_path / "champion.json").stat().st_mode) == 0o644


def test_below_a_file_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="not to be read or written") as fault:
        storage.write_bytes(str(tmp_path / "file" / "below"), b"")
    assert "\n" not in str(fault.value)


def test_a_web_server_is_read_and_never_written(web: str, tmp_path: Path) -> None:
    address = f"{web}/log.csv"
    assert storage.read_bytes(address) == b"a,b\n1,"
    assert storage.download(address, tmp_path / "log.csv").read_bytes() == b"a,b\n1,"
    assert storage.exists(address)
    with pytest.raises(StorageError, match=r"can be read only\. Name a path, s3:// or gs://"):
        storage.write_bytes(address, b"")


def test_headers_tell_the_version_whatever_case_their_names_are_in(web: str) -> None:
    assert storage.fingerprint(f"{web}/log.csv") == '"seven"||6'


def test_what_a_web_server_does_not_have_is_told_with_its_answer(web: str, tmp_path: Path) -> None:
    address = f"{web}/none"
    assert not storage.exists(address)
    for ask in (storage.read_bytes, storage.fingerprint, lambda name: storage.download(name, tmp_path / "to")):
        with pytest.raises(StorageError, match=r"/none: the server answers 404 Not Found\. Check the address"):
            ask(address)


def test_a_server_that_hangs_up_half_way_is_no_success(web: str, tmp_path: Path) -> None:
    for ask in (storage.read_bytes, lambda name: storage.download(name, tmp_path / "to")):
        with pytest.raises(StorageError, match=r"/half: not to be read or written \(IncompleteRead"):
            ask(f"{web}/half")


def test_a_closed_port_is_told_in_one_line(closed: str) -> None:
    assert not storage.exists(closed)
    with pytest.raises(StorageError, match="not to be read") as fault:
        storage.read_bytes(closed)
    assert str(fault.value).startswith(f"{closed}: not to be read or written (")
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize("address", ["http://", "http://[bad/x", "http://127.0.0.1:1/a b", "http://127.0.0.1:port/x"])
def test_an_address_that_is_none_is_a_fault_of_the_user(address: str) -> None:
    with pytest.raises(StorageError, match="not to be read or written"):
        storage.read_bytes(address)


def test_the_s3_server_may_be_named_in_the_address_too(
    s3: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    query = f"?scheme=http&endpoint_override={s3.address.removeprefix('http://')}"
    storage.write_bytes(f"s3://bucket/data/log.csv{query}", b"a,b\n")
    assert s3.objects["bucket/data/log.csv"] == b"a,b\n"
    assert storage.read_bytes(storage.join(f"s3://bucket{query}", "data", "log.csv")) == b"a,b\n"


def test_the_address_wins_over_the_environment(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.objects["bucket/log.csv"] = b"a,b\n"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    address = f"s3://bucket/log.csv?scheme=http&endpoint_override={s3.address.removeprefix('http://')}"
    assert storage.read_bytes(address) == b"a,b\n"


def test_an_artifact_of_kubeflows_own_store_is_read_by_its_name_there(s3: Any) -> None:
    s3.objects["bucket/v2/artifacts/model"] = b"weights"
    assert storage.read_bytes("minio://bucket/v2/artifacts/model") == b"weights"


def test_who_may_not_read_a_store_is_told_so_and_not_that_nothing_is_there(s3: Any) -> None:
    s3.refused = True
    for ask in (storage.exists, storage.read_bytes, storage.fingerprint):
        with pytest.raises(StorageError, match=r"ACCESS_DENIED.*credentials\.") as fault:
            ask("s3://bucket/log.csv")
        assert "\n" not in str(fault.value)


def test_a_bucket_that_is_not_there_is_told(s3: Any) -> None:
    with pytest.raises(StorageError, match="NO_SUCH_BUCKET"):
        storage.write_bytes("s3://elsewhere/log.csv", b"")


def test_a_query_stays_at_the_end_of_an_address() -> None:
    assert storage.join("s3://bucket/a/?scheme=http", "b", "/c/") == "s3://bucket/a/b/c?scheme=http"
    assert storage.join("gs://bucket", "a") == "gs://bucket/a"
    assert storage.join("registry", "a", "b") == str(Path("registry", "a", "b"))


def test_folders_right_below_an_address_are_named(home: str) -> None:
    assert storage.folders(home) == []
    for parts in (("b", "one.txt"), ("a", "deep", "two.txt"), ("three.txt",)):
        storage.write_bytes(storage.join(home, *parts), b"")
    assert storage.folders(home) == ["a", "b"]


def test_an_address_is_shown_without_its_secrets() -> None:
    assert storage.shown("https://user:secret@host/log.csv?token=abc") == "https://host/log.csv"
    assert storage.shown("s3://key:secret@bucket/logs") == "s3://bucket/logs"
    assert storage.shown("logs/what?.csv") == "logs/what?.csv"


def test_a_path_is_made_absolute_and_an_address_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("registry") == str(Path("registry").resolve())
    assert storage.absolute("s3://bucket/registry") == "s3://bucket/registry"
    assert storage.local_path((tmp_path / "a b").as_uri()) == tmp_path / "a b"


def test_nothing_is_downloaded_to_outside_of_its_folder(s3: Any, tmp_path: Path) -> None:
    s3.objects |= {"bucket/bundle/fine": b"", "bucket/bundle/below/../../../evil": b"evil"}
    with pytest.raises(StorageError, match=r"holds 'bucket/bundle/below/\.\./\.\./\.\./evil', which leads out of it"):
        storage.download("s3://bucket/bundle", tmp_path / "one" / "bundle")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []
