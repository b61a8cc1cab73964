"""Files and folders by address: a path, `file://`, `s3://`, `gs://`, and, for reading, `http://` and `https://`.

Object stores are reached through Arrow, which reads the usual credentials (`AWS_ACCESS_KEY_ID`, ...) from the
environment; an S3 server of one's own is named by `AWS_ENDPOINT_URL`, or in the address, as Arrow has it:
`s3://bucket/prefix?scheme=http&endpoint_override=host:9000`.
"""

import http.client
import os
import shutil
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from twotower.errors import StorageError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

WEB = ("http://", "https://")
BUCKETS = ("s3://", "minio://", "gs://", "gcs://")
"""`minio://` is how Kubeflow Pipelines names its own S3 server's artifacts."""
TIMEOUT_S = 60
"""Seconds without an answer after which an address counts as not to be reached."""
_BLOCK = 1 << 20


def is_address(text: str) -> bool:
    """Whether a text names a place by a scheme, and is no plain path."""
    return text.startswith((*WEB, *BUCKETS, "file://"))


def join(address: str, *parts: str) -> str:
    """The address of something below a folder; a query such as `?scheme=http` stays at the end."""
    if not is_address(address):
        return str(Path(address).joinpath(*parts))
    base, mark, query = address.partition("?")
    return "/".join((base.rstrip("/"), *(part.strip("/") for part in parts))) + mark + query


def absolute(place: str) -> str:
    """A path that means the same from any working directory; an address is one already."""
    return place if is_address(place) else str(Path(place).expanduser().resolve())


def exists(address: str) -> bool:
    """Whether there is a file or a folder."""
    if address.startswith(WEB):
        try:
            _head(address)
        except StorageError:
            return False
        return True
    with _told(address):
        filesystem, path = _open(address)
        return _kind(filesystem, path) != "NotFound"


def folders(address: str) -> list[str]:
    """Names of the folders right below an address, sorted; none where there is nothing.

    Raises:
        StorageError: the address cannot be read.
    """
    with _told(address):
        from pyarrow.fs import FileSelector, FileType

        filesystem, path = _open(address)
        found = filesystem.get_file_info(FileSelector(path, allow_not_found=True))
        return sorted(info.base_name for info in found if info.type == FileType.Directory)


def shown(address: str) -> str:
    """An address without what may be a secret in it: user, password and query."""
    scheme, mark, rest = address.partition("://")
    if not mark:
        return address
    return scheme + mark + rest.partition("?")[0].rpartition("@")[2]


def read_bytes(address: str) -> bytes:
    """One file's content.

    Raises:
        StorageError: there is no such file, or it cannot be read.
    """
    with _told(address):
        if address.startswith(WEB):
            with urllib.request.urlopen(address, timeout=TIMEOUT_S) as response:
                return bytes(response.read())
        filesystem, path = _open(address)
        with filesystem.open_input_stream(path) as stream:
            return bytes(stream.read())


def write_bytes(address: str, content: bytes) -> None:
    """Put a file in its place as a whole: a reader meets the old content or the new.

    Raises:
        StorageError: the address cannot be written.
    """
    with _told(address):
        if is_address(address) and not address.startswith("file://"):
            filesystem, path = _open(address)
            with filesystem.open_output_stream(path) as stream:
                stream.write(content)
            return
        target = local_path(address)
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)  # A server under another name reads it too.
            Path(name).replace(target)
        finally:
            Path(name).unlink(missing_ok=True)


def download(address: str, to: Path) -> Path:
    """Copy a file or a folder to `to`, which must not exist; gives `to`.

    Raises:
        StorageError: there is nothing at the address, or it cannot be read.
    """
    with _told(address):
        to.parent.mkdir(parents=True, exist_ok=True)
        if address.startswith(WEB):
            with urllib.request.urlopen(address, timeout=TIMEOUT_S) as response, to.open("wb") as file:
                shutil.copyfileobj(response, file, _BLOCK)
                if response.length:  # Reading block by block does not tell that the server hung up.
                    raise http.client.IncompleteRead(b"", response.length)
            return to
        if not is_address(address) or address.startswith("file://"):
            source = local_path(address)
            shutil.copytree(source, to) if source.is_dir() else shutil.copyfile(source, to)
            return to
        _download_from_bucket(address, to)
    return to


