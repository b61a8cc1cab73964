"""The same space as an Experiment for a cluster: Katib draws values, each trial is a Job that runs `twotower train`.

What Katib takes and does is told after its sources at 0.19, unless another place is named: the webhook that checks an
experiment (pkg/webhook/v1beta1/experiment/validator/validator.go), the one that wraps a trial's command and adds the
container that reads its output (pkg/webhook/v1beta1/pod/utils.go), and that container
(cmd/metricscollector/v1beta1/file-metricscollector/main.go).
"""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from twotower import storage
from twotower.artifact import MANIFEST
from twotower.errors import RecipeError, StorageError
from twotower.recipe import Recipe, recipe_toml
from twotower.tune_config import TuneConfig
from twotower.tuning.space import Dimension, follows_catalogue, settled, space_of
from twotower.tuning.study import is_error

CONTAINER = "train"
RECIPE = "RECIPE"
"""Environment variable that carries the recipe's text: the pods need no file for it."""
LOG_TIME = "TWOTOWER_LOG_TIME"
"""Lets a line of progress begin with its moment: Katib's early stopping wants the order of the figures from it."""
MODEL = "/tmp/trial/model"
"""Where a trial's model goes; it ends with the pod, as all that counts of it is its figure."""
LEAST_BEFORE_STOPPING = 3
"""Complete trials before the median of them ends others."""
UNQUOTABLE = re.compile(r"""["'\\$`]""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trials:
    """How trials run on the cluster."""

    image: str
    """The pipeline image: it holds this package."""
    namespace: str
    split: str
    """Address of what `split` wrote; every trial reads it."""
    trials: int
    at_a_time: int
    requests: Mapping[str, str] = field(default_factory=dict)
    """Of each trial."""
    limits: Mapping[str, str] = field(default_factory=dict)
    """Of each trial; a GPU is `{"nvidia.com/gpu": "1"}`."""
    env: Mapping[str, str] = field(default_factory=dict)
    secret_env: Mapping[str, tuple[str, str, bool]] = field(default_factory=dict)
    """Environment variable -> (secret, key in it, whether a trial may do without)."""
    service_account: str | None = None
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Mapping[str, Any]] = ()
    image_pull_secrets: Sequence[str] = ()


def experiment_yaml(recipe: Recipe, spec: Trials, *, items: int = 0) -> str:
    """The manifest as YAML, for `kubectl apply -f`.

    Raises:
        RecipeError: see `experiment`.
    """
    import yaml

    text: str = yaml.dump(experiment(recipe, spec, items=items), Dumper=_dumper(), sort_keys=False, width=120)
    return text


def experiment(recipe: Recipe, spec: Trials, *, items: int = 0) -> dict[str, Any]:
    """The Experiment that Katib runs.

    Args:
        recipe: What is tuned.
        spec: How trials run.
        items: Of the train part, by `items_of`.

    Raises:
        RecipeError: a search space that cannot be, or a pruner or a value that Katib cannot do.
    """
    space = space_of(settled(recipe, items=items))
    metric = recipe.train.metric
    body: dict[str, Any] = {
        "objective": {
            "type": "minimize" if is_error(metric) else "maximize",
            "objectiveMetricName": metric,
            # A model is that of its best epoch, as here.
            "metricStrategies": [{"name": metric, "value": "min" if is_error(metric) else "max"}],
        },
        "algorithm": {
            "algorithmName": "tpe",
            # Hyperopt's, which Katib runs for it: a setting for the trials drawn by chance would be refused.
            "algorithmSettings": [{"name": "random_state", "value": str(recipe.seed)}],
        },
        **_early_stopping(recipe),
        "parallelTrialCount": min(spec.at_a_time, spec.trials),
        "maxTrialCount": spec.trials,
        "maxFailedTrialCount": max(1, spec.trials // 3),
        # Lines of progress hold `ndcg@10 0.0812`: the default filter wants an equals sign and knows no `@`.
        "metricsCollectorSpec": {
            "collector": {"kind": "StdOut"},
            "source": {"filter": {"metricsFormat": [rf"({re.escape(metric)})\s+([+-]?\d*\.?\d+([Ee][+-]?\d+)?)"]}},
        },
        "parameters": [_parameter(each) for each in space],
        "trialTemplate": _template(recipe, spec, space=space),
    }
    name = re.sub(r"[^a-z0-9]+", "-", f"{recipe.name}-tune".lower()).strip("-")[:40].rstrip("-")
    labels = {"app.kubernetes.io/name": "twotower", "app.kubernetes.io/component": "tune"}
    return {
        "apiVersion": "kubeflow.org/v1beta1",
        "kind": "Experiment",
        "metadata": {
            "name": name if name[0].isalpha() else f"r-{name}",
            "namespace": spec.namespace,
            "labels": labels,
        },
        "spec": body,
    }


def items_of(recipe: Recipe, split: str) -> int:
    """Items of the train part, where the recipe's space follows from their number; elsewhere 0, and nothing is read.

    Raises:
        RecipeError: the number is needed, and cannot be read from here.
    """
    if not follows_catalogue(recipe):
        return 0
    place = storage.join(storage.absolute(split), MANIFEST)
    try:
        return int(json.loads(storage.read_bytes(place))["metadata"]["counts"]["train_items"])
    except StorageError as fault:
        reason = str(fault)
    except (ValueError, LookupError, TypeError):
        reason = f"{storage.shown(place)}: not what `split` wrote."
    raise RecipeError(
        f"{reason} --katib needs the number of items: model.retrieval.temperature = 'auto' follows from it, and is "
        "tuned. Let --split be read from here, set the temperature to a number, or name a [tune.space]."
    )


def needs(spec: Trials) -> list[str]:
    """What has to be there before the Experiment is applied, in lines."""
    return [
        "The cluster needs Katib 0.19 or later (earlier ones draw evenly where the space says log), and:",
        f"  kubectl label namespace {spec.namespace} katib.kubeflow.org/metrics-collector-injection=enabled",
        f"  the split at {spec.split}, as the pipeline's task `split` leaves it, or copied there",
        f"  the image {spec.image} where its nodes find it",
    ]


def _early_stopping(recipe: Recipe) -> dict[str, Any]:
    if recipe.tune.pruner == "hyperband":
        raise RecipeError(
            "tune.pruner = 'hyperband': Katib ends trials early by the median alone. Set 'median' or 'none'."
        )
    if recipe.tune.pruner == "none":
        return {}
    settings = {"min_trials_required": LEAST_BEFORE_STOPPING, "start_step": max(1, recipe.train.epochs // 4)}
    named = [{"name": name, "value": str(value)} for name, value in settings.items()]
    return {"earlyStopping": {"algorithmName": "medianstop", "algorithmSettings": named}}


def _parameter(each: Dimension) -> dict[str, Any]:
    if each.choices is not None:
        if bad := [text for text in each.choices if UNQUOTABLE.search(text)]:
            raise RecipeError(
                f"tune.space: '{each.key}': Katib writes values into a command as they are, and {bad[0]} has quotes, "
                "a backslash or a dollar in it. Leave it out, or tune here."
            )
        return {"name": each.key, "parameterType": "categorical", "feasibleSpace": {"list": list(each.choices)}}
    ends = {"min": _number(each.low, whole=each.whole), "max": _number(each.high, whole=each.whole)}
    step = {} if each.step is None else {"step": _number(each.step, whole=each.whole)}
    drawn = {"distribution": "logUniform" if each.log else "uniform"}
    return {"name": each.key, "parameterType": "int" if each.whole else "double", "feasibleSpace": ends | step | drawn}


def _template(recipe: Recipe, spec: Trials, *, space: Sequence[Dimension]) -> dict[str, Any]:
    """A trial's Job; Katib puts its values in the place of `${trialParameters.NAME}`, and names it."""
    named = {each.key: each.key.replace(".", "_") for each in space}
    # A shell of our own, quoted by us: Katib joins a bare command with spaces and gives it to a shell.
    command = ["twotower", "train", f'"${RECIPE}"', "--split", shlex.quote(spec.split), "--out", MODEL]
    for key, name in named.items():
        command += ["--set", f"'{key}=${{trialParameters.{name}}}'"]
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": spec.image,
        "command": ["sh", "-c"],
        "args": [" ".join(command)],
        "env": _environment(recipe, spec),
        "resources": {"requests": dict(spec.requests), "limits": dict(spec.limits)},
    }
    pod = {
        "restartPolicy": "Never",
        "serviceAccountName": spec.service_account,
        "nodeSelector": dict(spec.node_selector),
        "tolerations": [dict(each) for each in spec.tolerations],
        "imagePullSecrets": [{"name": name} for name in spec.image_pull_secrets],
        "containers": [container],
    }
    job = {"backoffLimit": 0, "template": {"spec": {name: value for name, value in pod.items() if value}}}
    return {
        "primaryContainerName": CONTAINER,
        "successCondition": 'status.conditions.#(type=="Complete")#|#(status=="True")#',
        "failureCondition": 'status.conditions.#(type=="Failed")#|#(status=="True")#',
        "trialParameters": [{"name": name, "description": key, "reference": key} for key, name in named.items()],
        "trialSpec": {"apiVersion": "batch/v1", "kind": "Job", "spec": job},
    }


def _environment(recipe: Recipe, spec: Trials) -> list[dict[str, Any]]:
    """The recipe without its space, models of one task left out: a trial's figure is that of one model."""
    alone = replace(recipe, tune=TuneConfig(), train=replace(recipe.train, single_tasks=False))
    plain = {**spec.env, LOG_TIME: "1", RECIPE: recipe_toml(alone).replace("$(", "$$(")}  # As Kubernetes reads it.
    secrets = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key, "optional": optional}}}
        for name, (secret, key, optional) in spec.secret_env.items()
    ]
    return [*secrets, *({"name": name, "value": value} for name, value in plain.items())]


def _number(value: float, *, whole: bool) -> str:
    return str(int(value)) if whole else repr(float(value))


def _dumper() -> Any:
    """A dumper that writes a text of several lines as such, to be read and changed by hand."""
    import yaml

    class Dumper(yaml.SafeDumper):  # type: ignore[misc,unused-ignore] # yaml has no types
        pass

    def text(dumper: Any, value: str) -> Any:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    return Dumper
