"""twotower: from a log of interactions to a served two-stage recommender.

The path, one file per arrow, is told in `steps.py`; the public names here are `load` and `__version__`. Importing the
package loads nothing else.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os

    from twotower.serving.recommender import Recommender

__all__ = ["__version__", "load"]


def load(bundle: "str | os.PathLike[str]", *, verify: bool = True) -> "Recommender":
    """Open a bundle and answer from it: `twotower.load("runs/films/bundle").recommend("42")`.

    Args:
        bundle: The directory that `twotower bundle` wrote.
        verify: Hash every file first and refuse a bundle in which one differs; without, a large bundle opens faster.

    Raises:
        ArtifactError: no bundle there, or a damaged one; the message names the file.
    """
    from pathlib import Path

    from twotower.serving.recommender import Recommender

    return Recommender.load(Path(bundle), verify=verify)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("twotower")
    raise AttributeError(f"module 'twotower' has no attribute {name!r}")
