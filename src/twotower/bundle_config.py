"""What the recipe says of the bundle, and how one is called. Apart from the bundle, so that neither loads a model."""

from dataclasses import dataclass
from typing import Any

from twotower import artifact
from twotower.data.schema import STRICT, PositiveInt

KIND = "bundle"
MODEL_KEY = "model_fingerprint"
"""Of the manifest's metadata: which model the bundle was made from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleConfig:
    """What a bundle holds beside the model."""

    __pydantic_config__ = STRICT

    popular_interactions: PositiveInt = 50_000
    """Latest positive interactions that are counted for the popular fallback. What is popular changes: a window of
    this size told more about the next interaction than the whole log did (MovieLens-1M by time, NDCG@10 .0220 against
    .0206)."""


def bundle_id(manifest: dict[str, Any]) -> str:
    """The id by which answers and registries name a bundle: its name, and the beginning of a hash over its files.

    The report counts for nothing: it also tells how long the judging took, and no answer depends on it.
    """
    files = {name: digest for name, digest in manifest["files"].items() if not name.startswith("report/")}
    return f"{manifest['metadata']['name']}-{artifact.hash_json(files)[:12]}"
