"""Begins what reads or writes one snapshot of a space: the one place that knows both the space and its readers and writers.

with open_writer(space, "train-1") as writer: ...
with open_reader(space, "train-1") as reader: ...
"""

from __future__ import annotations

from kybernate.model.errors import Conflict
from kybernate.model.progress import ProgressCallback
from kybernate.model.snapshot_names import snapshot_name
from kybernate.store.reading import SnapshotReader
from kybernate.store.spaces import Space
from kybernate.store.writing import SnapshotWriter


def open_writer(
    space: Space, name: str, *, total: int | None = None, progress: ProgressCallback | None = None
) -> SnapshotWriter:
    """Begin a snapshot; use it as a context manager.

    Args:
        total: bytes of content to come, for the progress.

    Raises:
        BadInput: a bad name. Conflict: it is taken. Busy: another agent collects garbage there.
    """
    checked = snapshot_name(name)
    if space.has_manifest(checked):
        raise Conflict(f"there is a snapshot {name} in {space.medium.where} already", hint="choose another name")
    lease = space.leases.acquire() if space.medium.shared else None
    try:
        if lease is not None:
            space.packs.refresh()
        return SnapshotWriter(
            space,
            checked,
            total=total,
            progress=progress,
            lease=lease.check if lease is not None else _nothing,
            closed=lease.release if lease is not None else _nothing,
        )
    except BaseException:
        if lease is not None:
            lease.release()
        raise


def open_reader(space: Space, name: str, *, progress: ProgressCallback | None = None) -> SnapshotReader:
    """Open a snapshot; use it as a context manager. Raises NotFound, Damaged, TooNew, WrongKey."""
    return SnapshotReader(space, space.manifest(name), progress=progress)


def _nothing() -> None:
    """Where nobody else writes, no lease is needed."""
