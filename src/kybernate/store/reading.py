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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from kybernate.model.errors import BadInput, KybernateError
from kybernate.model.types import CHUNK_BYTES
from kybernate.store import coding
from kybernate.store.catalog import Place
from kybernate.store.errors import Damaged, TooNew
from kybernate.store.manifests import ZERO, Manifest, StoredExtent, StoredFile
from kybernate.store.media import Absent
from kybernate.store.memory import PAGE_BYTES, BufferPool, is_aligned, padded
from kybernate.store.packs import Codec, PackId
from kybernate.store.progress import Cancel, Meter, ProgressCallback
from kybernate.store.spaces import Space
from kybernate.store.tenants import ChunkId

ChunkCallback = Callable[[int], None]
"""Called from several threads at once with the index of each chunk whose view is filled and checked."""
Request = tuple[int, memoryview]
"""A chunk's index in the manifest's table, and a view of its length."""


@dataclass(slots=True)
class _Wanted:
    """A chunk, and all views it belongs in."""

    place: Place
    views: list[Request]


@dataclass(slots=True)
class _Group:
    """What is read with one call: `wanted` lie behind each other from `start` to `end`."""

    pack: PackId
    start: int
    end: int
    direct: bool
    """Straight into the views."""
    wanted: list[_Wanted]


