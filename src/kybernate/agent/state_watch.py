"""The agent's own directory: noticed when its file system is full, its logs kept within their bounds.

It lies on a tmpfs by default, which programs' output, core files or other people's files may fill. Then nothing can be started or
remembered: that is an event, shows in `doctor` and the metrics, and is tried again until there is room.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

from kybernate.agent.records.database import Database
from kybernate.agent.records.events import Events
from kybernate.model.api import StateView
from kybernate.model.layout import StateDirectory
from kybernate.model.quantities import format_size
from kybernate.model.types import MIB
from kybernate.process import output

_LOOK_S = 1.0
FULL_BYTES = 2 * MIB
"""Less than this is full: a workload's start takes some files, a worker's counters half of it."""
_ENOUGH_BYTES = 4 * MIB
"""With so much it isn't any more: it must not flicker."""
_FULL_FILES = 16
_LARGEST_SHOWN = 3


class StateWatch:
    """`run` is a task's body. Use it in the loop's thread."""

    def __init__(
        self, *, state: StateDirectory, database: Database, events: Events, log_bytes: int, bounded: tuple[Path, ...]
    ) -> None:
        """
        Args:
            log_bytes: what each log may take.
            bounded: logs of others that write on while their oldest part is given back.
        """
        self._state = state
        self._database = database
        self._events = events
        self._log_bytes = log_bytes
        self._bounded = bounded
        self._view: StateView | None = None

    async def run(self) -> None:
        """Ends by cancellation."""
        while True:
            self.check()
            await asyncio.sleep(_LOOK_S)

    def view(self) -> StateView | None:
        return self._view

    def check(self) -> None:
        """Raises OSError where the directory itself is gone."""
        rotate_own(self._state.log, self._log_bytes // 2)
        for path in self._bounded:
            with contextlib.suppress(OSError):
                _bound(path, self._log_bytes)
        before, self._view = self._view, self._measure()
        self._database.retry()
        if self._view.problem is not None and (before is None or before.problem is None):
            self._events.record("state-full", self._view.problem, data={"free_bytes": self._view.free_bytes})
        elif self._view.problem is None and before is not None and before.problem is not None:
            free = format_size(self._view.free_bytes)
            self._events.record("state-room", f"there is room in {self._state.root} again: {free} free")

    def _measure(self) -> StateView:
        found = os.statvfs(self._state.root)
        total, free = found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
        was_full = self._view is not None and self._view.problem is not None
        few_files = found.f_files > 0 and found.f_favail < _FULL_FILES
        if free >= (_ENOUGH_BYTES if was_full else FULL_BYTES) and not few_files:
            return StateView(total_bytes=total, free_bytes=free)
        if was_full:
            assert self._view is not None
            return self._view.model_copy(update={"free_bytes": free})
        left = f"{found.f_favail} files" if few_files else f"{format_size(free)} of {format_size(total)}"
        problem = (
            f"the agent's directory {self._state.root} is full ({left} left): nothing can be started or remembered"
        )
        if largest := _largest(self._state.root):
            problem += f"; its largest: {largest}"
        return StateView(total_bytes=total, free_bytes=free, problem=problem)


def _largest(root: Path) -> str:
    """Files of that file system, the largest first, for people."""
    device = root.stat().st_dev
    found: list[tuple[int, str]] = []
    for place, directories, files in os.walk(root):
        directories[:] = [name for name in directories if _device(Path(place, name)) == device]
        for name in files:
            with contextlib.suppress(OSError):
                path = Path(place, name)
                found.append((path.lstat().st_blocks * 512, str(path.relative_to(root))))
    largest = sorted(found, reverse=True)[:_LARGEST_SHOWN]
    return ", ".join(f"{name} {format_size(size)}" for size, name in largest if size >= MIB)


def _device(path: Path) -> int:
    try:
        return path.lstat().st_dev
    except OSError:
        return -1


def _bound(path: Path, most: int) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        output.bound(descriptor, most)
    finally:
        os.close(descriptor)


def rotate_own(path: Path, most: int, *, descriptors: tuple[int, ...] = (1, 2)) -> bool:
    """Go on in a new file where this process writes into `path` and has written more than `most` bytes; the old one stays
    beside it as NAME.1. Returns whether it did.

    Args:
        descriptors: of this process, by which it may write there.
    """
    try:
        there = path.stat()
    except OSError:
        return False
    mine = [number for number in descriptors if _same(number, there)]
    if not mine or there.st_size <= most:
        return False
    old = path.with_name(f"{path.name}.1")
    try:
        path.replace(old)
        new = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError:
        # No room for a name: what there is begins anew rather than growing on.
        with contextlib.suppress(OSError):
            os.ftruncate(mine[0], 0)
        return False
    try:
        for number in mine:
            os.dup2(new, number)
    finally:
        os.close(new)
    return True


def _same(descriptor: int, there: os.stat_result) -> bool:
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (there.st_dev, there.st_ino)
