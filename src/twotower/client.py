"""Asks a running server from Python: `Client("http://localhost:8000").recommend("42")`.

It stands by itself: nothing of the server is imported, and of other packages only httpx (`pip install
"twotower[client]"`). `docs/openapi.json` tells more of what an answer holds; what a newer server adds is passed over.
"""

import json
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from types import TracebackType, UnionType
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

from twotower.client_messages import (
    Because,
    Column,
    Columns,
    Event,
    EventsWritten,
    Explanation,
    Id,
    Info,
    Item,
    ItemsWritten,
    Neighbour,
    Neighbours,
    Query,
    Ranking,
    Recommendations,
    Variant,
)
from twotower.errors import MissingExtraError, TwotowerError

if TYPE_CHECKING:
    import httpx

__all__ = [
    "Because",
    "Client",
    "ClientError",
    "Column",
    "Event",
    "EventsWritten",
    "Explanation",
    "Info",
    "Item",
    "ItemsWritten",
    "Neighbour",
    "Neighbours",
    "Query",
    "Ranking",
    "Recommendations",
    "Variant",
]

BUSY = frozenset({429, 503})
"""Statuses of a server that has no room: nothing was done, and the same may be asked again."""
FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 5.0
"""A server that wants to be left alone for longer is not asked again."""
MOST_WRITES = 1_000
"""Events or items that a server takes at once; more go out in several requests."""

Told = TypeVar("Told")


class ClientError(TwotowerError):
    """A request without an answer; the message is the server's own line, or why none came."""

    def __init__(self, line: str, *, status: int | None = None, request_id: str | None = None) -> None:
        """Take what came back: the HTTP status where there was one, and the id that the server's log knows it by."""
        super().__init__(line)
        self.status = status
        self.request_id = request_id


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    """Several answers."""

    responses: tuple[Recommendations, ...]


class Client:
    """One server, asked over connections that stay open; threads may share it.

    Every call does no harm when it is sent twice, so all are sent again where the server has no room or the connection
    breaks: after as long as the server says, or else after waits that double.
    """

    def __init__(self, url: str, key: str | None = None, *, timeout: float = 10.0, retries: int = 3) -> None:
        """Nothing is sent yet.

        Args:
            url: Such as `http://localhost:8000`.
            key: Shown to a server that has keys.
            timeout: Seconds to wait for a connection, and for each part of an answer.
            retries: How often a request is sent again.

        Raises:
            MissingExtraError: httpx is not installed.
            ClientError: the URL is none.
        """
        try:
            import httpx
        except ImportError as fault:
            raise MissingExtraError('httpx is not installed: pip install "twotower[client]"') from fault
        headers = {} if key is None else {b"Authorization": f"Bearer {key.strip()}".encode()}
        try:
            self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout)
        except httpx.InvalidURL as fault:
            raise ClientError(f"{url}: no URL ({fault}). Name one such as http://localhost:8000.") from fault
        self._retries = retries

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def recommend(
        self,
        user_id: Id | None = None,
        *,
        history: Sequence[Id] = (),
        k: int = 10,
        exclude: Sequence[Id] = (),
        exclude_seen: bool = True,
        filter: str | None = None,  # noqa: A002 - as the request has it
        context: Columns | None = None,
        explain: bool = False,
        deadline_ms: float | None = None,
    ) -> Recommendations:
        """The best items; a `Query` tells of the arguments.

        Raises:
            ClientError: there is no answer.
        """
        query = Query(
            user_id=user_id,
            history=history,
            k=k,
            exclude=exclude,
            exclude_seen=exclude_seen,
            filter=filter,
            context=context or {},
            explain=explain,
            deadline_ms=deadline_ms,
        )
        return _read(Recommendations, self._call("POST", "/v1/recommend", query))

    def recommend_batch(self, queries: Iterable[Query]) -> tuple[Recommendations, ...]:
        """The answers to several queries, in their order; a server takes a hundred at once.

        Raises:
            ClientError: one of them has no answer.
        """
        told = self._call("POST", "/v1/recommend:batch", {"requests": list(queries)})
        return _read(_Batch, told).responses

    def rank(
        self,
        items: Sequence[Id],
        user_id: Id | None = None,
        *,
        history: Sequence[Id] = (),
        context: Columns | None = None,
    ) -> Ranking:
        """A list of one's own in the order of the ranking head.

        Raises:
            ClientError: there is no answer.
        """
        asked = {"items": items, "user_id": user_id, "history": history, "context": context or {}}
        return _read(Ranking, self._call("POST", "/v1/rank", asked))

    def similar(
        self,
        item_id: Id,
        *,
        k: int = 10,
        exclude: Sequence[Id] = (),
        filter: str | None = None,  # noqa: A002 - as the request has it
    ) -> Neighbours:
        """The items that are most like one.

        Raises:
            ClientError: there is no answer.
        """
        asked = {"item_id": item_id, "k": k, "exclude": exclude, "filter": filter}
        return _read(Neighbours, self._call("POST", "/v1/similar", asked))

    def add_events(self, events: Iterable[Event]) -> EventsWritten:
        """Tell what happened, any number; once this returns it is on disk.

        Raises:
            ClientError: not all of it was taken. To send all of it again is safe.
        """
        told = [
            _read(EventsWritten, self._call("POST", "/v1/events", {"events": part})) for part in _parts(list(events))
        ]
        return EventsWritten(
            accepted=sum(each.accepted for each in told), duplicates=sum(each.duplicates for each in told)
        )

    def put_items(self, items: Mapping[Id, Columns]) -> ItemsWritten:
        """New items, or new features of some that are there, by id; at least one.

        Raises:
            ClientError: not all of it was taken. To send all of it again is safe.
        """
        return self._write("PUT", "items", [{"item_id": item, "features": columns} for item, columns in items.items()])

    def delete_items(self, item_ids: Iterable[Id]) -> ItemsWritten:
        """Items that shall not come any more, at least one; an id that is not there is no fault.

        Raises:
            ClientError: not all of it was taken. To send all of it again is safe.
        """
        return self._write("DELETE", "item_ids", list(item_ids))

    def info(self) -> Info:
        """What is served.

        Raises:
            ClientError: there is no answer.
        """
        return _read(Info, self._call("GET", "/v1/info"))

    def _write(self, method: str, name: str, told: list[Any]) -> ItemsWritten:
        # An empty list goes out as well: the server refuses it in its own words.
        answers = [_read(ItemsWritten, self._call(method, "/v1/items", {name: part})) for part in _parts(told) or [[]]]
        return ItemsWritten(written=sum(each.written for each in answers), items=answers[-1].items)

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        """The answer to one request, sent as often as it takes and is allowed."""
        import httpx

        content = None if body is None else json.dumps(body, allow_nan=False, default=_plain).encode()
        headers = {} if content is None else {"Content-Type": "application/json"}
        wait: float | None
        for sent in range(self._retries + 1):
            try:
                response = self._http.request(method, path, content=content, headers=headers)
            except httpx.TransportError as fault:
                error = ClientError(f"{self._http.base_url}: no answer ({type(fault).__name__}: {fault}).")
                # Whoever did not answer in time would not be helped by being asked twice.
                is_broken = isinstance(fault, httpx.NetworkError | httpx.RemoteProtocolError)
                wait = _backoff(sent) if is_broken else None
            else:
                if response.status_code == httpx.codes.OK:
                    return _json(response)
                error = _refused(response)
                wait = _told_wait(response, sent) if response.status_code in BUSY else None
            if wait is None or wait > LONGEST_WAIT_S or sent == self._retries:
                raise error
            time.sleep(wait)
        raise AssertionError("the last attempt returns or raises")


