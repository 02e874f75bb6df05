"""Fills packs: gives each record its place, writes it there, and finishes packs that are full.

Many threads put records at once; each writes its own, only choosing the place is done behind a lock. A pack is finished by
a thread of its own while others fill the next one. Memory is bounded: at most `medium.finishing` packs are open or on
their way, and fewer where they hold copies. Small records are gathered and written together.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from kybernate.model.errors import KybernateError, NoRoom
from kybernate.model.types import CHUNK_BYTES
from kybernate.store import packs
from kybernate.store.budget import WriteBudget
from kybernate.store.media import Medium, PackFile
from kybernate.store.memory import Buffer, BufferPool, address_of, is_aligned, padded
from kybernate.store.packs import Codec, PackId, Record
from kybernate.store.progress import Cancel
from kybernate.store.tenants import ChunkId, Keys

_RECORDS_MAX = 16384
"""A pack's; so its index fits in one buffer."""
_TIGHT_BYTES = 1 << 20
"""So much of small records is gathered before it is written."""
_ENTRY_BYTES = 80


@dataclass(slots=True)
class _OpenPack:
    id: PackId
    file: PackFile
    granted: int
    end: int = packs.HEADER_BYTES
    records: list[Record] = field(default_factory=list)
    pending: int = 0
    full: bool = False
    tight: bytearray = field(default_factory=bytearray)
    tight_records: list[Record] = field(default_factory=list)
    """Offsets within `tight`."""
    held: list[Buffer] = field(default_factory=list)
    memory: int = 0
    """Bytes of our own that it holds until it is finished."""

    def fits(self, length: int) -> bool:
        count = len(self.records) + len(self.tight_records) + 1
        index = padded(count * _ENTRY_BYTES + packs.TRAILER_BYTES)
        tight = padded(len(self.tight)) if self.tight else 0
        return count <= _RECORDS_MAX and self.end + tight + padded(length) + index <= self.file.capacity


