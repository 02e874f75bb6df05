"""Memory that disks can write from and read into directly: views of foreign memory, and page-aligned buffers of our own.

Buffers are anonymous mappings, so that the memory goes back to the system when they are dropped.
"""

from __future__ import annotations

import ctypes
import mmap
import threading

import numpy as np

from kybernate.model.errors import Cancelled
from kybernate.model.types import CHUNK_BYTES

PAGE_BYTES = 4096
"""What O_DIRECT wants lengths, offsets and addresses to be a multiple of; no disk in use wants more."""
_SPARE_BYTES = 2 * PAGE_BYTES
"""Beyond a chunk: the cipher's tag, and the unaligned ends of what is read."""


def view_at(address: int, length_bytes: int) -> memoryview:
    """Memory that somebody else keeps alive, such as a pool's slot; writable."""
    return memoryview((ctypes.c_ubyte * length_bytes).from_address(address)).cast("B")


def address_of(view: memoryview) -> int:
    """Where a non-empty contiguous view lies."""
    return int(np.frombuffer(view, np.uint8).__array_interface__["data"][0])


def is_aligned(view: memoryview) -> bool:
    """Whether O_DIRECT takes it as it is."""
    return len(view) % PAGE_BYTES == 0 and address_of(view) % PAGE_BYTES == 0


def is_zero(view: memoryview) -> bool:
    """Whether every byte is zero. Looks at the first 64 bytes alone unless those are zero."""
    if view[:64].tobytes().strip(b"\0"):
        return False
    return not np.frombuffer(view, np.uint8).any()


def padded(length_bytes: int) -> int:
    """The next multiple of a page."""
    return -(-length_bytes // PAGE_BYTES) * PAGE_BYTES


class Buffer:
    """A page-aligned buffer. Unless told otherwise it holds a chunk, its tag and two pages more.

    Where a content is handed on, an argument `owner: Buffer | None` goes with it: whoever has the content last gives that
    buffer back to its pool. None is memory of the caller's, which stays as it is until all is written.
    """

    __slots__ = ("_map", "view")

    def __init__(self, size_bytes: int = CHUNK_BYTES + _SPARE_BYTES) -> None:
        self._map = mmap.mmap(-1, size_bytes)
        self.view = memoryview(self._map)

    def close(self) -> None:
        """Give the memory back at once. Nothing else may hold a part of it."""
        self.view.release()
        self._map.close()


class BufferPool:
    """At most `maximum` buffers, made when first needed, reused, freed by `close`. Thread-safe."""

    def __init__(self, maximum: int, size_bytes: int = CHUNK_BYTES + _SPARE_BYTES) -> None:
        self._free: list[Buffer] = []
        self._unmade = maximum
        self._size_bytes = size_bytes
        self._changed = threading.Condition()
        self._closed = False

    def take(self) -> Buffer:
        """Waits until one is free. Raises Cancelled once the pool is closed."""
        with self._changed:
            while not self._free:
                if self._closed:
                    raise Cancelled("the step was given up")
                if self._unmade:
                    self._unmade -= 1
                    return Buffer(self._size_bytes)
                self._changed.wait()
            return self._free.pop()

    def give(self, owner: Buffer | None) -> None:
        """Give a buffer back. None: the memory is the caller's own, and nothing is to be done."""
        if owner is None:
            return
        with self._changed:
            if self._closed:
                return
            self._free.append(owner)
            self._changed.notify()

    def close(self) -> None:
        """Drop the buffers that nobody has; those given back later are dropped then."""
        with self._changed:
            self._closed = True
            self._free.clear()
            self._changed.notify_all()
