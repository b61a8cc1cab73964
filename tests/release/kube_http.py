"""The HTTP side of the played Kubernetes API: paths to verbs, answers to JSON, discovery."""

import json
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from typing import Any
from urllib.parse import parse_qs, urlsplit

from kube_objects import Asked, Object, RefusedError, Resource


class Handler(BaseHTTPRequestHandler):
    """The HTTP side: paths to verbs, answers to JSON."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # Head and body go out apart; the second would wait 40 ms for the first's receipt.
    server: "Server"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Stay quiet."""

    def do_GET(self) -> None:
        self._answer("get")

    def do_POST(self) -> None:
        self._answer("create")

    def do_PUT(self) -> None:
        self._answer("update")

    def do_PATCH(self) -> None:
        self._answer("patch")

    def do_DELETE(self) -> None:
        self._answer("delete")

    def _answer(self, verb: str) -> None:
        api = self.server.api
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        time.sleep(api.delay)
        try:
            if api.token and self.headers.get("Authorization") != f"Bearer {api.token}":
                raise RefusedError(401, "Unauthorized", "Unauthorized")
            address = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(address.query).items()}
            if (told := _discovery(api, address.path)) is not None:
                self._send(200, told)
                return
            self._perform(_asked(api, verb, address.path, query, raw, self.headers.get("Content-Type", "")))
        except RefusedError as refused:
            self._send(refused.status, refused.body)
        except ConnectionError:
            self.close_connection = True  # The client did not wait.

    def _perform(self, asked: Asked) -> None:
        api = self.server.api
        api.check(asked)
        if asked.verb == "watch":
            self._stream(api.watch(asked), "application/json")
        elif asked.subresource == "log":
            self._stream(api.log(asked), "text/plain")
        elif asked.verb == "delete":
            api.read(asked)
            api.remove(asked.plural, asked.name, asked.namespace)
            self._send(200, {"kind": "Status", "apiVersion": "v1", "status": "Success"})
        else:
            does = {"get": api.read, "list": api.list, "create": api.create, "update": api.replace, "patch": api.patch}
            self._send(201 if asked.verb == "create" else 200, does[asked.verb](asked))

    def _send(self, status: int, body: Mapping[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, parts: Iterator[str], kind: str) -> None:
        first = next(parts, "")  # What fails before the first line is still an answer of its own.
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for data in (part.encode() for part in chain([first], parts) if part):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.close_connection = True  # The client has heard enough.


class Server(ThreadingHTTPServer):
    """A thread for each connection, and the way from a request to what is kept."""

    daemon_threads = True

    def __init__(self, api: Any) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.api = api


def _discovery(api: Any, path: str) -> Object | None:
    """The answers by which a client learns what there is; None for every other path."""
    groups: dict[str, str] = {each.group: each.version for each in api.resources if each.group}
    if path == "/version":
        return {"major": "1", "minor": "33", "gitVersion": "v1.33.0"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        told = [{"groupVersion": f"{group}/{version}", "version": version} for group, version in groups.items()]
        listed = zip(groups, told, strict=True)
        found = [{"name": group, "versions": [each], "preferredVersion": each} for group, each in listed]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": found}
    kinds = [each for each in api.resources if path == _root(each)]
    if not kinds:
        return None
    verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
    listed_ = [{"name": e.plural, "kind": e.kind, "namespaced": e.namespaced, "verbs": verbs} for e in kinds]
    if path == "/api/v1":
        listed_.append({"name": "pods/log", "kind": "Pod", "namespaced": True, "verbs": ["get"]})
    return {"kind": "APIResourceList", "groupVersion": path.split("/", 2)[2], "resources": listed_}


def _root(resource: Resource) -> str:
    return f"/apis/{resource.group}/{resource.version}" if resource.group else f"/api/{resource.version}"


def _asked(api: Any, verb: str, path: str, query: Mapping[str, str], raw: bytes, content_type: str) -> Asked:
    """What a path asks for, or 404 as the API server tells it."""
    root = next((root for root in {_root(each) for each in api.resources} if path.startswith(f"{root}/")), None)
    parts = path[len(root or "") :].strip("/").split("/")
    namespace = parts[1] if parts[0] == "namespaces" and len(parts) > 2 else ""
    plural, name, subresource, *_ = [*(parts[2:] if namespace else parts), "", ""]
    if not any(each.plural == plural and _root(each) == root for each in api.resources):
        raise RefusedError(404, "NotFound", "the server could not find the requested resource")
    if verb == "get" and not name:
        verb = "watch" if query.get("watch", "").lower() in ("true", "1") else "list"
    return Asked(
        verb=verb,
        plural=plural,
        subresource=subresource,
        name=name,
        namespace=namespace,
        query=query,
        body=json.loads(raw) if raw else {},
        content_type=content_type.partition(";")[0],
    )