def _backoff(sent: int) -> float:
    """Seconds that double with every attempt; chance keeps callers from coming back together."""
    return min(FIRST_WAIT_S * 2.0**sent, LONGEST_WAIT_S) * random.uniform(0.5, 1.0)


def _told_wait(response: "httpx.Response", sent: int) -> float:
    told = response.headers.get("Retry-After", "")
    return int(told) + _backoff(sent) if told.isdecimal() else _backoff(sent)


def _json(response: "httpx.Response") -> Any:
    try:
        return response.json()
    except ValueError as fault:
        raise ClientError(f"{response.url}: answered with no JSON ({fault}). Is it the server?", status=200) from fault


def _refused(response: "httpx.Response") -> ClientError:
    """The server's own line; another's answer, such as a proxy's, is told by its status."""
    try:
        line = str(response.json()["error"])
    except (ValueError, LookupError, TypeError):
        line = f"{response.url}: answered {response.status_code} {response.reason_phrase}."
    return ClientError(line, status=response.status_code, request_id=response.headers.get("X-Request-ID"))


def _parts(whole: list[Any]) -> list[list[Any]]:
    return [whole[start : start + MOST_WRITES] for start in range(0, len(whole), MOST_WRITES)]


def _plain(value: Any) -> Any:
    """What JSON has no form for, in one that it has: our own classes, mappings, and what NumPy and pandas hold."""
    if is_dataclass(value):
        return {each.name: getattr(value, each.name) for each in fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be sent as JSON.")


@cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {each.name: hints[each.name] for each in fields(kind)}


def _read(kind: type[Told], told: Any) -> Told:
    """A part of an answer."""
    try:
        hints = _hints(kind)  # type: ignore[arg-type]  # A class can be hashed.
        return kind(**{name: _value(hint, told[name]) for name, hint in hints.items()})
    except (LookupError, TypeError) as fault:
        raise ClientError(f"The answer is no {kind.__name__} ({fault}). Is the server of another version?") from fault


def _value(hint: Any, told: Any) -> Any:
    """What the answer holds, as a field of this type has it."""
    if isinstance(hint, UnionType):
        hint = get_args(hint)[0] if told is not None else None
    if get_origin(hint) is tuple:
        return tuple(_value(get_args(hint)[0], each) for each in told)
    return _read(hint, told) if isinstance(hint, type) and is_dataclass(hint) else told
