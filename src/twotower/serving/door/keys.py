"""API keys: who may read, write or govern. A file keeps their digests; a key is shown once, when it is made.

A key is 256 random bits, so there is nothing to guess and a plain SHA-256 of it is enough: a slow hash with a salt
protects what people choose, and would cost every request milliseconds. Keys that come in the environment are held as
digests too, but only in memory.
"""

import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from annotated_types import MaxLen, MinLen
from pydantic import ConfigDict, StringConstraints, TypeAdapter, ValidationError

from twotower.errors import BusyError, TwotowerError

API_KEY = "TWOTOWER_API_KEY"
"""Where a key that reads and writes is looked for: a program's arguments can be read by every user of its machine."""
ADMIN_KEY = "TWOTOWER_ADMIN_KEY"
"""Where a key for the admin port is looked for; it neither reads nor writes."""
PREFIX = "tt_"
"""Begins every key of ours, so that one that got loose is known for what it is."""
MAX_KEYS = 256
"""All of them are compared for every request; this many take some 30 microseconds."""
LOOK_S = 1.0
"""Seconds between two looks at the file."""

KeyScope = Literal["read", "write", "admin"]
SCOPES: tuple[KeyScope, ...] = get_args(KeyScope)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Of a key; it stands in logs."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What is known of a key, which is not the key itself."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: Annotated[str, StringConstraints(pattern=rf"^(?:{NAME.pattern})\z")]
    """Who holds it, or what for."""
    scopes: Annotated[tuple[KeyScope, ...], MinLen(1), MaxLen(len(SCOPES))]
    """What its holder may do; none of them contains another."""
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}\z")]
    """Of the key's bytes."""
    created: datetime


_KEYS = TypeAdapter(Annotated[tuple[Key, ...], MaxLen(MAX_KEYS)])


class KeyRing:
    """The keys that open the door, and what each of them opens.

    Those of a file are read again when it changes: a key that is removed there opens nothing within a second or two.
    A file that cannot be read leaves the keys as they were; one that is gone leaves none of them.
    """

    def __init__(self, keys: Iterable[Key] = (), *, file: Path | None = None) -> None:
        """Take keys that last as long as the ring, and a file whose keys come and go.

        Raises:
            TwotowerError: the file is not there or holds something else.
        """
        self._lasting = tuple(keys)
        self._file = file
        self._stamp: tuple[int, ...] | None = None
        self._look_at = time.monotonic() + LOOK_S
        if file is not None:
            self._stamp = _stamp(file)
        self._take(read_keys(file) if file is not None else ())

    @classmethod
    def of(cls, environment: Mapping[str, str], *, file: Path | None = None) -> "KeyRing | None":
        """The keys that the environment and a file give; nothing where neither gives one.

        Raises:
            TwotowerError: the environment gives one key for both purposes, or the file is not there or damaged.
        """
        given: list[tuple[str, tuple[KeyScope, ...]]] = [(API_KEY, ("read", "write")), (ADMIN_KEY, ("admin",))]
        keys = [
            # A key from a file often ends with a line's end, which no header can carry.
            make_key(name, scopes=scopes, key=os.fsencode(environment[name].strip()))
            for name, scopes in given
            if environment.get(name, "").strip()
        ]
        if len({key.sha256 for key in keys}) < len(keys):
            raise TwotowerError(f"{ADMIN_KEY}: the same key as {API_KEY}. Give each a key of its own.")
        return cls(keys, file=file) if keys or file is not None else None

    def find(self, shown: bytes) -> Key | None:
        """The key that was shown, if it is one of these; how long it takes tells nothing about any of them."""
        self._refresh()
        digest = hashlib.sha256(shown).digest()
        found = None
        for known, key in self._known:
            if hmac.compare_digest(known, digest):
                found = key
        return found

    def __len__(self) -> int:
        return len(self._known)

    def _take(self, keys: Iterable[Key]) -> None:
        self._known = [(bytes.fromhex(key.sha256), key) for key in (*self._lasting, *keys)]

    def _refresh(self) -> None:
        """Take the file's keys anew where it has changed."""
        now = time.monotonic()
        if self._file is None or now < self._look_at:
            return
        self._look_at = now + LOOK_S
        stamp = _stamp(self._file)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._take(read_keys(self._file) if stamp is not None else ())
        except TwotowerError as fault:
            _log.error("the key file cannot be read; the keys stay as they were", extra={"fields": {"fault": fault}})
            return
        _log.info("the key file has changed", extra={"fields": {"keys": len(self._known)}})


