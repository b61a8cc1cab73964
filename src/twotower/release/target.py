"""Where a version answers from: a folder that a server on this machine reads, or a Kubernetes cluster."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from twotower import artifact, storage
from twotower.bundle_config import KIND
from twotower.champion import Champion
from twotower.errors import ArtifactError, ClusterError, RecipeError
from twotower.release.registry import Registry

KUBERNETES = "kubernetes:"


def put_in_place(version: str, to: str, *, registry: Registry, image: str, report: Callable[[str], None]) -> None:
    """Let a version answer from a target.

    Args:
        version: As the registry calls it.
        to: A folder, `kubernetes:NAMESPACE`, or "" for none.
        registry: Where it is kept.
        image: The serving image, for Kubernetes; "" keeps the one that runs.
        report: Told how the rollout goes on.

    Raises:
        ArtifactError: there is no bundle at the address, or a damaged one.
        RecipeError: Kubernetes without an image, or an address that nothing can answer from.
        ClusterError: the rollout failed, and the version before is back.
    """
    address = registry.version_address(version)
    if to.startswith(KUBERNETES):
        _roll_out(address, to.removeprefix(KUBERNETES), registry=registry, image=image, report=report)
    elif storage.is_address(to) and not to.startswith("file://"):
        raise RecipeError(f"deploy to {to}: no server answers from there. Name a folder, or kubernetes:NAMESPACE.")
    elif to:
        _replace_folder(address, storage.local_path(to))


def roll_back(registry: Registry, to: str, *, image: str, report: Callable[[str], None]) -> Champion:
    """Let the version before the champion answer again: first where requests are answered, then in the record.

    Raises:
        ArtifactError: there is no version before.
        ClusterError: the rollout failed.
    """
    put_in_place(registry.before_champion(), to, registry=registry, image=image, report=report)
    return registry.roll_back()


def _roll_out(address: str, namespace: str, *, registry: Registry, image: str, report: Callable[[str], None]) -> None:
    """Let the namespace's server answer from an address; back to the champion's if it does not come up.

    Raises:
        RecipeError: no namespace is named, or no image and none runs.
        ClusterError: another recommender answers there, or the rollout failed.
    """
    from twotower.release.deployment import Served, apply_serving, served

    if not namespace:
        raise RecipeError("deploy to kubernetes: no namespace is named. Name one, as in kubernetes:twotower.")
    now = served(namespace=namespace)
    if now is not None and not now.bundle.startswith(registry.version_address("").rstrip("/") + "/"):
        raise ClusterError(
            f"{namespace}: answers from {now.bundle}, which is no version of {registry.name} in this registry. "
            "Name another namespace, or delete that Deployment first."
        )
    image = image or (now.image if now else "")
    if not image:
        raise RecipeError(f"{namespace}: nothing runs there yet, so an image is needed, as in twotower-serve:TAG.")
    champion = registry.champion()
    # A task that was killed half-way leaves its own version there; what to go back to is what the record says.
    before = (
        Served(bundle=registry.version_address(champion.version), image=now.image if now else image)
        if champion
        else None
    )
    apply_serving(address, image=image, namespace=namespace, report=report, before=before)


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
