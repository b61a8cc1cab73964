"""The Kubernetes objects that serve a bundle, made of the plain files in `deploy/`.

The files are what a person applies by hand, too; here only the bundle's address, the image and the namespace are filled
in, as edits of the parsed objects and never of text.
"""

from pathlib import Path
from typing import Any

from twotower.errors import ClusterError

NAME = "twotower-serve"
"""The Deployment, its Service and everything that goes with them."""
CONTAINER = "serve"
BUNDLE = "twotower.dev/bundle"
"""Annotation of the pods that says which bundle they serve; a new value rolls them."""
BASE = "serving/base"

Object = dict[str, Any]


def deploy_file(name: str) -> Path:
    """Where a file or folder of `deploy/` lies, in the installed package or in a checkout.

    Raises:
        ClusterError: it is in neither.
    """
    package = Path(__file__).parents[1]
    places = [package / "deploy" / name, package.parents[1] / "deploy" / name]
    for place in places:
        if place.exists():
            return place
    raise ClusterError(
        f"deploy/{name} is neither in {package} nor beside it. Install twotower anew, or use a checkout."
    )


def serving_objects(*, bundle_address: str, image: str, namespace: str) -> list[Object]:
    """What has to be applied for the bundle to be served, the Deployment last.

    Args:
        bundle_address: Where the sealed bundle lies, as the pods see it.
        image: The serving image with its tag.
        namespace: Where everything goes; the Namespace itself is among the objects.

    Raises:
        ClusterError: the files of `deploy/serving/base` are not there.
    """
    objects = _load(deploy_file(BASE))
    for each in objects:
        if each["kind"] == "Namespace":
            each["metadata"]["name"] = namespace
        else:
            each["metadata"]["namespace"] = namespace
        if each["kind"] == "Deployment":
            _fill_in(each["spec"]["template"], bundle_address=bundle_address, image=image)
    return sorted(objects, key=lambda each: str(each["kind"]) == "Deployment")


def bundle_of(template: Object) -> str | None:
    """Which bundle a pod, or a Deployment's template of one, serves; None where it does not say."""
    address = template.get("metadata", {}).get("annotations", {}).get(BUNDLE)
    return None if address is None else str(address)


def image_of(template: Object) -> str:
    """The image that a pod, or a Deployment's template of one, serves with."""
    return str(_container(template)["image"])


def _container(template: Object) -> Object:
    container: Object = next(each for each in template["spec"]["containers"] if each["name"] == CONTAINER)
    return container


def _fill_in(template: Object, *, bundle_address: str, image: str) -> None:
    template["metadata"].setdefault("annotations", {})[BUNDLE] = bundle_address
    container = _container(template)
    container["image"] = image
    container["args"][container["args"].index("serve") + 1] = bundle_address


def _load(folder: Path) -> list[Object]:
    """The objects of the files that a kustomization names, in its order; it may name other folders."""
    import yaml

    named = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]
    objects: list[Object] = []
    for name in named:
        path = folder / name
        if path.is_dir():
            objects.extend(_load(path))
        else:
            objects.extend(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    return objects
