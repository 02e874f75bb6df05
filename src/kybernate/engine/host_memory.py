"""The host memory of stored workloads, and what else is large of their processes: from CRIU into packs, and from packs to CRIU.

It passes through pipes (`process/bulk.py`), and is written once, as chunks: pages that the store has already aren't written
again. Only CRIU's small images lie in a directory meanwhile.
"""

from __future__ import annotations

from pathlib import Path

from kybernate.engine.stored import PROCESS
from kybernate.process import images
from kybernate.process.bulk import Taken, Zeros, holds_pages, is_bulk
from kybernate.process.images import TreeRecord
from kybernate.store import Damaged, Feeds, Manifest, Piped, SnapshotReader, SnapshotWriter


class IntoStore:
    """A dump's `Sink`."""

    def __init__(self, writer: SnapshotWriter) -> None:
        self._writer = writer
        self._found: dict[str, Piped] = {}

    def take(self, name: str, pipe: int) -> Taken:
        """See `Sink`. Raises what the store does: NoRoom, Cancelled, TierAway."""
        piped = self._writer.pipes.take(pipe, pages=holds_pages(name))
        self._found[name] = piped
        return Taken(piped.size, piped.zero)

    def forget(self) -> None:
        """See `Sink`. What is stored already and comes again isn't written again; the rest is garbage for a collection."""
        self._found.clear()

    def add(self) -> None:
        """To the snapshot, once the dump is whole."""
        for name, piped in sorted(self._found.items()):
            self._writer.pipes.add(_path(name), piped)


class FromStore:
    """A restore's `Source`."""

    def __init__(self, reader: SnapshotReader) -> None:
        self._feeds = Feeds(reader)

    def send(self, name: str, pipe: int, zeros: Zeros) -> None:
        """See `Source`. Raises what the store does: Damaged, Cancelled, TierAway."""
        self._feeds.send(_path(name), pipe, zeros=zeros)


def small_files(manifest: Manifest) -> list[str]:
    """Of the processes: what CRIU's directory has to have before it begins."""
    return [path for path in _files(manifest) if not is_bulk(path.removeprefix(_path("")))]


def large_files(manifest: Manifest) -> list[str]:
    """The others of the processes."""
    return [path for path in _files(manifest) if is_bulk(path.removeprefix(_path("")))]


def is_whole(manifest: Manifest, directory: Path) -> bool:
    """Whether those lie in `directory`, too."""
    return all((directory / path.removeprefix(_path(""))).exists() for path in large_files(manifest))


def verify(manifest: Manifest, directory: Path) -> TreeRecord:
    """Whether a dump is whole whose small files lie in `directory`.

    Raises:
        NotFound, BadInput: as `images.verify`. Damaged: what is large isn't there, or not as it was.
    """
    record = images.verify(directory, bulk_elsewhere=True)
    sizes = {file.path: file.size for file in manifest.files}
    for name, size in record.files.items():
        if is_bulk(name) and (found := sizes.get(_path(name))) != size:
            raise Damaged(f"snapshot {manifest.name} makes no sense: {name} has {found} bytes instead of {size}")
    return record


def _files(manifest: Manifest) -> list[str]:
    return [file.path for file in manifest.files if file.path.startswith(_path(""))]


def _path(name: str) -> str:
    """In a snapshot."""
    return f"{PROCESS}/{name}"
