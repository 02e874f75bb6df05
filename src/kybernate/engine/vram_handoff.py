"""VRAM on its way from one workload to another: what the one has freed and the other not yet taken."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from kybernate.model.errors import NoRoom
from kybernate.model.types import GpuUuid


class VramHandoff:
    """A count of free bytes for each GPU, given by one thread and taken by others."""

    def __init__(self, spare: Mapping[GpuUuid, int]) -> None:
        """`spare`: bytes that may be taken from the start."""
        self._free = dict(spare)
        self._changed = threading.Condition()
        self._closed = False
        self._error: BaseException | None = None

    def give(self, gpu: GpuUuid, size: int) -> None:
        with self._changed:
            self._free[gpu] = self._free.get(gpu, 0) + size
            self._changed.notify_all()

    def take(self, gpu: GpuUuid, size: int) -> None:
        """Block until `size` bytes are there, and take them.

        Raises:
            NoRoom: no more will come.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._free.get(gpu, 0) >= size or self._closed or self._error is not None)
            if self._free.get(gpu, 0) < size:
                raise NoRoom(
                    f"{size} bytes of VRAM are needed and {self._free.get(gpu, 0)} became free"
                    + (f": {self._error}" if self._error else "")
                ) from self._error
            self._free[gpu] -= size

    def close(self) -> None:
        """No more will come."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """No more will come, because of this."""
        with self._changed:
            self._error = error
            self._changed.notify_all()
