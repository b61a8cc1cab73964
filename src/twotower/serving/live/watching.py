"""A registry watched for a new champion: loaded and checked beside what answers, then swapped in.

What is watched is one small record, `champion.json`, in a folder or an object store. A version that is refused is told
once and not tried again until the record names another; whatever goes wrong, what answers goes on answering.
"""

import logging
import threading
from collections.abc import Callable
from types import TracebackType

from twotower.champion import champion_address, read_champion, version_address
from twotower.errors import ArtifactError, StorageError, TwotowerError
from twotower.serving.live.deployment import Live
from twotower.serving.recommender import Recommender
from twotower.storage import shown

EVERY_S = 10.0
"""Seconds between two looks."""
SELDOM_S = 300.0
"""Seconds between two looks at a store that does not answer, at the most."""
STOP_WITHIN_S = 5.0
"""Seconds that a look under way gets to end; loading cannot be broken off, and is left to end with the process."""

LOG = logging.getLogger(__name__)


class Watch:
    """Looks at one recommender's folder of a registry again and again, in a thread of its own."""

    def __init__(
        self,
        live: Live,
        *,
        address: str,
        swap: Callable[[Recommender], object],
        refused: Callable[[], object],
        every_s: float = EVERY_S,
    ) -> None:
        """Watch, once it is started.

        Args:
            live: What answers, and what loads.
            address: `<registry>/<name>`: a path, `s3://...` or `gs://...`.
            swap: Called in the watch's thread with a new champion, checked: lets it answer.
            refused: Called in the watch's thread when a new champion is refused.
            every_s: Seconds between two looks; twice as many after each in a row that failed.
        """
        self._live = live
        self._address = address
        self._swap = swap
        self._refused = refused
        self._every_s = every_s
        self._seen = ""
        self._told = ""
        self._failed = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="twotower-watch", daemon=True)

    def __enter__(self) -> "Watch":
        """Begin; the first look comes at once."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End."""
        self._stopping.set()
        self._thread.join(STOP_WITHIN_S)

    @property
    def wait_s(self) -> float:
        """Seconds to the next look."""
        return min(self._every_s * 2.0**self._failed, max(SELDOM_S, self._every_s))

    def look(self) -> None:
        """Look once, and take the champion if it is another than the last time."""
        try:
            champion = read_champion(self._address)
            if champion is None:
                self._tell(f"{champion_address(self._address)}: there is no champion yet.")
            elif champion.version != self._seen:
                self._take(champion.version)
            else:
                self._told = ""
            self._failed = 0
        except StorageError as fault:  # Says nothing of the version: another look may find the store well.
            self._failed += 1
            self._tell(str(fault))
        except TwotowerError as fault:  # The record is damaged.
            self._failed = 0
            self._tell(str(fault))

    def _take(self, version: str) -> None:
        """Load a version, unless it is loaded already, and let it answer."""
        recommender = self._live.loaded(version)
        try:
            if recommender is None:
                recommender = self._live.load(version_address(self._address, version))
                if recommender.bundle.id != version:
                    raise ArtifactError(f"version {version} holds another bundle, {recommender.bundle.id}.")
            if self._stopping.is_set():
                return
            self._swap(recommender)
        except StorageError as fault:
            address = version_address(self._address, version)
            raise StorageError(str(fault).replace(address, shown(address))) from fault
        except TwotowerError as fault:
            self._seen = version
            self._refused()
            self._tell(f"{version} is refused, and not tried again: {fault}")
            return
        self._seen, self._told = version, ""
        LOG.info("%s answers now", version)

    def _tell(self, fault: str) -> None:
        """Log what is wrong, once for as long as it stays the same."""
        address = champion_address(self._address)
        fault = fault.replace(address, shown(address))
        if fault != self._told:
            self._told = fault
            LOG.warning("watch: %s What answers goes on answering.", fault)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.look()
            except Exception:  # A bug must not end the watch in silence.
                self._failed += 1
                LOG.exception("watch: a fault of the server's own")
            self._stopping.wait(self.wait_s)
