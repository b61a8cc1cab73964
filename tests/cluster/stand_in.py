"""Plays `kind`, `kubectl`, `docker`, `git` and a browser: records each call, then answers as a healthy one or as told.

Called as `stand_in.py TOOL ARGUMENTS...`. Beside it lie `calls.jsonl` (what was called), `state.json` (which clusters
there are and which release is applied in them) and `scenario.json` (the answers that a test has set).
"""

import contextlib
import json
import socket
import sys
import time
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent


def read(name: str, empty: Any) -> Any:
    path = FOLDER / name
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else empty


def write(name: str, value: Any) -> None:
    (FOLDER / name).write_text(json.dumps(value), encoding="utf-8")


def told(call: str) -> dict[str, Any] | None:
    """The answer that a test has set for the call: the next of its answers, or the last for ever."""
    for number, rule in enumerate(read("scenario.json", [])):
        if all(part in call for part in rule["calls"]):
            counts = read("counts.json", {})
            count = counts.get(str(number), 0)
            write("counts.json", {**counts, str(number): count + 1})
            return rule["answers"][min(count, len(rule["answers"]) - 1)]
    return None


def healthy(tool: str, argv: list[str]) -> dict[str, str]:
    """What a tool prints where nothing is wrong."""
    call = " ".join([tool, *argv])
    state = read("state.json", {"clusters": [], "applied": None})
    if tool == "kubectl":
        return {"stdout": of_kubectl(call, argv, state)}
    if tool == "kind":
        return {"stdout": of_kind(call, argv, state)}
    said = {
        "docker info": "28.3.2 8589934592 /no/such/folder\n",
        "docker inspect": "running\n",
        "git rev-parse": "1a2b3c4d5e6f\n",
    }
    verb = next((each for each in argv if each in ("info", "inspect", "rev-parse")), "")
    return {"stdout": said.get(f"{tool} {verb}", "")}


def of_kind(call: str, argv: list[str], state: dict[str, Any]) -> str:
    if call == "kind version":
        return "kind v0.32.0 go1.25.1 linux/amd64\n"
    if call == "kind get clusters":
        return "".join(f"{name}\n" for name in state["clusters"])
    if call.startswith("kind create"):
        write("state.json", {**state, "clusters": [*state["clusters"], argv[argv.index("--name") + 1]]})
    if call.startswith("kind delete"):
        write("state.json", {"clusters": [], "applied": None})
    return ""


def of_kubectl(call: str, argv: list[str], state: dict[str, Any]) -> str:
    if call == "kubectl version --client":
        return "Client Version: v1.33.1\nKustomize Version: v5.6.0\n"
    if " version " in call:
        return json.dumps({side: {"gitVersion": "v1.33.1"} for side in ("clientVersion", "serverVersion")})
    if " label namespace " in call:
        write("state.json", {**state, "applied": argv[-1].partition("=")[2]})
    if " get namespace " in call:
        labels = {"twotower.dev/applied": state["applied"]} if state["applied"] else {}
        return json.dumps({"metadata": {"name": "kubeflow", "labels": labels}})
    if " get nodes" in call or " get deployments" in call:
        return json.dumps(read("nodes.json" if " get nodes" in call else "workloads.json", {"items": []}))
    return ""


def forward(argv: list[str]) -> None:
    """Answer where the port-forward would, until the process is ended."""
    port = int(next(each for each in argv if each.endswith(":80")).partition(":")[0])
    with socket.create_server(("127.0.0.1", port)) as server:
        sys.stdout.write(f"Forwarding from 127.0.0.1:{port} -> 3000\n")
        sys.stdout.flush()
        while True:
            connection = server.accept()[0]
            # A caller that only looks whether the port is open has gone by now.
            with contextlib.suppress(OSError), connection:
                connection.recv(1024)
                connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")


def main() -> int:
    tool, *argv = sys.argv[1:]
    with (FOLDER / "calls.jsonl").open("a", encoding="utf-8") as calls:
        calls.write(json.dumps([tool, *argv]) + "\n")
    answer = told(" ".join([tool, *argv]))
    if answer is None and "port-forward" in argv:
        forward(argv)
    answer = healthy(tool, argv) if answer is None else answer
    time.sleep(answer.get("sleep", 0))
    sys.stdout.write(answer.get("stdout", ""))
    sys.stderr.write(answer.get("stderr", ""))
    return int(answer.get("rc", 0))


if __name__ == "__main__":
    sys.exit(main())