class PackWriter:
    """See the module. After the first error every call raises it."""

    def __init__(
        self,
        *,
        medium: Medium,
        keys: Keys,
        budget: WriteBudget,
        buffers: BufferPool,
        cancel: Cancel,
        begun: Callable[[PackId], None],
        finished: Callable[[PackId, int, list[Record]], None],
    ) -> None:
        """
        Args:
            begun: told before a pack can be seen by anybody.
            finished: told of each pack that is complete: its size in bytes and its records.
        """
        self._medium = medium
        self._keys = keys
        self._budget = budget
        self._buffers = buffers
        self._cancel = cancel
        self._begun = begun
        self._finished = finished
        self._changed = threading.Condition()
        self._current: _OpenPack | None = None
        self._open: dict[PackId, _OpenPack] = {}
        self._error: BaseException | None = None
        self._finishers = ThreadPoolExecutor(medium.finishing, thread_name_prefix="kybernate-finish")
        self.stored = 0
        """Bytes of records put so far."""

    def put(
        self,
        chunk: ChunkId,
        content: memoryview,
        *,
        raw: int,
        codec: Codec,
        nonce: bytes = bytes(12),
        tag: bytes = bytes(16),
        owner: Buffer | None = None,
    ) -> None:
        """Store one record. `owner`, whose memory `content` may be, goes back to its pool when it isn't needed any more.

        Where the medium keeps views, memory without an owner must stay as it is until `finish`.
        """
        record = Record(chunk, 0, len(content), raw, codec, nonce, tag)
        try:
            if len(content) < packs.TIGHT_BELOW:
                self._put_tight(record, content, owner)
            else:
                self._put_aligned(record, content, owner)
        except BaseException as e:
            self._fail(e)
            raise

    def put_run(self, chunks: Sequence[tuple[ChunkId, int]], content: memoryview) -> None:
        """Store raw chunks, each of a length in whole pages, that lie behind each other in aligned memory, with few writes.

        Where the medium keeps views that memory must stay as it is until `finish`.
        """
        try:
            done = 0
            while done < len(chunks):
                done, content = self._put_part(chunks, done, content)
        except BaseException as e:
            self._fail(e)
            raise

    def finish(self) -> None:
        """Finish what is open and wait for all packs. Nothing may be put after it."""
        with self._changed:
            self._raise()
            pack, self._current = self._current, None
            if pack is not None:
                self._close_pack(pack)
            while self._open and self._error is None:
                self._changed.wait()
            self._raise()
        self._finishers.shutdown(wait=True)

    def abort(self) -> None:
        """Forget what isn't complete. Packs that are complete stay: they are garbage unless somebody shares them.

        No thread may be in `put` any more.
        """
        self._fail(KybernateError("writing was given up"))
        self._finishers.shutdown(wait=True, cancel_futures=True)
        for pack in list(self._open.values()):
            pack.file.abandon()
            self._budget.settle(pack.granted, 0)
            self._release(pack)

    # -- places ------------------------------------------------------------------------------------------------------

    def _put_tight(self, record: Record, content: memoryview, owner: Buffer | None) -> None:
        try:
            with self._changed:
                pack = self._pack_for(len(content))
                pack.tight_records.append(_at(record, len(pack.tight)))
                pack.tight += content
                self.stored += len(content)
                if len(pack.tight) >= _TIGHT_BYTES:
                    self._write_tight(pack)
        finally:
            self._buffers.give(owner)

    def _put_part(
        self, chunks: Sequence[tuple[ChunkId, int]], done: int, content: memoryview
    ) -> tuple[int, memoryview]:
        """As many as fit into one pack. Returns how many are done, and what is left."""
        with self._changed:
            pack = self._pack_for(chunks[done][1])
            first, at = pack.end, pack.end
            while done < len(chunks) and pack.fits(at - first + chunks[done][1]):
                chunk, length = chunks[done]
                pack.records.append(Record(chunk, at, length, length, Codec.RAW))
                at += length
                done += 1
            pack.end = at
            pack.pending += 1
            self.stored += at - first
        try:
            pack.file.write(first, content[: at - first])
        finally:
            with self._changed:
                pack.pending -= 1
                if pack.full and pack.pending == 0:
                    self._submit(pack)
        return done, content[at - first :]

    def _put_aligned(self, record: Record, content: memoryview, owner: Buffer | None) -> None:
        length = padded(len(content))
        with self._changed:
            pack = self._pack_for(len(content))
            offset = pack.end
            pack.end += length
            pack.records.append(_at(record, offset))
            pack.pending += 1
            self.stored += len(content)
        held = copy = None
        view = content
        try:
            if self._medium.keeps_views:
                if owner is not None and len(content) == CHUNK_BYTES:
                    held = owner
                elif owner is not None or len(content) != length:
                    # It stays until the pack is sent: no more memory than is sent.
                    view = memoryview(bytes(content) + bytes(length - len(content)))
            elif len(content) != length or (self._medium.wants_alignment and not is_aligned(content)):
                if owner is not None and address_of(content) == address_of(owner.view):
                    view = owner.view[:length]
                else:
                    copy = self._buffers.take()
                    view = copy.view[:length]
                    view[: len(content)] = content
                view[len(content) :] = bytes(length - len(content))
            pack.file.write(offset, view)
        finally:
            for buffer in (owner, copy):
                if buffer is not held:
                    self._buffers.give(buffer)
            with self._changed:
                if held is not None:
                    pack.held.append(held)
                if view is not content or held is not None:
                    pack.memory += length
                pack.pending -= 1
                if pack.full and pack.pending == 0:
                    self._submit(pack)

    def _pack_for(self, length: int) -> _OpenPack:
        """A pack with room for a record; called with the lock, which it gives away while it waits."""
        while True:
            self._raise()
            self._cancel.check("writing")
            pack = self._current
            if pack is not None and pack.fits(length):
                return pack
            if pack is not None:
                self._current = None
                self._close_pack(pack)
            elif self._may_open():
                self._current = self._open_pack(length)
            else:
                self._changed.wait(1.0)  # a bound, so that a cancel is seen

    def _may_open(self) -> bool:
        if not self._medium.keeps_views or not self._open:
            return len(self._open) < self._medium.finishing
        memory = sum(pack.memory for pack in self._open.values())
        return len(self._open) < self._medium.finishing and memory <= self._medium.held_bytes

    def _open_pack(self, length: int) -> _OpenPack:
        least = packs.HEADER_BYTES + padded(length) + padded(_ENTRY_BYTES + packs.TRAILER_BYTES)
        granted = self._budget.reserve(least, self._medium.pack_bytes)
        id_ = PackId(secrets.token_hex(16))
        try:
            self._begun(id_)
            file = self._medium.open_pack(self._keys.tenant, id_, capacity=granted, cancel=self._cancel)
        except BaseException:
            self._budget.settle(granted, 0)
            raise
        pack = _OpenPack(id_, file, granted)
        self._open[id_] = pack
        if file.capacity < least:
            raise NoRoom(f"no room for a pack in {self._medium.where}")
        return pack

    # -- finishing ---------------------------------------------------------------------------------------------------

    def _close_pack(self, pack: _OpenPack) -> None:
        """No more goes into it. With the lock."""
        if pack.tight:
            self._write_tight(pack)
        pack.full = True
        if pack.pending == 0:
            self._submit(pack)

    def _write_tight(self, pack: _OpenPack) -> None:
        """With the lock: it is rare and little."""
        content, pack.tight = pack.tight, bytearray()
        offset = pack.end
        length = padded(len(content))
        pack.end += length
        pack.records += [_at(record, offset + record.offset) for record in pack.tight_records]
        pack.tight_records = []
        buffer = Buffer()  # not of the pool: who waits for one of those may hold what we hold
        buffer.view[: len(content)] = content
        pack.file.write(offset, buffer.view[:length])

    def _submit(self, pack: _OpenPack) -> None:
        if self._error is None:
            self._finishers.submit(self._seal, pack)  # which keeps its error in `_error`

    def _seal(self, pack: _OpenPack) -> None:
        try:
            header = packs.encode_header(pack.id, self._keys)
            end = packs.encode_end(pack.records, at=pack.end, header=header, keys=self._keys)
            first, last = Buffer(), Buffer()
            first.view[: len(header)] = header
            last.view[: len(end)] = end
            pack.file.write(0, first.view[: len(header)])
            pack.file.write(pack.end, last.view[: len(end)])
            size = pack.end + len(end)
            pack.file.finish(size)
            self._budget.settle(pack.granted, size)
            pack.granted = 0
            self._finished(pack.id, size, pack.records)
        except BaseException as e:
            self._fail(e)
            return
        self._release(pack)

    def _release(self, pack: _OpenPack) -> None:
        for buffer in pack.held:
            self._buffers.give(buffer)
        pack.held = []
        with self._changed:
            self._open.pop(pack.id, None)
            self._changed.notify_all()

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            if self._error is None:
                self._error = error
            self._changed.notify_all()
        self._buffers.close()  # wakes who waits for one

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error


def _at(record: Record, offset: int) -> Record:
    return Record(record.id, offset, record.stored, record.raw, record.codec, record.nonce, record.tag)
