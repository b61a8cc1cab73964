"""A compiled pipeline on a server: started once."""

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from twotower.errors import PipelineError
from twotower.pipeline.follow import run_url
from twotower.pipeline.server import Server, connect, told

SHOWN = 8
"""How many names a message lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmittedRun:
    """A run that the server has taken."""

    run_id: str
    url: str
    """Where a person looks at it."""


def submit_run(
    package: Path,
    arguments: Mapping[str, Any],
    *,
    host: str,
    experiment: str = "Default",
    create_experiment: bool = False,
    run_name: str | None = None,
    token: str | None = None,
    cookie: str | None = None,
    no_cache: bool = False,
    service_account: str | None = None,
    namespace: str | None = None,
) -> SubmittedRun:
    """Start the compiled pipeline once.

    Args:
        package: The compiled pipeline, a YAML file.
        arguments: The pipeline's parameters.
        host: The address of the server or of its UI.
        experiment: The name under which the server groups runs.
        create_experiment: Make the experiment where there is none of that name.
        run_name: Of the run; by default the pipeline's with the time.
        token: Says who we are; see `connect`.
        cookie: Says who we are to a login before the server.
        no_cache: Run every task, also where its result is in the cache.
        service_account: As whom the tasks act in the cluster.
        namespace: Whose run, on a server for many users.

    Raises:
        PipelineError: The file is no pipeline, an argument does not fit it, or the server refuses.
    """
    pipeline = read_package(package, arguments)
    name = run_name or f"{pipeline} {datetime.now():%Y-%m-%d %H-%M-%S}"
    server = connect(host, token=token, cookie=cookie, namespace=namespace)
    experiment_id = find_experiment(server, experiment, create=create_experiment)
    with without_cache(package, no_cache) as sent, told(f"run {name!r}", server):
        run = server.client.run_pipeline(
            experiment_id=experiment_id,
            job_name=name,
            pipeline_package_path=str(sent),
            params=dict(arguments),
            service_account=service_account,
        )
    return SubmittedRun(run_id=run.run_id, url=run_url(server, run.run_id))


def read_package(package: Path, arguments: Mapping[str, Any]) -> str:
    """The pipeline's name, after a check that the file is a compiled pipeline and that the arguments fit it."""
    from google.protobuf import json_format
    from kfp.pipeline_spec import pipeline_spec_pb2

    spec = next(iter(_documents(package)), None)
    if not isinstance(spec, dict) or not {"pipelineInfo", "root"} <= spec.keys():
        raise PipelineError(f"{package}: this is no compiled pipeline; make one by `twotower pipeline compile`.")
    try:
        json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec())
    except json_format.ParseError as fault:
        raise PipelineError(
            f"{package}: a damaged pipeline ({' '.join(str(fault).split())}); compile it anew."
        ) from fault
    _check_arguments(package, spec["root"].get("inputDefinitions", {}).get("parameters", {}), arguments)
    return str(spec["pipelineInfo"]["name"])


@contextlib.contextmanager
def without_cache(package: Path, switched_off: bool) -> Iterator[Path]:
    """The package with caching switched off for every task, also for those in loops, conditions and exit handlers.

    kfp's own `enable_caching` reaches the outermost tasks alone.
    """
    import yaml

    if not switched_off:
        yield package
        return
    spec, *others = _documents(package)
    for part in (spec["root"], *spec.get("components", {}).values()):
        for task in part.get("dag", {}).get("tasks", {}).values():
            task["cachingOptions"] = {}
    with tempfile.TemporaryDirectory() as folder:
        switched = Path(folder) / "pipeline.yaml"
        switched.write_text(yaml.safe_dump_all([spec, *others]), encoding="utf-8")
        yield switched


def _documents(package: Path) -> list[Any]:
    import yaml

    if package.suffix not in (".yaml", ".yml"):
        raise PipelineError(f"{package}: a compiled pipeline ends in .yaml; make it by `twotower pipeline compile`.")
    try:
        return list(yaml.safe_load_all(package.read_text(encoding="utf-8")))
    except FileNotFoundError as fault:
        raise PipelineError(f"{package}: there is no such file; make it by `twotower pipeline compile`.") from fault
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as fault:
        raise PipelineError(f"{package}: no readable YAML ({' '.join(str(fault).split())}).") from fault


def typed_arguments(package: Path, texts: Mapping[str, str]) -> dict[str, Any]:
    """Arguments as the pipeline's parameters want them, out of what a person typed.

    Raises:
        PipelineError: There is no such parameter, or the text is none of its kind.
    """
    spec = next(iter(_documents(package)), None)
    root = spec.get("root", {}) if isinstance(spec, dict) else {}
    parameters = root.get("inputDefinitions", {}).get("parameters", {})
    _check_names(package, parameters, texts)
    return {name: _typed(name, text, kind=parameters[name]["parameterType"]) for name, text in texts.items()}


def _typed(name: str, text: str, *, kind: str) -> Any:
    if kind == "STRING":
        return text
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    numbers, fits = (int, float), {"BOOLEAN": bool, "LIST": list, "STRUCT": dict, "NUMBER_INTEGER": int}
    if isinstance(value, fits.get(kind, numbers)) and (kind == "BOOLEAN" or not isinstance(value, bool)):
        return value
    shown = {"BOOLEAN": "true or false", "LIST": "a JSON list", "STRUCT": "a JSON object"}.get(kind, "a number")
    raise PipelineError(f"--param {name}={text}: it takes {shown}.")


def _check_arguments(package: Path, parameters: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    _check_names(package, parameters, arguments)
    optional = {name for name, told in parameters.items() if told.get("isOptional") or "defaultValue" in told}
    if missing := sorted(set(parameters) - optional - set(arguments)):
        raise PipelineError(f"{package}: the pipeline needs the parameter {', '.join(missing)}.")


def _check_names(package: Path, parameters: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    if unknown := sorted(set(arguments) - set(parameters)):
        raise PipelineError(
            f"{package}: the pipeline has no parameter {', '.join(unknown)}; it has {_some(sorted(parameters))}."
        )


def find_experiment(server: Server, name: str, *, create: bool) -> str:
    """The id of the experiment of this name.

    Raises:
        PipelineError: There is none and none is to be made; the message lists those there are.
    """
    with told(f"experiment {name!r}", server):
        try:
            return str(server.client.get_experiment(experiment_name=name, namespace=server.namespace).experiment_id)
        except ValueError:
            if create:
                return str(server.client.create_experiment(name, namespace=server.namespace).experiment_id)
            known = server.client.list_experiments(page_size=SHOWN + 1, namespace=server.namespace).experiments
    names = [each.display_name for each in known or ()]
    raise PipelineError(
        f"{server.host}: there is no experiment {name!r}; there is {_some(names)}. Name one of those, or make it with "
        "--create-experiment."
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "") if names else "none"
