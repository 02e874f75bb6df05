"""Staging: a snapshot's GPU content is read from a store into the pool, before any process has it.

Straight into the slots, each chunk checked by the store. What is staged already is shared, not read again. It stays until
a workload was made of it or somebody needs the room.
"""

from __future__ import annotations

import threading
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np

from kybernate.cuda.copying import ExtentCopy
from kybernate.cuda.planning import NO_SLOT, Slots
from kybernate.engine.context import Parts
from kybernate.engine.pooled import Pooled, Staged
from kybernate.engine.stored import HASHES, Described, describe, unpack_hashes
from kybernate.model.cancelling import Cancellation
from kybernate.model.errors import NoRoom
from kybernate.model.progress import ProgressCallback
from kybernate.model.types import CHUNK_BYTES
from kybernate.store import Damaged, Manifest, SnapshotReader, Space, open_reader


@dataclass(frozen=True, slots=True)
class StageReport:
    """What a staging did. Sizes in bytes, time in seconds."""

    uid: str
    snapshot: str
    bytes_read: int
    """0 where it was staged already."""
    seconds: float


@dataclass(slots=True)
class Stager:
    """All stagings of one engine. Thread-safe; two of one snapshot become one."""

    parts: Parts
    pooled: Pooled
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _turns: dict[str, threading.Lock] = field(default_factory=dict)

    def stage(
        self,
        space: Space,
        manifest: Manifest,
        *,
        progress: ProgressCallback | None = None,
        cancel: Cancellation | None = None,
    ) -> tuple[Staged, int]:
        """Have the snapshot in the pool, and held: `Pooled.unhold` is the caller's. Returns the bytes read, too.

        Raises:
            NoRoom: the pool is too small; the message holds the numbers, nothing was read.
            Damaged, TierAway, Cancelled: the store's; nothing is left in the pool.
        """
        described = describe(manifest)
        with self._turn(manifest.uid):
            if (there := self.pooled.hold(manifest.uid)) is not None:
                return there, 0
            staged = self._read(space, manifest, described, progress, cancel)
            self.pooled.put_and_hold(staged)
            return staged, len(staged.slots) * CHUNK_BYTES

    def adopt(self, manifest: Manifest, copies: list[ExtentCopy]) -> bool:
        """Take content that lies in the pool already as the staged copy of a snapshot; it is shared with whoever has it there.

        Returns whether it is that now: somebody may have been quicker.
        """
        with self._turn(manifest.uid):
            if (there := self.pooled.hold(manifest.uid)) is not None:
                self.pooled.unhold(there)
                return False
            slots = np.concatenate([copy.slots for copy in copies]) if copies else np.empty(0, dtype=np.int64)
            slots = slots[slots != NO_SLOT]
            self.parts.pool.share(slots)
            staged = Staged(describe(manifest), copies, slots)
            self.pooled.put_and_hold(staged)
            self.pooled.unhold(staged)
        return True

    def _turn(self, uid: str) -> threading.Lock:
        with self._lock:
            return self._turns.setdefault(uid, threading.Lock())

    def _read(
        self,
        space: Space,
        manifest: Manifest,
        described: Described,
        progress: ProgressCallback | None,
        cancel: Cancellation | None,
    ) -> Staged:
        with (
            open_reader(space, manifest.name, progress=progress) as reader,
            cancel.forwarded_to(reader.cancel) if cancel is not None else nullcontext(),
        ):
            if reader.manifest.uid != manifest.uid:
                raise Damaged(f"snapshot {manifest.name} became another one while it was opened", hint="try again")
            hashes = unpack_hashes(reader.read_bytes(HASHES, maximum=max(1, 16 * len(manifest.table) // 32)), described)
            wanted = [
                np.array([not reader.is_zero(extent.first + k) for k in range(extent.count)], dtype=np.bool_)
                for extent in manifest.extents
            ]
            slots = self._allocate(sum(int(np.count_nonzero(part)) for part in wanted))
            try:
                copies, start = [], 0
                for extent, part, known in zip(described.extents, wanted, hashes, strict=True):
                    count = int(np.count_nonzero(part))
                    mine = np.full(extent.chunks, NO_SLOT, dtype=np.int64)
                    mine[part] = slots[start : start + count]
                    start += count
                    copies.append(ExtentCopy(size=extent.size, rdma=extent.rdma, slots=mine, hashes=known))
                self._fill(reader, manifest, copies)
                self.parts.faults.at("stage.read")
            except BaseException:
                reader.close()  # nobody may write into the slots any more
                self.pooled.free(slots)
                raise
        return Staged(described, copies, slots)

    def _fill(self, reader: SnapshotReader, manifest: Manifest, copies: list[ExtentCopy]) -> None:
        view = self.parts.pool.view
        reader.read(
            [
                (extent.first + k, view(slot))
                for extent, copy in zip(manifest.extents, copies, strict=True)
                for k, slot in enumerate(copy.slots.tolist())
                if slot != NO_SLOT
            ],
            what="staging",
        )

    def _allocate(self, count: int) -> Slots:
        pool = self.parts.pool
        if pool.free_slots < count:
            self.pooled.give_up(None, keep_slots=count)
        try:
            return pool.allocate(count)
        except NoRoom as error:
            raise NoRoom(f"can't stage: {error.message}", hint=error.hint) from error
