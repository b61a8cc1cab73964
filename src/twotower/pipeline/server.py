"""A connection to a Kubeflow Pipelines server whose every call has a timeout and whose faults are told in one line.

`kfp.Client` by itself retries for half a minute, prints tracebacks and links, and breaks on a web page in place of an
answer; here it gets another transport, and the server is asked who it is before the client is built.
"""

import contextlib
import io
import json
import urllib.parse
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twotower.errors import PipelineError

CALL_TIMEOUT = 30.0
"""Seconds that one call may take; a run that is followed takes many calls."""

HEALTH = "/apis/v2beta1/healthz"


class ServerAwayError(PipelineError):
    """The server does not answer now, or is not well; who has time asks again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A Kubeflow Pipelines server that has answered."""

    host: str
    client: Any = field(repr=False)
    """A `kfp.Client`."""
    namespace: str | None
    """The user's namespace on a server for many users, None on one for a single user."""

    @property
    def pods_namespace(self) -> str:
        """Where the pods of a run are."""
        return self.namespace or "kubeflow"


def connect(
    host: str,
    *,
    token: str | None = None,
    cookie: str | None = None,
    namespace: str | None = None,
    timeout: float = CALL_TIMEOUT,
) -> Server:
    """A server to submit to, to follow and to schedule on.

    Raises:
        PipelineError: Nothing answers there, what answers is no Kubeflow Pipelines server, or it does not know us.
    """
    address = _address(host)
    import kfp
    import kfp_server_api

    configuration = kfp_server_api.Configuration(host=address)
    if token:
        configuration.api_key["authorization"] = token
        configuration.api_key_prefix["authorization"] = "Bearer"
    transport = _transport(configuration, host=address, timeout=timeout)
    headers = configuration.auth_settings().get("Bearer", {})
    health = _health(transport, address, headers={headers["key"]: headers["value"]} if token else {}, cookie=cookie)
    with _quiet(), _settings_told(kfp.Client._LOCAL_KFP_CONTEXT):
        client = kfp.Client(
            host=address, existing_token=token, cookies=cookie, **({"namespace": namespace} if namespace else {})
        )
    client._run_api.api_client.rest_client = transport
    return Server(host=address, client=client, namespace=_namespace(client, health, asked=namespace, host=address))


@contextlib.contextmanager
def told(what: str, server: Server, *, hint: str = "") -> Iterator[None]:
    """What the server refuses, as one line that begins with `what`; kfp's own prints are swallowed.

    `hint` says what to do where the server does not know what it is asked for.
    """
    import kfp_server_api

    try:
        with _quiet():
            yield
    except kfp_server_api.ApiException as fault:
        answer = f"{what}: {server.host} answers {fault.status}: {_message(fault)}."
        kind = ServerAwayError if fault.status >= 500 else PipelineError
        raise kind(f"{answer} {hint}".rstrip() if fault.status == 404 else answer) from fault


def read_text(server: Server, path: str, query: Mapping[str, str]) -> str | None:
    """The plain text behind a path of the server, or of its UI; None where there is none."""
    import kfp_server_api

    rest = server.client._run_api.api_client
    headers: dict[str, str] = {"Accept": "text/plain"} | ({"Cookie": rest.cookie} if rest.cookie else {})
    rest.update_params_for_auth(headers, [], ["Bearer"])
    address = f"{server.host}{path}?{urllib.parse.urlencode(query)}"
    try:
        answer = rest.rest_client.request("GET", address, headers=headers, plain=True)
    except (PipelineError, kfp_server_api.ApiException):
        return None  # A log is help with another fault, never a fault of its own.
    if "html" in (answer.getheader("content-type") or ""):
        return None  # The UI answers a path that it does not know by its own page.
    return str(answer.data.decode("utf-8", "replace"))


def _address(host: str) -> str:
    parts = urllib.parse.urlsplit(host)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise PipelineError(
            f"--host {host}: this is no address of a server. Write it as in http://127.0.0.1:8080, with http:// or https://."
        )
    if "@" in parts.netloc:
        raise PipelineError(
            "--host: the address holds a name or a password, which would be shown; use TWOTOWER_KFP_TOKEN."
        )
    return host.partition("#")[0].rstrip("/")


def _transport(configuration: Any, *, host: str, timeout: float) -> Any:
    """The HTTP transport of kfp, with a timeout on every call and every transport fault as a PipelineError."""
    import kfp_server_api
    import urllib3
    from kfp_server_api.rest import RESTClientObject

    class Transport(RESTClientObject):  # type: ignore[misc] # kfp has no types
        def request(self, method: str, url: str, *, plain: bool = False, **options: Any) -> Any:
            # A pair, because kfp's transport ignores a single number that is no int.
            options["_request_timeout"] = (min(timeout, 10.0), timeout)
            try:
                answer = super().request(method, url, **options)
            except urllib3.exceptions.HTTPError as fault:
                raise _unreachable(host, fault) from fault
            except kfp_server_api.ApiException as fault:
                _check_refusal(host, fault)
                raise
            if not plain and "json" not in (answer.getheader("content-type") or ""):
                raise _no_kfp(host, answer)
            return answer

    configuration.retries = urllib3.Retry(connect=1, read=0, redirect=2, other=0)
    return Transport(configuration)


