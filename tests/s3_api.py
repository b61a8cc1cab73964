"""A small S3 server on this machine: objects, listings and uploads in parts, as Arrow's client asks for them."""

import re
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from xml.sax.saxutils import escape


@dataclass
class S3Api:
    """What the server holds; `objects` is there for tests to look into and to put things."""

    objects: dict[str, bytes] = field(default_factory=dict)
    """`bucket/key` -> content."""
    buckets: tuple[str, ...] = ("bucket",)
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    refused: bool = False
    """Whether the server answers everybody that they may not."""
    refused_after: str | None = None
    """A key whose end makes the server refuse everything from then on: stands for a machine that goes away."""
    address: str = ""

    def __enter__(self) -> "S3Api":
        handler = type("Handler", (_Handler,), {"api": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def keys(self) -> list[str]:
        """The objects that are files, without the markers that stand for folders."""
        return sorted(key for key in self.objects if not key.endswith("/"))


class _Handler(BaseHTTPRequestHandler):
    api: S3Api
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def handle(self) -> None:
        with suppress(ConnectionError):  # The client is done.
            super().handle()

    def _asked(self) -> tuple[str, dict[str, str]]:
        parts = urllib.parse.urlsplit(self.path)
        return urllib.parse.unquote(parts.path).lstrip("/"), dict(
            urllib.parse.parse_qsl(parts.query, keep_blank_values=True)
        )

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())

    def _may(self, name: str) -> bool:
        if self.api.refused:
            self._refuse(403, "AccessDenied")
            return False
        if name.partition("/")[0] not in self.api.buckets:
            self._refuse(404, "NoSuchBucket")
            return False
        return True

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            raw = b""
            while size := int(self.rfile.readline().partition(b";")[0], 16):
                raw += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return raw if "aws-chunked" not in (self.headers.get("Content-Encoding") or "") else _unchunked(raw)

    def do_HEAD(self) -> None:
        name, _ = self._asked()
        if not self._may(name):
            return
        if "/" not in name.rstrip("/"):
            self._answer(200)
        elif name in self.api.objects:
            self._answer(200, b"", Content_Length=str(len(self.api.objects[name])), **_FILE)
        else:
            self._answer(404)

    def do_GET(self) -> None:
        name, query = self._asked()
        if not self._may(name):
            return
        if "list-type" in query:
            self._answer(200, self._listing(name.rstrip("/"), query), Content_Type="application/xml")
        elif name in self.api.objects:
            content, status = self.api.objects[name], 200
            if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
                content, status = content[int(found[1]) : int(found[2]) + 1 if found[2] else None], 206
            self._answer(status, content, **_FILE)
        else:
            self._refuse(404, "NoSuchKey")

    def _listing(self, bucket: str, query: dict[str, str]) -> bytes:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        files, folders = [], set()
        for name in sorted(self.api.objects):
            key = name.removeprefix(f"{bucket}/")
            if key == name or not key.startswith(prefix):
                continue
            below, cut, _ = key.removeprefix(prefix).partition(delimiter) if delimiter else (key, "", "")
            if cut:
                folders.add(prefix + below + cut)
            else:
                files.append((key, len(self.api.objects[name])))
        rows = [
            f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<Size>{size}</Size></Contents>"
            for key, size in files
        ]
        rows += [f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>" for folder in sorted(folders)]
        count = f"<KeyCount>{len(rows)}</KeyCount><IsTruncated>false</IsTruncated>"
        return f"<ListBucketResult>{count}{''.join(rows)}</ListBucketResult>".encode()

    def do_PUT(self) -> None:
        name, query = self._asked()
        content = self._body()
        if not self._may(name):
            return
        if "uploadId" in query:
            self.api.parts[query["uploadId"]][int(query["partNumber"])] = content
        else:
            self._keep(name, content)
        self._answer(200, ETag='"part"')

    def do_POST(self) -> None:
        name, query = self._asked()
        self._body()
        if not self._may(name):
            return
        bucket, _, key = name.partition("/")
        if "uploads" in query:
            number = f"upload-{len(self.api.parts)}"
            self.api.parts[number] = {}
            answer = f"<UploadId>{number}</UploadId>"
            self._answer(200, f"<InitiateMultipartUploadResult>{answer}</InitiateMultipartUploadResult>".encode())
        else:
            parts = self.api.parts[query["uploadId"]]
            self._keep(name, b"".join(parts[number] for number in sorted(parts)))
            answer = f"<Bucket>{bucket}</Bucket><Key>{escape(key)}</Key><ETag>whole</ETag>"
            self._answer(200, f"<CompleteMultipartUploadResult>{answer}</CompleteMultipartUploadResult>".encode())

    def _keep(self, name: str, content: bytes) -> None:
        self.api.objects[name] = content
        if self.api.refused_after is not None and name.endswith(self.api.refused_after):
            self.api.refused = True

    def do_DELETE(self) -> None:
        name, _ = self._asked()
        if self._may(name):
            self.api.objects.pop(name, None)
            self._answer(204)


def _unchunked(rest: bytes) -> bytes:
    """Amazon's own chunks within the body: SIZE;signature, bytes, and so on until a size of 0; a checksum follows."""
    content = b""
    while rest:
        head, _, rest = rest.partition(b"\r\n")
        size = int(head.partition(b";")[0], 16)
        if not size:
            break
        content, rest = content + rest[:size], rest[size + 2 :]
    return content


_FILE = {"ETag": '"whole"', "Last_Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}


def served(monkeypatch: Any) -> Iterator[S3Api]:
    """A running server that `s3://` leads to, for a fixture to yield from."""
    with S3Api() as api:
        for name, value in (
            ("AWS_ENDPOINT_URL", api.address),
            ("AWS_ACCESS_KEY_ID", "somebody"),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
            ("AWS_REGION", "eu-west-1"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ):
            monkeypatch.setenv(name, value)
        yield api
