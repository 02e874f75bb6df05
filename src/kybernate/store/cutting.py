"""Cuts a file of pages where its content says, so that pages which come or go move only the cuts near them.

Cut every 2 MiB, a file in which one page appears early is a new one from there on. A process's memory is such a file: two dumps
of one that did nothing in between differ by a few pages, added ones among them. Here a page that ends a chunk is known by its
own sum, whatever stands before it; one in 64 is such a page. Pages stay whole, chunks have 64 KiB to 2 MiB, 320 KiB on average.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

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


def cuts(fd: int, size: int) -> tuple[int, ...]:
    """Bytes of each chunk of a file of `size` bytes. Raises BadInput when it is shorter."""
    pages = -(-size // PAGE_BYTES)
    found = [*_lengths(_ends(fd, size), pages)]
    if found and size % PAGE_BYTES:
        found[-1] -= PAGE_BYTES - size % PAGE_BYTES
    return tuple(found)


def _ends(fd: int, size: int) -> Iterator[int]:
    """Numbers of the pages that end a chunk; the last one, if it isn't whole, never does."""
    buffer = bytearray(min(_BLOCK_BYTES, max(size, 1)))
    for start in range(0, size, _BLOCK_BYTES):
        wanted = min(_BLOCK_BYTES, size - start)
        _read(fd, memoryview(buffer)[:wanted], start)
        whole = wanted // PAGE_BYTES
        words: NDArray[np.uint64] = np.frombuffer(buffer, dtype="<u8", count=whole * PAGE_BYTES // 8)
        sums = words.reshape(whole, PAGE_BYTES // 8).sum(axis=1, dtype=np.uint64)
        # A page of zeros, of which there may be very many, has the sum 0 and must not end a chunk: hence the 1.
        mixed = (sums + np.uint64(1)) * _MIXER
        yield from (np.flatnonzero(mixed >> _SHIFT == 0) + start // PAGE_BYTES).tolist()


def _lengths(ends: Iterator[int], pages: int) -> Iterator[int]:
    begun = 0
    for end in ends:
        while end + 1 - begun > _MOST_PAGES:
            yield CHUNK_BYTES
            begun += _MOST_PAGES
        if end + 1 - begun >= LEAST_PAGES:
            yield (end + 1 - begun) * PAGE_BYTES
            begun = end + 1
    while pages > begun:
        yield min(_MOST_PAGES, pages - begun) * PAGE_BYTES
        begun = min(pages, begun + _MOST_PAGES)


def _read(fd: int, view: memoryview, offset: int) -> None:
    while len(view):
        count = os.preadv(fd, [view], offset)
        if count == 0:
            raise BadInput("a file became shorter while it was read")
        view = view[count:]
        offset += count
