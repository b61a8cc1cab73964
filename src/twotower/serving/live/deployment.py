"""What answers now, and how that changes while requests come in: experiments, swap, promotion, roll-back.

A deployment never changes. Another one takes its place as a whole, by one assignment, so a request that holds on to
the deployment it began with mixes nothing of two, and readers need no lock. The one before stays loaded: going back to
it reads nothing.
"""

import hashlib
import math
import re
import shutil
import tempfile
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from twotower import artifact, storage
from twotower.bundle_config import KIND, bundle_id
from twotower.errors import ArtifactError, RequestError, TwotowerError
from twotower.serving.live.checking import check
from twotower.serving.recommender import Recommender

COPY = "twotower-"
"""Begins the name of the folder that holds the copies of bundles from afar."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""What a variant can be called; it stands in answers, logs and metrics."""
ROUNDING = 1e-9
"""What the sum of shares may be off by."""
_PARTS = 1 << 53
"""Points on the line from 0 to 1: as many as a float tells apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One bundle that answers."""

    name: str
    recommender: Recommender
    share: float
    """Of the users, above 0; of a shadow 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """All that answers at one time, and whom.

    Raises:
        RequestError: no variant, a name that is none or stands there twice, or shares that do not add up to 1.
    """

    variants: tuple[Variant, ...]
    shadows: tuple[Variant, ...] = ()
    """They answer unseen beside the variants."""
    salt: str = ""
    """Another one deals the users out anew."""

    def __post_init__(self) -> None:
        """Refuse what cannot be dealt out."""
        refuse_bad_shares(
            [(each.name, each.share) for each in self.variants], [(each.name, each.share) for each in self.shadows]
        )

    def choose(self, user_id: str | None, request_id: str) -> Variant:
        """Who answers: for one user always the same. Somebody without an id is drawn anew for each request.

        Every variant draws a number from the salted hash of the user, and the smallest, by the shares, wins. Where a
        share grows at the others' expense in proportion, users move into that variant and nowhere else.

        Source:
            Schindelhauer and Schomaker, "Weighted Distributed Hash Tables", SPAA 2005,
            https://doi.org/10.1145/1073970.1074008
        """
        if len(self.variants) == 1:
            return self.variants[0]
        who = f"user\0{user_id}" if user_id is not None else f"request\0{request_id}"
        key = hashlib.sha256(self.salt.encode("utf-8", "surrogatepass")).digest()
        return min(self.variants, key=lambda each: -math.log(_draw(each.name, who, key=key)) / each.share)

    def variant(self, name: str) -> Variant:
        """The variant or shadow of a name.

        Raises:
            RequestError: there is none.
        """
        everybody = (*self.variants, *self.shadows)
        for each in everybody:
            if each.name == name:
                return each
        raise RequestError(f"variants: there is no '{name}'. There are {', '.join(each.name for each in everybody)}.")


def refuse_bad_shares(variants: Sequence[tuple[str, float]], shadows: Sequence[tuple[str, float]]) -> None:
    """Look at names and shares, which can be done before any bundle is loaded.

    Raises:
        RequestError: no variant, a name that is none or stands there twice, or shares that do not add up to 1.
    """
    names = [name for name, _ in (*variants, *shadows)]
    for name in names:
        if not NAME.fullmatch(name):
            raise RequestError(f"variants: {name!r:.80} is no name. Use letters, digits, '_', '.' and '-'.")
        if names.count(name) > 1:
            raise RequestError(f"variants: '{name}' stands there twice. Give each a name of its own.")
    if not variants:
        raise RequestError("variants: there is none. Name at least one, with a share of 1.")
    for name, share in variants:
        if not share > 0:
            raise RequestError(f"variants: the share of '{name}' is {share}. Give it more than 0.")
    for name, share in shadows:
        if share != 0:
            raise RequestError(f"shadows: the share of '{name}' is {share}. Nobody sees one: give it 0.")
    total = sum(share for _, share in variants)
    if not abs(total - 1) <= ROUNDING:
        raise RequestError(f"variants: the shares add up to {total:.12g}. Let them add up to 1.")


class Live:
    """The deployment that answers, and the one before.

    Loading takes seconds and is for a thread of its own; all else takes no time. One writer at a time, which a lock
    sees to; readers take `current` once a request.
    """

    def __init__(self, *, cache: Path | None = None) -> None:
        """Begin with nothing, which the first `replace` ends.

        Args:
            cache: Where bundles from afar lie meanwhile; by default the system's temporary directory. The folder is
                this server's alone: what a killed one left there is removed.
        """
        self._current: Deployment | None = None
        self._previous: Deployment | None = None
        self._changing = threading.Lock()
        self._loading = threading.Lock()
        self._loaded: weakref.WeakSet[Recommender] = weakref.WeakSet()
        self._cache = cache
        self._copies: tempfile.TemporaryDirectory[str] | None = None
        if cache is not None:
            for left in cache.glob(f"{COPY}*"):
                shutil.rmtree(left, ignore_errors=True)

    @property
    def current(self) -> Deployment:
        """What answers now; to be asked for once in a request."""
        deployment = self._current
        assert deployment is not None, "the first deployment comes before the first request"
        return deployment

    @property
    def previous(self) -> Deployment | None:
        """What `rollback` goes back to."""
        return self._previous

    def load(self, address: str) -> Recommender:
        """Open and check a bundle beside what answers; nothing changes yet.

        Bundles are loaded one after the other, so that there is never memory taken for two. The copy of one from afar
        is removed when nothing refers to the recommender any more.

        Args:
            address: A folder, or an address to download it from.

        Raises:
            StorageError: there is no bundle at the address.
            ArtifactError: what is there is no bundle, or a damaged one.
            TwotowerError: it cannot be kept meanwhile.
        """
        with self._loading:
            if _is_afar(address):
                recommender = self._from_afar(address)
            else:
                recommender = Recommender(check(storage.local_path(address)))
            with self._changing:
                self._loaded.add(recommender)
            return recommender

    def recommenders(self) -> list[Recommender]:
        """Every one that answers, may answer again or was just loaded: all of them learn of an item that is put."""
        with self._changing:
            return list(self._loaded)

    def loaded(self, bundle: str) -> Recommender | None:
        """The recommender of a bundle, by its id or its folder, that answers now or did before; else None."""
        bundle_id = bundle if _is_afar(bundle) else _id_in(storage.local_path(bundle)) or bundle
        with self._changing:
            for deployment in (self._current, self._previous):
                for each in (*deployment.variants, *deployment.shadows) if deployment else ():
                    if each.recommender.bundle.id == bundle_id:
                        return each.recommender
            return None

    def replace(self, deployment: Deployment) -> None:
        """Let another deployment answer from the next request on. Does nothing where it is the same."""
        with self._changing:
            self._take(deployment)

    def swap(self, name: str, recommender: Recommender) -> Deployment:
        """Let another bundle answer as the variant or shadow of a name; gives the deployment.

        Raises:
            RequestError: there is no such variant.
        """
        with self._changing:
            current = self.current
            old = current.variant(name)
            new = replace(old, recommender=recommender)
            return self._take(
                replace(
                    current,
                    variants=tuple(new if each is old else each for each in current.variants),
                    shadows=tuple(new if each is old else each for each in current.shadows),
                )
            )

    def promote(self, name: str) -> Deployment:
        """Let one variant or shadow answer everybody, which ends the experiment; gives the deployment.

        Raises:
            RequestError: there is no such variant.
        """
        with self._changing:
            chosen = self.current.variant(name)
            others = tuple(each for each in self.current.shadows if each is not chosen)
            return self._take(replace(self.current, variants=(replace(chosen, share=1.0),), shadows=others))

    def rollback(self) -> Deployment:
        """Let the deployment before answer again; a second call undoes the first. Gives the deployment.

        Raises:
            RequestError: there is none before.
        """
        with self._changing:
            if self._previous is None:
                raise RequestError("There is nothing to go back to: what answers is the first since the server began.")
            return self._take(self._previous)

    def close(self) -> None:
        """Let go of everything, and remove the copies of bundles from afar."""
        with self._changing:
            self._current = self._previous = None
        if self._copies is not None:
            self._copies.cleanup()

    def _take(self, deployment: Deployment) -> Deployment:
        """The one place where what answers changes; what was before the one before is let go."""
        if deployment != self._current:
            self._previous, self._current = self._current, deployment
        return deployment

    def _from_afar(self, address: str) -> Recommender:
        folder = self._folder()
        try:
            recommender = Recommender(check(_fetched(address, folder / "bundle")))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        # Not at exit: the folder that holds all copies is removed then.
        weakref.finalize(recommender, shutil.rmtree, folder, ignore_errors=True).atexit = False
        return recommender

    def _folder(self) -> Path:
        """An empty folder for one copy."""
        try:
            if self._copies is None:
                if self._cache is not None:
                    self._cache.mkdir(parents=True, exist_ok=True)
                # Where open files cannot be removed, the copies stay.
                self._copies = tempfile.TemporaryDirectory(prefix=COPY, dir=self._cache, ignore_cleanup_errors=True)
            return Path(tempfile.mkdtemp(dir=self._copies.name))
        except OSError as fault:
            raise TwotowerError(
                f"{self._cache or 'TMPDIR'}: cannot be written ({fault.strerror}). Name another folder by --cache."
            ) from fault


def _is_afar(address: str) -> bool:
    """Whether a bundle has to be copied before it can be opened."""
    return storage.is_address(address) and not address.startswith("file://")


def _id_in(folder: Path) -> str | None:
    """The id of the bundle that lies in a folder now; nothing where none does."""
    try:
        return bundle_id(artifact.read_manifest(folder, kind=KIND))
    except (ArtifactError, OSError, ValueError):  # The latter two where it cannot even be a path.
        return None


def _fetched(address: str, to: Path) -> Path:
    """A copy of what a bundle's manifest names, and of nothing else that may lie beside it; gives `to`."""
    storage.download(storage.join(address, artifact.MANIFEST), to / artifact.MANIFEST)
    for name in artifact.read_manifest(to, kind=KIND)["files"]:
        storage.download(storage.join(address, name), to / name)
    return to


def _draw(name: str, who: str, *, key: bytes) -> float:
    """A number above 0 and up to 1 that nothing but the arguments decides."""
    told = hashlib.blake2b(f"{name}\0{who}".encode("utf-8", "surrogatepass"), key=key, digest_size=8).digest()
    return ((int.from_bytes(told) >> 11) + 0.5) / _PARTS
