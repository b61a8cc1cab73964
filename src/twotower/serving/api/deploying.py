"""Which bundles answer, by the start, the admin port and `--watch`: loaded, told of what was put, taken over."""

import asyncio
import logging

from twotower.errors import StorageError, TwotowerError
from twotower.serving.api.admin_messages import DeploymentRequest
from twotower.serving.door.telemetry import Swap, Telemetry
from twotower.serving.live.deployment import Deployment, Live, Variant, refuse_bad_shares
from twotower.serving.recommender import Recommender
from twotower.serving.store.contract import Store

MAIN = "main"
"""The variant that answers where there is no experiment."""
KEEP_UP_S = 0.5
"""Between two looks for items that another server wrote."""

_log = logging.getLogger(__name__)


class Deployer:
    """Changes what is live. Belongs to one event loop, on which all of it is called."""

    def __init__(self, live: Live, *, store: Store | None, telemetry: Telemetry) -> None:
        """Change `live`; items that are put come from the store, where there is one."""
        self._live = live
        self._store = store
        self._telemetry = telemetry
        self._deploying = asyncio.Lock()

    def begin(self, address: str) -> None:
        """Load the first bundle; see `Live.load`."""
        recommender = self._live.load(address)
        self.take_writes(recommender)
        self._take_over(Deployment(variants=(Variant(name=MAIN, recommender=recommender, share=1.0),)))

    async def deploy(self, asked: DeploymentRequest) -> None:
        """Let other bundles answer: each is loaded and checked beside what answers, then all take over at once.

        Raises:
            RequestError: names or shares that do not fit.
            ArtifactError, StorageError: a bundle that is refused; nothing has changed.
        """
        refuse_bad_shares(
            [(each.name, each.share) for each in asked.variants], [(each.name, 0.0) for each in asked.shadows]
        )
        async with self._deploying:
            variants = [
                Variant(name=each.name, recommender=await self._loaded(each.bundle), share=each.share)
                for each in asked.variants
            ]
            shadows = [
                Variant(name=each.name, recommender=await self._loaded(each.bundle), share=0.0)
                for each in asked.shadows
            ]
            self._take_over(Deployment(variants=tuple(variants), shadows=tuple(shadows), salt=asked.salt))

    async def swap(self, recommender: Recommender) -> None:
        """Let a bundle that is loaded answer as the first variant."""
        async with self._deploying:
            await asyncio.to_thread(self.take_writes, recommender)
            self.take_writes(recommender)  # What came meanwhile.
            self._live.swap(self._live.current.variants[0].name, recommender)
            self._changed("taken")

    def promote(self, variant: str) -> None:
        """Let one variant answer everybody.

        Raises:
            RequestError: there is none of that name.
        """
        self._live.promote(variant)
        self._changed("taken")

    def rollback(self) -> None:
        """Let what answered before answer again.

        Raises:
            RequestError: nothing answered before.
        """
        self._live.rollback()
        self._changed("rolled_back")

    async def check(self, address: str) -> str:
        """The id of a bundle that could answer.

        Raises:
            ArtifactError, StorageError: it could not.
        """
        return (await asyncio.to_thread(self._live.load, address)).bundle.id

    def take_writes(self, recommender: Recommender) -> None:
        """Tell a recommender what was put and removed since it last looked."""
        if self._store is not None and (writes := self._store.items_after(recommender.sequence)):
            recommender.write_items(
                {write.item_id: write.features for write in writes}, sequence=max(write.sequence for write in writes)
            )

    async def keep_up(self) -> None:
        """Take up, for as long as the server runs, items that another server wrote to the same store."""
        failed = ""
        while self._store is not None:
            await asyncio.sleep(KEEP_UP_S)
            for recommender in self._live.recommenders():
                try:
                    await asyncio.to_thread(self.take_writes, recommender)
                except StorageError:
                    pass  # Told by whatever needs the store next.
                except Exception as fault:  # noqa: BLE001 - whatever it is, it must not end this in silence
                    if repr(fault) != failed:  # Once, not twice a second.
                        _log.exception("items of the store could not be taken up")
                    failed = repr(fault)

    async def _loaded(self, address: str) -> Recommender:
        """A bundle by its id or its address, with what was put and removed."""
        recommender = self._live.loaded(address)
        if recommender is None:
            try:
                recommender = await asyncio.to_thread(self._live.load, address)
            except TwotowerError:
                self._telemetry.swap("refused")
                raise
            await asyncio.to_thread(self.take_writes, recommender)
        return recommender

    def _take_over(self, deployment: Deployment) -> None:
        for each in (*deployment.variants, *deployment.shadows):
            self.take_writes(each.recommender)  # What came while it was loaded.
        self._live.replace(deployment)
        self._changed("taken")

    def _changed(self, outcome: Swap) -> None:
        current = self._live.current
        self._telemetry.deployed({each.name: each.recommender.bundle for each in (*current.variants, *current.shadows)})
        self._telemetry.swap(outcome)
