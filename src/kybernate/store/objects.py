"""The `object` tier's medium: a bucket (S3, GCS, Azure) or a directory on a network file system, through obstore.

A pack is collected as views of the caller's memory and sent when it is full, several at once, each whole: measured, a
server has the least work with that. When a connection is lost the pack is sent again (`bucket`), now in small parts, so
that a bad network loses little. When patience is over it is given up, but packs that arrived stay:
whoever writes the snapshot again finds their chunks there and goes on behind them. What arrives is checked by the server
on the way in (the signature covers the body's SHA-256), and by the chunk's hash on the way out.

Parts of an upload that a killed agent began stay invisible in the bucket until its owner's lifecycle rule removes them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import obstore

from kybernate.model.types import MIB
from kybernate.store.bucket import Bucket, Credentials, Taken
from kybernate.store.errors import Damaged
from kybernate.store.media import SMALL_BYTES_MAX, Absent, Entry, key_of_pack, too_large
from kybernate.store.packs import PackId
from kybernate.store.progress import Cancel
from kybernate.store.tenants import TenantName

_PART_BYTES = 8 * MIB
_PARTS_AT_ONCE = 4


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
        self._bucket = Bucket(url, options or {}, credentials, patience_s)

    def open(self) -> None:
        """Nothing is held: several agents may use one place."""

    def close(self) -> None: ...

    def free_bytes(self) -> int | None:
        return None

    def tenants(self) -> list[str]:
        found = self._bucket.attempt("list", lambda: obstore.list_with_delimiter(self._bucket.small))
        return sorted(prefix.rstrip("/") for prefix in found["common_prefixes"])

    # -- small things ------------------------------------------------------------------------------------------------

    def get(self, key: str, *, maximum: int = SMALL_BYTES_MAX) -> bytes:
        def whole() -> bytes:
            answer = obstore.get(self._bucket.small, key)  # its head: the body comes when it is asked for
            if answer.meta["size"] > maximum:
                raise too_large(f"{key} in {self.where}", answer.meta["size"], maximum)
            return bytes(answer.bytes())

        return self._bucket.attempt(f"read {key}", whole)

    def create(self, key: str, content: bytes) -> bool:
        try:
            made = self._bucket.attempt(
                f"write {key}", lambda: obstore.put(self._bucket.small, key, content, mode="create")
            )
        except Taken:
            # An answer may have been lost on the way, and the request sent again by itself: then it is ours.
            try:
                return self.get(key, maximum=max(SMALL_BYTES_MAX, len(content))) == content
            except (Absent, Damaged):
                return False
        # Some servers look first and write then, so that of two that come at once both are told that they were the first.
        try:
            there = self._bucket.attempt(f"look at {key}", lambda: obstore.head(self._bucket.small, key))
        except Absent:
            return False
        return made["e_tag"] is None or there["e_tag"] == made["e_tag"]

    def replace(self, key: str, content: bytes) -> None:
        """Whatever is there."""
        self._bucket.attempt(f"write {key}", lambda: obstore.put(self._bucket.small, key, content, use_multipart=False))

    def delete(self, key: str) -> None:
        try:
            self._bucket.attempt(f"remove {key}", lambda: obstore.delete(self._bucket.small, key))
        except Absent:
            return

    def entries(self, prefix: str) -> Iterator[Entry]:
        def whole() -> list[Entry]:
            return [
                Entry(meta["path"].rsplit("/", 1)[-1], meta["size"], meta["last_modified"].timestamp())
                for batch in obstore.list(self._bucket.small, prefix.rstrip("/"))
                for meta in batch
                if meta["path"].startswith(prefix)
            ]

        yield from self._bucket.attempt(f"list {prefix}", whole)

    # -- packs -------------------------------------------------------------------------------------------------------

    def open_pack(self, tenant: TenantName, pack: PackId, *, capacity: int, cancel: Cancel) -> ObjectPackFile:
        def send(parts: Sequence[memoryview]) -> None:
            attempts = itertools.count()
            small = sum(len(part) for part in parts) <= _PART_BYTES

            def once() -> object:
                return obstore.put(
                    self._bucket.bulk,
                    key_of_pack(tenant, pack),
                    iter(parts),
                    use_multipart=next(attempts) > 0 and not small,
                    chunk_size=_PART_BYTES,
                    max_concurrency=_PARTS_AT_ONCE,
                )

            self._bucket.attempt(f"write pack {pack}", once, cancel)

        return ObjectPackFile(capacity, send)

    def read(self, tenant: TenantName, pack: PackId, offset: int, views: Sequence[memoryview], cancel: Cancel) -> None:
        length = sum(len(view) for view in views)
        content = self._bucket.attempt(
            f"read pack {pack}",
            lambda: obstore.get_range(self._bucket.bulk, key_of_pack(tenant, pack), start=offset, length=length),
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
        key = key_of_pack(tenant, pack)
        return self._bucket.attempt(f"look at pack {pack}", lambda: obstore.head(self._bucket.small, key))["size"]

    def sync(self, tenant: TenantName) -> None:
        """What was answered is durable."""


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
