"""The versions of a bundle, and which of them is the champion: the one that answers.

    <registry>/<name>/versions/<bundle id>/    the sealed bundle
    <registry>/<name>/models/<bundle id>/      the model with its weights, for a warm start
    <registry>/<name>/champion.json            which version answers, and which did before

A registry is a folder or an object store. Versions are never changed once they are there; only the small
`champion.json` is replaced, as a whole.
"""

import json
import tempfile
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from twotower import artifact, storage
from twotower.bundle_config import KIND, MODEL_KEY, bundle_id
from twotower.champion import Champion, champion_address, read_champion, version_address
from twotower.errors import ArtifactError, StorageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """The versions of one recommender."""

    address: str
    """A folder, `s3://...` or `gs://...`."""
    name: str
    """The recipe's name."""

    def version_address(self, version: str) -> str:
        """Where the bundle of a version lies."""
        return version_address(self._folder, version)

    def model_address(self, version: str) -> str:
        """Where the model of a version lies, with its weights."""
        return storage.join(self.address, self.name, "models", version)

    def champion(self) -> Champion | None:
        """The champion, or None where nothing was ever deployed.

        Raises:
            ArtifactError: the record is damaged.
            StorageError: the registry cannot be read.
        """
        return read_champion(self._folder)

    def rival_of(self, model: str) -> str:
        """The version that a model has to beat; "" where there is none.

        A model is not its own rival: where the champion came from this very model, the run is made again, and the
        rival is the one that it had then.
        """
        champion = self.champion()
        if champion is None:
            return ""
        return champion.rival if champion.model == model else champion.version

    def withdrawn(self, model: str) -> str:
        """The version of a model that was rolled back, and may not come back by itself; "" where it was not."""
        champion = self.champion()
        return champion.withdrawn.get(model, "") if champion else ""

    def add(self, bundle: Path, *, model: Path) -> str:
        """Keep a bundle and its model as a version; gives the version, also where it is there already.

        Raises:
            ArtifactError: no bundle or model there, or a damaged one.
        """
        artifact.verify(model, kind="model")
        version = bundle_id(artifact.verify(bundle, kind=KIND))
        for source, address in ((model, self.model_address(version)), (bundle, self.version_address(version))):
            if not storage.exists(storage.join(address, artifact.MANIFEST)):
                _upload_sealed(source, address)
        return version

    def promote(self, version: str, *, rival: str | None = None) -> Champion:
        """Make a version the champion; the one before can be rolled back to. Does nothing where it is already.

        Args:
            version: As `add` gave it.
            rival: The version that it was held against, "" for none; without, by whoever asks, held against nothing.

        Raises:
            ArtifactError: there is no such version, or another one was promoted since it was judged.
        """
        before = self.champion()
        if before is not None and before.version == version:
            return before
        model = self.refuse_promotion(version, rival=rival)
        withdrawn = {key: value for key, value in before.withdrawn.items() if key != model} if before else {}
        before_version = before.version if before else None
        return self._write(
            Champion(
                version=version,
                model=model,
                previous=before_version,
                rival=(before_version or "") if rival is None else rival,
                withdrawn=withdrawn,
                sequence=before.sequence + 1 if before else 1,
                since=_now(),
            )
        )

    def refuse_promotion(self, version: str, *, rival: str | None) -> str:
        """Tell, before anything is rolled out, why a version cannot be promoted; gives its model.

        Raises:
            ArtifactError: as for `promote`.
        """
        model, now = self._model_of(version), self.champion()
        if rival is not None and now is not None and now.model != model and now.version != rival:
            raise ArtifactError(
                f"{self._champion_address()}: {now.version} was promoted since {version} was held against "
                f"{rival or 'nothing'}. Run again, so that it is held against the champion of now."
            )
        return model

    def before_champion(self) -> str:
        """The version before the champion.

        Raises:
            ArtifactError: there is none.
        """
        champion = self.champion()
        if champion is None or champion.previous is None:
            found = "nothing is deployed" if champion is None else f"{champion.version} is the first one"
            raise ArtifactError(f"{self._champion_address()}: no version to go back to ({found}). Deploy another one.")
        return champion.previous

    def roll_back(self) -> Champion:
        """Make the version before the champion the champion again; a second call undoes the first.

        The version that is left is withdrawn, unless it is the undoing.

        Raises:
            ArtifactError: there is none before.
        """
        previous, before = self.before_champion(), self.champion()
        assert before is not None
        model = self._model_of(previous)
        undoes = model in before.withdrawn
        left = {} if undoes else {before.model: before.version}
        return self._write(
            Champion(
                version=previous,
                model=model,
                previous=before.version,
                withdrawn={key: value for key, value in before.withdrawn.items() if key != model} | left,
                sequence=before.sequence + 1,
                since=_now(),
            )
        )

    def versions(self) -> list[str]:
        """The versions there are, sorted by name."""
        names = storage.folders(storage.join(self.address, self.name, "versions"))
        return [name for name in names if storage.exists(storage.join(self.version_address(name), artifact.MANIFEST))]

    def _model_of(self, version: str) -> str:
        address = self.version_address(version)
        try:
            manifest = json.loads(storage.read_bytes(storage.join(address, artifact.MANIFEST)))
        except (StorageError, ValueError) as fault:
            there = ", ".join(self.versions()) or "none"
            raise ArtifactError(
                f"{address}: no version of a bundle. `twotower register` adds one; there are: {there}."
            ) from fault
        return str(manifest["metadata"].get(MODEL_KEY, ""))

    def _write(self, champion: Champion) -> Champion:
        storage.write_bytes(self._champion_address(), json.dumps(asdict(champion), indent=1).encode() + b"\n")
        return champion

    @property
    def _folder(self) -> str:
        return storage.join(self.address, self.name)

    def _champion_address(self) -> str:
        return champion_address(self._folder)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _upload_sealed(source: Path, address: str) -> None:
    """Copy a sealed directory so that the manifest arrives last: a version without one is not there."""
    with tempfile.TemporaryDirectory(prefix="twotower-") as scratch:
        aside = Path(scratch) / source.name
        storage.download(str(source), aside)
        (aside / artifact.MANIFEST).unlink()
        storage.upload(aside, address)
    storage.write_bytes(storage.join(address, artifact.MANIFEST), (source / artifact.MANIFEST).read_bytes())
