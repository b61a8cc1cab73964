"""What each call of the API does, without HTTP: who answers, what the store knows of the user, whose turn it is."""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from twotower.errors import RequestError, StorageError
from twotower.serving.answers.asking import Since
from twotower.serving.answers.put import Features, checked_items
from twotower.serving.answers.results import Recommendation
from twotower.serving.api.deploying import Deployer
from twotower.serving.api.messages import (
    DeleteItemsRequest,
    EventMessage,
    EventsRequest,
    EventsResponse,
    FoundItem,
    FoundItems,
    HistoryRequest,
    ItemsResponse,
    PutItemsRequest,
    RankRequest,
    RankResponse,
    RecommendRequest,
    RecommendResponse,
    SearchRequest,
    SimilarRequest,
    SimilarResponse,
)
from twotower.serving.door.admission import Gate
from twotower.serving.door.telemetry import Telemetry
from twotower.serving.live.deployment import Live, Variant
from twotower.serving.recommender import Recommender
from twotower.serving.store.contract import Event, ItemChange, Met, Store
from twotower.serving.store.writer import Writer

MOST_SINCE = 20_000
"""Interactions of one user since the log's end that an answer looks at: the latest. All of them count as seen."""
SHADOWED = 64
"""Requests that wait to be answered unseen as well; more are passed over."""
AHEAD_US = 5 * 60 * 1_000_000
"""How far an event may lie ahead: clocks differ. One that lies further would top every history until its time."""
HEALING = 0.9
"""What the expected time of ranking falls by whenever there was none for it: one slow time is not held against all."""
LOOKING = 4
"""Threads that ask a store on another machine about users; a store that hangs holds up nothing else."""
STORE_WITHIN_S = 0.1
"""How long an answer waits for what a store on another machine knows of the user."""
STORE_SILENT = "the store did not answer: what happened since the bundle was made is not in this answer"
STORE_MISSING = "This server was started without a store. Name one by --store."

_log = logging.getLogger(__name__)


class UnavailableError(Exception):
    """What is asked for needs something that this server was started without."""