def _unreachable(host: str, fault: Exception) -> ServerAwayError:
    reason = getattr(fault, "reason", None) or fault
    told = "it does not answer in time" if "timed out" in str(reason) else "it cannot be reached"
    return ServerAwayError(
        f"{host}: {told} ({_first_line(str(reason).rpartition(': ')[2])}). Is Kubeflow Pipelines running, and its port "
        "forwarded (kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80)?"
    )


def _check_refusal(host: str, fault: Any) -> None:
    """Raise for a refusal that no caller can mend: the token, the certificate, a page in place of an answer."""
    if fault.status == 0:  # kfp hides a TLS fault so, and then stumbles over its missing body.
        raise PipelineError(f"{host}: no TLS connection: {_first_line(str(fault.reason).partition(chr(10))[2])}.")
    if fault.status == 401:
        raise PipelineError(
            f"{host}: the token or the cookie is missing, invalid or expired (401). Get a new one and set "
            "TWOTOWER_KFP_TOKEN (or --token-file), or TWOTOWER_KFP_COOKIE."
        )
    if fault.status == 403:
        raise PipelineError(
            f"{host}: not allowed (403): {_message(fault)}. Ask for the right, or use another token or --namespace."
        )
    if "json" not in (fault.headers or {}).get("content-type", ""):
        raise _no_kfp(host, fault)


def _no_kfp(host: str, answer: Any) -> PipelineError:
    """What a server says that is something else: often a proxy's or a login's page."""
    headers = answer.getheaders() if hasattr(answer, "getheaders") else answer.headers or {}
    kind = headers.get("content-type", "nothing readable").partition(";")[0]
    return PipelineError(
        f"{host}: this is no Kubeflow Pipelines server: it answers {answer.status} with {kind} where the API "
        "would answer JSON. Check --host; behind a login, set TWOTOWER_KFP_TOKEN or TWOTOWER_KFP_COOKIE."
    )


def _health(transport: Any, host: str, *, headers: Mapping[str, str], cookie: str | None) -> dict[str, Any]:
    """What the server says of itself; PipelineError where that is not what Kubeflow Pipelines says."""
    import kfp_server_api

    sent = {"Accept": "application/json", **headers} | ({"Cookie": cookie} if cookie else {})
    try:
        found = json.loads(transport.request("GET", host + HEALTH, headers=sent).data)
    except kfp_server_api.ApiException as fault:
        if fault.status < 500:
            raise _no_kfp_api(host, f"it answers {fault.status} to {HEALTH}") from fault
        raise PipelineError(f"{host}: the server is not well: {fault.status}: {_message(fault)}.") from fault
    except ValueError as fault:
        raise _no_kfp_api(host, f"{HEALTH} holds no JSON") from fault
    if not isinstance(found, dict) or (found and "multi_user" not in found):
        raise _no_kfp_api(host, f"{HEALTH} does not say `multi_user`")
    return found


def _no_kfp_api(host: str, why: str) -> PipelineError:
    return PipelineError(f"{host}: this is no Kubeflow Pipelines server of version 2: {why}. Check --host.")


def _namespace(client: Any, health: Mapping[str, Any], *, asked: str | None, host: str) -> str | None:
    if not health.get("multi_user"):
        client._context_setting["namespace"] = ""  # A server for one user refuses a namespace.
        return None
    if found := asked or client.get_user_namespace():
        return str(found)
    raise PipelineError(f"{host}: this server is for many users; say whose runs: --namespace NAME.")


@contextlib.contextmanager
def _settings_told(path: str) -> Iterator[None]:
    """What kfp keeps in its settings file counts: a damaged file is told, by name."""
    try:
        yield
    except ValueError as fault:
        if not Path(path).is_file():
            raise
        raise PipelineError(
            f"{path}: kfp's settings are no JSON ({_first_line(str(fault))}). Delete the file."
        ) from fault


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the links and warnings that kfp prints of its own."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _message(fault: Any) -> str:
    """What the server says, without the trace that it appends."""
    try:
        found = json.loads(fault.body or "")
    except ValueError:
        return _first_line(str(fault.reason))
    text = found.get("error") or found.get("message") or fault.reason if isinstance(found, dict) else fault.reason
    return _first_line(text if isinstance(text, str) else json.dumps(text))


def _first_line(text: str, *, limit: int = 300) -> str:
    line = next((line.strip(" .:") for line in text.splitlines() if line.strip(" .:")), "no reason given")
    return line if len(line) <= limit else f"{line[: limit - 3]}..."
