"""Which version of a bundle answers, as a registry keeps it; apart from the registry, so that a server can read it.

<folder>/versions/<bundle id>/     the sealed bundle
<folder>/champion.json             which version answers, and which did before
"""

import json
import re
from dataclasses import dataclass, field

from twotower import storage
from twotower.errors import ArtifactError

CHAMPION = "champion.json"
VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
"""What a version can be called; nothing that leads out of its folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Champion:
    """Which version answers."""

    version: str
    """Bundle id."""
    model: str
    """Fingerprint of the model in it: the same training gives the same."""
    previous: str | None
    """The version before, for a rollback."""
    rival: str = ""
    """The version that it was held against; "" where there was none."""
    withdrawn: dict[str, str] = field(default_factory=dict)
    """Model -> version, of those that were rolled back: no run promotes them again by itself."""
    sequence: int
    """How often the champion has changed."""
    since: str
    """UTC, ISO 8601."""


def champion_address(folder: str) -> str:
    """Where the record lies, in one recommender's folder of a registry."""
    return storage.join(folder, CHAMPION)


def version_address(folder: str, version: str) -> str:
    """Where the bundle of a version lies."""
    return storage.join(folder, "versions", version)


def read_champion(folder: str) -> Champion | None:
    """The champion, or None where nothing was ever deployed.

    Args:
        folder: `<registry>/<name>`: a path, `s3://...` or `gs://...`.

    Raises:
        ArtifactError: the record is damaged.
        StorageError: the folder cannot be read.
    """
    address = champion_address(folder)
    if not storage.exists(address):
        return None
    try:
        champion = Champion(**json.loads(storage.read_bytes(address)))
        if not VERSION.fullmatch(champion.version):
            raise ValueError(f"no version is called {champion.version!r}")
    except (ValueError, TypeError) as fault:
        raise ArtifactError(f"{address}: damaged ({fault}). Deploy a version again, by `twotower deploy`.") from fault
    return champion