def upload(source: Path, address: str) -> None:
    """Copy a file or a folder to an address; what stands there already is kept or overwritten, file by file.

    Raises:
        StorageError: the address cannot be written.
    """
    with _told(address):
        if is_address(address) and not address.startswith("file://"):
            from pyarrow.fs import LocalFileSystem, copy_files

            filesystem, path = _open(address)
            copy_files(str(source), path, source_filesystem=LocalFileSystem(), destination_filesystem=filesystem)
            return
        target = local_path(address)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target, dirs_exist_ok=True) if source.is_dir() else shutil.copyfile(source, target)


def fingerprint(address: str) -> str:
    """What changes when the content behind a remote address does: names, sizes and times, or a server's word for it.

    Raises:
        StorageError: there is nothing at the address.
    """
    with _told(address):
        if address.startswith(WEB):
            headers = _head(address)
            return "|".join(headers.get(name, "") for name in ("ETag", "Last-Modified", "Content-Length"))
        filesystem, path = _open(address)
        files = _files(filesystem, path)
        if not files:
            raise StorageError(f"{address}: there is nothing. Check the address.")
        return "|".join(f"{info.path}:{info.size}:{info.mtime_ns}" for info in files)


def local_path(address: str) -> Path:
    """The path that a plain path or a `file://` address names.

    Raises:
        StorageError: the path begins with `~` and a user whom this machine does not know.
    """
    if not address.startswith("file://"):
        try:
            return Path(address).expanduser()
        except RuntimeError as fault:
            raise StorageError(f"{address}: {fault} Name the folder itself.") from fault
    return Path(urllib.request.url2pathname(urllib.parse.urlsplit(address).path))


def _download_from_bucket(address: str, to: Path) -> None:
    from pyarrow.fs import LocalFileSystem, copy_files

    filesystem, path = _open(address)
    kind = _kind(filesystem, path)
    if kind == "NotFound":
        raise StorageError(f"{address}: there is nothing. Check the address.")
    if kind == "Directory":
        if outside := [info.path for info in _files(filesystem, path) if ".." in PurePosixPath(info.path).parts]:
            raise StorageError(f"{address}: holds '{outside[0]}', which leads out of it. Remove that.")
        to.mkdir()
    copy_files(path, str(to), source_filesystem=filesystem, destination_filesystem=LocalFileSystem())


def _open(address: str) -> "tuple[FileSystem, str]":
    """Arrow's file system for the address, and the path within it."""
    from pyarrow.fs import FileSystem, LocalFileSystem

    if not is_address(address) or address.startswith("file://"):
        return LocalFileSystem(), str(local_path(address))
    if address.startswith(WEB):
        raise StorageError(f"{address}: can be read only. Name a path, s3:// or gs://.")
    if address.startswith("minio://"):
        address = "s3://" + address.removeprefix("minio://")
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    if address.startswith("s3://") and endpoint and "endpoint_override" not in address:
        parts = urllib.parse.urlsplit(endpoint)
        mark = "&" if "?" in address else "?"
        address += f"{mark}scheme={parts.scheme}&endpoint_override={parts.netloc}"
    filesystem, path = FileSystem.from_uri(address)
    return filesystem, path


def _kind(filesystem: "FileSystem", path: str) -> str:
    return str(filesystem.get_file_info(path).type.name)


def _files(filesystem: "FileSystem", path: str) -> list[Any]:
    """The files at or below a path, by name."""
    from pyarrow.fs import FileSelector, FileType

    info = filesystem.get_file_info(path)
    if info.type == FileType.NotFound:
        return []
    if info.type == FileType.File:
        return [info]
    found = filesystem.get_file_info(FileSelector(path, recursive=True))
    return sorted((one for one in found if one.type == FileType.File), key=lambda one: one.path)


def _head(address: str) -> Mapping[str, str]:
    """The headers of an answer, whose names are found in any case."""
    request = urllib.request.Request(address, method="HEAD")
    with _told(address), urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        headers: Mapping[str, str] = response.headers
        return headers


@contextmanager
def _told(address: str) -> Iterator[None]:
    """Turn what a store complains about into one line.

    Raises:
        StorageError: anything went wrong with the store inside the block.
    """
    advice = "Check the address and, for a store, its credentials."
    try:
        yield
    except urllib.error.HTTPError as fault:
        raise StorageError(f"{address}: the server answers {fault.code} {fault.reason}. {advice}") from fault
    except FileNotFoundError as fault:
        raise StorageError(f"{address}: there is nothing. Check the address.") from fault
    except (OSError, ValueError, http.client.HTTPException) as fault:  # Arrow's own derive from the first two.
        reason = (str(getattr(fault, "reason", fault)).strip() or type(fault).__name__).splitlines()[0][:200]
        raise StorageError(f"{address}: not to be read or written ({reason}). {advice}") from fault
