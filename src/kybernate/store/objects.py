"""The `object` tier's medium: a bucket (S3, GCS, Azure) or a directory on a network file system, through obstore.

A pack is collected as views of the caller's memory and sent when it is full, several at once, each whole: measured, a
server has the least work with that. When a connection is lost the pack is sent again, now in small parts, so that a bad
network loses little, with growing pauses until `patience_s` is over. Then it is given up, but packs that arrived stay:
whoever writes the snapshot again finds their chunks there and goes on behind them. What arrives is checked by the server
on the way in (the signature covers the body's SHA-256), and by the chunk's hash on the way out.

Parts of an upload that a killed agent began stay invisible in the bucket until its owner's lifecycle rule removes them.
"""

from __future__ import annotations

import itertools
import logging
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar
from urllib.parse import urlsplit

import numpy as np
import obstore
from obstore import exceptions as broken
from obstore.store import LocalStore, ObjectStore, from_url

from kybernate.model.errors import BadInput
from kybernate.model.types import MIB
from kybernate.store import refusals
from kybernate.store.errors import Damaged, TierAway
from kybernate.store.media import SMALL_BYTES_MAX, Absent, Entry, key_of_pack, too_large
from kybernate.store.packs import PackId
from kybernate.store.progress import Cancel
from kybernate.store.tenants import TenantName

log = logging.getLogger(__name__)

T = TypeVar("T")

_SCHEMES = ("s3", "gs", "az", "azure", "file")
_PART_BYTES = 8 * MIB
_PARTS_AT_ONCE = 4
_BULK_PATIENCE = 5
"""A request that carries much may take so many times as long as another before it counts as dead: networks may be slow."""
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0
_TEXT_MAX = 300
_NEVER = Cancel()


class Credentials(Protocol):
    """Options that may change while a place is in use."""

    def current(self, *, anew: bool = False) -> Mapping[str, Any]:
        """As they are now; with `anew` read even if they don't seem to have changed.

        Raises BadInput where they can't be read. Thread-safe.
        """
        ...


