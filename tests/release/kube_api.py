"""A local HTTP server that plays the Kubernetes API, so that real clients can be tested without a cluster.

It keeps objects of any kind that it was told of, merges server-side applies with owners and conflicts as the real API
does (lists by their keys), streams watches and logs, enforces RBAC rules, and moves statuses on as a test says.
Tests are imported by path, so a test loads this file by path, too:

    SPEC = importlib.util.spec_from_file_location("kube_api", Path(__file__).parents[1] / "release" / "kube_api.py")
    kube_api = importlib.util.module_from_spec(SPEC)
    sys.modules["kube_api"] = kube_api
    SPEC.loader.exec_module(kube_api)

    with kube_api.KubeApi() as api:
        config = api.write_kubeconfig(tmp_path / "config")
        api.on_write("trainjobs", lambda api, job: api.put(pod_of(job)))  # What a controller would do.
        api.progress("trainjobs", "name", [{}, {"conditions": [...]}])  # One status for each GET, the last stays.
        api.later(0.2, lambda: api.set_status("trainjobs", "name", "kubeflow", {...}))  # What a watch sees.
"""

import importlib.util
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from types import TracebackType
from typing import Any

for _name in ("kube_objects", "kube_http"):  # Beside this file, which is no package.
    if _name not in sys.modules:
        _specification = importlib.util.spec_from_file_location(_name, Path(__file__).with_name(f"{_name}.py"))
        assert _specification is not None
        assert _specification.loader is not None
        sys.modules[_name] = importlib.util.module_from_spec(_specification)
        _specification.loader.exec_module(sys.modules[_name])

from kube_http import Server  # noqa: E402 - loaded above
from kube_objects import (  # noqa: E402 - loaded above
    RESOURCES,
    Asked,
    Fields,
    Object,
    RefusedError,
    Resource,
    Stored,
    assemble,
    cause,
    is_selected,
    leaves,
)

Status = Mapping[str, Any] | Callable[[Object], Mapping[str, Any]]


