"""Garbage collection by mark and sweep: what no manifest names is removed.

Manifests are read one by one and their chunks marked; then each pack is looked at. One without a marked chunk is removed;
one with little of use in it is rewritten: its live chunks go to a new pack, which is durable before the old one goes.
Packs that a reader or writer of this process relies on, even for a moment of the sweep, are left for the next time; for
other agents there are leases. A manifest that can't be read stops everything: what it needs isn't known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kybernate.model.errors import NoRoom, NotFound
from kybernate.model.progress import ProgressCallback
from kybernate.store.chunks import ChunkWriter
from kybernate.store.errors import Damaged
from kybernate.store.manifests import ZERO
from kybernate.store.media import Absent
from kybernate.store.memory import padded
from kybernate.store.packs import PackId, Record
from kybernate.store.progress import Cancel, Meter
from kybernate.store.records import read_record
from kybernate.store.spaces import Space
from kybernate.store.tenants import ChunkId

COMPACT_BELOW = 0.5
"""A pack is rewritten when less of it than this is of use: so at most half of the disk is garbage after a collection."""


@dataclass(frozen=True, slots=True)
class Swept:
    """What a collection did, or would do. Sizes in bytes."""

    packs: int
    """Looked at."""
    removed: int
    compacted: int
    freed: int
    left: tuple[str, ...]
    """Why packs with garbage were left, a line each."""


def collect(
    space: Space,
    *,
    dry: bool = False,
    compact_below: float = COMPACT_BELOW,
    progress: ProgressCallback | None = None,
    cancel: Cancel | None = None,
) -> Swept:
    """Remove what no snapshot needs.

    Args:
        dry: only say what would be done.
        compact_below: rewrite packs of which less than this part is of use; 0 never does.

    Raises:
        Busy: another agent writes or collects there.
        Damaged, TooNew, WrongKey: a manifest can't be read; nothing was removed.
    """
    cancel = cancel or Cancel()
    lease = space.leases.sweep() if space.medium.shared else None
    space.packs.pins.begin_sweep()
    try:
        space.packs.refresh()
        _mark(space, cancel)
        return _Sweep(
            space,
            dry=dry,
            compact_below=compact_below,
            meter=Meter(f"collecting in {space.medium.where}", None, progress),
            cancel=cancel,
            still_allowed=lease.check if lease is not None else _nothing,
        ).run()
    finally:
        space.catalog.end_marking()
        space.packs.pins.end_sweep()
        space.budget.recount()
        if lease is not None:
            lease.release()


def _mark(space: Space, cancel: Cancel) -> None:
    space.catalog.begin_marking()
    for entry in list(space.medium.entries(f"{space.keys.tenant}/manifests/")):
        cancel.check("collecting garbage")
        try:
            manifest = space.manifest(entry.name)
        except NotFound:
            continue  # deleted since
        space.catalog.mark(chunk for chunk in manifest.ids() if chunk != ZERO)


def _nothing() -> None:
    """Where nobody else writes, no lease is needed."""


class _Sweep:
    def __init__(
        self,
        space: Space,
        *,
        dry: bool,
        compact_below: float,
        meter: Meter,
        cancel: Cancel,
        still_allowed: Callable[[], None],
    ) -> None:
        self._space = space
        self._dry = dry
        self._compact_below = compact_below
        self._meter = meter
        self._cancel = cancel
        self._still_allowed = still_allowed
        self._going: set[PackId] = set()
        self._left: list[str] = []
        self._removed = self._compacted = self._freed = 0

    def run(self) -> Swept:
        packs = self._space.catalog.packs()
        self._meter.expect(sum(packs.values()))
        sparse: list[tuple[PackId, int]] = []
        for pack, size in packs.items():
            self._cancel.check("collecting garbage")
            live = self._space.catalog.live_records(pack, self._going)
            if live and sum(record.stored for record in live) < self._compact_below * size:
                self._going.add(pack)
                sparse.append((pack, size))
                continue
            if not live and self._remove(pack, size):
                self._removed += 1
            self._meter.add(size)
        if sparse:
            self._compact(sparse)
        self._meter.tell()
        return Swept(len(packs), self._removed, self._compacted, self._freed, tuple(self._left))

    def _remove(self, pack: PackId, size: int) -> bool:
        space = self._space
        if not self._dry:
            self._still_allowed()
        with space.packs.pins.lock:
            if space.packs.pins.in_use(pack):
                self._left.append(f"pack {pack} is in use")
                return False
            if not self._dry:
                space.catalog.remove_packs([pack])
        if not self._dry:
            space.packs.remove(pack)
        self._going.add(pack)
        self._freed += size
        return True

    def _compact(self, sparse: list[tuple[PackId, int]]) -> None:
        """Live chunks of all these packs into new ones. What one left to another is counted again: both go."""
        space = self._space
        if self._dry:
            for pack, size in sparse:
                live = space.catalog.live_records(pack, self._going)
                self._freed += size - sum(padded(record.stored) for record in live)
                self._compacted += 1
                self._meter.add(size)
            return
        moved: list[tuple[PackId, int]] = []
        writer = ChunkWriter(space, self._cancel)
        done: set[ChunkId] = set()
        try:
            for pack, size in sparse:
                self._cancel.check("collecting garbage")
                live = [r for r in space.catalog.live_records(pack, self._going) if r.id not in done]
                try:
                    for record in live:
                        _copy(space, pack, record, writer, self._cancel)
                        done.add(record.id)
                except (Absent, Damaged) as e:
                    self._left.append(f"pack {pack} is damaged and left as it is: {e}")
                else:
                    moved.append((pack, size))
                self._meter.add(size)
            writer.finish()
        except NoRoom as e:
            writer.abort()
            self._left.append(
                f"{len(sparse)} packs with little of use are left, for there is no room to rewrite them: {e.message}"
            )
            return
        except BaseException:
            writer.abort()
            raise
        self._freed -= writer.stored
        writer.release()
        for pack, size in moved:
            if self._remove(pack, size):
                self._compacted += 1


def _copy(space: Space, pack: PackId, record: Record, writer: ChunkWriter, cancel: Cancel) -> None:
    """One record as it is, once it was found to be what it should be."""
    buffer = writer.buffers.take()
    try:
        content = read_record(space, pack, record, buffer, cancel)
    except BaseException:
        writer.buffers.give(buffer)
        raise
    writer.put_stored(record, content, buffer)
