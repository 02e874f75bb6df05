"""Reads a snapshot: any chunks, in any order, many at once, each checked before the caller hears of it.

    with open_reader(space, name) as reader:
        reader.read([(index, view), ...])      # into the caller's memory; straight from the disk where it can be
        reader.extract(directory)              # all files

What lies together is read together. A chunk that turns out damaged is taken from another pack where there is one; else
that is an error, which names the snapshot and the pack.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from kybernate.model.errors import BadInput, KybernateError
from kybernate.model.progress import ProgressCallback
from kybernate.model.types import CHUNK_BYTES
from kybernate.store import coding
from kybernate.store.errors import Damaged, TooNew
from kybernate.store.manifests import ZERO, Manifest, StoredExtent, StoredFile
from kybernate.store.media import Absent
from kybernate.store.memory import PAGE_BYTES, BufferPool, padded
from kybernate.store.packs import PackId
from kybernate.store.progress import Cancel, Meter
from kybernate.store.read_plan import ReadGroup, Request, WantedChunk, read_groups
from kybernate.store.space_catalog import ChunkLocation
from kybernate.store.spaces import Space
from kybernate.store.tenants import ChunkId

ChunkCallback = Callable[[int], None]
"""Called from several threads at once with the index of each chunk whose view is filled and checked."""


class SnapshotReader:
    """See the module. Thread-safe, but `close` waits for nobody: call it last."""

    def __init__(self, space: Space, manifest: Manifest, *, progress: ProgressCallback | None = None) -> None:
        """Use `sessions.open_reader`."""
        self.manifest = manifest
        self._space = space
        self._progress = progress
        self._cancel = Cancel()
        self._pins = space.packs.pin_set()
        self._buffers = BufferPool(space.medium.threads + 1)
        self._file_buffers = BufferPool(space.medium.threads)
        self._threads = ThreadPoolExecutor(space.medium.threads, thread_name_prefix="kybernate-read")
        self._locations: dict[ChunkId, list[ChunkLocation]] | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._cancel.set()
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._buffers.close()
        self._file_buffers.close()
        self._pins.release()

    def cancel(self) -> None:
        """Make everything that reads stop soon with Cancelled. Any thread may call it; the reader is of no use afterwards."""
        self._cancel.set()

    # -- what there is -----------------------------------------------------------------------------------------------

    def is_zero(self, index: int) -> bool:
        """Whether a chunk is all zeros: it need not be read."""
        return self.manifest.id(index) == ZERO

    # -- reading -----------------------------------------------------------------------------------------------------

    def meter(self, what: str, total: int) -> Meter:
        """For reading in several steps so many bytes, of which the reader's caller is told as of one."""
        return Meter(f"{what} {self.manifest.name} from {self._space.medium.where}", total, self._progress)

    def read(
        self,
        requests: Iterable[Request],
        *,
        done: ChunkCallback | None = None,
        what: str = "reading",
        meter: Meter | None = None,
    ) -> None:
        """Fill views with chunks; those of zeros with zeros. Returns when all are filled and checked.

        Args:
            meter: where this is one of several steps.

        Raises:
            BadInput: a view has another length than its chunk, or there is no such chunk.
            Damaged: a chunk is missing or isn't what was stored, in every place it is known to be.
            TierAway, Cancelled.
        """
        wanted: dict[ChunkId, list[Request]] = {}
        total = 0
        count = len(self.manifest.table) // len(ZERO)
        zeros: list[Request] = []
        for index, view in requests:
            if not 0 <= index < count:
                raise BadInput(f"snapshot {self.manifest.name} has no chunk {index}")
            total += view.nbytes
            chunk = self.manifest.id(index)
            if chunk == ZERO:
                zeros.append((index, view))
            else:
                wanted.setdefault(chunk, []).append((index, view))
        meter = meter or self.meter(what, total)
        self._run(partial(self._read_group, group, done, meter) for group in self._plan(wanted))
        for index, view in zeros:
            _clear(view)
            meter.add(view.nbytes)
            if done is not None:
                done(index)
        meter.tell()

    def read_part(
        self, part: StoredExtent | StoredFile, views: Sequence[memoryview | None], *, done: ChunkCallback | None = None
    ) -> None:
        """Fill the views of a whole extent or file, a chunk each; None is left out. See `read`."""
        if len(views) != part.count:
            raise BadInput(f"{len(views)} views for {part.count} chunks")
        self.read(((part.first + k, view) for k, view in enumerate(views) if view is not None), done=done)

    def read_bytes(self, path: str, *, maximum: int = 64 << 20) -> bytes:
        """A small file's content. Raises BadInput when there is no such file or it is larger than `maximum` bytes."""
        file = self.manifest.file(path)
        if file.size > maximum:
            raise BadInput(f"{path} has {file.size} bytes, more than {maximum}")
        content = bytearray(file.size)
        whole = memoryview(content)
        self.read_part(file, [whole[at:][: file.length(k)] for k, at in enumerate(file.offsets())])
        return bytes(content)

    def extract(self, directory: Path, paths: Sequence[str] | None = None) -> None:
        """Write files into a directory, with their modes; zeros become holes. Existing files are refused, not overwritten.

        Args:
            paths: of the files wanted; None is all.
        """
        files = self.manifest.files if paths is None else [self.manifest.file(path) for path in paths]
        meter = Meter(
            f"extracting {self.manifest.name} from {self._space.medium.where}",
            sum(f.size for f in files),
            self._progress,
        )
        targets: dict[ChunkId, list[tuple[_Target, int]]] = {}
        for file in files:
            target = _Target(directory, file)
            for number in range(file.count):
                targets.setdefault(self.manifest.id(file.first + number), []).append((target, number))
        for target, number in targets.pop(ZERO, ()):  # a hole already
            meter.add(target.file.length(number))
        self._resolve(list(targets))
        # Packs keep together what was written together: neighbours share a read.
        items = sorted(targets.items(), key=lambda item: self._first_location(item[0]))
        self._run(partial(self._extract, run, meter) for run in _runs(items, self._first_location))
        meter.tell()

    # -- locations ----------------------------------------------------------------------------------------------------

    def _resolve(self, chunks: Sequence[ChunkId]) -> dict[ChunkId, list[ChunkLocation]]:
        """Where these chunks are. All packs found are pinned. Raises Damaged for those nobody has."""
        with self._lock:
            known = self._locations if self._locations is not None else {}
            self._locations = known
            missing = [chunk for chunk in chunks if chunk not in known]
            if missing:
                found = self._space.packs.locate(missing, self._pins, self.manifest.packs)
                known.update(found)
                lost = [chunk for chunk in missing if chunk not in found]
                if lost and (newer := self._space.packs.too_new) is not None:
                    raise TooNew(
                        f"snapshot {self.manifest.name} in {self._space.medium.where} needs what a newer version wrote: "
                        f"{newer.message}",
                        hint=newer.hint,
                    )
                if lost:
                    raise Damaged(
                        f"snapshot {self.manifest.name} in {self._space.medium.where} is damaged: {len(lost)} of its chunks"
                        f" are in no pack (the first is {lost[0].hex()[:16]})",
                        hint="`kybernate verify` says more",
                    )
            return known

    def _first_location(self, chunk: ChunkId) -> tuple[PackId, int, int]:
        location = (self._locations or {})[chunk][0]
        return location.pack, location.record.offset, location.record.stored

    def _plan(self, wanted: dict[ChunkId, list[Request]]) -> Iterator[ReadGroup]:
        """Whatever can be wrong is found before the first one comes; the first are read while others are still put together."""
        space = self._space
        return read_groups(wanted, self._resolve(list(wanted)), space.medium, encrypted=space.keys.encrypted)

    # -- one read ----------------------------------------------------------------------------------------------------

    def _read_group(self, group: ReadGroup, done: ChunkCallback | None, meter: Meter) -> None:
        medium, keys = self._space.medium, self._space.keys
        self._cancel.check("reading")
        bad: list[WantedChunk] = []
        try:
            if group.direct:
                medium.read(keys.tenant, group.pack, group.start, [w.views[0][1] for w in group.wanted], self._cancel)
                for wanted in group.wanted:
                    try:
                        coding.check(wanted.location.record, wanted.views[0][1], keys)
                    except Damaged:
                        bad.append(wanted)
            else:
                buffer = self._buffers.take()
                try:
                    content = self._read_span(group, buffer.view)
                    for wanted in group.wanted:
                        try:
                            self._decode(wanted.location, content, group.start, wanted.views[0][1])
                        except Damaged:
                            bad.append(wanted)
                    del content
                finally:
                    self._buffers.give(buffer)
        except (Absent, Damaged):
            bad = group.wanted
        for wanted in bad:
            self._read_elsewhere(wanted)
        for wanted in group.wanted:
            index, view = wanted.views[0]
            for other_index, other in wanted.views[1:]:
                other[:] = view
                meter.add(other.nbytes)
                if done is not None:
                    done(other_index)
            meter.add(view.nbytes, wanted.location.record.stored)
            if done is not None:
                done(index)

    def _read_span(self, group: ReadGroup, buffer: memoryview) -> memoryview:
        """A view that begins with the group's first byte and has room for a tag at its end."""
        start = group.start // PAGE_BYTES * PAGE_BYTES
        length = padded(group.end - start)
        self._space.medium.read(self._space.keys.tenant, group.pack, start, [buffer[:length]], self._cancel)
        return buffer[group.start - start :]

    def _decode(self, location: ChunkLocation, content: memoryview, start: int, into: memoryview) -> None:
        record = location.record
        at = record.offset - start
        stored = content[at : at + record.stored + coding.TAG_BYTES]
        if not self._space.keys.encrypted:
            coding.decode(record, stored, into, self._space.keys)
            return
        # The tag goes behind the record, where the next one may begin.
        behind = bytes(stored[record.stored :])
        try:
            coding.decode(record, stored, into, self._space.keys)
        finally:
            stored[record.stored :] = behind

    def _read_elsewhere(self, wanted: WantedChunk) -> None:
        """One chunk, once more where it was and then wherever else it is. Raises Damaged."""
        view = wanted.views[0][1]
        last: Exception | None = None
        chunk = wanted.location.record.id
        for attempt in range(2):
            found = self._space.packs.locate([chunk], self._pins, self.manifest.packs, anew=attempt > 0)
            for location in found.get(chunk, []):
                record = location.record
                buffer = self._buffers.take()
                try:
                    group = ReadGroup(location.pack, record.offset, record.offset + record.stored, False, [])
                    self._decode(location, self._read_span(group, buffer.view), record.offset, view)
                except Absent as e:
                    last = e
                except Damaged as e:
                    last = e
                    self._space.catalog.mark_damaged(location.pack, chunk)
                else:
                    return
                finally:
                    self._buffers.give(buffer)
        raise Damaged(
            f"snapshot {self.manifest.name} in {self._space.medium.where} is damaged: chunk {chunk.hex()[:16]} can't be read"
            f" from pack {wanted.location.pack}: {last or 'it is gone'}",
            hint="`kybernate verify` says what else is",
        ) from last

    # -- files -------------------------------------------------------------------------------------------------------

    def _extract(self, part: list[tuple[ChunkId, list[tuple[_Target, int]]]], meter: Meter) -> None:
        """Chunks that lie together, into their files."""
        self._cancel.check("extracting")
        buffer = self._file_buffers.take()
        try:
            requests: dict[ChunkId, list[Request]] = {}
            taken = 0
            for chunk, targets in part:
                target, number = targets[0]
                length = target.file.length(number)
                requests[chunk] = [(target.file.first + number, buffer.view[taken : taken + length])]
                taken += length
            for group in self._plan(requests):
                self._read_group(group, None, Meter("", None, None))
            for chunk, targets in part:
                view = requests[chunk][0][1]
                for target, number in targets:
                    target.write(view, target.offsets[number])
                    meter.add(len(view))
        finally:
            self._file_buffers.give(buffer)

    # -- threads -----------------------------------------------------------------------------------------------------

    def _run(self, tasks: Iterable[Callable[[], None]]) -> None:
        """All of them; the first error stops the rest."""
        futures = [self._threads.submit(task) for task in tasks]
        _, waiting = wait(futures, return_when=FIRST_EXCEPTION)
        if waiting:
            for future in waiting:
                future.cancel()
            wait(futures)
        for future in futures:
            if not future.cancelled() and (error := future.exception()) is not None:
                raise error
        self._cancel.check("reading")


