"""A local HTTP server that plays the Kubeflow Pipelines API (v2beta1), so that the real kfp.Client can be tested.

It keeps experiments, pipelines, runs and schedules, answers as version 2.17 does (a task's own node, error and pod are
left out: kubeflow/pipelines#14007), and moves a run on by one step of its script with each look at it. Loaded by path,
because test files are imported by path:

    SPEC = importlib.util.spec_from_file_location("kfp_api", Path(__file__).with_name("kfp_api.py"))
    kfp_api = importlib.util.module_from_spec(SPEC)
    sys.modules["kfp_api"] = kfp_api
    SPEC.loader.exec_module(kfp_api)

    with kfp_api.KfpApi() as api:
        api.script = [("RUNNING", nodes("prepare", "RUNNING")), ("SUCCEEDED", nodes("prepare", "SUCCEEDED"))]
"""

import json
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

Object = dict[str, Any]
Step = tuple[str, Sequence[Object]]
NO_TIME = "0001-01-01T00:00:00Z"
WORKFLOW = "twotower-x7k2p"


class Asked(NamedTuple):
    """One request as it came in."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Any


class Answer(NamedTuple):
    """What goes back."""

    status: int
    body: Any
    kind: str = "application/json"


class KfpApi:
    """The server and what it keeps; use it as a context manager."""

    def __init__(self, *, token: str = "", multi_user: bool = False) -> None:
        self.token = token
        self.cookie = ""
        self.multi_user = multi_user
        self.delay = 0.0
        """Seconds before each answer."""
        self.script: list[Step] = [("SUCCEEDED", [])]
        """What a look at a run shows: state and nodes; the last step stays."""
        self.error = ""
        self.shows_spec = True
        self.refusals: list[tuple[str, Answer]] = []
        """Pairs of a path's pattern and the answer to it; each is given once."""
        self.logs: dict[str, str] = {}
        """By pod, at the API's own address."""
        self.ui_logs: dict[str, str] = {}
        """By pod, at the UI's address; the UI answers every other path by a page."""
        self.is_ui = False
        self.on_look: Callable[[], object] | None = None
        """Called once, at the next look at a run."""
        self.requests: list[Asked] = []
        self.experiments: list[Object] = [{"experiment_id": "e-0", "display_name": "Default"}]
        self.pipelines: dict[str, Object] = {}
        self.runs: dict[str, Object] = {}
        self.schedules: dict[str, Object] = {}
        self._made = 0
        self._server = _Server(self)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "KfpApi":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def asked(self, method: str, path: str) -> list[Asked]:
        """The requests to this path."""
        return [each for each in self.requests if each.method == method and each.path == path]

    def answer(self, asked: Asked) -> Answer:
        self.requests.append(asked)
        for index, (pattern, refusal) in enumerate(self.refusals):
            if re.search(pattern, asked.path):
                del self.refusals[index]
                return refusal
        if self.token and asked.headers.get("authorization") != f"Bearer {self.token}":
            return fault(401, 16, "Request header error: there is no user identity header.")
        if self.cookie and asked.headers.get("cookie") != self.cookie:
            return Answer(200, "<html>log in</html>", "text/html; charset=utf-8")
        for method, pattern, act in self._routes():
            if method == asked.method and (match := re.fullmatch(pattern, asked.path)):
                return act(asked, *(unquote(part) for part in match.groups()))
        return Answer(200, "<html>UI</html>", "text/html") if self.is_ui else fault(404, 5, "Not Found")

    def _routes(self) -> list[tuple[str, str, Callable[..., Answer]]]:
        base = "/apis/v2beta1"
        return [
            ("GET", f"{base}/healthz", lambda asked: Answer(200, {"multi_user": self.multi_user})),
            ("GET", f"{base}/experiments", self._list_experiments),
            ("POST", f"{base}/experiments", self._make_experiment),
            ("POST", f"{base}/pipelines/upload", self._upload),
            ("GET", f"{base}/pipelines/([^/]+)/versions/([^/]+)", lambda asked, _, id_: found(self.pipelines, id_)),
            ("POST", f"{base}/runs", self._make_run),
            ("GET", f"{base}/runs/([^/]+)", self._look),
            ("GET", f"{base}/recurringruns", self._list_schedules),
            ("POST", f"{base}/recurringruns", self._make_schedule),
            ("DELETE", f"{base}/recurringruns/([^/]+)", self._delete_schedule),
            ("GET", "/apis/v1alpha1/runs/([^/]+)/nodes/([^/]+)/log", self._log),
            ("GET", "/k8s/pod/logs", self._ui_log),
        ]

    def _id(self, letter: str) -> str:
        self._made += 1
        return f"{letter}-{self._made}"

    def _list_experiments(self, asked: Asked) -> Answer:
        if refusal := self._wrong_namespace(asked.query.get("namespace", "")):
            return refusal
        predicates = json.loads(asked.query.get("filter") or "{}").get("predicates", [])
        wanted = [each["stringValue"] for each in predicates]
        kept = [each for each in self.experiments if not wanted or each["display_name"] in wanted]
        return Answer(200, {"experiments": kept[: int(asked.query.get("page_size") or 10)]})

    def _make_experiment(self, asked: Asked) -> Answer:
        if refusal := self._wrong_namespace(asked.body.get("namespace", "")):
            return refusal
        made = {**asked.body, "experiment_id": self._id("e")}
        self.experiments.append(made)
        return Answer(200, made)

    def _wrong_namespace(self, namespace: str) -> Answer | None:
        if self.multi_user == bool(namespace):
            return None
        return fault(400, 3, "In single-user mode, the namespace must be empty; in multi-user mode, it must be given")

    def _upload(self, asked: Asked) -> Answer:
        id_ = self._id("p")
        spec = yaml.safe_load(re.search(r"\r\n\r\n(.*?)\r\n--", asked.body, re.DOTALL)[1])  # type: ignore[index]
        self.pipelines[id_] = {"pipeline_id": id_, "pipeline_version_id": id_, "pipeline_spec": spec}
        return Answer(200, {"pipeline_id": id_, "display_name": asked.query.get("name")})

    def _make_run(self, asked: Asked) -> Answer:
        id_ = self._id("r")
        self.runs[id_] = {**asked.body, "run_id": id_, "created_at": "2026-11-25T03:00:00Z", "looks": 0}
        return self._shown(id_, ("PENDING", []))

    def _look(self, asked: Asked, id_: str) -> Answer:
        if id_ not in self.runs:
            return fault(404, 5, f"Failed to get a run: run {id_} not found: \n goroutine 1 [running]")
        run = self.runs[id_]
        step = self.script[min(run["looks"], len(self.script) - 1)]
        run["looks"] += 1
        if (act := self.on_look) is not None:
            self.on_look = None
            act()
        return self._shown(id_, step)

    def _shown(self, id_: str, step: Step) -> Answer:
        state, details = step
        run = {name: value for name, value in self.runs[id_].items() if name != "looks"}
        if not self.shows_spec:
            run.pop("pipeline_spec", None)
        ended = state in ("SUCCEEDED", "FAILED", "CANCELED")
        run |= {"state": state, "finished_at": "2026-11-25T03:10:00Z" if ended else NO_TIME}
        run |= {"run_details": {"task_details": list(details)}} if details else {}
        return Answer(200, run | ({"error": {"code": 13, "message": self.error}} if self.error and ended else {}))

    def _make_schedule(self, asked: Asked) -> Answer:
        id_ = self._id("s")
        status = {"ENABLE": "ENABLED", "DISABLE": "DISABLED"}[asked.body["mode"]]
        self.schedules[id_] = {**asked.body, "recurring_run_id": id_, "status": status}
        return Answer(200, self.schedules[id_])

    def _list_schedules(self, asked: Asked) -> Answer:
        """One a page, so that whoever forgets the next page misses the rest."""
        ids = list(self.schedules)
        here = int(asked.query.get("page_token") or 0)
        more = {"next_page_token": str(here + 1)} if here + 1 < len(ids) else {}
        return Answer(200, {"recurringRuns": [self.schedules[id_] for id_ in ids[here : here + 1]], **more})

    def _delete_schedule(self, asked: Asked, id_: str) -> Answer:
        if id_ not in self.schedules:
            return fault(404, 5, f"recurring run {id_} not found")
        del self.schedules[id_]
        return Answer(200, {})

    def _log(self, asked: Asked, run: str, pod: str) -> Answer:
        if self.is_ui:  # The UI hands on the API's newer addresses only.
            return Answer(200, "<html>UI</html>", "text/html")
        return Answer(200, self.logs[pod], "text/plain") if pod in self.logs else fault(500, 13, "no pod")

    def _ui_log(self, asked: Asked) -> Answer:
        pod = asked.query.get("podname", "")
        if not self.is_ui:
            return fault(404, 5, "Not Found")
        return Answer(200, self.ui_logs[pod], "text/plain") if pod in self.ui_logs else Answer(500, "no", "text/html")


