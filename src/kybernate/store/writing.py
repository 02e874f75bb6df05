"""Writes one snapshot: chunks in parallel, the manifest last.

    with open_writer(space, "train-1") as writer:
        writer.add_extent(views)               # one view of 2 MiB a chunk, None for a chunk known to be zero
        writer.add_file("criu/core-1.img", path)
        writer.commit(state={...})

Nothing of it is visible before `commit`; leaving without it forgets everything. A chunk that the tenant has in this tier
already isn't written again. Memory given to `add_extent` must stay as it is until `commit` returns: where nothing has to
be encrypted or compressed it is written from there, without a copy.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import ValidationError

from kybernate.model.errors import BadInput, Busy, Conflict, KybernateError
from kybernate.model.progress import ProgressCallback
from kybernate.model.snapshot_names import SnapshotName
from kybernate.model.types import CHUNK_BYTES
from kybernate.store import cutting, manifests
from kybernate.store.chunks import ChunkWriter
from kybernate.store.draft import Draft
from kybernate.store.errors import Damaged
from kybernate.store.manifests import Manifest
from kybernate.store.media import key_of_manifest
from kybernate.store.memory import Buffer, is_zero
from kybernate.store.needs import Needs
from kybernate.store.piping import Pipes
from kybernate.store.progress import Cancel, Meter
from kybernate.store.space_catalog import SnapshotRow
from kybernate.store.spaces import Space
from kybernate.store.tasks import BoundedTasks

log = logging.getLogger(__name__)


class SnapshotWriter:
    """See the module. `add_*` and `commit` are called by one thread; `pipes.take` and `cancel` by any."""

    def __init__(
        self,
        space: Space,
        name: SnapshotName,
        *,
        total: int | None,
        progress: ProgressCallback | None,
        lease: Callable[[], None],
        closed: Callable[[], None],
    ) -> None:
        """Use `sessions.open_writer`.

        Args:
            lease: raises when the right to write was lost.
            closed: called once at the end.
        """
        self.name = name
        self._space = space
        self._lease = lease
        self._closed = closed
        self.stop = Cancel()
        """Set by `cancel`; for who works for this writer."""
        self._what = f"writing {name} to {space.medium.where}"
        self._meter = Meter(self._what, total, progress)
        self.chunks = ChunkWriter(space, self.stop)
        """For who brings chunks that are known by their ids already, and then calls `adopt`."""
        # After an error nobody shall wait for what that task won't give back.
        self._tasks = BoundedTasks(space.medium.threads, "kybernate-write", self._wake)
        self._draft = Draft(name)
        self.pipes = Pipes(self._draft, self.chunks, space.keys, self._meter, submit=self._submit, check=self._check)
        """For content that comes out of pipes."""
        self._over = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    @property
    def stored(self) -> int:
        """Bytes really written so far: without zeros and what was there already, compressed."""
        return self.chunks.stored

    # -- content -----------------------------------------------------------------------------------------------------

    def add_extent(
        self, views: Sequence[memoryview | None], *, size: int | None = None, about: Mapping[str, Any] | None = None
    ) -> int:
        """Store an extent. Returns its number.

        Args:
            views: a chunk each, of 2 MiB but for the last one; None is a chunk of zeros.
            size: the extent's bytes; None is 2 MiB for each view.
            about: the engine's own words for the manifest; JSON.

        Raises:
            BadInput: the views don't fit the size.
        """
        size = len(views) * CHUNK_BYTES if size is None else size
        lengths = list(_lengths(size))
        if len(lengths) != len(views) or any(
            view is not None and view.nbytes != length for view, length in zip(views, lengths, strict=True)
        ):
            raise BadInput(f"an extent of {size} bytes in {len(views)} views that don't fit it")
        first = self._draft.grow(len(views))
        extent = self._draft.add_extent(first, size, about or {})
        for number, (view, length) in enumerate(zip(views, lengths, strict=True)):
            if view is None:
                self._meter.add(length)
            else:
                self._submit(self._store, first + number, view, None)
        return extent

    def add_file(self, path: str, source: Path, *, by_content: bool = False) -> None:
        """Store a file's content and mode.

        Args:
            by_content: it consists of pages that may come and go between snapshots (see `cutting`).

        Raises:
            BadInput: a bad or repeated path, or not a regular file that can be read.
        """
        self._draft.check_new(path)
        try:
            fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as e:
            raise BadInput(f"can't read {source} for snapshot {self.name}: {e.strerror}") from e
        shared = _SharedFile(fd, source)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise BadInput(f"{source} is no regular file")
            cuts = cutting.cuts(fd, status.st_size) if by_content and status.st_size > CHUNK_BYTES else ()
            file = self._draft.add_file(
                path, mode=stat.S_IMODE(status.st_mode), first=self._draft.end, size=status.st_size, cuts=cuts
            )
            self._draft.grow(file.count)
            for number, offset in enumerate(file.offsets()):
                self._submit(self._store_from_file, file.first + number, shared.hold(), offset, file.length(number))
        finally:
            shared.drop()

    def add_directory(self, prefix: str, source: Path, *, by_content: Callable[[str], bool] = lambda _: False) -> None:
        """Store all regular files below a directory, as `prefix/...`. Raises BadInput for anything else in it.

        Args:
            by_content: which of them to cut so, by name; see `add_file`.
        """
        for path in sorted(source.rglob("*")):
            if path.is_dir() and not path.is_symlink():
                continue
            self.add_file(f"{prefix}/{path.relative_to(source)}", path, by_content=by_content(path.name))

    def add_bytes(self, path: str, content: bytes, *, mode: int = 0o600) -> None:
        """Store a small file that is in memory. Raises BadInput for a bad or repeated path."""
        self._draft.check_new(path)
        first = self._draft.grow(-(-len(content) // CHUNK_BYTES))
        self._draft.add_file(path, mode=mode, first=first, size=len(content))
        whole = memoryview(content)
        for number, length in enumerate(_lengths(len(content))):
            self._submit(self._store, first + number, whole[number * CHUNK_BYTES :][:length], None)

    def adopt(self, manifest: Manifest) -> None:
        """Consist of what another manifest says; its chunks were brought by `chunks`."""
        self._draft.adopt(manifest)

    def count(self, done: int, stored: int = 0) -> None:
        """Bytes of content dealt with, for the progress."""
        self._meter.add(done, stored)

    # -- the end -----------------------------------------------------------------------------------------------------

    def commit(
        self,
        *,
        state: Mapping[str, Any] | None = None,
        needs: Needs | None = None,
        labels: Mapping[str, str] | None = None,
        created: float | None = None,
        uid: str | None = None,
    ) -> Manifest:
        """Make the snapshot be there: durable, whole, under its name.

        Args:
            created, uid: of the snapshot this is a copy of; None for a new one.

        Raises:
            Conflict: the name is taken.
            whatever went wrong before: disk full, cancelled, the tier away. Nothing is visible then; but when a bucket is away
            just as the manifest was sent, nobody can know: it is there whole, or not at all.
        """
        self._tasks.finish()
        self.stop.check(self._what)
        self.pipes.put_ids()
        self.chunks.finish()
        try:
            manifest = self._draft.manifest(
                uid=uid or secrets.token_hex(16),
                created=time.time() if created is None else created,
                state=state or {},
                labels=labels or {},
                needs=needs or Needs(),
                packs=sorted(self.chunks.packs),
            )
            content = manifests.encode(manifest, self._space.keys)
        except ValidationError as e:
            raise BadInput(f"the state of snapshot {self.name} isn't JSON: {str(e).splitlines()[0]}") from e
        self._lease()
        self.stop.check(self._what)
        self._create(content)
        self._after_commit(manifest)
        labels_text = json.dumps(manifest.labels)
        row = SnapshotRow(self.name, manifest.uid, manifest.created, manifest.size, labels_text, len(content))
        try:
            self._space.catalog.add_snapshot(row)
        except KybernateError as e:
            log.warning("snapshot %s is stored, but not listed before the next start: %s", self.name, e)
        self._meter.tell()
        self._over = True
        self.pipes.close()
        self.chunks.release()
        self._closed()
        return manifest

    def cancel(self) -> None:
        """Make the writing thread stop soon with Cancelled. Any thread may call it, at any time."""
        self.stop.set()
        self._wake()

    def abort(self) -> None:
        """Forget everything; does nothing after `commit`. Called by leaving the `with` block."""
        if self._over:
            return
        self._over = True
        self.stop.set()
        self._wake()
        self._tasks.wait()  # they see the cancel, and give back what they hold
        try:
            self.chunks.abort()
        finally:
            self._closed()

    def _create(self, content: bytes) -> None:
        budget, medium = self._space.budget, self._space.medium
        granted = budget.reserve(len(content), len(content))
        created = False
        # Before it is there: whatever happens right after it must not take its packs away.
        used = set(self.chunks.packs)
        self._space.packs.note_committed(used)
        try:
            created = medium.create(key_of_manifest(self._space.keys.tenant, self.name), content)
        finally:
            budget.settle(granted, granted if created else 0)
            if not created:
                self._space.packs.note_not_committed(used)
        if not created:
            raise Conflict(f"there is a snapshot {self.name} in {medium.where} already", hint="choose another name")

    def _after_commit(self, manifest: Manifest) -> None:
        """Where others share the place: was the right to write still there when the manifest came to be?"""
        if not self._space.medium.shared:
            return
        try:
            self._lease()
            self._space.packs.check_there(self.chunks.packs)
        except (Damaged, Busy):
            self._space.medium.delete(key_of_manifest(self._space.keys.tenant, manifest.name))
            raise

    # -- tasks -------------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        """Who waits for a buffer."""
        self.pipes.close()
        self.chunks.buffers.close()

    def _check(self) -> None:
        self._tasks.check()
        self.stop.check(self._what)

    def _submit(self, task: Callable[..., None], *arguments: Any) -> None:
        if self._over:
            raise ValueError(f"the writer of {self.name} is closed")
        self.stop.check(self._what)
        self._tasks.submit(task, *arguments)

    def _store_from_file(self, index: int, source: _SharedFile, offset: int, length: int) -> None:
        try:
            buffer = self.chunks.buffers.take()
            source.read(buffer.view[:length], offset)
        finally:
            source.drop()
        self._store(index, buffer.view[:length], buffer)

    def _store(self, index: int, view: memoryview, owner: Buffer | None) -> None:
        self.stop.check(self._what)
        length = view.nbytes
        stored = 0
        if is_zero(view):
            self.chunks.buffers.give(owner)
        else:
            chunk = self._space.keys.chunk_id(view)
            self._draft.put(index, chunk)
            if self.chunks.has(chunk):
                self.chunks.buffers.give(owner)
            else:
                stored = self.chunks.put(chunk, view, owner)
        self._meter.add(length, stored)


class _SharedFile:
    """A descriptor that several tasks read from; the last one closes it."""

    def __init__(self, fd: int, path: Path) -> None:
        self._fd = fd
        self._path = path
        self._holders = 1
        self._lock = threading.Lock()

    def hold(self) -> Self:
        with self._lock:
            self._holders += 1
        return self

    def drop(self) -> None:
        with self._lock:
            self._holders -= 1
            if self._holders == 0:
                os.close(self._fd)

    def read(self, view: memoryview, offset: int) -> None:
        while len(view):
            count = os.preadv(self._fd, [view], offset)
            if count == 0:
                raise BadInput(f"{self._path} became shorter while it was read")
            view = view[count:]
            offset += count


def _lengths(size: int) -> Iterator[int]:
    """Of each chunk."""
    while size > 0:
        yield min(size, CHUNK_BYTES)
        size -= CHUNK_BYTES
