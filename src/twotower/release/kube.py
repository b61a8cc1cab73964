"""The few things that we ask of the Kubernetes API, with time limits, and with its faults told in one line.

Works in a pod, by its service account, and on a laptop, by its kubeconfig.
"""

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from twotower.errors import ClusterError
from twotower.release.manifests import Object

FIELD_MANAGER = "twotower"
"""Who we are among those who set fields of an object."""
ANSWER_WITHIN_S = (5.0, 30.0)
"""Seconds to connect to the cluster, and to wait for one answer of it."""

_TRANSIENT = {0, 429, 500, 502, 503, 504}

Report = Callable[[str], None]


class TransientError(ClusterError):
    """The cluster does not answer now; who has time asks again."""


@contextmanager
def connect(*, namespace: str, context: str | None = None) -> Iterator["Cluster"]:
    """The cluster that this runs in, or that the kubeconfig names, as seen from one namespace.

    Raises:
        ClusterError: there is neither, or what is there does not answer as a Kubernetes API.
    """
    from kubernetes import client, config, dynamic

    settings = client.Configuration()
    try:
        if context is None and "KUBERNETES_SERVICE_HOST" in os.environ:
            config.load_incluster_config(client_configuration=settings)
        else:
            file = os.environ.get("KUBECONFIG")
            config.load_kube_config(config_file=file, context=context, client_configuration=settings)
    except config.ConfigException as fault:
        advice = "Run it in the cluster, or name one by KUBECONFIG; `kubectl config get-contexts` lists them."
        raise ClusterError(f"No cluster: {short(str(fault))}. {advice}") from fault
    settings.retries = 1
    api = client.ApiClient(settings)
    api.call_api = _answered_in_time(api.call_api)
    with tempfile.TemporaryDirectory(prefix="twotower-") as folder, api:
        # By default the client keeps what it learns of the API in a file of a name that anybody on the machine knows.
        yield Cluster(_discover(dynamic, api, Path(folder) / "discovery.json"), namespace=namespace)


