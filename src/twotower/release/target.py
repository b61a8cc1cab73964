"""Where a version answers from: a folder that a server on this machine reads, or a Kubernetes cluster."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from twotower import artifact, storage
from twotower.bundle_config import KIND
from twotower.errors import ArtifactError, RecipeError
from twotower.release.registry import Champion, Registry

KUBERNETES = "kubernetes:"


def put_in_place(address: str, to: str, *, image: str, report: Callable[[str], None]) -> None:
    """Let a version answer from a target.

    Args:
        address: Where the version's bundle lies.
        to: A folder, `kubernetes:NAMESPACE`, or "" for none.
        image: The serving image, for Kubernetes.
        report: Told how the rollout goes on.

    Raises:
        ArtifactError: there is no bundle at the address, or a damaged one.
        RecipeError: Kubernetes without an image.
        ClusterError: the rollout failed, and the version before is back.
    """
    if to.startswith(KUBERNETES):
        from twotower.release.deployment import apply_serving

        if not image:
            raise RecipeError(f"deploy to {to}: no serving image is named. Name one, as in --image twotower-serve:TAG.")
        apply_serving(bundle_address=address, image=image, namespace=to.removeprefix(KUBERNETES), report=report)
    elif to:
        _replace_folder(address, storage.local_path(to))


def roll_back(registry: Registry, to: str, *, image: str, report: Callable[[str], None]) -> Champion:
    """Let the version before the champion answer again: first where requests are answered, then in the record.

    Raises:
        ArtifactError: there is no version before.
        ClusterError: the rollout failed.
    """
    previous = registry.before_champion()
    put_in_place(registry.version_address(previous), to, image=image, report=report)
    return registry.roll_back()


def _replace_folder(address: str, folder: Path) -> None:
    """Copy the bundle beside the folder, check it there, and let it take the folder's place."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="twotower-", dir=folder.parent) as scratch:
        copy = storage.download(address, Path(scratch) / "bundle")
        manifest = artifact.verify(copy, kind=KIND)
        if folder.is_dir() and (folder / artifact.MANIFEST).is_file():
            try:
                if artifact.verify(folder, kind=KIND)["files"] == manifest["files"]:
                    return
            except ArtifactError:
                pass  # A damaged bundle is replaced like an old one.
        with artifact.write_artifact(folder, kind=KIND, metadata=manifest["metadata"]) as to:
            for path in copy.iterdir():
                if path.name != artifact.MANIFEST:
                    path.rename(to / path.name)