class KubeApi:
    """The server and what it keeps; use it as a context manager."""

    def __init__(self, *, resources: Sequence[Resource] = RESOURCES, token: str | None = None) -> None:
        self.resources = tuple(resources)
        self.token = token
        self.delay = 0.0
        """Seconds before each answer."""
        self.logs: dict[tuple[str, str], list[str]] = {}
        """Lines by namespace and pod; `follow` streams what is added until the pod has ended."""
        self.requests: list[Asked] = []
        self.rules: Mapping[str, Sequence[Mapping[str, Any]]] | None = None
        """RBAC rules by namespace (`""` for all of them); None allows everything."""
        self._stored: dict[tuple[str, str, str], Stored] = {}
        self._events: list[tuple[int, str, str, Object]] = []
        self._changed = threading.Condition(threading.RLock())
        self._version = 0
        self._refusals: list[dict[str, Any]] = []
        self._reactions: dict[str, list[Callable[[KubeApi, Object], object]]] = {}
        self._statuses: dict[tuple[str, str], list[Status]] = {}
        self._timers: list[threading.Timer] = []
        self._server = Server(self)
        self.closed = False
        for name in ("default", "kubeflow"):
            self.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "KubeApi":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.closed = True
        for timer in self._timers:
            timer.cancel()
        with self._changed:
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()

    def write_kubeconfig(self, path: Path) -> Path:
        """A kubeconfig that leads here; JSON is YAML."""
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "played",
            "clusters": [{"name": "played", "cluster": {"server": self.url}}],
            "users": [{"name": "tester", "user": {"token": self.token} if self.token else {}}],
            "contexts": [{"name": "played", "context": {"cluster": "played", "user": "tester"}}],
        }
        path.write_text(json.dumps(config), encoding="utf-8")
        return path

    # What a test does to the cluster, as its controllers and its people would.

    def get(self, plural: str, name: str, namespace: str = "") -> Object:
        """A copy of the object; KeyError where there is none."""
        with self._changed:
            return deepcopy(self._stored[plural, namespace, name].body)

    def names(self, plural: str, namespace: str = "") -> list[str]:
        with self._changed:
            return [key[2] for key in self._stored if key[:2] == (plural, namespace)]

    def put(self, body: Mapping[str, Any], *, manager: str = "controller") -> Object:
        """Create or replace an object; its fields belong to `manager`."""
        resource = next(each for each in self.resources if each.kind == body["kind"])
        return self._write(resource, deepcopy(dict(body)), manager=manager)

    def set_status(self, plural: str, name: str, namespace: str, status: Status) -> None:
        with self._changed:
            body = self._stored[plural, namespace, name].body
            body["status"] = deepcopy(dict(status(body) if callable(status) else status))
            self._announce("MODIFIED", plural, body)

    def remove(self, plural: str, name: str, namespace: str = "") -> None:
        """Delete an object and what it owns."""
        with self._changed:
            body = self._stored.pop((plural, namespace, name)).body
            self._announce("DELETED", plural, body)
            for other, there, called in list(self._stored):
                metadata = self._stored[other, there, called].body["metadata"]
                if any(owner.get("uid") == body["metadata"]["uid"] for owner in metadata.get("ownerReferences", ())):
                    self.remove(other, called, there)

    def progress(self, plural: str, name: str, statuses: Sequence[Status]) -> None:
        """Give the object the next of `statuses` at each GET of it by name; the last one stays."""
        self._statuses[plural, name] = list(statuses)

    def on_write(self, plural: str, reaction: "Callable[[KubeApi, Object], object]") -> None:
        """Call `reaction(api, object)` after each create, apply, patch or replace of a client."""
        self._reactions.setdefault(plural, []).append(reaction)

    def later(self, seconds: float, act: Callable[[], object]) -> None:
        timer = threading.Timer(seconds, act)
        timer.daemon = True
        self._timers.append(timer)
        timer.start()

    def refuse(self, verb: str, plural: str, *, status: int, reason: str, message: str, times: int = 1 << 30) -> None:
        """Answer `verb` (get, list, watch, create, patch, update, delete) on `plural` by a failure, `times` times."""
        self._refusals.append({"for": (verb, plural), "times": times, "as": (status, reason, message)})

    # What the handler calls.

    def check(self, asked: Asked) -> None:
        """Raise what was ordered by `refuse`, and what the rules do not allow."""
        self.requests.append(asked)
        for refusal in self._refusals:
            if refusal["for"] == (asked.verb, asked.plural) and refusal["times"] > 0:
                refusal["times"] -= 1
                raise RefusedError(*refusal["as"])
        self._authorize(asked, asked.verb)

    def _authorize(self, asked: Asked, verb: str) -> None:
        if self.rules is None:
            return
        where = asked.name if asked.plural == "namespaces" else asked.namespace  # As the API server reads a path.
        group = next(each.group for each in self.resources if each.plural == asked.plural)
        plural = f"{asked.plural}/{asked.subresource}" if asked.subresource else asked.plural
        for rule in (*self.rules.get("", ()), *self.rules.get(where, ())):
            named = rule.get("resourceNames")
            fits = group in rule["apiGroups"] and plural in rule["resources"] and verb in rule["verbs"]
            if fits and (not named or (verb != "create" and asked.name in named)):
                return
        what = f'cannot {verb} resource "{plural}" in API group "{group}" in the namespace "{where}"'
        message = f'{plural}.{group} "{asked.name}" is forbidden: User "system:serviceaccount:kubeflow:tester" {what}'
        raise RefusedError(403, "Forbidden", message)

    def read(self, asked: Asked) -> Object:
        key = (asked.plural, asked.namespace, asked.name)
        statuses = self._statuses.get((asked.plural, asked.name))
        if statuses and key in self._stored:
            self.set_status(*(asked.plural, asked.name, asked.namespace), statuses[0])
            del statuses[: len(statuses) > 1]
        with self._changed:
            if key not in self._stored:
                raise RefusedError(404, "NotFound", f'{asked.plural} "{asked.name}" not found')
            return deepcopy(self._stored[key].body)

    def select(self, plural: str, namespace: str, query: Mapping[str, str]) -> list[Object]:
        with self._changed:
            found = [each.body for key, each in self._stored.items() if key[0] == plural]
            return [deepcopy(body) for body in found if is_selected(body, namespace, query)]

    def list(self, asked: Asked) -> Object:
        resource = self._resource(asked)
        with self._changed:
            head = {"apiVersion": f"{resource.group}/{resource.version}".strip("/"), "kind": f"{resource.kind}List"}
            items = self.select(asked.plural, asked.namespace, asked.query)
            return head | {"metadata": {"resourceVersion": str(self._version)}, "items": items}

    def create(self, asked: Asked) -> Object:
        resource = self._resource(asked)
        name = asked.body["metadata"].get("name") or f"{asked.body['metadata']['generateName']}{self._version:05d}"
        asked.body["metadata"] |= {"name": name} | ({"namespace": asked.namespace} if resource.namespaced else {})
        with self._changed:
            if (asked.plural, asked.namespace, name) in self._stored:
                raise RefusedError(409, "AlreadyExists", f'{asked.plural} "{name}" already exists')
            self._need_namespace(resource, asked.namespace)
            body = self._write(resource, asked.body, manager=asked.query.get("fieldManager", "unknown"))
        return self._react(asked.plural, body)

    def replace(self, asked: Asked) -> Object:
        with self._changed:
            here = self.read(asked)
            if asked.body["metadata"].get("resourceVersion", "") not in ("", here["metadata"]["resourceVersion"]):
                raise RefusedError(409, "Conflict", f'Operation cannot be fulfilled on {asked.plural} "{asked.name}"')
            body = self._write(self._resource(asked), asked.body, manager=asked.query.get("fieldManager", "unknown"))
        return self._react(asked.plural, body)

    def patch(self, asked: Asked) -> Object:
        if asked.content_type == "application/json-patch+json":
            raise RefusedError(415, "UnsupportedMediaType", "this server merges; send a merge patch or apply")
        is_apply = asked.content_type == "application/apply-patch+yaml"
        with self._changed:
            if (asked.plural, asked.namespace, asked.name) not in self._stored:
                if not is_apply:
                    raise RefusedError(404, "NotFound", f'{asked.plural} "{asked.name}" not found')
                self._authorize(asked, "create")
                self._need_namespace(self._resource(asked), asked.namespace)
            body = self._merge(asked, is_apply=is_apply)
        return self._react(asked.plural, body)

    def _merge(self, asked: Asked, *, is_apply: bool) -> Object:
        """The object after a patch; an apply takes back what its manager no longer names, and may meet conflicts."""
        resource, manager = self._resource(asked), asked.query.get("fieldManager", "unknown")
        key = (asked.plural, asked.namespace, asked.name)
        stored = self._stored.get(key) or Stored(body={})
        before, wanted = dict(leaves(stored.body)), dict(leaves(asked.body))
        owned_by_others = {path: owner for owner, paths in stored.owners.items() if owner != manager for path in paths}
        conflicts = [path for path in wanted if path in owned_by_others and before.get(path) != wanted[path]]
        if is_apply and conflicts and asked.query.get("force", "").lower() != "true":
            causes = [cause(path, owned_by_others[path], asked.body["apiVersion"]) for path in conflicts]
            told = f"Apply failed with {len(causes)} conflict(s): {'; '.join(cause['field'] for cause in causes)}"
            raise RefusedError(409, "Conflict", told, causes)
        dropped = (stored.owners.get(manager, set()) if is_apply else set()) - set(wanted) - set(owned_by_others)
        after = {path: value for path, value in before.items() if path not in dropped} | wanted
        body = assemble(after)
        owners = {owner: paths - set(conflicts) for owner, paths in stored.owners.items() if owner != manager}
        owners[manager] = set(wanted) | (set() if is_apply else stored.owners.get(manager, set()))
        return self._write(resource, body, manager=manager, owners=owners)

    def _write(
        self, resource: Resource, body: Object, *, manager: str, owners: dict[str, set[Fields]] | None = None
    ) -> Object:
        with self._changed:
            metadata = body["metadata"]
            key = (resource.plural, metadata.get("namespace", ""), metadata["name"])
            old = self._stored[key].body if key in self._stored else {"metadata": {"generation": 0}}
            grown = int(old.get("spec") != body.get("spec") or not old["metadata"].get("uid"))
            kept = {"uid": f"uid-{self._version}", "creationTimestamp": "2026-01-01T00:00:00Z"} | old["metadata"]
            metadata |= {name: kept[name] for name in ("uid", "creationTimestamp")}
            metadata["generation"] = old["metadata"].get("generation", 0) + grown
            if "status" in old:
                body.setdefault("status", old["status"])
            self._stored[key] = Stored(body=body, owners=owners or {manager: set(dict(leaves(body)))})
            self._announce("MODIFIED" if "kind" in old else "ADDED", resource.plural, body)
            return deepcopy(body)

    def _react(self, plural: str, body: Object) -> Object:
        for reaction in self._reactions.get(plural, ()):
            reaction(self, deepcopy(body))
        return body

    def _announce(self, event: str, plural: str, body: Object) -> None:
        self._version += 1
        body["metadata"]["resourceVersion"] = str(self._version)
        self._events.append((self._version, event, plural, deepcopy(body)))
        self._changed.notify_all()

    def _resource(self, asked: Asked) -> Resource:
        return next(each for each in self.resources if each.plural == asked.plural)

    def _need_namespace(self, resource: Resource, namespace: str) -> None:
        if resource.namespaced and ("namespaces", "", namespace) not in self._stored:
            raise RefusedError(404, "NotFound", f'namespaces "{namespace}" not found')

    def watch(self, asked: Asked) -> Iterator[str]:
        """Events as lines: what is there first, unless a version says from where on."""
        until = time.monotonic() + float(asked.query.get("timeoutSeconds", 30))
        since = int(asked.query.get("resourceVersion") or 0)
        if not since:
            with self._changed:
                since, there = self._version, self.select(asked.plural, asked.namespace, asked.query)
            yield from (json.dumps({"type": "ADDED", "object": body}) + "\n" for body in there)
        while (left := until - time.monotonic()) > 0 and not self.closed:
            with self._changed:
                if not (news := [event for event in self._events if event[0] > since]):
                    self._changed.wait(min(left, 0.5))
            since = max([since, *(event[0] for event in news)])
            for _, event, plural, body in news:
                if plural == asked.plural and is_selected(body, asked.namespace, asked.query):
                    yield json.dumps({"type": event, "object": body}) + "\n"

    def log(self, asked: Asked) -> Iterator[str]:
        """The pod's lines; with `follow` those to come, too, until it has ended."""
        self.read(asked)
        lines = self.logs.setdefault((asked.namespace, asked.name), [])
        sent = max(0, len(lines) - int(asked.query.get("tailLines", len(lines))))
        while not self.closed:
            ended = self._phase(asked) in ("Succeeded", "Failed", "")
            yield from (f"{line}\n" for line in lines[sent:])
            sent = len(lines)
            if ended or asked.query.get("follow", "").lower() != "true":
                return
            time.sleep(0.02)

    def _phase(self, asked: Asked) -> str:
        with self._changed:
            stored = self._stored.get((asked.plural, asked.namespace, asked.name))
            return str(stored.body.get("status", {}).get("phase", "Running")) if stored else ""