class Cluster:
    """One namespace of a cluster."""

    def __init__(self, client: Any, *, namespace: str) -> None:
        self.client = client
        self.namespace = namespace

    def get(self, api_version: str, kind: str, name: str) -> Object | None:
        """The object, or None where it is not there."""
        from kubernetes.dynamic.exceptions import NotFoundError

        with self.told(f"read {kind} {name}"):
            try:
                found: Object = self._resource(api_version, kind).get(name=name, namespace=self.namespace).to_dict()
            except NotFoundError:
                return None
        return found

    def create(self, body: Object) -> bool:
        """Make an object; False where it is there already, which is left as it is."""
        from kubernetes.dynamic.exceptions import ConflictError

        with self.told(f"create {body['kind']} {body['metadata']['name']}"):
            try:
                self._resource(body["apiVersion"], body["kind"]).create(
                    body=body, namespace=self.namespace, field_manager=FIELD_MANAGER
                )
            except ConflictError:
                return False
        return True

    def apply(self, body: Object, *, ours: re.Pattern[str], report: Report) -> None:
        """Server-side apply; a field that somebody else set otherwise stays theirs, unless its path is of `ours`."""
        from kubernetes.dynamic.exceptions import ConflictError

        what = f"{body['kind']} {body['metadata']['name']}"
        with self.told(f"apply {what}"):
            resource = self._resource(body["apiVersion"], body["kind"])
            try:
                resource.server_side_apply(body=body, namespace=self.namespace, field_manager=FIELD_MANAGER)
                return
            except ConflictError as conflict:
                causes = json.loads(conflict.body).get("details", {}).get("causes", [])
                if not causes:
                    raise
            theirs = [cause["field"] for cause in causes if not ours.search(cause["field"])]
            kept = [path for path in theirs if _leave_out(body, path)]
            if kept:
                report(f"{what}: kept as others set it: {', '.join(kept)}")
            resource.server_side_apply(
                body=body, namespace=self.namespace, field_manager=FIELD_MANAGER, force_conflicts=kept == theirs
            )

    def pods(self, label_selector: str) -> list[Object]:
        """The pods with these labels."""
        with self.told("list pods"):
            found = self._resource("v1", "Pod").get(namespace=self.namespace, label_selector=label_selector)
        return list(found.to_dict().get("items", []))

    def log(self, pod: str, *, lines: int) -> list[str]:
        """The last lines of a pod; none where they cannot be had, since the fault itself is told anyhow."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            answer = self._resource("v1", "Pod").log.get(
                name=pod, namespace=self.namespace, query_params=[("tailLines", lines)], serialize=False
            )
        except (ApiException, HTTPError):
            return []
        return list(answer.data.decode("utf-8", "replace").splitlines())

    def _resource(self, api_version: str, kind: str) -> Any:
        return self.client.resources.get(api_version=api_version, kind=kind)

    @contextmanager
    def told(self, doing: str) -> Iterator[None]:
        """Turn what the API or the way to it complains about into one line.

        Raises:
            ClusterError: instead of the client's own faults.
        """
        from kubernetes.client import ApiException
        from kubernetes.dynamic.exceptions import ResourceNotFoundError
        from urllib3.exceptions import HTTPError

        host = self.client.configuration.host
        try:
            yield
        except ApiException as fault:
            kind = TransientError if fault.status in _TRANSIENT else ClusterError
            raise kind(f"{host}: cannot {doing} in namespace {self.namespace}: {_reason(fault)}") from fault
        except ResourceNotFoundError as fault:
            raise ClusterError(
                f"{host}: cannot {doing}: the cluster is too old to know this kind of object."
            ) from fault
        except HTTPError as fault:
            raise TransientError(_unreachable(host)) from fault


def _unreachable(host: str) -> str:
    return f"{host}: no answer. Is the cluster running, and is this its address? `kubectl cluster-info` asks the same."


def _reason(fault: Any) -> str:
    """What the API server says, and what to do about it."""
    try:
        message = str(json.loads(fault.body)["message"])
    except (TypeError, ValueError, KeyError):
        message = str(fault.reason)
    advice = {
        401: "Renew the credentials of your kubeconfig.",
        403: "Whoever runs the cluster gives the right: kubectl apply -k deploy/rbac",
        404: "Whoever runs the cluster makes the namespace: kubectl apply -k deploy/rbac",
        409: "Others own these fields: kubectl get -o yaml --show-managed-fields",
    }.get(fault.status, "Try again; `kubectl get events` may tell more.")
    return f"{fault.status} {short(message)}. {advice}"


def _leave_out(node: Any, path: str) -> bool:
    """Take one field out of an object, by the path that a conflict names; False where it is not there.

    Keys may hold dots themselves (`.metadata.labels.app.kubernetes.io/name`), so the object leads and the path follows.
    """
    if isinstance(node, dict):
        for key in sorted(node, key=len, reverse=True):
            rest = path.removeprefix(f".{key}")
            if rest == path or rest[:1] not in ("", ".", "["):
                continue
            if rest:
                return _leave_out(node[key], rest)
            del node[key]
            return True
        return False
    found = re.match(r'\[((?:[^\]"]|"[^"]*")*)\]', path)
    if not isinstance(node, list) or found is None:
        return False
    keys = dict(re.findall(r'(\w+)=("[^"]*"|[^,"]+)', found[1]))
    fitting = [each for each in node if all(json.dumps(each.get(key)) == value for key, value in keys.items())]
    return len(fitting) == 1 and bool(keys) and _leave_out(fitting[0], path[found.end() :])


def _discover(dynamic: Any, api: Any, cache: Path) -> Any:
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    host = api.configuration.host
    try:
        return dynamic.DynamicClient(api, cache_file=str(cache))
    except ApiException as fault:
        raise ClusterError(f"{host}: cannot be asked what it serves: {_reason(fault)}") from fault
    except HTTPError as fault:
        raise ClusterError(_unreachable(host)) from fault
    except (AttributeError, TypeError, ValueError) as fault:  # The client reads an answer that is none as one.
        raise ClusterError(f"{host}: answers, but is no Kubernetes API. Check the kubeconfig's server.") from fault


def _answered_in_time(call: Callable[..., Any]) -> Callable[..., Any]:
    """The same call with a time limit, which the client leaves away unless each caller brings one."""

    def limited(*arguments: Any, **named: Any) -> Any:
        named["_request_timeout"] = named.get("_request_timeout") or ANSWER_WITHIN_S
        return call(*arguments, **named)

    return limited


def short(text: str) -> str:
    """The first line, without its full stop, cut where it is very long."""
    line = text.strip().splitlines()[0].rstrip(".") if text.strip() else ""
    return line if len(line) <= 200 else f"{line[:197]}..."