def make_key(name: str, *, scopes: Sequence[KeyScope], key: bytes) -> Key:
    """What is to be kept of a key."""
    return Key(
        name=name,
        scopes=tuple(scope for scope in SCOPES if scope in scopes),
        sha256=hashlib.sha256(key).hexdigest(),
        created=datetime.now(UTC).replace(microsecond=0),
    )


def read_keys(path: Path) -> tuple[Key, ...]:
    """What a file keeps of its keys.

    Raises:
        TwotowerError: no such file, one that others may write, or one that holds something else.
    """
    try:
        mode = path.stat().st_mode
        text = path.read_bytes()
    except OSError as fault:
        raise TwotowerError(f"{path}: no key file ({fault.strerror}). Make one: twotower keys add NAME.") from fault
    if os.name == "posix" and mode & 0o022:
        raise TwotowerError(f"{path}: others may write it, and let themselves in. Close it: chmod 600 {path}")
    try:
        keys = _KEYS.validate_python(json.loads(text)["keys"])
    except ValidationError as fault:
        first = fault.errors()[0]
        where = ".".join(str(part) for part in ("keys", *first["loc"]))
        raise TwotowerError(f"{path}: {where}: {first['msg']}. Make keys by twotower keys add.") from fault
    except (ValueError, LookupError, TypeError, RecursionError) as fault:
        raise TwotowerError(f"{path}: no key file, which is JSON with 'keys'. Make one: twotower keys add.") from fault
    if len({key.name for key in keys}) < len(keys):
        raise TwotowerError(f"{path}: two keys have one name. Rename one of them.")
    return keys


def add_key(path: Path, name: str, *, scopes: Sequence[KeyScope]) -> str:
    """Put a new key into a file, which is made where there is none; gives the key, which is kept nowhere.

    Raises:
        TwotowerError: the name is taken or none, the file is full or damaged, or cannot be written.
        BusyError: somebody else is changing the file.
    """
    if not NAME.fullmatch(name):
        raise TwotowerError(
            f"'{name}' is no name: up to 64 letters, digits, '.', '_' and '-', a letter or digit first."
        )
    key = PREFIX + secrets.token_urlsafe(32)

    def added(keys: tuple[Key, ...]) -> tuple[Key, ...]:
        if name in [known.name for known in keys]:
            raise TwotowerError(f"{path}: there is a key '{name}'. Take another name, or remove that one first.")
        if len(keys) >= MAX_KEYS:
            raise TwotowerError(f"{path}: {MAX_KEYS} keys are all that a file can hold. Remove one first.")
        return (*keys, make_key(name, scopes=scopes, key=key.encode()))

    _rewrite(path, added)
    return key


def remove_key(path: Path, name: str) -> None:
    """Take a key out of a file: a running server lets it in no more.

    Raises:
        TwotowerError: there is no such key, or the file is missing, damaged or cannot be written.
        BusyError: somebody else is changing the file.
    """

    def without(keys: tuple[Key, ...]) -> tuple[Key, ...]:
        if name not in [key.name for key in keys]:
            there = ", ".join(key.name for key in keys) or "none"
            raise TwotowerError(f"{path}: no key '{name}'. There are: {there}.")
        return tuple(key for key in keys if key.name != name)

    read_keys(path)
    _rewrite(path, without)


def _rewrite(path: Path, change: Callable[[tuple[Key, ...]], tuple[Key, ...]]) -> None:
    """Replace a file by a changed one, at one stroke; the unfinished one keeps others from changing it meanwhile."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as fault:
        raise BusyError(
            f"{unfinished}: `twotower keys` is at work on the same file, or was stopped. Wait, or remove this file."
        ) from fault
    except OSError as fault:
        raise TwotowerError(f"{path}: cannot be written ({fault.strerror}). Name another file.") from fault
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            keys = change(read_keys(path) if path.exists() else ())
            out.write(json.dumps({"keys": [_plain(key) for key in keys]}, indent=2) + "\n")
            out.flush()
            os.fsync(out.fileno())
        unfinished.replace(path)
    except BaseException:  # Only here: once it has its name, the unfinished one is somebody else's.
        unfinished.unlink(missing_ok=True)
        raise


def _plain(key: Key) -> dict[str, Any]:
    return asdict(key) | {"created": key.created.isoformat()}


def _stamp(path: Path) -> tuple[int, ...] | None:
    """Changes when the file does; nothing where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