def fault(status: int, code: int, message: str) -> Answer:
    """A refusal as the server words it."""
    return Answer(status, {"error": message, "code": code, "message": message, "details": []})


def found(kept: Mapping[str, Object], id_: str) -> Answer:
    return Answer(200, kept[id_]) if id_ in kept else fault(404, 5, f"{id_} not found")


def node(name: str, state: str, *, start: str = "03:00:00", end: str = "", children: Sequence[str] = ()) -> Object:
    """One node of the engine, as `run_details` lists it."""
    return {
        "task_id": f"uuid-{name}-{start}",
        "display_name": name,
        "state": state,
        "create_time": f"2026-11-25T{start}Z",
        "start_time": f"2026-11-25T{start}Z",
        "end_time": f"2026-11-25T{end}Z" if end else NO_TIME,
        "child_tasks": [{"pod_name": f"{WORKFLOW}-{child}"} for child in children],
    }


def nodes(
    key: str, state: str, *, start: str = "03:00:00", end: str = "", number: str = "100", cached: bool = False
) -> list[Object]:
    """The three nodes of a task: its driver, itself and its executor, whose number names its pod."""
    executor = "SKIPPED" if cached else state
    return [
        node(f"{key}-driver", "SUCCEEDED", start=start, end=start),
        node(key, state, start=start, end=end, children=[number]),
        node("executor", executor, start=start, end=end),
    ]


class _Handler(BaseHTTPRequestHandler):
    """The HTTP side."""

    protocol_version = "HTTP/1.1"
    server: "_Server"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Stay quiet."""

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_DELETE(self) -> None:
        self._answer("DELETE")

    def _answer(self, method: str) -> None:
        text = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        is_json = "json" in self.headers.get("Content-Type", "")
        address = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(address.query).items()}
        headers = {name.lower(): value for name, value in self.headers.items()}
        time.sleep(self.server.api.delay)
        body = json.loads(text) if text and is_json else text
        status, told, kind = self.server.api.answer(Asked(method, address.path, query, headers, body))
        data = (told if isinstance(told, str) else json.dumps(told)).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except OSError:
            self.close_connection = True  # The client did not wait.


class _Server(ThreadingHTTPServer):
    """A thread for each connection, and the way from a request to what is kept."""

    daemon_threads = True

    def __init__(self, api: KfpApi) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.api = api