class _Target:
    """A file being written by several threads; opened anew each time, so that any number of them can be written."""

    def __init__(self, directory: Path, file: StoredFile) -> None:
        self.file = file
        self.offsets = file.offsets()
        self._path = directory / file.path
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                os.ftruncate(fd, file.size)
                os.fchmod(fd, file.mode)
            finally:
                os.close(fd)
        except FileExistsError as e:
            raise BadInput(f"{self._path} exists already", hint="extract into an empty directory") from e
        except OSError as e:
            raise KybernateError(f"can't write {self._path}: {e.strerror}") from e

    def write(self, view: memoryview, offset: int) -> None:
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                while len(view):
                    written = os.pwrite(fd, view, offset)
                    view = view[written:]
                    offset += written
            finally:
                os.close(fd)
        except OSError as e:
            raise KybernateError(f"can't write {self._path}: {e.strerror}") from e


def _runs(
    items: list[tuple[ChunkId, list[tuple[_Target, int]]]], locate: Callable[[ChunkId], tuple[PackId, int, int]]
) -> Iterator[list[tuple[ChunkId, list[tuple[_Target, int]]]]]:
    """Cut into runs of one pack that hold no more than a chunk together."""
    run: list[tuple[ChunkId, list[tuple[_Target, int]]]] = []
    size = 0
    pack: PackId | None = None
    for item in items:
        target, number = item[1][0]
        length = target.file.length(number)
        here = locate(item[0])[0]
        if run and (here != pack or size + length > CHUNK_BYTES):
            yield run
            run, size = [], 0
        run.append(item)
        size += length
        pack = here
    if run:
        yield run


def _clear(view: memoryview) -> None:
    view[:] = bytes(len(view))
