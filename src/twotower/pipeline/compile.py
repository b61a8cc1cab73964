"""The pipeline as a file: what the Kubeflow Pipelines UI takes, or Kubernetes resources for GitOps."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

from kfp import compiler
from kfp.compiler.compiler_utils import KubernetesManifestOptions

from twotower.pipeline.dress import dress
from twotower.pipeline.pipeline import NAME, build_pipeline
from twotower.pipeline.profile import Profile

Format = Literal["ir", "kubernetes"]


def pipeline_for(profile: Profile) -> Any:
    """The pipeline with the profile applied to every task."""
    return build_pipeline(
        partial(dress, profile=profile),
        registry=profile.registry,
        deploy_to=profile.deploy_to,
        serve_image=profile.serve_image,
        train_job=_train_job(profile),
    )


def compile_pipeline(profile: Profile, out: Path, *, form: Format = "ir") -> None:
    """Write the pipeline.

    Args:
        profile: Where it will run.
        out: The YAML file.
        form: `ir` for the UI and the API, `kubernetes` for Pipeline and PipelineVersion resources.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    manifest = form == "kubernetes"
    tag = profile.image.rpartition(":")[2].replace(".", "-").lower()
    options = KubernetesManifestOptions(
        pipeline_name=NAME,
        pipeline_version_name=f"{NAME}-{tag}"[:63].rstrip("-"),
        namespace=profile.namespace or "kubeflow",
        include_pipeline_manifest=True,
    )
    compiler.Compiler().compile(
        pipeline_for(profile),
        str(out),
        kubernetes_manifest_format=manifest,
        kubernetes_manifest_options=options if manifest else None,
    )


def _train_job(profile: Profile) -> dict[str, Any]:
    """What the train task needs to hand its work to a TrainJob; empty where it trains by itself."""
    job = profile.train_job
    if job is None:
        return {}
    tolerations = [{name: value for name, value in asdict(one).items() if value} for one in profile.tolerations]
    return {
        "image": profile.image,
        "namespace": job.namespace,
        "nodes": job.nodes,
        "runtime": job.runtime,
        "requests": {"cpu": job.cpu, "memory": job.memory},
        "limits": {"memory": job.memory} | ({job.gpu_kind: str(job.gpus)} if job.gpus else {}),
        "env": profile.environment,
        "secret_env": {
            variable: [secret.name, key] for secret in profile.all_secrets for key, variable in secret.env.items()
        },
        "service_account": job.service_account or "",
        "node_selector": profile.node_selector,
        "tolerations": tolerations,
        "image_pull_secrets": list(profile.image_pull_secrets),
        "timeout_minutes": job.timeout_minutes,
    }
