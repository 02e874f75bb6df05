"""Cuts a file of pages where its content says, so that pages which come or go move only the cuts near them.

Cut every 2 MiB, a file in which one page appears early is a new one from there on. A process's memory is such a file: two dumps
of one that did nothing in between differ by a few pages, added ones among them. Here a page that ends a chunk is known by its
own sum, whatever stands before it; one in 64 is such a page. Pages stay whole, chunks have 64 KiB to 2 MiB, 320 KiB on average.
"""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from kybernate.model.errors import BadInput
from kybernate.model.types import CHUNK_BYTES

PAGE_BYTES = 4096
LEAST_PAGES = 16
"""A run of pages that all would end a chunk must not make a chunk of each."""
_MOST_PAGES = CHUNK_BYTES // PAGE_BYTES
_BLOCK_BYTES = 16 << 20
_MIXER = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(64 - 6)
"""One page in 2^6 ends a chunk."""


class Cutter:
    """Finds the cuts of a file of pages as its pages come."""

    def __init__(self) -> None:
        self._begun = 0
        """Pages seen since the last cut."""

    def cut(self, sums: NDArray[np.uint64]) -> list[int]:
        """Bytes of each chunk that ends within the next pages, of which these are the sums of their words."""
        # A page of zeros, of which there may be very many, has the sum 0 and must not end a chunk: hence the 1.
        mixed = (sums + np.uint64(1)) * _MIXER
        begun = -self._begun
        found = []
        for end in np.flatnonzero(mixed >> _SHIFT == 0).tolist():
            while end + 1 - begun > _MOST_PAGES:
                found.append(CHUNK_BYTES)
                begun += _MOST_PAGES
            if end + 1 - begun >= LEAST_PAGES:
                found.append((end + 1 - begun) * PAGE_BYTES)
                begun = end + 1
        while len(sums) - begun > _MOST_PAGES:
            found.append(CHUNK_BYTES)
            begun += _MOST_PAGES
        self._begun = len(sums) - begun
        return found

    @property
    def rest(self) -> int:
        """Bytes of the pages behind the last cut: at the end, the last chunk."""
        return self._begun * PAGE_BYTES


def cuts(fd: int, size: int) -> tuple[int, ...]:
    """Bytes of each chunk of a file of `size` bytes. Raises BadInput when it is shorter."""
    cutter = Cutter()
    found: list[int] = []
    buffer = bytearray(min(_BLOCK_BYTES, max(size, 1)))
    for start in range(0, size, _BLOCK_BYTES):
        wanted = min(_BLOCK_BYTES, size - start)
        _read(fd, memoryview(buffer)[:wanted], start)
        found += cutter.cut(sums(memoryview(buffer)[: wanted // PAGE_BYTES * PAGE_BYTES]))
    # A last page that isn't whole never ends a chunk.
    rest = cutter.rest + size % PAGE_BYTES
    if rest > CHUNK_BYTES:
        found.append(CHUNK_BYTES)
        rest -= CHUNK_BYTES
    return (*found, rest) if rest else tuple(found)


def sums(pages: memoryview) -> NDArray[np.uint64]:
    """Of each page, which are whole, its words."""
    words: NDArray[np.uint64] = np.frombuffer(pages, dtype="<u8")
    found: NDArray[np.uint64] = words.reshape(-1, PAGE_BYTES // 8).sum(axis=1, dtype=np.uint64)
    return found


def _read(fd: int, view: memoryview, offset: int) -> None:
    while len(view):
        count = os.preadv(fd, [view], offset)
        if count == 0:
            raise BadInput("a file became shorter while it was read")
        view = view[count:]
        offset += count