class ObjectMedium:
    """See the module and `media.Medium`."""

    keeps_views = True
    wants_alignment = False
    shared = True
    read_bytes = 16 * MIB
    held_bytes = 128 * MIB

    def __init__(
        self,
        url: str,
        *,
        options: Mapping[str, Any] | None = None,
        credentials: Credentials | None = None,
        patience_s: float = 60.0,
        pack_bytes: int = 64 * MIB,
        threads: int = 16,
        finishing: int = 16,
    ) -> None:
        """Asks nobody before `open`.

        Args:
            threads: that hash, and that read, at once. Measured on 16 cores with the server on the same host: 24 or 32 read a
                fifth slower, since moving and hashing the bytes is then what the cores are short of.
            finishing: packs on their way at once. Both ends hash a body as it comes, one core for each, so that one connection
                carries some 0.15 GiB/s (measured): it takes many.
            url: `s3://bucket/prefix`, `gs://bucket/prefix`, `az://account/container/prefix` or `file:///directory`.
            options: for obstore, such as `endpoint`, `region`, `access_key_id`, `secret_access_key`; else the environment's.
            credentials: more of them, asked for at each request, so that renewed ones are used at once.
            patience_s: how long a place may not answer before that is an error.

        Raises:
            BadInput: not such a URL, or an option nobody knows.
        """
        self.where = url
        self.pack_bytes = pack_bytes
        self.threads = threads
        self.finishing = finishing
        self._patience_s = patience_s
        self._options = dict(options or {})
        self._credentials = credentials
        self._renewing = threading.Lock()
        self._clients = self._connect({} if credentials is None else credentials.current())

    @property
    def _store(self) -> ObjectStore:
        return self._renewed().small

    @property
    def _bulk(self) -> ObjectStore:
        return self._renewed().bulk

    def open(self) -> None:
        """Nothing is held: several agents may use one place."""

    def close(self) -> None: ...

    def free_bytes(self) -> int | None:
        return None

    def tenants(self) -> list[str]:
        found = self._try("list", lambda: obstore.list_with_delimiter(self._store))
        return sorted(prefix.rstrip("/") for prefix in found["common_prefixes"])

    # -- small things ------------------------------------------------------------------------------------------------

    def get(self, key: str, *, most: int = SMALL_BYTES_MAX) -> bytes:
        def whole() -> bytes:
            answer = obstore.get(self._store, key)  # its head: the body comes when it is asked for
            if answer.meta["size"] > most:
                raise too_large(f"{key} in {self.where}", answer.meta["size"], most)
            return bytes(answer.bytes())

        return self._try(f"read {key}", whole)

    def create(self, key: str, content: bytes) -> bool:
        try:
            made = self._try(f"write {key}", lambda: obstore.put(self._store, key, content, mode="create"))
        except _Taken:
            # An answer may have been lost on the way, and the request sent again by itself: then it is ours.
            try:
                return self.get(key, most=max(SMALL_BYTES_MAX, len(content))) == content
            except (Absent, Damaged):
                return False
        # Some servers look first and write then, so that of two that come at once both are told that they were the first.
        try:
            there = self._try(f"look at {key}", lambda: obstore.head(self._store, key))
        except Absent:
            return False
        return made["e_tag"] is None or there["e_tag"] == made["e_tag"]

    def replace(self, key: str, content: bytes) -> None:
        """Whatever is there."""
        self._try(f"write {key}", lambda: obstore.put(self._store, key, content, use_multipart=False))

    def delete(self, key: str) -> None:
        try:
            self._try(f"remove {key}", lambda: obstore.delete(self._store, key))
        except Absent:
            return

    def entries(self, prefix: str) -> Iterator[Entry]:
        def whole() -> list[Entry]:
            return [
                Entry(meta["path"].rsplit("/", 1)[-1], meta["size"], meta["last_modified"].timestamp())
                for batch in obstore.list(self._store, prefix.rstrip("/"))
                for meta in batch
                if meta["path"].startswith(prefix)
            ]

        yield from self._try(f"list {prefix}", whole)

    # -- packs -------------------------------------------------------------------------------------------------------

    def open_pack(self, tenant: TenantName, pack: PackId, *, capacity: int, cancel: Cancel) -> ObjectPackFile:
        def send(parts: Sequence[memoryview]) -> None:
            attempts = itertools.count()
            small = sum(len(part) for part in parts) <= _PART_BYTES

            def once() -> object:
                return obstore.put(
                    self._bulk,
                    key_of_pack(tenant, pack),
                    iter(parts),
                    use_multipart=next(attempts) > 0 and not small,
                    chunk_size=_PART_BYTES,
                    max_concurrency=_PARTS_AT_ONCE,
                )

            self._try(f"write pack {pack}", once, cancel)

        return ObjectPackFile(capacity, send)

    def read(self, tenant: TenantName, pack: PackId, offset: int, views: Sequence[memoryview], cancel: Cancel) -> None:
        length = sum(len(view) for view in views)
        content = self._try(
            f"read pack {pack}",
            lambda: obstore.get_range(self._bulk, key_of_pack(tenant, pack), start=offset, length=length),
            cancel,
        )
        if len(content) != length:
            raise Damaged(f"pack {pack} in {self.where} is cut off: it ends before {offset + length}")
        source = np.frombuffer(memoryview(content), np.uint8)
        for view in views:
            # Not by the views themselves: that copies with the interpreter's lock held, one thread at a time.
            np.copyto(np.frombuffer(view, np.uint8), source[: len(view)])
            source = source[len(view) :]

    def pack_size(self, tenant: TenantName, pack: PackId) -> int:
        return self._try(f"look at pack {pack}", lambda: obstore.head(self._store, key_of_pack(tenant, pack)))["size"]

    def sync(self, tenant: TenantName) -> None:
        """What was answered is durable."""

    # -- requests ----------------------------------------------------------------------------------------------------

    def _try(self, what: str, request: Callable[[], T], cancel: Cancel = _NEVER) -> T:
        """Until it works, or waiting longer makes no sense."""
        deadline = time.monotonic() + self._patience_s
        pause = _FIRST_PAUSE_S
        while True:
            cancel.check(f"{what} in {self.where}")
            used = self._clients
            try:
                return request()
            except (broken.AlreadyExistsError, broken.PreconditionError) as e:
                raise _Taken(what) from e
            except (broken.InvalidPathError, broken.NotSupportedError, broken.UnknownConfigurationKeyError) as e:
                raise BadInput(f"can't {what} in {self.where}: {_short(e)}") from e
            except (broken.BaseError, OSError) as e:
                answer = self._answer(e)
                if answer.absent or (_not_found(e) and not answer.code):
                    raise Absent(what) from e
                if answer.code == "InvalidRange" or "InvalidRange" in str(e):
                    raise Damaged(f"can't {what} in {self.where}: it is cut off") from e
                if answer.about_credentials and self._renewed_since(used, what, answer):
                    continue
                if answer.lasting or isinstance(e, broken.PermissionDeniedError | broken.UnauthenticatedError):
                    raise refusals.refusal(what, self.where, answer, _short(e)) from e
                if time.monotonic() + pause > deadline:
                    self._give_up(what, e)
            cancel.wait(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _answer(self, error: Exception) -> refusals.Answer:
        """What the server said. An answer to HEAD has no body: the reason is asked for by a listing, which has one."""
        answer = refusals.read(str(error))
        if not answer.code and "performing HEAD" in str(error):
            try:
                obstore.list_with_delimiter(self._clients.small, "reason")
            except (broken.BaseError, OSError) as e:
                return refusals.read(str(e))
        return answer

    # -- credentials -------------------------------------------------------------------------------------------------

    def _connect(self, credentials: Mapping[str, Any]) -> _Clients:
        options = {**self._options, **credentials}
        return _Clients(
            credentials,
            small=_store_of(self.where, options, self._patience_s, timeout_s=self._patience_s),
            bulk=_store_of(self.where, options, self._patience_s, timeout_s=_BULK_PATIENCE * self._patience_s),
        )

    def _renewed(self) -> _Clients:
        """With the credentials of this moment; with the last good ones as long as those can't be read."""
        if self._credentials is not None:
            try:
                self._use(self._credentials.current())
            except BadInput as e:
                log.warning("%s: the credentials read last are used on: %s", self.where, e)
        return self._clients

    def _renewed_since(self, used: _Clients, what: str, answer: refusals.Answer) -> bool:
        """They were refused. Whether there are others by now, read by this thread or another one."""
        if self._credentials is None:
            return False
        try:
            return self._use(self._credentials.current(anew=True)) or self._clients is not used
        except BadInput as e:
            error = refusals.refusal(what, self.where, answer, "")
            error.hint = str(e)
            raise error from e

    def _use(self, found: Mapping[str, Any]) -> bool:
        with self._renewing:
            if found == self._clients.credentials:
                return False
            self._clients = self._connect(found)
            log.info("%s: its credentials have changed, and are used from now on", self.where)
            return True

    def _give_up(self, what: str, error: Exception) -> NoReturn:
        away = TierAway(
            f"can't {what} in {self.where}, tried for {self._patience_s:g} s: {_short(error)}", hint="try again later"
        )
        away.where = self.where
        raise away from error


class ObjectPackFile:
    """See `media.PackFile`: collects views, sends them at the end."""

    def __init__(self, capacity: int, send: Callable[[Sequence[memoryview]], None]) -> None:
        self.capacity = capacity
        self._send = send
        self._views: dict[int, memoryview] = {}

    def write(self, offset: int, view: memoryview) -> None:
        self._views[offset] = view

    def finish(self, size: int) -> None:
        parts = []
        at = 0
        for offset, view in sorted(self._views.items()):
            if offset != at:
                raise ValueError(f"a pack with a hole at {at}")
            parts.append(view)
            at += len(view)
        if at != size:
            raise ValueError(f"a pack of {at} bytes instead of {size}")
        self._send(parts)
        self._views.clear()

    def abandon(self) -> None:
        self._views.clear()


@dataclass(frozen=True, slots=True)
class _Clients:
    """What talks to the server, and what it was made with."""

    credentials: Mapping[str, Any] = field(repr=False)
    small: ObjectStore
    bulk: ObjectStore
    """For requests that carry much."""


class _Taken(Exception):
    """Something is there already."""


def _store_of(url: str, options: dict[str, Any], patience_s: float, *, timeout_s: float) -> ObjectStore:
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES or ".." in parts.path.split("/") or parts.query or parts.fragment:
        raise BadInput(
            f"bad URL {url[:200]!r} for a tier",
            hint=f"use one that begins with {', '.join(s + '://' for s in _SCHEMES[:4])}",
        )
    if parts.username or parts.password:
        raise BadInput("a URL with credentials in it for a tier", hint="give them in the environment or as options")
    if parts.scheme == "file":
        directory = Path(parts.path)
        if options or parts.netloc or not directory.is_absolute():
            raise BadInput(f"bad URL {url[:200]!r} for a tier", hint="use file:///an/absolute/path, without options")
        if not directory.is_dir():
            raise BadInput(f"there is no directory {directory}", hint="create it, or mount what should be there")
        return LocalStore(directory)
    if not parts.netloc:
        raise BadInput(f"bad URL {url[:200]!r} for a tier", hint="name a bucket: s3://bucket/prefix")
    allow_http = str(options.get("endpoint", "")).startswith("http://")
    make: Any = from_url  # its overloads ask for a type of options that depends on the URL
    try:
        store: ObjectStore = make(
            url,
            config=options,
            client_options={
                "timeout": timedelta(seconds=timeout_s),
                "connect_timeout": timedelta(seconds=min(5.0, patience_s)),
                "allow_http": allow_http,
            },
            # Connections that break at once are tried again inside; what lasts is this module's business.
            retry_config={"max_retries": 2, "retry_timeout": timedelta(seconds=min(10.0, patience_s))},
        )
    except (broken.BaseError, ValueError, TypeError) as e:
        raise BadInput(f"can't use {url[:200]} as a tier: {_short(e)}") from e
    return store


def _not_found(error: Exception) -> bool:
    return isinstance(error, FileNotFoundError | broken.NotFoundError)


def _short(error: Exception) -> str:
    """One line that is the same for the same cause, without what may be secret: URLs are cut off at their query."""
    text = " ".join(str(error).split("Debug source")[0].split("<?xml")[0].split())
    return re.sub(r"\?[^\s)]*| in [0-9.]+(ns|µs|ms|s)\b", "", text).rstrip(" :-")[:_TEXT_MAX]
