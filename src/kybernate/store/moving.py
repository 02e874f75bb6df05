"""Copies a snapshot from one tier to another, chunk by chunk: no second copy of it in memory, none written twice.

Each record is read and checked, then written as it is where the target would store it the same way, else coded anew. What
the target has already isn't read. After a lost connection the same call goes on: chunks that arrived are there already.
"""

from __future__ import annotations

import threading

from kybernate.model.errors import BadInput, Conflict
from kybernate.model.progress import ProgressCallback
from kybernate.store import coding
from kybernate.store.errors import Damaged
from kybernate.store.manifests import ZERO, Manifest
from kybernate.store.media import Absent
from kybernate.store.memory import Buffer
from kybernate.store.packs import Codec, Record
from kybernate.store.records import read_record
from kybernate.store.sessions import open_writer
from kybernate.store.space_catalog import ChunkLocation
from kybernate.store.spaces import Space
from kybernate.store.tasks import BoundedTasks
from kybernate.store.writing import SnapshotWriter


def copy(
    source: Space, target: Space, name: str, *, progress: ProgressCallback | None = None, step: Step | None = None
) -> Manifest:
    """Copy a snapshot of one tenant into another tier; the original stays. Returns the copy's manifest.

    A copy that is there already (the same uid) is left as it is.

    Args:
        step: to cancel it from another thread.

    Raises:
        Conflict: another snapshot has that name there. NotFound, Damaged: the original. NoRoom, TierAway, Cancelled.
        BadInput: the two aren't of the same tenant and key.
    """
    if (source.keys.tenant, source.keys.fingerprint) != (target.keys.tenant, target.keys.fingerprint):
        raise BadInput(f"snapshot {name} can't be copied to another tenant or key")
    manifest = source.manifest(name)
    try:
        writer = open_writer(target, name, total=manifest.size, progress=progress)
    except Conflict:
        there = target.manifest(name)
        if there.uid != manifest.uid:
            raise
        return there
    with writer:
        if step is not None:
            step.begin(writer)
        return _Copy(source, manifest, writer).run()


def move(
    source: Space, target: Space, name: str, *, progress: ProgressCallback | None = None, step: Step | None = None
) -> Manifest:
    """`copy`, then remove the original; its chunks go with the next garbage collection."""
    manifest = copy(source, target, name, progress=progress, step=step)
    source.delete(name)
    return manifest


class Step:
    """A copy or move that another thread may cancel."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._writer: SnapshotWriter | None = None
        self._cancelled = False

    def begin(self, writer: SnapshotWriter) -> None:
        with self._lock:
            self._writer = writer
            if self._cancelled:
                writer.cancel()

    def cancel(self) -> None:
        with self._lock:
            self._cancelled = True
            if self._writer is not None:
                self._writer.cancel()


class _Copy:
    def __init__(self, source: Space, manifest: Manifest, writer: SnapshotWriter) -> None:
        self._source = source
        self._manifest = manifest
        self._writer = writer
        self._pins = source.packs.pin_set()

    def run(self) -> Manifest:
        manifest, writer = self._manifest, self._writer
        try:
            needed = list(dict.fromkeys(chunk for chunk in manifest.ids() if chunk != ZERO))
            found = self._source.packs.locate(needed, self._pins, manifest.packs)
            if len(found) < len(needed):
                lost = next(chunk for chunk in needed if chunk not in found)
                raise Damaged(
                    f"snapshot {manifest.name} in {self._source.medium.where} is damaged: chunk {lost.hex()[:16]} is in no pack"
                )
            stored = sum(locations[0].record.raw for locations in found.values())
            writer.count(max(0, manifest.size - stored))  # zeros and repetitions
            self._copy_all(
                sorted(found.values(), key=lambda locations: (locations[0].pack, locations[0].record.offset))
            )
            writer.adopt(manifest)
            return writer.commit(
                state=manifest.state,
                needs=manifest.needs,
                labels=manifest.labels,
                created=manifest.created,
                uid=manifest.uid,
            )
        finally:
            self._pins.release()

    def _copy_all(self, chunks: list[list[ChunkLocation]]) -> None:
        """The first error stops the rest."""
        tasks = BoundedTasks(self._source.medium.threads, "kybernate-move", self._writer.cancel)
        try:
            for locations in chunks:
                tasks.submit(self._copy_one, locations)
        finally:
            tasks.wait()
        tasks.finish()

    def _copy_one(self, locations: list[ChunkLocation]) -> None:
        chunks = self._writer.chunks
        raw = locations[0].record.raw
        if chunks.has(locations[0].record.id):
            self._writer.count(raw)
            return
        buffer = chunks.buffers.take()
        record, content = self._read(locations, buffer)
        if record.codec is (Codec.ZSTD if chunks.compresses else Codec.RAW):
            chunks.put_stored(record, content, buffer)
            self._writer.count(raw, record.stored)
            return
        if record.codec is Codec.RAW and not self._source.keys.encrypted:
            self._writer.count(raw, chunks.put(record.id, content, buffer))
            return
        plain = chunks.buffers.take()
        coding.decode(record, buffer.view[: record.stored + coding.TAG_BYTES], plain.view[:raw], self._source.keys)
        chunks.buffers.give(buffer)
        self._writer.count(raw, chunks.put(record.id, plain.view[:raw], plain))

    def _read(self, locations: list[ChunkLocation], buffer: Buffer) -> tuple[Record, memoryview]:
        """From the first location where the chunk is whole."""
        cancel = self._writer.stop
        last: Exception | None = None
        for location in locations:
            try:
                return location.record, read_record(self._source, location.pack, location.record, buffer, cancel)
            except (Absent, Damaged) as e:
                last = e
                self._source.catalog.mark_damaged(location.pack, location.record.id)
        raise Damaged(
            f"snapshot {self._manifest.name} in {self._source.medium.where} is damaged: pack {locations[0].pack}: {last}"
        ) from last