class SnapshotReader:
    """See the module. Thread-safe, but `close` waits for nobody: call it last."""

    def __init__(self, space: Space, manifest: Manifest, *, progress: ProgressCallback | None = None) -> None:
        """Use `sessions.open_reader`."""
        self.manifest = manifest
        self._space = space
        self._progress = progress
        self._cancel = Cancel()
        self._pins = space.pin_set()
        self._buffers = BufferPool(space.medium.threads + 1)
        self._file_buffers = BufferPool(space.medium.threads)
        self._threads = ThreadPoolExecutor(space.medium.threads, thread_name_prefix="kybernate-read")
        self._places: dict[ChunkId, list[Place]] | None = None
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

    def length(self, part: StoredExtent | StoredFile, number: int) -> int:
        """Bytes of a part's chunk."""
        return part.length(number)

    # -- reading -----------------------------------------------------------------------------------------------------

    def read(self, requests: Iterable[Request], *, done: ChunkCallback | None = None, what: str = "reading") -> None:
        """Fill views with chunks; those of zeros with zeros. Returns when all are filled and checked.

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
        meter = Meter(f"{what} {self.manifest.name} from {self._space.medium.where}", total, self._progress)
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

    def read_bytes(self, path: str, *, most: int = 64 << 20) -> bytes:
        """A small file's content. Raises BadInput when there is no such file or it is larger than `most` bytes."""
        file = self.manifest.file(path)
        if file.size > most:
            raise BadInput(f"{path} has {file.size} bytes, more than {most}")
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
            meter.add(self.length(target.file, number))
        self._resolve(list(targets))
        # Packs keep together what was written together: neighbours share a read.
        items = sorted(targets.items(), key=lambda item: self._first_place(item[0]))
        self._run(partial(self._extract, run, meter) for run in _runs(items, self._first_place))
        meter.tell()

    # -- places ------------------------------------------------------------------------------------------------------

    def _resolve(self, chunks: Sequence[ChunkId]) -> dict[ChunkId, list[Place]]:
        """Where these chunks are. All packs found are pinned. Raises Damaged for those nobody has."""
        with self._lock:
            known = self._places if self._places is not None else {}
            self._places = known
            missing = [chunk for chunk in chunks if chunk not in known]
            if missing:
                found = self._space.locate(missing, self._pins, self.manifest.packs)
                known.update(found)
                lost = [chunk for chunk in missing if chunk not in found]
                if lost and (newer := self._space.too_new) is not None:
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

    def _first_place(self, chunk: ChunkId) -> tuple[PackId, int, int]:
        place = (self._places or {})[chunk][0]
        return place.pack, place.record.offset, place.record.stored

    def _plan(self, wanted: dict[ChunkId, list[Request]]) -> Iterator[_Group]:
        """Whatever can be wrong is found before the first one comes; the first are read while others are still put together."""
        places = self._resolve(list(wanted))
        items = []
        for chunk, views in wanted.items():
            place = places[chunk][0]
            if any(view.nbytes != place.record.raw for _, view in views):
                raise BadInput(f"a view of {views[0][1].nbytes} bytes for a chunk of {place.record.raw}")
            items.append(_Wanted(place, views))
        items.sort(key=lambda item: (item.place.pack, item.place.record.offset))
        last: _Group | None = None
        medium = self._space.medium
        for item in items:
            record = item.place.record
            direct = self._is_direct(item)
            end = record.offset + record.stored
            if (
                last is not None
                and last.pack == item.place.pack
                and last.direct == direct
                and (last.end == record.offset if direct else record.offset - last.end < PAGE_BYTES)
                and end - last.start <= (medium.read_bytes if direct else CHUNK_BYTES)
            ):
                last.end = end
                last.wanted.append(item)
            else:
                if last is not None:
                    yield last
                last = _Group(item.place.pack, record.offset, end, direct, [item])
        if last is not None:
            yield last

    def _is_direct(self, item: _Wanted) -> bool:
        record = item.place.record
        if record.codec is not Codec.RAW or self._space.keys.encrypted:
            return False
        return not self._space.medium.wants_alignment or (
            record.stored % PAGE_BYTES == 0 and record.offset % PAGE_BYTES == 0 and is_aligned(item.views[0][1])
        )

    # -- one read ----------------------------------------------------------------------------------------------------

    def _read_group(self, group: _Group, done: ChunkCallback | None, meter: Meter) -> None:
        medium, keys = self._space.medium, self._space.keys
        self._cancel.check("reading")
        bad: list[_Wanted] = []
        try:
            if group.direct:
                medium.read(keys.tenant, group.pack, group.start, [w.views[0][1] for w in group.wanted], self._cancel)
                for wanted in group.wanted:
                    try:
                        coding.check(wanted.place.record, wanted.views[0][1], keys)
                    except Damaged:
                        bad.append(wanted)
            else:
                buffer = self._buffers.take()
                try:
                    content = self._read_span(group, buffer.view)
                    for wanted in group.wanted:
                        try:
                            self._decode(wanted.place, content, group.start, wanted.views[0][1])
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
            meter.add(view.nbytes, wanted.place.record.stored)
            if done is not None:
                done(index)

    def _read_span(self, group: _Group, buffer: memoryview) -> memoryview:
        """A view that begins with the group's first byte and has room for a tag at its end."""
        start = group.start // PAGE_BYTES * PAGE_BYTES
        length = padded(group.end - start)
        self._space.medium.read(self._space.keys.tenant, group.pack, start, [buffer[:length]], self._cancel)
        return buffer[group.start - start :]

    def _decode(self, place: Place, content: memoryview, start: int, into: memoryview) -> None:
        record = place.record
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

    def _read_elsewhere(self, wanted: _Wanted) -> None:
        """One chunk, once more where it was and then in every other place. Raises Damaged."""
        view = wanted.views[0][1]
        last: Exception | None = None
        chunk = wanted.place.record.id
        for attempt in range(2):
            places = self._space.locate([chunk], self._pins, self.manifest.packs, anew=attempt > 0).get(chunk, [])
            for place in places:
                record = place.record
                buffer = self._buffers.take()
                try:
                    group = _Group(place.pack, record.offset, record.offset + record.stored, False, [])
                    self._decode(place, self._read_span(group, buffer.view), record.offset, view)
                except Absent as e:
                    last = e
                except Damaged as e:
                    last = e
                    self._space.catalog.mark_damaged(self._space.id, place.pack, chunk)
                else:
                    return
                finally:
                    self._buffers.give(buffer)
        raise Damaged(
            f"snapshot {self.manifest.name} in {self._space.medium.where} is damaged: chunk {chunk.hex()[:16]} can't be read"
            f" from pack {wanted.place.pack}: {last or 'it is gone'}",
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
                length = self.length(target.file, number)
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
    items: list[tuple[ChunkId, list[tuple[_Target, int]]]], place: Callable[[ChunkId], tuple[PackId, int, int]]
) -> Iterator[list[tuple[ChunkId, list[tuple[_Target, int]]]]]:
    """Cut into runs of one pack that hold no more than a chunk together."""
    run: list[tuple[ChunkId, list[tuple[_Target, int]]]] = []
    size = 0
    pack: PackId | None = None
    for item in items:
        target, number = item[1][0]
        length = target.file.length(number)
        here = place(item[0])[0]
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
