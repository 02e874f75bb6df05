"""The small images of stored workloads' processes, extracted into files for CRIU; once for all clones of one snapshot."""

from __future__ import annotations

import errno
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from kybernate.engine import host_memory
from kybernate.engine.stored import PROCESS
from kybernate.model.cancelling import Cancellation
from kybernate.model.errors import Busy, KybernateError
from kybernate.model.progress import ProgressCallback
from kybernate.store import Manifest, Space, open_reader

FULL = (errno.ENOSPC, errno.EDQUOT)
"""A disk that has no room."""


@dataclass(slots=True)
class _Entry:
    turn: threading.Lock = field(default_factory=threading.Lock)
    directory: Path | None = None
    whole: bool = False
    """Everything is there, what is large, too."""
    users: int = 0
    kept: bool = False


class Extracted:
    """Below one directory, by the snapshots' uids. Thread-safe."""

    def __init__(self, scratch: Path) -> None:
        """What a dead agent left in `scratch` is deleted."""
        self.scratch = scratch
        scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in scratch.iterdir():
            shutil.rmtree(path, ignore_errors=True)
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}

    @contextmanager
    def using(
        self,
        space: Space,
        manifest: Manifest,
        *,
        keep: bool,
        progress: ProgressCallback | None = None,
        cancel: Cancellation | None = None,
    ) -> Iterator[Path]:
        """The directory of a snapshot's small images, for the block; with `keep` it stays until `drop`.

        With `keep` of a snapshot that lies far away, what is large is in it, too (`is_whole`): else each clone would fetch it.

        Raises:
            Damaged, TierAway, Cancelled: the store's. BadInput, NotFound: it holds no whole dump.
        """
        with self._lock:
            entry = self._entries.setdefault(manifest.uid, _Entry())
            entry.users += 1
        try:
            with entry.turn:
                whole = keep and space.medium.shared
                if entry.directory is not None and whole and not entry.whole:  # adopted: its memory went there alone
                    self._extract_into(
                        entry.directory, space, manifest, host_memory.large_files(manifest), progress, cancel
                    )
                    entry.whole = True
                if entry.directory is None:
                    entry.directory = self._extract(space, manifest, whole, progress, cancel)
                    entry.whole = whole
            if keep:
                entry.kept = True
            yield entry.directory / PROCESS
        finally:
            self._release(manifest.uid, entry)

    def adopt(self, uid: str, directory: Path) -> None:
        """Keep images that lie below `directory` as `using` would have extracted them, until `drop`. It is theirs from now on."""
        with self._lock:
            known = uid in self._entries
            if not known:
                self._entries[uid] = _Entry(directory=directory, kept=True)
        if known:  # somebody was quicker
            shutil.rmtree(directory, ignore_errors=True)

    def drop(self, uid: str) -> None:
        """Delete them once nobody uses them."""
        with self._lock:
            entry = self._entries.get(uid)
            if entry is None:
                return
            entry.kept = False
            entry.users += 1
        self._release(uid, entry)

    def close(self) -> None:
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _release(self, uid: str, entry: _Entry) -> None:
        with self._lock:
            entry.users -= 1
            if entry.users or (entry.kept and entry.directory is not None):
                return
            if self._entries.get(uid) is entry:
                del self._entries[uid]
        if entry.directory is not None:
            shutil.rmtree(entry.directory, ignore_errors=True)

    def _extract(
        self,
        space: Space,
        manifest: Manifest,
        whole: bool,
        progress: ProgressCallback | None,
        cancel: Cancellation | None,
    ) -> Path:
        try:
            directory = Path(tempfile.mkdtemp(prefix="revive-", dir=self.scratch))
        except OSError as e:
            raise _in_our_words(manifest, self.scratch, e) from e
        wanted = host_memory.small_files(manifest) + (host_memory.large_files(manifest) if whole else [])
        try:
            self._extract_into(directory, space, manifest, wanted, progress, cancel)
            host_memory.verify(manifest, directory / PROCESS)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        return directory

    def _extract_into(
        self,
        directory: Path,
        space: Space,
        manifest: Manifest,
        paths: Sequence[str],
        progress: ProgressCallback | None,
        cancel: Cancellation | None,
    ) -> None:
        try:
            with (
                open_reader(space, manifest.name, progress=progress) as reader,
                cancel.forwarded_to(reader.cancel) if cancel is not None else nullcontext(),
            ):
                reader.extract(directory, paths)
        except OSError as error:
            raise _in_our_words(manifest, self.scratch, error) from error


def _in_our_words(manifest: Manifest, scratch: Path, error: OSError) -> KybernateError:
    text = f"the processes' images of {manifest.name} can't be written to {scratch}: {error.strerror}"
    if error.errno in FULL:  # no fault of the snapshot, which must not be taken for lost
        return Busy(text, hint="make room on that disk, and try again")
    return KybernateError(text)
