"""Stores chunks: those that the tenant lacks in this tier, compressed where it pays, encrypted where there is a key, into packs.

Used by whoever writes a snapshot (writing.py), copies one (moving.py) or compacts packs (gc.py).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from kybernate.model.types import CHUNK_BYTES
from kybernate.store import coding
from kybernate.store.memory import PAGE_BYTES, Buffer, BufferPool, address_of, view_at
from kybernate.store.packing import PackWriter
from kybernate.store.packs import TIGHT_BELOW, Codec, PackId, Record
from kybernate.store.progress import Cancel
from kybernate.store.spaces import Space
from kybernate.store.tenants import ChunkId


class ChunkWriter:
    """Stores chunks for one session and knows which packs it relies on. Thread-safe."""

    def __init__(self, space: Space, cancel: Cancel) -> None:
        medium = space.medium
        self._space = space
        self._cancel = cancel
        self._pins = space.packs.pin_set()
        held = (medium.held_bytes + 2 * medium.pack_bytes) // CHUNK_BYTES if medium.keeps_views else 0
        self.buffers = BufferPool(held + 3 * medium.threads + 2)
        self._seen: set[ChunkId] = set()
        self._lock = threading.Lock()
        self.own: set[PackId] = set()
        """Packs of this session."""
        self._packer = PackWriter(
            medium=medium,
            keys=space.keys,
            budget=space.budget,
            buffers=self.buffers,
            cancel=cancel,
            begun=self._begun,
            finished=self._finished,
        )

    @property
    def stored(self) -> int:
        """Bytes put into packs so far."""
        return self._packer.stored

    @property
    def compresses(self) -> bool:
        return self._space.compress_below > 0

    @property
    def packs(self) -> set[PackId]:
        """All packs that hold chunks of this session."""
        return self._pins.packs

    def has(self, chunk: ChunkId) -> bool:
        """Whether the chunk need not be stored; if it must be, the caller is the one to do so."""
        with self._lock:
            if chunk in self._seen:
                return True
            self._seen.add(chunk)
        return self._space.packs.share(chunk, self._pins)

    def put_all(self, pieces: Sequence[tuple[ChunkId, memoryview]]) -> int:
        """Store those of these chunks that aren't there yet. Returns their bytes.

        They lie behind each other in aligned memory, which may change once this returns. Each but the last has whole pages.
        """
        with self._lock:
            wanted = [(chunk, view) for chunk, view in pieces if chunk not in self._seen]
            self._seen.update(chunk for chunk, _ in wanted)
        there = self._space.packs.share_all([chunk for chunk, _ in wanted], self._pins)
        stored = 0
        run: list[tuple[ChunkId, memoryview]] = []
        for chunk, view in _once(wanted, there):
            if self._plain(view):
                if run and address_of(run[-1][1]) + len(run[-1][1]) != address_of(view):
                    stored += self._put_run(run)
                    run = []
                run.append((chunk, view))
            else:
                stored += self.put(chunk, *self._copied(view))
        return stored + self._put_run(run)

    def _plain(self, content: memoryview) -> bool:
        """Whether it is stored as it lies there."""
        return (
            not (self._space.keys.encrypted or self._space.medium.keeps_views)
            and len(content) >= TIGHT_BELOW
            and len(content) % PAGE_BYTES == 0
            and not coding.shrinks(content, below=self._space.compress_below)
        )

    def _put_run(self, run: Sequence[tuple[ChunkId, memoryview]]) -> int:
        if not run:
            return 0
        first = address_of(run[0][1])
        total = sum(len(view) for _, view in run)
        self._packer.put_run([(chunk, len(view)) for chunk, view in run], view_at(first, total))
        return total

    def _copied(self, content: memoryview) -> tuple[memoryview, Buffer]:
        buffer = self.buffers.take()
        view = buffer.view[: len(content)]
        view[:] = content
        return view, buffer

    def put(self, chunk: ChunkId, content: memoryview, owner: Buffer | None) -> int:
        """Store what `has` said isn't there: compressed where it pays, encrypted where there is a key. Returns its bytes."""
        codec = Codec.RAW
        raw = len(content)
        if (packed := coding.compressed(content, below=self._space.compress_below)) is not None:
            codec = Codec.ZSTD
            content = memoryview(packed)
            self.buffers.give(owner)
            owner = None
        length = len(content)
        if self._space.keys.encrypted:
            sealed = self.buffers.take()
            nonce, tag = coding.encrypt(content, sealed, chunk, raw=raw, codec=codec, keys=self._space.keys)
            self.buffers.give(owner)
            self._packer.put(chunk, sealed.view[:length], raw=raw, codec=codec, nonce=nonce, tag=tag, owner=sealed)
        else:
            self._packer.put(chunk, content, raw=raw, codec=codec, owner=owner)
        return length

    def put_stored(self, record: Record, content: memoryview, owner: Buffer | None) -> None:
        """Store a record as it was in another pack of the same tenant."""
        self._packer.put(
            record.id,
            content,
            raw=record.raw,
            codec=record.codec,
            nonce=record.nonce,
            tag=record.tag,
            owner=owner,
        )

    def finish(self) -> None:
        """Everything put is durable once this returns; what was shared is still there.

        Raises:
            Damaged: packs relied on have gone; the catalog has been put right.
        """
        self._packer.finish()
        self._space.medium.sync(self._space.keys.tenant)
        self._space.packs.check_there(self._pins.packs - self.own)

    def abort(self) -> None:
        """Forget it. No thread may be in `put` any more. Whole packs stay for who tries again where that is likely."""
        self._packer.abort()
        own = set(self.own)
        self.release()
        if not self._space.medium.shared:
            self._space.packs.drop_garbage(own)

    def release(self) -> None:
        """Rely on nothing any more."""
        self.buffers.close()
        self._pins.release()

    def _begun(self, pack: PackId) -> None:
        self._pins.add(pack)

    def _finished(self, pack: PackId, size: int, records: list[Record]) -> None:
        self._space.packs.add(pack, size, records)
        with self._lock:
            self.own.add(pack)


def _once(pieces: Sequence[tuple[ChunkId, memoryview]], there: set[ChunkId]) -> Iterator[tuple[ChunkId, memoryview]]:
    """Those that aren't there, each once."""
    seen = set(there)
    for chunk, view in pieces:
        if chunk not in seen:
            seen.add(chunk)
            yield chunk, view