class Service:
    """One server's answers. Belongs to one event loop, on which everything that changes it is called."""

    def __init__(self, live: Live, *, store: Store | None, telemetry: Telemetry) -> None:
        """Answer from what is live; without a store, no events and no items can be written."""
        self.live = live
        self.deployer = Deployer(live, store=store, telemetry=telemetry)
        self.is_ending = False
        """Whether the server has been told to end."""
        self.gate = Gate(shed=telemetry.shed)
        self.telemetry = telemetry
        self._store = store
        self._writer = Writer(store) if store else None
        self._looking = ThreadPoolExecutor(LOOKING, thread_name_prefix="twotower-looking")
        self._shadowed: asyncio.Queue[tuple[RecommendRequest, tuple[str, ...]]] = asyncio.Queue(SHADOWED)
        self._ranking_s = 0.0

    @property
    def name(self) -> str:
        """The recipe's name, by which the Open Inference Protocol calls the model."""
        return str(self._first().bundle.metadata["name"])

    @property
    def bundle_id(self) -> str:
        """Which bundle answers, of the first variant."""
        return self._first().bundle.id

    def end(self) -> None:
        """Say from now on that no more should be asked; what is asked all the same is answered."""
        self.is_ending = True

    def close(self) -> None:
        """Finish what is under way to the store."""
        self._looking.shutdown(wait=False, cancel_futures=True)
        if self._writer is not None:
            self._writer.close()
        if self._store is not None:
            self._store.close()

    async def recommend(self, asked: RecommendRequest, *, request_id: str, arrived: float) -> RecommendResponse:
        """The best items for who asks.

        Args:
            asked: The request.
            request_id: Under which the answer goes out; it also decides the variant of somebody without an id.
            arrived: When the request came, by `time.perf_counter`.

        Raises:
            RequestError: see `Recommender.recommend`.
            OverloadedError: there is no room.
        """
        variant = self.live.current.choose(_user_id(asked), request_id)
        return await self._recommend(asked, variant, request_id=request_id, arrived=arrived)

    async def recommend_each(
        self, requests: Sequence[RecommendRequest], *, request_id: str, arrived: float, by_one: bool = False
    ) -> list[RecommendResponse]:
        """Several answers, one after the other: others get their turns between them.

        Args:
            requests: At least one.
            request_id: As for `recommend`.
            arrived: As for `recommend`.
            by_one: Whether one variant answers all of them, the first one's; else each is answered as if alone.

        Raises:
            RequestError: one of them is refused; the message begins with its place.
            OverloadedError: there is no room; once the first is answered, all are.
        """
        deployment = self.live.current
        first = deployment.choose(_user_id(requests[0]), request_id)
        answers: list[RecommendResponse] = []
        for place, asked in enumerate(requests):
            variant = first if by_one else deployment.choose(_user_id(asked), request_id)
            try:
                turned = time.perf_counter() if place else None
                answer = await self._recommend(asked, variant, request_id=request_id, arrived=arrived, turned=turned)
            except RequestError as fault:
                raise RequestError(f"requests.{place}: {fault}") from fault
            answers.append(answer)
        return answers

    async def _recommend(
        self,
        asked: RecommendRequest,
        variant: Variant,
        *,
        request_id: str,
        arrived: float,
        turned: float | None = None,
    ) -> RecommendResponse:
        """One answer; a later one of several waits from when it was `turned` to, and is not sent away any more."""
        since, notes = await self._since(_user_id(asked), variant.recommender)
        async with self.gate.turn(is_admitted=turned is not None):
            began = time.perf_counter()
            until = None if asked.deadline_ms is None else arrived + asked.deadline_ms / 1000 - self._ranking_s
            answer = _answer(variant.recommender, asked, since=since, rank_until=until)
            self._expect(answer)
        if self.live.current.shadows:
            with suppress(asyncio.QueueFull):
                self._shadowed.put_nowait((asked, tuple(item.item_id for item in answer.items)))
        waited_from = arrived if turned is None else turned
        timings_ms = {
            "queue": round((began - waited_from) * 1000, 3),
            **answer.timings_ms,
            "total": round((time.perf_counter() - waited_from) * 1000, 3),
        }
        self.telemetry.recommended(
            variant=variant.name,
            bundle=answer.bundle,
            fallback=answer.fallback,
            timings_ms=timings_ms,
            candidates=answer.retrieved,
            items=len(answer.items),
        )
        return RecommendResponse(
            request_id=request_id,
            bundle=answer.bundle,
            variant=variant.name,
            items=answer.items,
            fallback=answer.fallback,
            notes=answer.notes + notes,
            timings_ms=timings_ms,
        )

    def _expect(self, answer: Recommendation) -> None:
        """How long ranking will take, by how long it took of late."""
        if answer.fallback == "retrieval":
            self._ranking_s *= HEALING
        elif (ranking := answer.timings_ms.get("ranking")) is not None:
            self._ranking_s += 0.1 * (ranking / 1000 - self._ranking_s)

    async def rank(self, asked: RankRequest, *, request_id: str, arrived: float) -> RankResponse:
        """The caller's items in the order of the ranking head; raises as `recommend` does."""
        user_id = _user_id(asked)
        variant = self.live.current.choose(user_id, request_id)
        since, notes = await self._since(user_id, variant.recommender)
        async with self.gate.turn():
            began = time.perf_counter()
            answer = variant.recommender.rank(
                asked.items, user_id, history=asked.history, context=asked.context, since=since
            )
        return RankResponse(
            request_id=request_id,
            bundle=answer.bundle,
            variant=variant.name,
            items=answer.items,
            notes=answer.notes + notes,
            timings_ms={
                "queue": round((began - arrived) * 1000, 3),
                **answer.timings_ms,
                "total": round((time.perf_counter() - arrived) * 1000, 3),
            },
        )

    async def similar(self, asked: SimilarRequest, *, request_id: str) -> SimilarResponse:
        """The nearest items; raises as `recommend` does."""
        async with self.gate.turn():
            variant = self.live.current.choose(None, request_id)
            found = variant.recommender.similar(asked.item_id, k=asked.k, exclude=asked.exclude, filter=asked.filter)
        return SimilarResponse(request_id=request_id, bundle=found.bundle, variant=variant.name, items=found.items)

    async def add_events(self, asked: EventsRequest, *, request_id: str) -> EventsResponse:
        """Keep what happened; once this returns it is on disk.

        Raises:
            UnavailableError: there is no store.
            BusyError: too much waits to be written.
            StorageError: the store failed.
        """
        writer = self._needed_writer()
        now = time.time_ns() // 1000
        events = [self._event(event, request_id=request_id, now=now) for event in asked.events]
        accepted = await asyncio.wrap_future(writer.add_events(events))
        self.telemetry.events(accepted=accepted, duplicates=len(events) - accepted)
        return EventsResponse(request_id=request_id, accepted=accepted, duplicates=len(events) - accepted)

    async def put_items(self, asked: PutItemsRequest, *, request_id: str) -> ItemsResponse:
        """New items, or new features; once this returns they are on disk and can come.

        Raises:
            RequestError: features that the catalogue cannot hold, or no room.
            UnavailableError, BusyError, StorageError: as for events.
        """
        items = {str(item.item_id): dict(item.features) for item in asked.items}
        if len(items) < len(asked.items):
            raise RequestError("items: an id stands there twice. Name each item once.")
        for variant in self.live.current.variants:
            checked_items(variant.recommender.bundle, items)
        for recommender in self.live.recommenders():
            recommender.catalogue.refuse_overfull(items)
        await self._write_items(items)
        self.telemetry.items(put=len(items), removed=0)
        return self._written(len(items), request_id=request_id)

    async def delete_items(self, asked: DeleteItemsRequest, *, request_id: str) -> ItemsResponse:
        """Items that shall not come any more; an id that is not there is no fault. Raises as `put_items` does."""
        ids = list(dict.fromkeys(str(item_id) for item_id in asked.item_ids))
        await self._write_items(dict.fromkeys(ids))
        self.telemetry.items(put=0, removed=len(ids))
        return self._written(len(ids), request_id=request_id)

    async def search(self, asked: SearchRequest) -> FoundItems:
        """Items by a part of their title or id, the popular first; beside the loop, as it reads every title."""
        found = await asyncio.to_thread(self._first().search, asked.text, most=asked.k)
        return FoundItems(items=tuple(FoundItem(item_id=item_id, title=title) for item_id, title in found))

    async def history(self, asked: HistoryRequest) -> FoundItems:
        """What is known of a user, latest first."""
        recommender = self._first()
        user_id = str(asked.user_id)
        since, _ = await self._since(user_id, recommender)
        met = recommender.history(user_id, since=since, most=asked.k)
        return FoundItems(
            items=tuple(FoundItem(item_id=item, title=title, timestamp=when) for item, title, when in met)
        )

    async def shadow(self) -> None:
        """Answer unseen, for as long as the server runs, what was answered before; passed over while somebody waits."""
        while True:
            asked, shown = await self._shadowed.get()
            for variant in self.live.current.shadows:
                try:
                    since, _ = await self._since(_user_id(asked), variant.recommender)
                    await asyncio.sleep(0)  # The turn before is given back.
                    if self.gate.is_idle:
                        async with self.gate.turn():
                            self._compare(variant, asked, shown, since)
                except Exception:  # noqa: BLE001 - whatever it is, the log has it, and the next is compared
                    _log.exception("the shadow %s: a fault of the server's own", variant.name)

    def _compare(
        self, variant: Variant, asked: RecommendRequest, shown: Sequence[str], since: tuple[Since, ...]
    ) -> None:
        began = time.perf_counter()
        try:
            answer = _answer(variant.recommender, asked, since=since, rank_until=None)
        except RequestError:
            self.telemetry.shadowed(variant=variant.name, seconds=time.perf_counter() - began, overlap=None)
            return
        both = {item.item_id for item in answer.items} & set(shown)
        self.telemetry.shadowed(
            variant=variant.name, seconds=time.perf_counter() - began, overlap=len(both) / max(1, len(shown))
        )

    def _first(self) -> Recommender:
        return self.live.current.variants[0].recommender

    async def _since(self, user_id: str | None, recommender: Recommender) -> tuple[tuple[Since, ...], tuple[str, ...]]:
        """What the store knows of a user since the bundle's log ended, and a note where it could not be asked.

        A store that is not quick is asked beside the loop, and no longer than an answer can wait.
        """
        store = self._store
        if store is None or user_id is None:
            return (), ()

        def look() -> list[Met]:
            return store.history(user_id, after=int(recommender.bundle.metadata["last_us"]), limit=MOST_SINCE)

        try:
            if store.is_quick:
                met = look()
            else:
                looked = asyncio.get_running_loop().run_in_executor(self._looking, look)
                met = await asyncio.wait_for(looked, STORE_WITHIN_S)
        except (StorageError, TimeoutError):
            return (), (STORE_SILENT,)
        return tuple(
            Since(item_id=each.item_id, timestamp=each.timestamp, holds=recommender.is_positive(each.labels))
            for each in met
        ), ()

    def _event(self, told: EventMessage, *, request_id: str, now: int) -> Event:
        """As the store has it; who answers the user now is filled in where the caller does not say who answered."""
        user_id = str(told.user_id)
        if told.timestamp is not None and told.timestamp > now + AHEAD_US:
            raise RequestError(
                f"event '{told.event_id}': its timestamp lies ahead. Send microseconds since 1970, or leave it out."
            )
        variant = self.live.current.choose(user_id, told.request_id or request_id)
        return Event(
            event_id=told.event_id,
            kind=told.kind,
            user_id=user_id,
            item_id=str(told.item_id),
            timestamp=now if told.timestamp is None else told.timestamp,
            labels=told.labels,
            context=told.context,
            request_id=told.request_id,
            bundle=told.bundle or variant.recommender.bundle.id,
            variant=told.variant or variant.name,
            rank=told.rank,
        )

    def _needed_writer(self) -> Writer:
        if self._writer is None:
            raise UnavailableError(STORE_MISSING)
        return self._writer

    async def _write_items(self, writes: Mapping[str, Features | None]) -> None:
        """First on disk, then in what can come, in the store's order."""
        writer = self._needed_writer()
        changes = [ItemChange(item_id=item_id, features=features) for item_id, features in writes.items()]
        await asyncio.wrap_future(writer.write_items(changes))
        for recommender in self.live.recommenders():
            self.deployer.take_writes(recommender)

    def _written(self, count: int, *, request_id: str) -> ItemsResponse:
        return ItemsResponse(request_id=request_id, written=count, items=len(self._first().catalogue))


def _user_id(asked: RecommendRequest | RankRequest) -> str | None:
    return None if asked.user_id is None else str(asked.user_id)


def _answer(
    recommender: Recommender, asked: RecommendRequest, *, since: Sequence[Since], rank_until: float | None
) -> Recommendation:
    return recommender.recommend(
        asked.user_id,
        history=asked.history,
        context=asked.context,
        k=asked.k,
        exclude=asked.exclude,
        exclude_seen=asked.exclude_seen,
        filter=asked.filter,
        explain=asked.explain,
        since=since,
        rank_until=rank_until,
    )
